"""The ledger's process, and a summary of what the faults did."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.ledger_process import LedgerProcess
from tests.support.waiting import await_until


@pytest.fixture(scope="module")
async def ledger(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LedgerProcess]:
    folder = tmp_path_factory.mktemp("ledger")
    file, port_file = folder / "ledger.jsonl", folder / "port"
    program = Path(__file__).with_name("ledger.py")
    process = await asyncio.create_subprocess_exec(sys.executable, str(program), str(file), str(port_file))
    try:
        await await_until(port_file.exists, within=30)
        yield LedgerProcess(file, int(port_file.read_text()))
        assert process.returncode is None, "the ledger must not die: nothing else can say what happened"
    finally:
        process.kill()
        await process.wait()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures of each pass, wherever it ran."""
    lines = [
        f"{report.head_line}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "chaos"
    ]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
