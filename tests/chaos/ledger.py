"""The independent witness: a process of its own that records every effect asked of it, and is never killed.

POST /effects        records the effect, then answers 200
POST /effects/slow   the same, and answers after SLOW_SECONDS
POST /effects/error  records the effect; the first answer to a key is a 500
POST /effects/close  records the effect; the first answer to a key is a closed connection

The file is append-only, one JSON object per attempt, flushed to disk before the answer. An attempt has the effect
unless one with the same `Idempotency-Key` had it before; without a key every attempt has it.

Run as `python ledger.py FILE PORT_FILE [HOST PORT]`; uses nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLOW_SECONDS = 0.3


class Ledger:
    """Attempts in a file, in the order in which they were recorded."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab")
        self._lock = threading.Lock()
        self._attempts: dict[str, int] = {}

    def record(self, key: str | None, body: object) -> int:
        """Record an attempt durably; which one of its key it is, from 1."""
        with self._lock:
            attempt = 1
            if key is not None:
                attempt = self._attempts[key] = self._attempts.get(key, 0) + 1
            line = {"at": time.time(), "key": key, "attempt": attempt, "effect": attempt == 1, "body": body}
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            return attempt


def handler(ledger: Ledger) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            attempt = ledger.record(self.headers.get("Idempotency-Key"), body)
            mode = self.path.rpartition("/")[2]
            if mode == "close" and attempt == 1:
                self.close_connection = True
                return
            if mode == "slow":
                time.sleep(SLOW_SECONDS)
            self._answer(500 if mode == "error" and attempt == 1 else 200, {"attempt": attempt})

        def _answer(self, status: int, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """The file says it all."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is what this is for."""


def main() -> None:
    """Serve, on a free port of 127.0.0.1 unless told where, and write the port to PORT_FILE."""
    file, port_file = map(Path, sys.argv[1:3])
    host, port = sys.argv[3:] or ("127.0.0.1", "0")
    server = _Server((host, int(port)), handler(Ledger(file)))
    part = port_file.with_suffix(".part")
    part.write_text(str(server.server_address[1]))
    part.rename(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
