"""Which TCP ports of 127.0.0.1 a stack uses: found free once, kept across restarts, never shared by two stacks.

A stack owns a block of consecutive ports and listens on the first of them, the guard, for as long as it lives: two
launchers can therefore not hold the same block, whoever runs them, and no file outside the home is needed. The
blocks lie below the range from which Linux and macOS take the local ports of outgoing connections (32768 and 49152
up), so that a port is still free when a process comes back to it.
"""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.files import write_private

LOWEST, HIGHEST = 20_000, 32_000
BLOCK = 100


class Ports:
    """The ports of one stack, each with a name. Holds the guard socket until `close`."""

    def __init__(self, file: Path) -> None:
        """Take the block that `file` names if it is still free, else another one.

        Raises:
            StackError: no block is free.
        """
        self._file = file
        self._names: dict[str, int] = {}
        kept = self._read()
        blocks = list(range(LOWEST, HIGHEST, BLOCK))
        random.shuffle(blocks)
        for base in [*kept, *blocks]:
            needed = self._names.values() if base in kept else range(1, BLOCK)
            guard = _listen(base)
            if guard is None:
                continue
            if all(is_free(base + offset) for offset in needed):
                self._guard, self._base = guard, base
                return
            guard.close()
        raise StackError(f"No {BLOCK} consecutive free ports between {LOWEST} and {HIGHEST} on 127.0.0.1.")

    def of(self, name: str) -> int:
        """Return the port with that name: the same one as long as the block is the same."""
        if name not in self._names:
            offset = max(self._names.values(), default=0) + 1
            if offset >= BLOCK:
                raise StackError(f"This stack has more than {BLOCK - 1} ports; start fewer replicas.")
            self._names[name] = offset
            write_private(self._file, json.dumps({"base": self._base, "names": self._names}, indent=1))
        return self._base + self._names[name]

    def close(self) -> None:
        """Let another stack have the block."""
        self._guard.close()

    def _read(self) -> list[int]:
        try:
            kept = json.loads(self._file.read_text())
            self._names = {str(name): int(offset) for name, offset in kept["names"].items()}
            return [int(kept["base"])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._names = {}  # absent, or not ours to repair: ports may change, nothing else hangs on the file
            return []


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    taken = _listen(port)
    if taken is None:
        return False
    taken.close()
    return True


def _listen(port: int) -> socket.socket | None:
    """Return a listening socket, or None when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # What has just been closed counts as free; a port that somebody listens on does not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(1)
    except OSError:
        listener.close()
        return None
    return listener
