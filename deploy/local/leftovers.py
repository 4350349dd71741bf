"""Processes that an earlier launcher of the same home left behind, found by the mark in their environment.

The mark is inherited, so a service's own children carry it too. PostgreSQL overwrites its environment and is found
by `postmaster.pid` instead (`deploy.local.postgres`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

_MARK = "HEADRACE_STACK_HOME"
_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL: nobody waits for their answers any more."""


def marked(env: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the environment with the mark of this home's stack."""
    return {**env, _MARK: str(home)}


def stop_leftovers(home: Path) -> int:
    """Stop every process of this home's stack; return how many there were. The caller holds the home's lock."""
    myself = psutil.Process()
    spared = {myself.pid, *(parent.pid for parent in myself.parents())}
    found = [process for process in psutil.process_iter() if process.pid not in spared and _is_marked(process, home)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=_GRACE)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_GRACE)
    return len(found)


def _is_marked(process: psutil.Process, home: Path) -> bool:
    try:
        if process.uids().real != os.getuid():
            return False
        return process.environ().get(_MARK) == str(home)
    except (psutil.Error, OSError):
        return False
