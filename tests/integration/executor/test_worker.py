"""The worker's loop on a real NATS; the test answers its requests as an executor would, or does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import worker_pb2 as pb
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError
from pydantic import BaseModel

from deploy.local import databases
from services.executor.domain.model import NodeRef
from services.executor.handlers.base import Context, NodeType, Result, RetryableError
from services.executor.storage.postgres import PostgresRunStore
from services.executor.transport import streams
from services.executor.transport.bus import StreamKeeper
from services.executor.worker.loop import Worker
from services.executor.worker.runner import Runner
from services.kit import nats
from services.kit.errors import UnavailableError
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support import backends, executors
from tests.support.waiting import await_until


class Config(BaseModel):
    """No settings."""


class Executor:
    """Grants every claim and records every report; `ignored` requests of a verb get no answer."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ignored: dict[str, int] = {}
        self.claims: list[pb.ClaimRequest] = []
        self.reports: list[pb.Report] = []
        self.heartbeats: list[float] = []
        self.takes: list[pb.TakeRequest] = []
        self.given: list[pb.JobRef] = []
        """What the next one that takes is answered with; until there is something, none is answered."""
        self._taking: list[asyncio.Task[None]] = []
        self.given_at_last: list[pb.JobRef] = []
        """What is being claimed for a worker as it takes no more."""
        self.forgotten: list[pb.HeldJob] = []
        """What heartbeats are told to be the worker's."""
        self.type = "t"

    async def start(self) -> None:
        jetstream = self.client.jetstream()
        with suppress(NotFoundError):
            await jetstream.delete_stream(streams.STREAM)
        await streams.declare_stream(jetstream)
        await streams.declare_consumers(jetstream, ["default"])
        for verb, hear in (
            (streams.CLAIM, self._claim),
            (streams.TAKE, self._hear_take),
            (streams.REPORT, self._report),
            (streams.HEARTBEAT, self._heartbeat),
        ):
            await self.client.subscribe(streams.executor_subject(verb), cb=hear)

    async def wake(self, data: bytes | None = None) -> None:
        ref = pb.JobRef(run_id=str(uuid4()), node_key="a")
        subject = streams.jobs_subject("default", "executor")
        await self.client.publish(subject, data or pb.Wakeup(job=ref).SerializeToString())

    def _is_ignored(self, verb: str) -> bool:
        self.ignored[verb] = self.ignored.get(verb, 0) - 1
        return self.ignored[verb] >= 0

    async def _claim(self, message: Msg) -> None:
        request = pb.ClaimRequest.FromString(message.data)
        self.claims.append(request)
        if not self._is_ignored(streams.CLAIM):
            await message.respond(pb.ClaimResponse(jobs=[self._job(ref) for ref in request.jobs]).SerializeToString())

    async def _hear_take(self, message: Msg) -> None:
        self._taking.append(asyncio.create_task(self._take(message)))

    async def _take(self, message: Msg) -> None:
        request = pb.TakeRequest.FromString(message.data)
        self.takes.append(request)
        if request.slots:
            await await_until(lambda: self.given or self.takes[-1] is not request)
            given, self.given = self.given, []
        else:
            given, self.given = [], self.given_at_last
        if not self._is_ignored(streams.TAKE):
            await message.respond(pb.TakeResponse(jobs=[self._job(ref) for ref in given]).SerializeToString())

    def _job(self, ref: pb.JobRef) -> pb.Job:
        return pb.Job(
            ref=ref,
            epoch=1,
            attempt=1,
            type=self.type,
            config=value_pb2.Json(utf8=b"{}"),
            variables=value_pb2.Json(utf8=b"{}"),
            timeout=Duration(seconds=60),
        )

    async def _report(self, message: Msg) -> None:
        request = pb.ReportRequest.FromString(message.data)
        if not self._is_ignored(streams.REPORT):
            # Once each: on a busy machine an answer may come too late, and the request again.
            self.reports += [report for report in request.reports if report not in self.reports]
            results = [pb.ReportResult(status=pb.REPORT_STATUS_RECORDED) for _ in request.reports]
            await message.respond(pb.ReportResponse(results=results).SerializeToString())

    async def _heartbeat(self, message: Msg) -> None:
        self.heartbeats.append(asyncio.get_running_loop().time())
        if not self._is_ignored(streams.HEARTBEAT):
            await message.respond(pb.HeartbeatResponse(forgotten=self.forgotten).SerializeToString())


@pytest.fixture
async def executor(nats_server: str) -> AsyncIterator[Executor]:
    client = await nats.connect(nats_server, name="test-executor")
    made = Executor(client)
    await made.start()
    yield made
    await client.jetstream().delete_stream(streams.STREAM)
    await client.close()


Start = Callable[..., Any]


@pytest.fixture
async def start_worker(executor: Executor) -> AsyncIterator[Start]:
    """`await start_worker(handler)`: a running worker with that handler for the type `t`."""
    client = await nats.connect(backends.nats_url("worker"), name="test-worker")
    workers: list[Worker] = []

    async def start(handler: Callable[[Context, Any], Any], slots: int = 8, max_jobs: int = 0) -> Worker:
        kind = NodeType(name="t", title="", help="", icon="", category="", config=Config, output={}, handler=handler)
        runner = Runner({"t": kind}, None)
        worker = Worker(
            client, runner, queues=["default"], slots=slots, heartbeat_seconds=0.2, host="here", max_jobs=max_jobs
        )
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.drain(0)
    await client.close()


async def one(context: Context, config: Config) -> Result:
    return Result(1)


async def test_a_claim_without_an_answer_is_repeated_under_its_id(executor: Executor, start_worker: Start) -> None:
    await start_worker(one)
    executor.ignored[streams.CLAIM] = 1
    await executor.wake()
    await await_until(lambda: executor.reports, within=30)
    assert len(executor.claims) == 2
    assert len({claim.claim_id for claim in executor.claims}) == 1
    assert [report.WhichOneof("outcome") for report in executor.reports] == ["success"]


async def test_a_take_without_an_answer_is_repeated_under_its_number(executor: Executor, start_worker: Start) -> None:
    await start_worker(one)
    executor.ignored[streams.TAKE] = 1
    await await_until(lambda: executor.takes, within=30)
    for number in (1, 2):
        executor.given = [pb.JobRef(run_id=str(uuid4()), node_key=f"n{number}")]
        await await_until(lambda: not executor.given, within=30)
    await await_until(lambda: executor.reports, within=30)
    assert [(take.number, take.again) for take in executor.takes[:2]] == [(1, False), (1, True)]
    assert [report.ref.node_key for report in executor.reports] == ["n2"]


async def test_a_report_without_an_answer_is_repeated(executor: Executor, start_worker: Start) -> None:
    await start_worker(one)
    executor.ignored[streams.REPORT] = 2
    await executor.wake()
    await await_until(lambda: executor.reports, within=30)


async def test_heartbeats_keep_coming_while_none_is_answered(executor: Executor, start_worker: Start) -> None:
    await start_worker(one)
    executor.ignored[streams.HEARTBEAT] = 3
    begin = len(executor.heartbeats)
    await await_until(lambda: len(executor.heartbeats) > begin + 3, within=30)
    gaps = [later - earlier for earlier, later in pairwise(executor.heartbeats[begin:])]
    assert min(gaps[1:]) < 2.0, "the lease is 2 s, and the next heartbeat must not wait longer for its answer"


async def test_a_claim_that_the_worker_does_not_know_is_handed_back_once_and_not_started_late(
    executor: Executor, start_worker: Start
) -> None:
    started: list[str] = []
    go_on = asyncio.Event()

    async def note(context: Context, config: Config) -> Result:
        started.append(str(context.run_id))
        await go_on.wait()
        return Result(1)

    await start_worker(note)
    await executor.wake()
    await await_until(lambda: started, within=30)
    known = executor.claims[0].jobs[0]
    unknown = pb.JobRef(run_id=str(uuid4()), node_key="a")
    executor.forgotten = [pb.HeldJob(ref=ref, epoch=1) for ref in (unknown, known)]
    begin = len(executor.heartbeats)
    await await_until(lambda: len(executor.heartbeats) > begin + 2, within=30)
    assert [(report.ref, report.WhichOneof("outcome")) for report in executor.reports] == [(unknown, "release")]
    assert not executor.reports[0].release.started

    await executor.wake(pb.Wakeup(job=unknown).SerializeToString())  # its claim is answered with epoch 1
    await await_until(lambda: len(executor.claims) == 2, within=30)
    go_on.set()
    await await_until(lambda: len(executor.reports) == 2, within=30)
    assert started == [known.run_id]


async def test_large_results_are_handed_in_by_messages_that_nats_takes(executor: Executor, start_worker: Start) -> None:
    all_here = asyncio.Event()
    running = 0

    async def megabyte(context: Context, config: Config) -> Result:
        nonlocal running
        running += 1
        if running == 12:
            all_here.set()
        await all_here.wait()
        return Result("x" * 1_000_000)

    await start_worker(megabyte, slots=12)
    for _ in range(12):
        await executor.wake()
    await await_until(lambda: len(executor.reports) == 12, within=30)


async def cancels_itself(context: Context, config: Config) -> Result:
    raise asyncio.CancelledError


async def exits(context: Context, config: Config) -> Result:
    raise SystemExit(3)


async def raises_nonsense(context: Context, config: Config) -> Result:
    raise RetryableError("REASON", None, retry_after="soon")  # type: ignore[arg-type]  # a third party's mistake


async def returns_nothing(context: Context, config: Config) -> None:
    return None


@pytest.mark.parametrize("handler", [cancels_itself, exits, raises_nonsense, returns_nothing])
async def test_whatever_a_handler_does_its_attempt_is_reported(
    handler: Callable[[Context, Any], Any], executor: Executor, start_worker: Start
) -> None:
    await start_worker(handler)
    await executor.wake()
    await await_until(lambda: executor.reports, within=30)
    assert executor.reports[0].failure.failure.reason == "HANDLER_FAILED"


async def test_a_wakeup_that_cannot_be_read_is_dropped_for_good(executor: Executor, start_worker: Start) -> None:
    await start_worker(one)
    await executor.wake(b"\xff\xff\xff")
    await executor.wake()
    await await_until(lambda: executor.reports, within=30)

    async def is_gone() -> bool:
        info = await executor.client.jetstream().stream_info(streams.STREAM)
        return info.state.messages == 0

    await await_until(is_gone, within=30)


async def forever(context: Context, config: Config) -> Result:
    await asyncio.Event().wait()
    return Result(None)


async def test_a_worker_that_is_drained_hands_back_what_it_runs_and_what_it_is_given(
    executor: Executor, start_worker: Start
) -> None:
    worker = await start_worker(forever)
    await executor.wake()
    await await_until(lambda: executor.claims, within=30)
    await worker.drain(0)
    assert [report.WhichOneof("outcome") for report in executor.reports] == ["release"]


async def test_a_worker_that_is_drained_hands_back_what_it_is_given_meanwhile(
    executor: Executor, start_worker: Start
) -> None:
    worker = await start_worker(forever)
    await await_until(lambda: executor.takes, within=30)
    executor.given_at_last = [pb.JobRef(run_id=str(uuid4()), node_key="a")]
    await worker.drain(0)
    assert [take.slots > 0 for take in executor.takes] == [True, False]
    assert [report.WhichOneof("outcome") for report in executor.reports] == ["release"]
    assert not executor.reports[0].release.started


@pytest.mark.parametrize("hand_back", [True, False])
async def test_what_had_begun_is_handed_back_as_such_or_left_to_the_lease(
    hand_back: bool, executor: Executor, start_worker: Start
) -> None:
    begun = asyncio.Event()

    async def begin(context: Context, config: Config) -> Result:
        begun.set()
        return await forever(context, config)

    worker = await start_worker(begin)
    await executor.wake()
    await asyncio.wait_for(begun.wait(), 30)
    await worker.drain(0, hand_back=hand_back)
    assert [report.release.started for report in executor.reports] == [True] * hand_back


async def test_a_worker_says_when_it_has_done_enough(executor: Executor, start_worker: Start) -> None:
    worker = await start_worker(one, max_jobs=2)
    await executor.wake()
    await await_until(lambda: len(executor.reports) == 1, within=30)
    assert not worker.enough.is_set()
    await executor.wake()
    await asyncio.wait_for(worker.enough.wait(), 30)


async def test_lost_wakeups_are_published_again_even_if_the_first_try_fails(
    executor: Executor, database: Callable[[str], Awaitable[str]], postgres_server: str
) -> None:
    pool = await open_pool(await database("executor"), size=2)
    parts = executors.Executor(PostgresRunStore(pool))
    ref = NodeRef(new_id(), "a")
    async with executors.committing(parts):
        await parts.start(ref.run_id, await executors.a_version(parts, {"key": "a"}))
    await parts.store.republish_all()
    assert [found.ref for found in await parts.ready.take_ready("default", room=9)] == [ref]
    assert await parts.ready.take_ready("default", room=9) == []  # not due again for some seconds

    keeper = StreamKeeper(parts.store, parts.dispatcher, ["default"])
    await executor.client.jetstream().delete_stream(streams.STREAM)
    admin = await asyncpg.connect(postgres_server)
    [(name,)] = await pool.fetch("SELECT current_database()")
    await databases.execute(admin, "ALTER DATABASE %I CONNECTION LIMIT 0", name)
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    with pytest.raises(UnavailableError):
        await keeper.check(executor.client)
    await databases.execute(admin, "ALTER DATABASE %I CONNECTION LIMIT -1", name)
    await admin.close()
    await keeper.check(executor.client)
    assert [found.ref for found in await parts.ready.take_ready("default", room=9)] == [ref]
    await keeper.check(executor.client)
    assert await parts.ready.take_ready("default", room=9) == []
    await pool.close()
