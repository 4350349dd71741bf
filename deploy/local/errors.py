"""Why the stack cannot start, each as a sentence for the person at the terminal."""

from __future__ import annotations

from pathlib import Path


class StackError(Exception):
    """The stack cannot start or go on; the message says what is wrong and what to do about it."""


class ProcessFailedError(StackError):
    """A process of the stack ended, or kept ending, before it was healthy."""

    def __init__(self, name: str, *, what: str, log: Path) -> None:
        super().__init__(f"{name} {what}. The last lines of {log}:\n{last_lines(log)}")
        self.name = name
        self.log = log


def last_lines(log: Path, count: int = 15) -> str:
    """Return the last `count` lines of a log, indented; says so when there are none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            lines = file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        lines = []
    return "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"
