"""Workers that wait for work get what becomes ready by the commit that makes it ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from uuid import UUID

import pytest

from services.executor.domain.idle_workers import WAIT_SECONDS, claim_id
from services.executor.domain.jobs import Job
from services.executor.domain.limits import ProjectLimits
from services.executor.domain.model import NewRun, NodeRef
from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.state import RunState, RunTimes
from services.executor.storage.postgres import PostgresRunStore
from services.kit.errors import UnavailableError
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support.executors import PROJECT, QUEUES, Executor, a_version, committing, success

Pair = tuple[Executor, Executor]


@pytest.fixture
async def executors(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Pair]:
    pool = await open_pool(await database("executor"), size=6)
    both = Executor(PostgresRunStore(pool)), Executor(PostgresRunStore(pool))
    async with committing(*both):
        yield both
    await pool.close()


async def wait(executor: Executor, *, worker: str = "w", number: int = 1, slots: int = 4) -> asyncio.Task[list[Job]]:
    """A worker that waits at an executor by now."""
    task = asyncio.create_task(executor.idle_workers.wait(worker, number, QUEUES, slots))
    await asyncio.sleep(0)
    return task


def names(jobs: list[Job]) -> list[str]:
    return [job.ref.node_key for job in jobs]


async def versions_of(executor: Executor, *run_ids: UUID) -> list[int]:
    return list((await executor.store.run_versions(run_ids)).values())


async def test_a_worker_that_waits_has_the_first_job_of_a_run_when_the_run_is_accepted(executors: Pair) -> None:
    one, _ = executors
    waiting = await wait(one)
    run_id = new_id()
    await one.start(run_id, await a_version(one, {"key": "a"}, {"key": "b"}))
    (job,) = await waiting
    assert (job.ref, job.epoch, job.attempt) == (NodeRef(run_id, "a"), 1, 1)
    assert await versions_of(one, run_id) == [1]

    (answer,) = await one.jobs.report("w", [success(job.ref, job.epoch)], free_slots=1, queues=QUEUES)

    assert answer.verdict is Verdict.ACCEPTED
    assert names(answer.next) == ["b"]


async def test_what_becomes_ready_at_a_time_is_shared_and_what_nobody_can_take_is_left(executors: Pair) -> None:
    one, _ = executors
    version_id = await a_version(one, *({"key": f"n{number}"} for number in range(6)), parallel=True)
    first, second = await wait(one, worker="v", slots=2), await wait(one, slots=3)
    run_id = new_id()
    await one.start(run_id, version_id)
    given = [await first, await second]
    assert [len(jobs) for jobs in given] == [2, 3]
    assert len({name for jobs in given for name in names(jobs)}) == 5
    (left,) = {f"n{number}" for number in range(6)} - {name for jobs in given for name in names(jobs)}
    assert names((await one.jobs.claim("u", [(NodeRef(run_id, left), 0)], "d")).jobs) == [left]


async def test_a_worker_that_waits_in_vain_is_told_so_and_given_nothing_after_it(executors: Pair) -> None:
    one, _ = executors
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert await (await wait(one)) == []
    assert loop.time() - begun >= WAIT_SECONDS * 0.99
    run_id = new_id()
    await one.start(run_id, await a_version(one, {"key": "a"}))
    assert names((await one.jobs.claim("u", [(NodeRef(run_id, "a"), 0)], "d")).jobs) == ["a"]


async def test_who_asks_again_is_given_by_the_newer_request_only(executors: Pair) -> None:
    one, _ = executors
    older, newer = await wait(one), await wait(one, number=2)
    assert await older == []
    await one.start(new_id(), await a_version(one, {"key": "a"}))
    assert names(await newer) == ["a"]


async def test_who_takes_no_more_is_given_nothing_more(executors: Pair) -> None:
    one, _ = executors
    waiting = await wait(one)
    assert await one.idle_workers.wait("w", 2, QUEUES, 0) == []
    assert await waiting == []
    run_id = new_id()
    await one.start(run_id, await a_version(one, {"key": "a"}))
    assert names((await one.jobs.claim("u", [(NodeRef(run_id, "a"), 0)], "d")).jobs) == ["a"]


async def test_a_run_that_two_executors_are_asked_for_is_given_by_one(executors: Pair) -> None:
    one, other = executors
    version_id = await a_version(one, {"key": "a"})
    run_id = new_id()
    waiting = [await wait(one, worker="v"), await wait(other)]
    await asyncio.gather(*(each.start(run_id, version_id) for each in executors), return_exceptions=True)
    assert sorted(len(jobs) for jobs in await asyncio.gather(*waiting)) == [0, 1]


async def test_a_transition_that_breaks_takes_nothing_from_a_worker_that_waits(executors: Pair) -> None:
    one, _ = executors
    version = await one.versions.get(await a_version(one, {"key": "a"}))
    waiting = await wait(one)
    run_id = new_id()

    def broken(_: RunState) -> None:
        raise ArithmeticError

    started = one.submit_start(run_id, version)
    failed = one.committer.submit(run_id, broken, lambda _, __: None)
    with pytest.raises(ArithmeticError):
        await failed
    await started
    assert names(await asyncio.wait_for(waiting, 10)) == ["a"]


async def test_what_is_cancelled_in_the_commit_that_made_it_ready_is_given_to_nobody(executors: Pair) -> None:
    one, _ = executors
    version = await one.versions.get(await a_version(one, {"key": "a"}))
    waiting = await wait(one)
    run_id = new_id()
    started = one.submit_start(run_id, version)
    cancelled = one.committer.submit(run_id, decide.cancel, lambda _, __: None)
    await asyncio.gather(started, cancelled)
    assert await waiting == []


async def test_a_claim_repeated_in_the_commit_that_gives_its_job_to_another_is_answered_with_nothing(
    executors: Pair,
) -> None:
    one, _ = executors
    run_id = new_id()
    ref = NodeRef(run_id, "a")
    await one.start(run_id, await a_version(one, {"key": "a"}))
    (job,) = (await one.jobs.claim("w", [(ref, 0)], "c")).jobs
    waiting = await wait(one, worker="v")

    async def lose() -> None:
        def apply(state: RunState) -> Verdict:
            return decide.lose_worker(state, state.root.nodes[0], job.epoch)

        await one.committer.submit(run_id, apply, lambda _, __: None)

    repeated, _ = await asyncio.gather(one.jobs.claim("w", [(ref, 0)], "c"), lose())
    (given,) = await waiting
    assert given.epoch == job.epoch + 2
    assert repeated.jobs == []


async def test_what_has_to_take_its_turn_is_not_given(executors: Pair) -> None:
    one, _ = executors
    version_id = await a_version(one, {"key": "a"})
    waiting = await wait(one)
    one.dispatcher.configure({}, {str(PROJECT): ProjectLimits(max_running_nodes=1)}, 1)
    await one.start(new_id(), version_id)
    assert await waiting == []


async def test_jobs_whose_answer_was_lost_are_given_again_by_any_executor_until_they_end(executors: Pair) -> None:
    one, other = executors
    waiting = await wait(one)
    run_id = new_id()
    await one.start(run_id, await a_version(one, {"key": "a"}))
    (lost,) = await waiting
    assert await (await wait(one)) == [lost]
    assert one.idle_workers.knows("w", 1)
    assert not other.idle_workers.knows("w", 1)
    assert await other.jobs.held_by_claim("w", claim_id(1)) == [lost]
    assert await other.jobs.held_by_claim("w", claim_id(2)) == []
    assert await other.jobs.held_by_claim("v", claim_id(1)) == []
    await one.jobs.report("w", [success(lost.ref, lost.epoch)], free_slots=0, queues=QUEUES)
    assert await other.jobs.held_by_claim("w", claim_id(1)) == []


async def test_nothing_is_answered_when_nobody_knows_whether_it_was_claimed(
    executors: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = executors
    version_id = await a_version(one, {"key": "a"})
    waiting = await wait(one)
    commit = one.store.commit

    async def lost(states: Sequence[RunState], new: dict[UUID, NewRun]) -> dict[UUID, RunTimes]:
        await commit(states, new)
        raise UnavailableError("The connection was lost before the answer came.", retry_after=0.1)

    with monkeypatch.context() as patched:
        patched.setattr(one.store, "commit", lost)
        with pytest.raises(UnavailableError):
            await one.start(new_id(), version_id)
    with pytest.raises(UnavailableError):
        await waiting
    assert not one.idle_workers.knows("w", 1)
    assert names(await one.jobs.held_by_claim("w", claim_id(1))) == ["a"]


async def test_a_request_that_comes_after_a_newer_one_takes_nothing(executors: Pair) -> None:
    one, _ = executors
    newer, older = await wait(one, number=2), await wait(one, number=1)
    with pytest.raises(UnavailableError):
        await older
    await one.start(new_id(), await a_version(one, {"key": "a"}))
    assert names(await newer) == ["a"]
