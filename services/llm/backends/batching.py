"""Joins the texts of concurrent calls into batches for a model that works best on many at once."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

BATCH_SIZE = 32
"""Texts in one batch; sentence-transformers' own default. More gain nothing on a CPU and make others wait."""
SHORT_CALL = 8
"""Calls of at most so many texts are somebody's search and overtake the filling of collections."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text's vector as bytes, and its tokens."""

    vector: bytes
    tokens: int


Encode = Callable[[list[str]], Awaitable[list[Encoded]]]


@dataclass(frozen=True, slots=True)
class _Item:
    text: str
    done: asyncio.Future[Encoded]


class Batches:
    """Collects texts while a batch is being encoded, and sends the next one.

    One batch at a time. Texts of short calls come first, in turn with those of long calls so that neither starves;
    the texts of a long call go by length, so that little is padded. A cancelled call's texts are left out.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._short: deque[_Item] = deque()
        self._long: deque[_Item] = deque()
        self._running: asyncio.Task[None] | None = None

    async def submit(self, texts: Sequence[str]) -> list[Encoded]:
        """Vectors of the texts, in their order. Raises what `encode` raised for a batch with one of them."""
        loop = asyncio.get_running_loop()
        items = [_Item(text, loop.create_future()) for text in texts]
        if len(items) <= SHORT_CALL:
            self._short.extend(items)
        else:
            self._long.extend(sorted(items, key=lambda item: len(item.text)))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await asyncio.gather(*(item.done for item in items))

    async def _run(self) -> None:
        prefers_short = True
        while self._short or self._long:
            is_short = bool(self._short) and (prefers_short or not self._long)
            prefers_short = not is_short
            batch = _take(self._short if is_short else self._long)
            if not batch:
                continue  # All of them were cancelled.
            try:
                encoded = await self._encode([item.text for item in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must learn of it
                for item in batch:
                    if not item.done.done():
                        item.done.set_exception(error)
                continue
            for item, result in zip(batch, encoded, strict=True):
                if not item.done.done():
                    item.done.set_result(result)


def _take(queue: deque[_Item]) -> list[_Item]:
    batch: list[_Item] = []
    while queue and len(batch) < BATCH_SIZE:
        item = queue.popleft()
        if not item.done.done():
            batch.append(item)
    return batch
