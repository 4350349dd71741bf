"""The launcher: start the stack, run the sample, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from deploy.local.console import StackConsole
from deploy.local.errors import StackError
from deploy.local.home import Home
from deploy.local.leftovers import stop_leftovers
from deploy.local.options import Options, parse_options
from deploy.local.stack import Stack

_INTERRUPTED = 130
"""The exit code of a program stopped by Ctrl-C before its work was done (128 + SIGINT)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the launcher to its end; return its exit code: the sample's with `--once`, else 0 unless the start failed."""
    console = StackConsole()
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments, os.environ)
        return asyncio.run(_launch(options, StackConsole(quiet=options.quiet)))
    except StackError as error:
        console.problem(str(error))
        return 1


async def _launch(options: Options, console: StackConsole) -> int:
    with contextlib.closing(Home(options.home)) as home:
        if await asyncio.to_thread(stop_leftovers, home.path):  # first, for they hold the ports
            console.say("Stopped what an earlier launcher had left running.")
        stack = Stack(home, options.settings, console)
        stop = _stop_signals(stack, console)
        try:
            return await _unless(stop, _work(stack, options, console), otherwise=_INTERRUPTED if options.once else 0)
        finally:
            await stack.stop()


def _stop_signals(stack: Stack, console: StackConsole) -> asyncio.Event:
    """Have Ctrl-C, SIGTERM and the terminal's end set the event; a second one kills without waiting."""
    stop = asyncio.Event()

    def told_to_stop() -> None:
        if stop.is_set():
            stack.kill()
        else:
            console.say("Stopping. Once more kills everything at once.")
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop)
    return stop


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, int], *, otherwise: int) -> int:
    """Return what the work returns, or `otherwise` when told to stop before."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else otherwise
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.wait({working, stopping})


async def _work(stack: Stack, options: Options, console: StackConsole) -> int:
    await stack.start()
    if options.sample:
        from deploy.local.sample import run  # noqa: PLC0415 - only who runs the sample loads it

        code = await run(stack.info)
        if options.once:
            return code
    console.say("Serving. Ctrl-C stops.")
    await asyncio.Event().wait()
    return 0
