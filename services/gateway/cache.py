"""A small cache of answers from other services, each valid for a short time, asked for once by many callers at once."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class AnswerCache(Generic[K, V]):
    """Answers by key, at most `size` of them, the oldest forgotten first.

    A DomainError is an answer too, valid for `error_seconds`. A caller that is cancelled does not take the call away
    from the others who wait for it.
    """

    def __init__(self, *, seconds: float, error_seconds: float = 0.0, size: int = 10_000) -> None:
        self._seconds = seconds
        self._error_seconds = error_seconds
        self._size = size
        self._entries: OrderedDict[K, tuple[float, asyncio.Task[V]]] = OrderedDict()

    async def get(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """The answer for a key; `load` is called when there is none, or it is too old."""
        entry = self._entries.get(key)
        if entry is None or (entry[1].done() and not self._is_fresh(*entry)):
            entry = (time.monotonic(), asyncio.ensure_future(self._load(load)))
            # Looked at also when all who waited have left, which asyncio would complain of otherwise.
            entry[1].add_done_callback(lambda task: task.cancelled() or task.exception())
            self._entries[key] = entry
            self._entries.move_to_end(key)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return await asyncio.shield(entry[1])

    def forget(self, key: K) -> None:
        """Ask anew for this key next time."""
        self._entries.pop(key, None)

    def _is_fresh(self, since: float, task: "asyncio.Task[V]") -> bool:
        if task.cancelled():
            return False
        seconds = self._seconds if task.exception() is None else self._error_seconds
        return time.monotonic() - since < seconds

    @staticmethod
    async def _load(load: Callable[[], Awaitable[V]]) -> V:
        return await load()
