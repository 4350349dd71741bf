"""A ledger that runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import await_until


@dataclass(frozen=True)
class LedgerProcess:
    """Where it records, and where it listens."""

    file: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/effects"


@asynccontextmanager
async def running_ledger(folder: Path) -> AsyncIterator[LedgerProcess]:
    """Run a ledger in a process of its own; that it dies is an error, for nothing else can say what happened."""
    file, port_file = folder / "ledger.jsonl", folder / "port"
    program = Path(__file__).with_name("ledger.py")
    process = await asyncio.create_subprocess_exec(sys.executable, str(program), str(file), str(port_file))
    try:
        await await_until(port_file.exists, within=30)
        yield LedgerProcess(file, int(port_file.read_text()))
        assert process.returncode is None, "the ledger has died"
    finally:
        process.kill()
        await process.wait()
