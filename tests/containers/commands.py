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

    def run(self, *command: str | Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        """Run to the end. Raises CheckError with the last lines it printed."""
        with self.log.open("a+") as log:
            log.write(f"\n$ {' '.join(map(str, command))}\n")
            log.flush()
            began = log.tell()
            done = subprocess.run(
                command, cwd=cwd, env=self.environ | dict(environ or {}), stdout=log, stderr=log, check=False
            )
            if done.returncode:
                log.seek(began)
                said = "".join(log.readlines()[-40:])
                raise CheckError(
                    f"{command[0]} {command[1] if len(command) > 1 else ''} ended with {done.returncode}:\n{said}"
                )

    def last_line(self) -> str:
        """The last line that was printed."""
        return self.log.read_text().rstrip().rpartition("\n")[2]


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is done, and in the end how long it took."""
    began = time.monotonic()
    print(f"{title} ...", flush=True)
    yield
    print(f"  {time.monotonic() - began:.1f} s", flush=True)
