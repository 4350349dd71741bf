"""Fewer, larger pieces of an answer, without delay where anybody would see it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from services.llm.domain.errors import ModelUnavailableError
from services.llm.domain.model import Ending, FinishReason, Piece
from services.llm.domain.pacing import paced

END = Piece(ending=Ending(FinishReason.STOP))


async def test_the_first_piece_and_the_ending_come_at_once_and_what_is_between_is_joined():
    read_first = asyncio.Event()

    async def answer() -> AsyncGenerator[Piece, None]:
        yield Piece("a")
        await read_first.wait()
        for text in "bcdef":
            yield Piece(text)
        yield END

    pieces = []
    async with aclosing(paced(answer())) as stream:
        async for piece in stream:
            pieces.append(piece)
            read_first.set()
    assert pieces == [Piece("a"), Piece("bcdef", END.ending, tokens=6)]


async def test_a_slow_answer_is_passed_on_as_it_comes():
    read = asyncio.Queue[str]()

    async def answer() -> AsyncGenerator[Piece, None]:
        for text in "abc":
            yield Piece(text)
            assert await read.get() == text
        yield END

    async with aclosing(paced(answer())) as stream:
        pieces = [piece.delta async for piece in stream if read.put_nowait(piece.delta) is None]
    assert pieces == ["a", "b", "c", ""]


async def test_a_failure_comes_after_all_that_was_written_before():
    async def answer() -> AsyncGenerator[Piece, None]:
        yield Piece("a")
        yield Piece("b")
        raise ModelUnavailableError("m", "gone")

    texts = []

    async def read() -> None:
        async with aclosing(paced(answer())) as stream:
            async for piece in stream:
                texts.append(piece.delta)

    with pytest.raises(ModelUnavailableError):
        await read()
    assert "".join(texts) == "ab"


async def test_leaving_closes_the_answer():
    closed = asyncio.Event()

    async def answer() -> AsyncGenerator[Piece, None]:
        try:
            yield Piece("a")
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with aclosing(paced(answer())) as stream:
        assert (await anext(stream)).delta == "a"
    assert closed.is_set()
