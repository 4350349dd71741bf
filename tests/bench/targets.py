"""What nodes call while they are measured: a process of its own that answers a GET at once and a chat in 20 ms.

GET  /                     {"ok": true}
POST /v1/chat/completions  50 tokens in ten pieces, the last one after CHAT_SECONDS; streamed where asked for

Run as `python -m tests.bench.targets PORT_FILE`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import uvloop

from tests.bench.client import Connection
from tests.support.waiting import await_until

MODEL = "bench"
CHAT_SECONDS = 0.020
_PIECES, _TOKENS = 10, 5
_USAGE = {"prompt_tokens": 5, "completion_tokens": _PIECES * _TOKENS, "total_tokens": 5 + _PIECES * _TOKENS}
_TEXT = "word " * _TOKENS


@asynccontextmanager
async def running_targets(folder: Path) -> AsyncIterator[int]:
    """Run them for the time of the context; yields their port on 127.0.0.1."""
    port_file = folder / "port"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.targets", str(port_file))
    try:
        await await_until(port_file.exists, within=30)
        yield int(port_file.read_text())
    finally:
        process.kill()
        await process.wait()


async def chat_directly(port: int, times: int) -> list[float]:
    """Seconds that a chat takes without anything between."""
    took = []
    async with Connection(f"http://127.0.0.1:{port}") as connection:
        for _ in range(times):
            began = time.perf_counter()
            await connection.request("POST", "/v1/chat/completions", {"model": MODEL, "messages": []})
            took.append(time.perf_counter() - began)
    return took


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
            asked = orjson.loads(await reader.readexactly(length)) if length else {}
            if head.startswith(b"get "):
                writer.write(_answer({"ok": True}))
            elif asked.get("stream"):
                await _stream(writer)
            else:
                await asyncio.sleep(CHAT_SECONDS)
                writer.write(_answer(_chat("chat.completion", message={"role": "assistant", "content": _TEXT * 10})))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _stream(writer: asyncio.StreamWriter) -> None:
    began = asyncio.get_running_loop().time()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(1, _PIECES + 1):
        await asyncio.sleep(began + number * CHAT_SECONDS / _PIECES - asyncio.get_running_loop().time())
        delta = {"role": "assistant", "content": _TEXT}
        end = "stop" if number == _PIECES else None
        writer.write(_event(orjson.dumps(_chat("chat.completion.chunk", delta=delta, finish_reason=end))))
    writer.write(_event(b"[DONE]") + b"0\r\n\r\n")


def _chat(kind: str, finish_reason: str | None = "stop", **content: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish_reason, "logprobs": None, **content}
    usage = _USAGE if finish_reason else None
    return {"id": "chat", "object": kind, "created": 1, "model": MODEL, "choices": [choice], "usage": usage}


def _answer(body: object) -> bytes:
    data = orjson.dumps(body)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


def _event(data: bytes) -> bytes:
    event = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(event), event)


async def main(port_file: Path) -> None:
    """Serve on a free port and write it to a file."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=1024)
    part = port_file.with_suffix(".part")
    part.write_text(str(server.sockets[0].getsockname()[1]))
    part.rename(port_file)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1])))
