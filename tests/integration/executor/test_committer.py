"""Claims and reports of workers at two executors that share one database."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson
import pytest
from structlog.testing import capture_logs

from services.executor.domain.committer import RunExistsError
from services.executor.domain.model import NewRun, NodeRef, RunNotFoundError
from services.executor.domain.store import UnstorableError
from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.state import NodeState, NodeStatus, RunState, RunStatus
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support.executors import PROJECT, QUEUES, Executor, a_state, a_version, committing, success


@pytest.fixture
async def executors(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[tuple[Executor, Executor]]:
    pool = await open_pool(await database("executor"), size=6)
    both = Executor(PostgresRunStore(pool)), Executor(PostgresRunStore(pool))
    async with committing(*both):
        yield both
    await pool.close()


async def test_a_run_that_is_asked_for_several_times_at_once_starts_once(executors: tuple[Executor, Executor]) -> None:
    one, other = executors
    version_id = await a_version(one, {"key": "a"}, {"key": "b"})
    run_id = new_id()
    answers = await asyncio.gather(
        *(executor.start(run_id, version_id) for executor in (one, one, one, other, other)), return_exceptions=True
    )
    assert sorted(map(type, answers), key=str) == sorted([type(None)] + [RunExistsError] * 4, key=str)
    ref = NodeRef(run_id, "a")
    (job,) = (await one.jobs.claim("w", [(ref, 0)], "c")).jobs
    (reported,) = await one.jobs.report("w", [success(ref, job.epoch)], free_slots=1, queues=QUEUES)
    await one.jobs.report("w", [success(reported.next[0].ref, 1)], free_slots=1, queues=QUEUES)
    events = (await one.store.list_events(PROJECT, run_id, after=0, limit=100)).events
    assert [event.type for event in events] == [
        *("run.started", "node.started", "node.succeeded", "node.started", "node.succeeded", "run.succeeded")
    ]


async def test_a_start_repeated_beside_the_end_of_its_run_leaves_no_second_copy_of_the_run(
    executors: tuple[Executor, Executor],
) -> None:
    one, _ = executors
    version = await one.versions.get(await a_version(one, {"key": "a"}))
    run_id = new_id()
    await one.start(run_id, version.id)
    ended = one.committer.submit(run_id, decide.cancel, lambda _, __: None)
    repeated = one.submit_start(run_id, version)
    with pytest.raises(RunExistsError):
        await repeated
    await ended

    def outcome(state: RunState) -> tuple[RunStatus, NodeStatus]:
        return state.status, state.root.nodes[0].status

    found = await one.committer.submit(run_id, outcome, lambda _, seen: seen)
    assert found == (RunStatus.CANCELLED, NodeStatus.CANCELLED)


async def test_what_comes_behind_a_start_that_the_database_refuses_finds_no_run(
    executors: tuple[Executor, Executor],
) -> None:
    one, _ = executors
    version = await one.versions.get(await a_version(one, {"key": "a"}))
    run_id = new_id()
    refused = NewRun("no name\x00", request_hash=None, started_by=None, timeout_seconds=60)
    with capture_logs() as logs:
        started = one.committer.submit_new(
            run_id, refused, lambda: a_state(run_id, version), decide.start, lambda _, __: None
        )
        cancelled = one.committer.submit(run_id, decide.cancel, lambda _, __: None)
        outcomes = await asyncio.gather(started, cancelled, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnstorableError, RunNotFoundError]
    assert [line["event"] for line in logs] == ["commit_failed", "transition_failed"]


async def test_a_report_is_not_judged_by_a_copy_that_another_executor_has_left_behind(
    executors: tuple[Executor, Executor],
) -> None:
    one, other = executors
    run_id = new_id()
    ref = NodeRef(run_id, "a")
    await one.start(run_id, await a_version(one, {"key": "a"}))
    (job,) = (await other.jobs.claim("w", [(ref, 0)], "c")).jobs

    (reported,) = await one.jobs.report("w", [success(ref, job.epoch)], free_slots=0, queues=QUEUES)

    assert reported.verdict is Verdict.ACCEPTED
    assert (await one.store.get_run(PROJECT, run_id)).status is RunStatus.SUCCEEDED


async def test_a_job_that_another_executor_took_away_can_be_claimed_here(executors: tuple[Executor, Executor]) -> None:
    one, other = executors
    run_id = new_id()
    ref = NodeRef(run_id, "a")
    await one.start(run_id, await a_version(one, {"key": "a"}))
    (first,) = (await one.jobs.claim("w", [(ref, 0)], "c")).jobs

    def lose(state: RunState) -> Verdict:
        return decide.lose_worker(state, state.root.nodes[0], first.epoch)

    await other.committer.submit(run_id, lose, lambda _, __: None)

    claimed = await one.jobs.claim("another", [(ref, first.epoch + 1)], "d")

    assert [job.epoch for job in claimed.jobs] == [first.epoch + 2]


async def test_a_result_that_the_database_refuses_fails_its_node_and_not_its_neighbours(
    executors: tuple[Executor, Executor],
) -> None:
    one, _ = executors
    version_id = await a_version(one, {"key": "a"})
    refs = [NodeRef(new_id(), "a") for _ in range(3)]
    for ref in refs:
        await one.start(ref.run_id, version_id)
    await one.jobs.claim("w", [(ref, 0) for ref in refs], "c")
    reports = [success(ref, 1, port="a\x00b" if ref is refs[1] else "") for ref in refs]

    answers = await one.jobs.report("w", reports, free_slots=0, queues=QUEUES)

    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED] * 3
    runs = [await one.store.get_run(PROJECT, ref.run_id) for ref in refs]
    assert [run.status for run in runs] == [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.SUCCEEDED]
    assert runs[1].error is not None
    assert runs[1].error.reason == "RESULT_NOT_STORED"


async def test_a_node_that_reads_more_than_a_message_holds_fails_and_says_so(
    executors: tuple[Executor, Executor],
) -> None:
    one, _ = executors
    keys = [f"n{number}" for number in range(5)]
    reader = {"key": "reader", "config": {"value": ["{{ nodes." + key + ".output }}" for key in keys]}}
    run_id = new_id()
    await one.start(run_id, await a_version(one, *({"key": key} for key in keys), reader))
    output = orjson.dumps("x" * 1_000_000)
    claimed = await one.jobs.claim("w", [(NodeRef(run_id, "n0"), 0)], "c")
    jobs = claimed.jobs
    for _ in keys:
        (answer,) = await one.jobs.report(
            "w", [success(jobs[0].ref, jobs[0].epoch, output)], free_slots=9, queues=QUEUES
        )
        jobs = answer.next
    assert not jobs

    claimed = await one.jobs.claim("w", [(NodeRef(run_id, "reader"), 0)], "d")

    assert not claimed.jobs
    assert not claimed.retry
    run = await one.store.get_run(PROJECT, run_id)
    assert run.error is not None
    assert run.error.reason == "JOB_TOO_LARGE"


async def test_what_a_run_held_in_memory_is_free_when_it_ends(executors: tuple[Executor, Executor]) -> None:
    one, _ = executors
    body = {"nodes": [{"key": "inner", "type": "noop", "config": {}}], "edges": []}
    version_id = await a_version(one, {"key": "each", "type": "map", "config": {"items": [1, 2, 3], "body": body}})
    gc.collect()
    gc.disable()  # only what nothing refers to is free without it
    try:
        before = held_nodes()
        run_id = new_id()
        await one.start(run_id, version_id)
        refs = [(NodeRef(run_id, "inner", f"each[{number}]"), 0) for number in range(3)]
        for job in (await one.jobs.claim("w", refs, "c")).jobs:
            await one.jobs.report("w", [success(job.ref, job.epoch)], free_slots=0, queues=QUEUES)
        assert (await one.store.get_run(PROJECT, run_id)).status is RunStatus.SUCCEEDED
        assert held_nodes() == before
    finally:
        gc.enable()


def held_nodes() -> int:
    # `isinstance` would ask every object for its class, and some that other tests have made answer with a warning.
    return sum(type(held) is NodeState for held in gc.get_objects())
