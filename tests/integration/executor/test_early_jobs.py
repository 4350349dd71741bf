"""What changes nothing outside begins before the commit that claims it, and is gone on with before anybody is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from services.executor.domain.chains import MAX_CHAIN_SECONDS
from services.executor.domain.idle_workers import claim_id
from services.executor.domain.jobs import Job
from services.executor.domain.limits import ProjectLimits
from services.executor.domain.model import NewRun, NodeRef
from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.graph import MAX_CHAIN
from services.executor.engine.state import RunStatus
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support.executors import PROJECT, QUEUES, Executor, a_state, a_version, committing, success

READ = ({"key": "a"}, {"key": "b"}, {"key": "c"})
"""A chain of nodes that change nothing."""


@pytest.fixture
async def one(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Executor]:
    pool = await open_pool(await database("executor"), size=4)
    executor = Executor(PostgresRunStore(pool))
    async with committing(executor):
        yield executor
    await pool.close()


async def wait(executor: Executor, *, worker: str = "w", number: int = 1) -> asyncio.Task[list[Job]]:
    """A worker that waits at an executor by now, and takes what may begin early."""
    task = asyncio.create_task(executor.idle_workers.wait(worker, number, QUEUES, 4, takes_early=True))
    await asyncio.sleep(0)
    return task


@asynccontextmanager
async def held_up(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """No commit comes to PostgreSQL while inside."""
    commit, may_go = executor.store.commit, asyncio.Event()

    async def later(*parameters: Any) -> Any:
        await may_go.wait()
        return await commit(*parameters)

    with monkeypatch.context() as patched:
        patched.setattr(executor.store, "commit", later)
        yield
        may_go.set()


def start_with_patience(executor: Executor, version: Any, seconds: float) -> tuple[Any, asyncio.Future[None]]:
    """A run whose caller waits for its end."""
    run_id = new_id()
    new = NewRun("w", request_hash=None, started_by=None, timeout_seconds=60)
    started = executor.committer.submit_new(
        run_id, new, lambda: a_state(run_id, version), decide.start, lambda _, __: None, patience=seconds
    )
    return run_id, started


_NUMBERS = count(1)


async def the_job(executor: Executor, *nodes: dict[str, Any]) -> Job:
    """The first job of a new run of these nodes, one after another."""
    waiting = await wait(executor, number=next(_NUMBERS))
    await executor.start(new_id(), await a_version(executor, *nodes))
    (job,) = await waiting
    return job


async def test_a_read_begins_before_its_run_is_committed_and_a_node_that_acts_does_not(
    one: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, acts = await a_version(one, {"key": "a"}), await a_version(one, {"key": "a", "type": "db_write"})
    async with held_up(one, monkeypatch):
        waiting = await wait(one)
        started = asyncio.create_task(one.start(new_id(), reads))
        (job,) = await waiting
        assert job.is_early
        assert not started.done()
        waiting = await wait(one, number=2)
        other = asyncio.create_task(one.start(new_id(), acts))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    await asyncio.gather(started, other)
    (job,) = await waiting
    assert not job.is_early


async def test_a_job_carries_the_reads_behind_it(one: Executor) -> None:
    job = await the_job(one, *READ)
    assert [chained.node_key for chained in job.chain] == ["b", "c"]
    assert [chained.claim_id for chained in job.chain] == [f"{job.claim_id}>1", f"{job.claim_id}>2"]


@pytest.mark.parametrize(
    ("nodes", "chained"),
    [
        ([{"key": "a", "type": "db_write"}, {"key": "b"}], []),
        ([{"key": "a"}, {"key": "b", "type": "db_write"}, {"key": "c"}], []),
        ([{"key": "a"}, {"key": "b"}, {"key": "t", "type": "transform"}, {"key": "c"}], ["b"]),
        ([{"key": f"n{number}"} for number in range(50)], [f"n{number}" for number in range(1, 15)]),
    ],
    ids=["behind what acts", "what acts", "what the engine evaluates", "longer than its grant may live"],
)
async def test_a_chain_ends_where_nobody_may_go_on_unasked(
    one: Executor, nodes: list[dict[str, Any]], chained: list[str]
) -> None:
    job = await the_job(one, *nodes)
    assert [each.node_key for each in job.chain] == chained
    assert len(chained) <= MAX_CHAIN
    assert job.timeout_seconds + sum(each.timeout_seconds for each in job.chain) <= MAX_CHAIN_SECONDS


async def test_what_others_have_to_decide_first_is_in_no_chain(one: Executor) -> None:
    version_id = await a_version(one, {"key": "a"}, {"key": "b"}, {"key": "join"}, parallel=True)
    version = await one.versions.get(version_id)
    graph = version.graph
    joined = type(graph)(list(graph.nodes), [("a", "join", "out"), ("b", "join", "out")], one.kinds)
    assert joined.reads_behind(0) == ()


async def test_projects_whose_starts_are_counted_have_no_chains(one: Executor) -> None:
    limits = ProjectLimits(max_running_nodes=4)
    await one.limits.set_ceilings(PROJECT, limits)
    one.dispatcher.configure({}, {str(PROJECT): limits}, 1)
    run_id = new_id()
    await one.start(run_id, await a_version(one, *READ))
    (job,) = (await one.jobs.claim("w", [(NodeRef(run_id, "a"), 0)], "c")).jobs
    assert job.chain == ()


async def test_results_of_a_chain_are_one_commit_under_claims_of_their_own(one: Executor) -> None:
    job = await the_job(one, *READ)
    run_id = job.ref.run_id
    reports = [
        replace(success(NodeRef(run_id, key), 1), claim_id=claim, began=began)
        for key, claim, began in zip(
            "abc", (job.claim_id, *(each.claim_id for each in job.chain)), ("b", "c", ""), strict=True
        )
    ]
    answers = await one.jobs.report("w", reports, free_slots=1, queues=QUEUES)
    assert [(each.verdict, each.next, each.goes_on) for each in answers] == [(Verdict.ACCEPTED, [], False)] * 3
    assert (await one.store.get_run(PROJECT, run_id)).status is RunStatus.SUCCEEDED
    assert await one.store.run_versions([run_id]) == {run_id: 2}
    events = [event.type for event in (await one.store.list_events(PROJECT, run_id, after=0, limit=100)).events]
    assert events == ["run.started", *["node.started", "node.succeeded"] * 3, "run.succeeded"]


async def test_a_worker_that_has_gone_on_is_told_that_it_may(one: Executor) -> None:
    job = await the_job(one, *READ)
    report = replace(success(job.ref, 1), claim_id=job.claim_id, began="b")
    for verdict in (Verdict.ACCEPTED, Verdict.REPEATED):
        (answer,) = await one.jobs.report("w", [report], free_slots=0, queues=QUEUES)
        assert (answer.verdict, answer.next, answer.goes_on) == (verdict, [], True)


async def test_a_worker_that_has_gone_on_where_the_run_did_not_is_told_so(one: Executor) -> None:
    job = await the_job(one, *READ)
    run_id = job.ref.run_id
    await one.committer.submit(run_id, decide.cancel, lambda _, __: None)
    report = replace(success(job.ref, 1), claim_id=job.claim_id, began="b")
    following = replace(success(NodeRef(run_id, "b"), 1), claim_id=job.chain[0].claim_id)
    answers = await one.jobs.report("w", [report, following], free_slots=1, queues=QUEUES)
    assert [(each.verdict, each.goes_on) for each in answers] == [(Verdict.STALE, False)] * 2


async def test_a_result_counts_for_the_claim_that_it_was_made_under_alone(one: Executor) -> None:
    job = await the_job(one, {"key": "a"})
    for worker, claim in (("w", claim_id(999)), ("v", job.claim_id)):
        report = replace(success(job.ref, job.epoch), claim_id=claim)
        (answer,) = await one.jobs.report(worker, [report], free_slots=1, queues=QUEUES)
        assert answer.verdict is Verdict.STALE
    (answer,) = await one.jobs.report(
        "w", [replace(success(job.ref, job.epoch), claim_id=job.claim_id)], free_slots=1, queues=QUEUES
    )
    assert answer.verdict is Verdict.ACCEPTED


async def test_a_run_whose_caller_waits_is_committed_with_its_first_results(one: Executor) -> None:
    version = await one.versions.get(await a_version(one, *READ))
    waiting = await wait(one)
    run_id, started = start_with_patience(one, version, 30.0)
    (job,) = await waiting
    report = replace(success(job.ref, 1), claim_id=job.claim_id, began="b")
    following = replace(success(NodeRef(run_id, "b"), 1), claim_id=job.chain[0].claim_id, began="c")
    last = replace(success(NodeRef(run_id, "c"), 1), claim_id=job.chain[1].claim_id)
    await one.jobs.report("w", [report, following, last], free_slots=1, queues=QUEUES)
    await started
    assert await one.store.run_versions([run_id]) == {run_id: 1}
    assert (await one.store.get_run(PROJECT, run_id)).status is RunStatus.SUCCEEDED


async def test_patience_ends_without_results_without_workers_and_at_the_executors_end(one: Executor) -> None:
    version = await one.versions.get(await a_version(one, *READ))
    waiting = await wait(one)
    run_id, started = start_with_patience(one, version, 0.01)
    await asyncio.wait_for(started, 5)
    assert len(await waiting) == 1
    alone, started = start_with_patience(one, version, 30.0)
    await asyncio.wait_for(started, 5)
    waiting = await wait(one, number=2)
    last, started = start_with_patience(one, version, 30.0)
    assert len(await waiting) == 1
    await one.committer.stop()
    await asyncio.wait_for(started, 5)
    assert await one.store.run_versions([run_id, alone, last]) == {run_id: 1, alone: 1, last: 1}


async def test_the_same_run_asked_for_again_while_it_has_patience_is_one_run(one: Executor) -> None:
    version = await one.versions.get(await a_version(one, *READ))
    waiting = await wait(one)
    run_id, started = start_with_patience(one, version, 30.0)
    again = asyncio.create_task(one.start(run_id, version.id))
    results = await asyncio.wait_for(asyncio.gather(started, again, return_exceptions=True), 5)
    assert [type(result).__name__ for result in results] == ["NoneType", "RunExistsError"]
    assert len(await waiting) == 1
