"""Joins the pieces of an answer that come faster than anybody reads them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from services.llm.domain.model import Piece

INTERVAL_SECONDS = 0.01
"""A message for each token of a fast model costs the services on its way more than all else in the call; nobody sees
a hundredth of a second."""


async def paced(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The same text and ending in fewer pieces: the first at once, then one in INTERVAL_SECONDS, the last at once.

    Reads ahead of its reader, whose slowness only makes the pieces larger. Raises what `pieces` raises, after all that
    came before. Closing it closes `pieces`.
    """
    gathered: list[Piece] = []
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def gather() -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    gathered.append(piece)
                    arrived.set()
        finally:
            ended.set()
            arrived.set()

    gathering = asyncio.create_task(gather())
    try:
        while not ended.is_set():
            await arrived.wait()
            arrived.clear()
            if gathered:
                joined = _joined(gathered)
                gathered.clear()
                yield joined
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_SECONDS):
                        await ended.wait()
        if gathered:
            yield _joined(gathered)
        await gathering
    finally:
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)


def _joined(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    text = "".join(piece.delta for piece in pieces)
    return Piece(text, pieces[-1].ending, sum(piece.tokens for piece in pieces))
