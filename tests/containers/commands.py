"""Programs that the check runs, with what they say in a log."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


class CheckError(Exception):
    """The check cannot go on, or has found something wrong; the message says what."""


@dataclass(frozen=True)
class Commands:
    """Runs programs with one environment; what they print goes to `log`."""

    log: Path
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(self, *command: str | Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
        """Run to the end; returns what was printed. Raises CheckError with the last lines of it."""
        with self.log.open("a+") as log:
            log.write(f"\n$ {' '.join(map(str, command))}\n")
            log.flush()
            began = log.tell()
            done = subprocess.run(
                command, cwd=cwd, env=self.environ | dict(environ or {}), stdout=log, stderr=log, check=False
            )
            log.seek(began)
            said = log.read()
        if done.returncode:
            last = "\n".join(said.splitlines()[-40:])
            raise CheckError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{last}")
        return said


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is done, and in the end how long it took."""
    began = time.monotonic()
    print(f"{title} ...", flush=True)
    yield
    print(f"  {time.monotonic() - began:.1f} s", flush=True)
