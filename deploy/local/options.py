"""What can be said to `python -m deploy.local` by argument and by environment."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.backends import GivenBackends
from deploy.local.errors import StackError
from deploy.local.services import SERVICES
from deploy.local.stack import StackSettings


@dataclass(frozen=True, kw_only=True)
class Options:
    """The launcher's choices; the stack's own are in `settings`."""

    home: Path
    once: bool
    sample: bool
    quiet: bool
    settings: StackSettings


def parse_options(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read arguments and environment.

    Raises:
        StackError: a value makes no sense. SystemExit: for `--help` and unknown arguments.
    """
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local",
        description="Start Headrace with real PostgreSQL, NATS and models on this machine, run the sample, serve.",
        epilog="Environment: HEADRACE_HOME, HEADRACE_GATEWAY_PORT, HEADRACE_POSTGRES_URL, HEADRACE_NATS_URL, "
        "HEADRACE_LLM_MODELS, HEADRACE_LLM_MODELS_FILE, HEADRACE_EGRESS_ALLOW, HEADRACE_LOG_LEVEL.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="stop after the sample, and exit with its code")
    what.add_argument("--no-sample", action="store_true", help="only serve")
    parser.add_argument("--replicas", default="", metavar="SERVICE=N,...", help="e.g. executor=2,worker=2")
    parser.add_argument("--home", type=Path, help="folder for data, logs and stack.json (default: .headrace)")
    parser.add_argument("--quiet", action="store_true", help="say only what goes wrong")
    given = parser.parse_args(arguments)
    return Options(
        home=given.home or Path(environ.get("HEADRACE_HOME") or ".headrace"),
        once=given.once,
        sample=not given.no_sample,
        quiet=given.quiet,
        settings=StackSettings(
            replicas=_replicas(given.replicas),
            gateway_port=_port(environ.get("HEADRACE_GATEWAY_PORT", "")),
            given=GivenBackends(
                postgres_url=environ.get("HEADRACE_POSTGRES_URL") or None,
                nats_url=environ.get("HEADRACE_NATS_URL") or None,
            ),
            environ=environ,
        ),
    )


def _replicas(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        service, _, count = entry.partition("=")
        if service not in SERVICES or not count.isdecimal() or int(count) < 1:
            raise StackError(f"--replicas takes SERVICE=N with a service of {', '.join(SERVICES)}; got {entry!r}.")
        counts[service] = int(count)
    return counts


def _port(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise StackError(f"HEADRACE_GATEWAY_PORT takes a port from 1 to 65535; got {text!r}.")
    return int(text)
