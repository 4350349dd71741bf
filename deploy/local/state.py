"""stack.json: what runs where, for tools, tests and fault injection. Rewritten whole at every change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploy.local.files import write_private
from deploy.local.processes import KeptProcess


def write_stack_file(
    file: Path, *, gateway: str, ready: bool, admin: dict[str, str], processes: Iterable[KeptProcess | dict[str, Any]]
) -> None:
    """Write the state of the stack; a reader sees the old file or the new one.

    A process that is down at the moment has `"pid": null`. `launcher` is the process that keeps the others.
    """
    content = {
        "gateway": gateway,
        "ready": ready,
        "launcher": os.getpid(),
        "admin": admin,
        "processes": [entry if isinstance(entry, dict) else _entry(entry) for entry in processes],
    }
    write_private(file, json.dumps(content, indent=1))


def _entry(process: KeptProcess) -> dict[str, Any]:
    program = process.program
    return {
        "service": program.service,
        "replica": program.replica,
        "pid": process.pid,
        "state": str(process.state),
        "log": str(program.log),
        **program.facts,
    }
