"""Limits: never passed, whoever claims; and what has to wait goes on by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import UUID, uuid4

import pytest
from headrace.workflows.v1 import definition_pb2

from services.executor.domain.admission import Admission, AdmissionLimits
from services.executor.domain.flows import Ready
from services.executor.domain.jobs import Release, Report
from services.executor.domain.limit_settings import InvalidLimitsError, LimitSettings
from services.executor.domain.limits import ProjectLimits, TypeLimits
from services.executor.domain.model import NodeRef, WorkerLease
from services.executor.engine import decide
from services.executor.engine.state import RunStatus
from services.executor.handlers.base import Context
from services.executor.storage import limits as stored_limits
from services.kit.errors import ResourceExhaustedError
from services.kit.ids import new_id
from tests.support.executors import a_version
from tests.support.fields import QUEUE, Field
from tests.support.waiting import await_until

SLOTS = 8


class Ledger:
    """Notes what runs at a time, by a key."""

    def __init__(self, made: Field, key: Callable[[Context], object]) -> None:
        self.now: Counter[object] = Counter()
        self.most: defaultdict[object, int] = defaultdict(int)
        self._key = key
        made.handler = self._run

    async def _run(self, context: Context) -> None:
        key = self._key(context)
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        await asyncio.sleep(0.002)
        self.now[key] -= 1


async def wide(made: Field, nodes: int, limits: definition_pb2.RunLimits | None = None) -> UUID:
    """A version whose nodes are all ready at once."""
    names = ({"key": f"n{place}"} for place in range(nodes))
    return await a_version(made.executors[0], *names, parallel=True, limits=limits)


async def all_ended(made: Field) -> bool:
    return await made.open_runs() == 0


async def has_place(made: Field) -> bool:
    return bool(await made.pool.fetchval("SELECT count(*) FROM executor.places"))


async def set_limits(made: Field, project: UUID, limits: ProjectLimits) -> None:
    """Set what the project may use; the executors know it."""
    await made.executors[0].limits.set_own(project, limits)
    await await_until(lambda: all(executor.dispatcher.limits_of(str(project)) == limits for executor in made.executors))


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_nodes_of_a_project_run_than_its_limit_whoever_claims_them(two: Field, most: int) -> None:
    project, other = uuid4(), uuid4()
    await set_limits(two, project, ProjectLimits(max_running_nodes=most))
    ledger = Ledger(two, lambda context: context.project_id)
    version_id = await wide(two, 3)
    await asyncio.gather(two.start_runs(20, version_id, project), two.start_runs(20, version_id, other))
    await two.add_worker(slots=SLOTS)
    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=60)
    assert ledger.most[str(project)] <= most
    assert ledger.most[str(other)] > most, "who has no limit is not held up"
    assert len(two.started) == 120
    assert await two.pool.fetchval("SELECT count(*) FROM executor.places") == 0


async def test_no_more_nodes_of_a_type_run_than_its_limit_even_in_a_chain(two: Field) -> None:
    project = uuid4()
    await set_limits(two, project, ProjectLimits(node_types={"noop": TypeLimits(max_running=2)}))
    ledger = Ledger(two, lambda context: context.project_id)
    chain = await a_version(two.executors[0], *({"key": f"n{place}"} for place in range(4)))
    await two.start_runs(10, chain, project)
    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=60)
    assert ledger.most[str(project)] == 2
    assert len(two.started) == 40


async def test_a_rate_holds_back_what_comes_too_fast(two: Field) -> None:
    project = uuid4()
    await set_limits(two, project, ProjectLimits(node_types={"noop": TypeLimits(rate=20.0, burst=2)}))
    loop = asyncio.get_running_loop()
    await two.add_worker(slots=SLOTS)
    begun = loop.time()
    await two.start_runs(2, await wide(two, 10), project)
    await await_until(partial(all_ended, two), within=60)
    assert loop.time() - begun >= (20 - 2) / 20 * 0.9


async def test_a_place_that_nobody_used_is_free_again(two: Field) -> None:
    project = uuid4()
    await set_limits(two, project, ProjectLimits(max_running_nodes=1))
    await two.pool.execute(
        "INSERT INTO executor.places VALUES ($1, 'a', '', $2, now() - interval '1 hour')", uuid4(), f"project/{project}"
    )
    await two.start_runs(1, await wide(two, 1), project)
    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=20)


async def test_a_place_does_not_get_older_by_who_began_to_take_it_earlier(two: Field) -> None:
    run_id, scope = uuid4(), f"project/{uuid4()}"
    place = [run_id], ["a"], [""], [scope]
    age = "SELECT taken_at FROM executor.places WHERE scope = $1"
    async with two.pool.acquire() as early, early.transaction():
        await early.execute("SELECT now()")
        await two.pool.execute(stored_limits._TAKE, *place)
        taken_at = await two.pool.fetchval(age, scope)
        await early.execute(stored_limits._TAKE, *place)
        assert await early.fetchval(age, scope) == taken_at


async def test_no_more_runs_of_a_key_go_on_than_its_limit_and_the_first_come_go_first(two: Field) -> None:
    limits = definition_pb2.RunLimits(
        max_running_runs=4, concurrency=definition_pb2.Concurrency(key="input.customer", max=1)
    )
    version_id = await wide(two, 2, limits)
    project = uuid4()
    customers: dict[UUID, str] = {}
    order: dict[str, list[UUID]] = {"a": [], "b": [], "c": []}
    for customer in [*order] * 8:
        (run_id,) = await two.start_runs(1, version_id, project, run_input={"customer": customer})
        order[customer].append(run_id)
        customers[run_id] = customer
    assert await two.pool.fetchval("SELECT count(*) FROM executor.runs WHERE status = 1") >= 20
    going: set[UUID] = set()

    async def note(context: Context) -> None:
        rows = await two.pool.fetch("SELECT id FROM executor.runs WHERE status IN (2, 3)")
        going.update(row[0] for row in rows)
        by_customer = Counter(customers[row[0]] for row in rows)
        assert max(by_customer.values(), default=1) == 1  # the first may begin before its run is seen to

    two.handler = note
    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=60)
    statuses = {row[0] for row in await two.pool.fetch("SELECT status FROM executor.runs")}
    assert statuses == {RunStatus.SUCCEEDED}, "the handler fails when two runs of a customer go on"
    assert going
    for ids in order.values():
        begun = [run_id for _, run_id in two.started if run_id in ids]
        assert list(dict.fromkeys(begun)) == ids
    assert await two.pool.fetchval("SELECT count(*) FROM executor.places") == 0


async def test_a_run_that_is_cancelled_while_it_waits_leaves_its_turn_to_others(two: Field) -> None:
    version_id = await wide(two, 1, definition_pb2.RunLimits(max_running_runs=1))
    first, second, third = [
        *await two.start_runs(1, version_id, uuid4()),
        *await two.start_runs(2, version_id, uuid4()),
    ]

    async def is_going(run_id: UUID) -> bool:
        return await two.pool.fetchval("SELECT status FROM executor.runs WHERE id = $1", run_id) == RunStatus.RUNNING

    await await_until(partial(is_going, first))
    executor = two.executors[0]
    for run_id in (second, first):
        await executor.committer.submit(run_id, decide.cancel, lambda _, __: None)
    await await_until(partial(is_going, third))


async def test_a_turn_given_once_more_to_a_run_that_has_ended_is_taken_back(two: Field) -> None:
    version_id = await wide(two, 1, definition_pb2.RunLimits(max_running_runs=1))
    await two.add_worker(slots=SLOTS)
    (ended,) = await two.start_runs(1, version_id, uuid4())
    await await_until(partial(all_ended, two))
    await two.pool.execute(
        "INSERT INTO executor.places (run_id, node_key, item_path, scope) "
        "SELECT id, '', '', 'workflow/' || workflow_id FROM executor.runs WHERE id = $1",
        ended,
    )
    await two.start_runs(1, version_id, uuid4())
    await await_until(partial(all_ended, two), within=20)
    assert await two.pool.fetchval("SELECT count(*) FROM executor.places") == 0


async def test_a_claim_that_is_granted_while_its_repetition_asks_for_a_place_is_answered_with_its_job(
    two: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = uuid4()
    await set_limits(two, project, ProjectLimits(max_running_nodes=1))
    (run_id,) = await two.start_runs(1, await wide(two, 1), project)
    first, second = two.executors
    ref = NodeRef(run_id, "n0", "")
    take = second.limits.take

    async def take_late(project_id: str, wanted: Sequence[Ready]) -> tuple[set[NodeRef], list[Ready]]:
        await first.jobs.claim("worker", [(ref, 0)], "claim")
        return await take(project_id, wanted)

    monkeypatch.setattr(second.limits, "take", take_late)
    answer = await second.jobs.claim("worker", [(ref, 0)], "claim")
    assert [job.ref for job in answer.jobs] == [ref]
    assert not answer.retry


async def test_a_claim_that_comes_while_its_place_is_asked_for_has_none_yet(
    two: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = uuid4()
    await set_limits(two, project, ProjectLimits(max_running_nodes=1))
    version_id = await wide(two, 1)
    await two.start_runs(1, version_id, project)
    await await_until(partial(has_place, two))
    executor, answered = two.executors[0], asyncio.Event()
    asked: asyncio.Queue[NodeRef] = asyncio.Queue()
    take = executor.limits.take

    async def take_late(project_id: str, wanted: Sequence[Ready]) -> tuple[set[NodeRef], list[Ready]]:
        if asked.empty():
            asked.put_nowait(wanted[0].ref)
            await answered.wait()
        return await take(project_id, wanted)

    run_id = new_id()
    monkeypatch.setattr(executor.limits, "take", take_late)
    await executor.start(run_id, version_id, project_id=project)
    ref = NodeRef(run_id, "n0", "")
    await await_until(lambda: not asked.empty())
    answer = await executor.jobs.claim("worker", [(ref, 0)], "claim")
    answered.set()
    assert not answer.jobs, "the only place is another's"


async def test_what_became_ready_again_meanwhile_takes_no_place_at_its_old_epoch(two: Field) -> None:
    project = uuid4()
    version_id = await wide(two, 1)
    run_id = new_id()
    executor = two.executors[0]
    await executor.start(run_id, version_id, project_id=project)
    ref = NodeRef(run_id, "n0", "")
    await executor.store.renew_lease(WorkerLease("w", "here", False, 1, ()), [], seconds=60)
    (job,) = (await executor.jobs.claim("w", [(ref, 0)], "claim")).jobs
    await executor.jobs.report("w", [Report(ref, job.epoch, Release(), None, 0.0)], free_slots=0, queues=frozenset())
    await set_limits(two, project, ProjectLimits(max_running_nodes=1))
    old, new = (Ready(ref, epoch, str(project), "noop", QUEUE, 0, 0.0) for epoch in (0, 2))
    assert await executor.limits.take(str(project), [old]) == (set(), [])
    assert await executor.limits.take(str(project), [new]) == ({ref}, [])


async def test_a_project_over_its_limits_is_told_to_come_again_and_then_may(two: Field) -> None:
    project, executor = uuid4(), two.executors[0]
    await set_limits(two, project, ProjectLimits(max_open_runs=3))
    version_id = await wide(two, 2)
    for _ in range(3):
        await executor.admission.require(str(project))
        await two.start_runs(1, version_id, project)
        executor.admission.accepted(str(project))
    with pytest.raises(ResourceExhaustedError) as refused:
        await executor.admission.require(str(project))
    assert (refused.value.reason, refused.value.retry_after) == ("OPEN_RUNS_LIMIT", 1.0)
    await executor.admission.require(str(uuid4()))

    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=20)

    async def may_again() -> bool:
        try:
            await executor.admission.require(str(project))
        except ResourceExhaustedError:
            return False
        return True

    await await_until(may_again)


async def test_a_project_with_too_much_waiting_is_told_to_come_again(two: Field) -> None:
    project, executor = uuid4(), two.executors[0]
    await set_limits(two, project, ProjectLimits(max_queued_nodes=10))
    await two.start_runs(1, await wide(two, 10), project)
    with pytest.raises(ResourceExhaustedError) as refused:
        await executor.admission.require(str(project))
    assert refused.value.reason == "QUEUED_NODES_LIMIT"


async def test_nobody_is_let_in_while_workers_leave_what_is_ready(two: Field) -> None:
    executor = two.executors[0]
    strict = Admission(executor.ready, executor.dispatcher, executor.committer, AdmissionLimits(9, 9, 0.2, 100))
    await strict.require(str(uuid4()))
    await two.start_runs(2, await wide(two, 1), uuid4())

    async def is_refused() -> bool:
        try:
            await strict.require(str(uuid4()))
        except ResourceExhaustedError as error:
            return error.reason == "WORKERS_BEHIND"
        return False

    await await_until(is_refused)
    await two.add_worker(slots=SLOTS)
    await await_until(partial(all_ended, two), within=20)
    await strict.require(str(uuid4()))


async def test_limits_are_kept_within_the_operators_and_everything_wrong_is_told(two: Field) -> None:
    settings = LimitSettings(two.executors[0].limits, ["noop"])
    project = uuid4()
    await settings.set_ceilings(project, ProjectLimits(max_open_runs=10, weight=7))
    wrong = ProjectLimits(
        max_running_nodes=0, max_open_runs=11, node_types={"nop": TypeLimits(), "noop": TypeLimits(rate=0.0)}
    )
    with pytest.raises(InvalidLimitsError) as refused:
        await settings.set_own(project, wrong)
    assert {(item.code, item.path) for item in refused.value.violations} == {
        ("OUT_OF_RANGE", "max_running_nodes"),
        ("OVER_CEILING", "max_open_runs"),
        ("UNKNOWN_NODE_TYPE", "node_types.nop"),
        ("OUT_OF_RANGE", "node_types.noop.rate"),
    }
    right = ProjectLimits(max_open_runs=9, node_types={"noop": TypeLimits(rate=2.5, burst=3, max_running=4)})
    await settings.set_own(project, right)
    own, ceilings = await settings.get(project)
    assert own == right
    assert (ceilings.max_open_runs, ceilings.weight) == (10, 7)


async def test_the_operator_sets_weight_and_ceilings_by_the_command_line(
    database: Callable[[str], Awaitable[str]],
) -> None:
    url, project = await database("executor"), str(uuid4())

    async def limits(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.executor.main", "limits", project, *arguments),
            env=os.environ | {"HEADRACE_EXECUTOR_POSTGRES_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    code, said = await limits("--weight", "3", "--ceilings", '{"max_open_runs": 7}')
    assert code == 0, said
    assert (await limits())[1] == said
    assert '"weight": 3' in said
    assert '"max_open_runs": 7' in said
    code, said = await limits("--weight", "1000")
    assert (code, "from 1 to 100" in said) == (2, True)
    code, said = await limits("--ceilings", '{"max_runs": 7}')
    assert (code, "max_runs" in said) == (2, True)
