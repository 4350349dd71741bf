"""What the person at the terminal sees: a table that fills while the stack starts, then sentences.

Without a terminal (a pipe, CI) every event is one plain line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.local.processes import KeptProcess, State

_COLOURS = {State.READY: "green", State.RESTARTING: "yellow", State.UNHEALTHY: "red", State.STOPPED: "dim"}


class StackConsole:
    """The launcher's voice. `quiet` leaves only problems."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.rich = console or Console(highlight=False)
        self._quiet = quiet
        self._live: Live | None = None
        self._rows: dict[str, RenderableType] = {}

    def say(self, text: str) -> None:
        """Print a line of news."""
        if not self._quiet:
            self.rich.print(text, markup=False, soft_wrap=True)

    def problem(self, text: str) -> None:
        """Print what went wrong; never silenced."""
        self.rich.print(Text(text, style="bold red" if self.rich.is_terminal else ""), soft_wrap=True)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Show the start as it happens, for as long as the context lasts."""
        if self._quiet or not self.rich.is_terminal:
            yield
            return
        with Live(console=self.rich, get_renderable=self._table, refresh_per_second=8) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def step(self, name: str, seconds: float | None = None) -> None:
        """Show a step that is not a process: under way without `seconds`, done after so many with them."""
        if seconds is None:
            self._show(name, "under way", Spinner("dots", text="under way"))
        else:
            self._show(name, f"done after {seconds:.1f} s", Text(f"✓ {seconds:.1f} s", style="green"))

    def process_changed(self, process: KeptProcess) -> None:
        """Show a process's new state."""
        seconds = time.monotonic() - process.started_at
        words = {
            State.STARTING: "starting",
            State.READY: f"ready after {seconds:.1f} s",
            State.UNHEALTHY: "does not answer its health check",
            State.RESTARTING: f"ended ({process.last_exit}); starting it again",
            State.STOPPED: "stopped",
        }[process.state]
        mark: RenderableType = Text(words, style=_COLOURS.get(process.state, ""))
        if process.state is State.STARTING:
            mark = Spinner("dots", text=words)
        elif process.state is State.READY:
            mark = Text(f"✓ {seconds:.1f} s", style="green")
        self._show(process.program.name, words, mark)

    def ready(self, *, gateway: str, email: str, password: str | None, home: str, seconds: float) -> None:
        """Say where everything is. `password` only when the administrator is new: it is shown once."""
        home = escape(home)
        login = f"password {password}" if password else f"password in {home}/stack.json"
        for line in (
            f"[bold]Headrace is ready[/] after {seconds:.1f} s.",
            f"  API           {gateway}/api/v1   documentation: {gateway}/docs",
            f"  admin login   {email}   {login}",
            f"  processes     {home}/stack.json   logs: {home}/logs",
        ):
            if not self._quiet:
                self.rich.print(line, soft_wrap=True)

    def _show(self, name: str, words: str, mark: RenderableType) -> None:
        if self._quiet:
            return
        self._rows[name] = mark
        if self._live is None:
            self.rich.print(f"  {name:<18} {words}", markup=False, soft_wrap=True)

    def _table(self) -> RenderableType:
        table = Table(box=rich.box.SIMPLE, show_header=False, pad_edge=False)
        for name, mark in self._rows.items():
            table.add_row(name, mark)
        return table
