"""Waiting for a condition, the only kind of waiting that tests do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.005, 0.1
"""Seconds between two looks: short at first, as most conditions come true soon."""


async def await_until(check: Callable[[], T | Awaitable[T]], within: float = 5.0) -> T:
    """Return what `check` returns as soon as it is true; an AssertionError counts as "not yet".

    Raises:
        AssertionError: the time is over; with the last failed assertion as its cause, where there was one.
    """
    deadline = time.monotonic() + within
    pause = _SHORTEST
    while True:
        failure: AssertionError | None = None
        try:
            outcome = check()
            value = await outcome if inspect.isawaitable(outcome) else outcome
            if value:
                return value
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {_describe(check)}") from failure
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST)


def _describe(check: Callable[..., object]) -> str:
    try:
        return inspect.getsource(check).strip()
    except (OSError, TypeError):
        return repr(check)
