"""The ledger's process, and a summary of what the faults did."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chaos.ledger_process import LedgerProcess, running_ledger


@pytest.fixture(scope="module")
async def ledger(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LedgerProcess]:
    async with running_ledger(tmp_path_factory.mktemp("ledger")) as running:
        yield running


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
