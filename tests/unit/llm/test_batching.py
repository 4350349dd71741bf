"""Texts of many calls in few batches."""

import asyncio

import pytest

from services.llm.backends.batching import BATCH_SIZE, Batches, Encoded


class Recorder:
    """Encodes a text as itself, batch by batch, each when it is told to go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_go = asyncio.Event()

    async def encode(self, texts: list[str]) -> list[Encoded]:
        self.batches.append(texts)
        await self.may_go.wait()
        if "bad" in texts:
            raise ValueError("bad")
        return [Encoded(text.encode(), len(text)) for text in texts]


def vectors(encoded: list[Encoded]) -> list[str]:
    return [one.vector.decode() for one in encoded]


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_calls_that_come_during_a_batch_share_the_next():
    recorder = Recorder()
    batches = Batches(recorder.encode)
    calls = [asyncio.ensure_future(batches.submit([f"{number}"])) for number in range(10)]
    await settle()
    later = [asyncio.ensure_future(batches.submit([f"later {number}"])) for number in range(10)]
    await settle()
    recorder.may_go.set()
    assert [vectors(one) for one in await asyncio.gather(*calls)] == [[f"{number}"] for number in range(10)]
    assert [vectors(one) for one in await asyncio.gather(*later)] == [[f"later {number}"] for number in range(10)]
    assert len(recorder.batches) == 2


async def test_a_long_call_is_cut_into_batches_of_like_length_and_comes_back_in_order():
    recorder = Recorder()
    recorder.may_go.set()
    texts = ["x" * (index * 37 % 100) for index in range(100)]
    assert vectors(await Batches(recorder.encode).submit(texts)) == texts
    assert [len(batch) for batch in recorder.batches] == [BATCH_SIZE, BATCH_SIZE, BATCH_SIZE, 4]
    flat = [len(text) for batch in recorder.batches for text in batch]
    assert flat == sorted(flat)


async def test_a_short_call_overtakes_a_long_one_and_neither_starves():
    recorder = Recorder()
    batches = Batches(recorder.encode)
    long = asyncio.ensure_future(batches.submit(["long"] * 4 * BATCH_SIZE))
    await settle()
    short = [asyncio.ensure_future(batches.submit(["short"])) for _ in range(2 * BATCH_SIZE)]
    await settle()
    recorder.may_go.set()
    await asyncio.gather(long, *short)
    kinds = [batch[0] for batch in recorder.batches]
    assert kinds == ["long", "short", "long", "short", "long", "long"]


async def test_texts_of_a_cancelled_call_are_left_out():
    recorder = Recorder()
    batches = Batches(recorder.encode)
    first = asyncio.ensure_future(batches.submit(["first"]))
    await settle()
    cancelled = asyncio.ensure_future(batches.submit(["cancelled"]))
    kept = asyncio.ensure_future(batches.submit(["kept"]))
    await settle()
    cancelled.cancel()
    recorder.may_go.set()
    await asyncio.gather(first, kept)
    assert recorder.batches == [["first"], ["kept"]]


async def test_a_failed_batch_fails_its_calls_and_no_others():
    recorder = Recorder()
    batches = Batches(recorder.encode)
    bad = asyncio.ensure_future(batches.submit(["bad"]))
    await settle()
    good = asyncio.ensure_future(batches.submit(["good"]))
    recorder.may_go.set()
    with pytest.raises(ValueError, match="bad"):
        await bad
    assert vectors(await good) == ["good"]
