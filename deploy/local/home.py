"""The folder that holds everything one local stack keeps: data, logs, secrets, stack.json."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

from deploy.local.errors import StackError

NEEDED_FREE = 1024**3
"""Bytes that must be free to start: less, and PostgreSQL would stop in the middle of its work."""


class Home:
    """One stack's folder, locked: no two launchers ever share it. The kernel drops the lock when the holder dies."""

    def __init__(self, path: Path) -> None:
        """Make the folder where needed and lock it.

        Raises:
            StackError: another launcher holds it, it cannot be written, or the disk is nearly full.
        """
        self.path = path.expanduser().resolve()
        try:
            # PostgreSQL's own user, where there is one, passes through; every secret in it has a mode of its own.
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StackError(
                f"{self.path} cannot be used ({error.strerror}). Choose another folder with HEADRACE_HOME."
            ) from error
        self._take_lock()
        free = shutil.disk_usage(self.path).free
        if free < NEEDED_FREE:
            self.close()
            raise StackError(
                f"Only {free // 1024**2} MiB are free on the disk that holds {self.path}; {NEEDED_FREE // 1024**2} MiB "
                "are needed. Make room, or choose a folder on another disk with HEADRACE_HOME."
            )

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def stack_file(self) -> Path:
        return self.path / "stack.json"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StackError(
                    f"{self.path} cannot be locked ({error.strerror}): is it on a network disk?"
                ) from error
            raise StackError(
                f"Another launcher (process {holder}) already runs the stack in {self.path}. "
                "Stop it first, or give this one a folder of its own with HEADRACE_HOME."
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
