"""Bounded queues and sizes."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from services.llm.domain.errors import PromptTooLongError, QueueFullError
from services.llm.domain.limits import Admission, SizeLimits
from services.llm.domain.model import Generation, Message, Sampling


async def test_calls_go_first_come_first_served_and_no_more_than_allowed_at_once():
    admission = Admission("unit-order", max_concurrency=2, max_queue=10)
    order, under_way, most = [], 0, 0
    leave = asyncio.Event()

    async def call(number: int) -> None:
        nonlocal under_way, most
        async with admission.enter(1):
            order.append(number)
            under_way += 1
            most = max(most, under_way)
            await leave.wait()
            under_way -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(call(number))
        group.create_task(asyncio.sleep(0)).add_done_callback(lambda _: leave.set())
    assert (order, most) == ([0, 1, 2, 3, 4, 5], 2)


async def test_waiting_calls_are_measured_by_the_tokens_that_they_may_take():
    def queued() -> float | None:
        return REGISTRY.get_sample_value("headrace_llm_queued_tokens", {"model": "unit-tokens"})

    admission = Admission("unit-tokens", max_concurrency=1, max_queue=10)
    async with admission.enter(1000):
        assert queued() == 0, "it does not wait"
        waiting = [asyncio.ensure_future(admission.enter(tokens).__aenter__()) for tokens in (30, 7)]
        await asyncio.sleep(0)
        assert queued() == 37
        waiting[1].cancel()
        await asyncio.gather(waiting[1], return_exceptions=True)
        assert queued() == 30
    await waiting[0]
    assert queued() == 0


async def test_a_full_queue_refuses_and_one_who_leaves_it_makes_room():
    admission = Admission("unit-full", max_concurrency=1, max_queue=1)
    async with admission.enter(1):
        waiting = asyncio.ensure_future(admission.enter(1).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as caught:
            await admission.enter(1).__aenter__()
        assert 1 <= caught.value.retry_after <= 60
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        second = asyncio.ensure_future(admission.enter(1).__aenter__())
        await asyncio.sleep(0)
        assert not second.done()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


def generation(text: str, max_tokens: int | None = None) -> Generation:
    return Generation((Message("user", text),), Sampling(max_tokens=max_tokens))


@pytest.mark.parametrize(
    ("asked", "context_length", "sent"), [(None, 0, 100), (None, 50, 25), (None, 1000, 100), (7, 0, 7), (700, 50, 100)]
)
def test_max_tokens_is_always_set_and_capped(asked, context_length, sent):
    sizes = SizeLimits(max_prompt_bytes=10, max_tokens=100)
    assert sizes.bounded("m", generation("x", asked), context_length=context_length).sampling.max_tokens == sent


def test_the_size_of_a_prompt_counts_bytes():
    sizes = SizeLimits(max_prompt_bytes=4, max_tokens=100)
    sizes.bounded("m", generation("äö"), context_length=0)
    with pytest.raises(PromptTooLongError):
        sizes.bounded("m", generation("äöü"), context_length=0)
