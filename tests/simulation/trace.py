"""What happened, as a hash of all of it and the last lines in full."""

from __future__ import annotations

import hashlib
from collections import Counter, deque

from tests.simulation.loop import Loop


class Violation(Exception):
    """A promise was broken. `invariant` names it."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


class Trace:
    """Lines with the step and the time at which they were written."""

    def __init__(self, loop: Loop, *, lines: int = 60) -> None:
        self._loop = loop
        self._hash = hashlib.blake2b(digest_size=12)
        self.last: deque[str] = deque(maxlen=lines)
        self.counts: Counter[str] = Counter()
        """Faults by kind."""

    def note(self, line: str) -> None:
        """Write a line."""
        text = f"{self._loop.steps:6} {self._loop.now:9.4f} {line}"
        self._hash.update(text.encode())
        self.last.append(text)

    def fault(self, kind: str, line: str = "") -> None:
        """Write a line about a fault, and count it."""
        self.counts[kind] += 1
        self.note(f"! {kind} {line}")

    @property
    def digest(self) -> str:
        """The hash of all lines."""
        return self._hash.hexdigest()
