"""How a worker hands in what has come of its jobs, to executors that answer when and what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass

import pytest
from headrace.executor.v1 import worker_pb2 as pb
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.executor.transport import streams
from services.executor.worker.chains import Chain, Held
from services.executor.worker.executor_client import ExecutorClient
from services.executor.worker.reports import Reports
from services.kit import nats
from tests.support.waiting import await_until

RECORDED = pb.ReportResult(status=pb.REPORT_STATUS_RECORDED, goes_on=True)
NOT_NOW = pb.ReportResult(status=pb.REPORT_STATUS_RETRY)
NOT_CLAIMED = pb.ReportResult(status=pb.REPORT_STATUS_RECORDED)


@dataclass(frozen=True)
class Request:
    """Reports that wait for an answer."""

    nodes: list[str]
    message: Msg

    async def answer(self, *results: pb.ReportResult) -> None:
        await self.message.respond(pb.ReportResponse(results=results).SerializeToString())


class Hand:
    """A worker with jobs in hand, and the executor that it tells."""

    def __init__(self, client: Client) -> None:
        self.settled: list[tuple[str, bool]] = []
        """By node, what became of what it has gone on with."""
        self.requests: set[asyncio.Task[None]] = set()
        who = pb.ReportRequest(worker_id="w", queues=["q"])
        self.reports = Reports(ExecutorClient(client), who, self, self.in_background)
        self._asked: asyncio.Queue[Request] = asyncio.Queue()

    async def hear(self, message: Msg) -> None:
        request = pb.ReportRequest.FromString(message.data)
        assert (request.worker_id, list(request.queues), request.free_slots) == ("w", ["q"], 3)
        await self._asked.put(Request([report.ref.node_key for report in request.reports], message))

    async def request(self) -> Request:
        async with asyncio.timeout(5):
            return await self._asked.get()

    async def in_background(self, hand_in: Callable[[], Coroutine[None, None, None]]) -> None:
        task = asyncio.create_task(hand_in())
        self.requests.add(task)
        task.add_done_callback(self.requests.discard)

    def end(self, node: str, chain: Chain, *, began: str, executor_id: str = "e") -> None:
        """A job has succeeded, and the worker is at the next one of its chain."""
        report = pb.Report(ref=pb.JobRef(run_id="r", node_key=node), epoch=1, claim_id=node, began=began)
        report.success.output.utf8 = b"1"
        self.reports.add(report, executor_id, chain)

    def free_slots(self, reports: int) -> int:
        """See Reporter."""
        return 3

    def take_job(self, job: pb.Job) -> None:
        """See Reporter."""
        raise AssertionError(job)

    def settle(self, chain: Chain, held: Held, *, goes_on: bool) -> None:
        """See Reporter."""
        self.settled.append((held[1], goes_on))


@pytest.fixture
async def hand(nats_urls: Mapping[str, str]) -> AsyncIterator[Hand]:
    client = await nats.connect(nats_urls["executor"], name="test-reports")
    made = Hand(client)
    for executor_id in ("e", ""):
        await client.subscribe(streams.executor_subject(streams.REPORT, executor_id), cb=made.hear)
    running = asyncio.create_task(made.reports.run())
    yield made
    running.cancel()
    for request in made.requests:
        request.cancel()
    await asyncio.gather(running, *made.requests, return_exceptions=True)
    await client.close()


@pytest.fixture
def chain() -> Chain:
    return Chain(pb.Job(ref=pb.JobRef(run_id="r", node_key="a"), epoch=1))


async def test_reports_of_a_chain_go_together_or_behind_the_answer_to_those_before_them(
    hand: Hand, chain: Chain
) -> None:
    hand.end("a", chain, began="b")
    # Though its job names nobody: with the one before it, it is one transition.
    hand.end("b", chain, began="c", executor_id="")
    first = await hand.request()
    assert first.nodes == ["a", "b"]
    hand.end("c", chain, began="d")
    hand.end("x", Chain(pb.Job()), began="")
    other = await hand.request()
    assert other.nodes == ["x"]
    await first.answer(RECORDED, RECORDED)
    assert (await hand.request()).nodes == ["c"]
    assert hand.settled == [("c", True)]


async def test_what_an_executor_cannot_record_now_is_handed_in_again_before_what_came_behind_it(
    hand: Hand, chain: Chain
) -> None:
    hand.end("a", chain, began="b")
    first = await hand.request()
    hand.end("b", chain, began="c")
    await first.answer(NOT_NOW)
    assert (await hand.request()).nodes == ["a", "b"]


async def test_what_an_executor_did_not_claim_is_not_reported(hand: Hand, chain: Chain) -> None:
    hand.end("a", chain, began="b")
    first = await hand.request()
    hand.end("b", chain, began="c")
    held = ("r", "b", "", 1)
    assert hand.reports.claim_of(held) == "b"
    await first.answer(NOT_CLAIMED)
    await await_until(lambda: hand.settled)
    assert hand.settled == [("b", False)]
    assert hand.reports.claim_of(held) is None
    hand.end("x", Chain(pb.Job()), began="")
    assert (await hand.request()).nodes == ["x"]


async def test_an_executor_that_does_not_answer_is_not_waited_for(hand: Hand, chain: Chain) -> None:
    hand.end("a", chain, began="b", executor_id="gone")
    assert (await hand.request()).nodes == ["a"]
