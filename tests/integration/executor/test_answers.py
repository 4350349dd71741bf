"""Answers to waits at two executors that share one database: one wins, whoever else answers or whatever runs out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from services.executor.domain.answers import Answers
from services.executor.domain.model import (
    EventNotFoundError,
    NodeNotFoundError,
    NodeNotWaitingError,
    NodeRef,
    NotAnApproverError,
)
from services.executor.domain.resume_tokens import ResumeTokens
from services.executor.engine import decide
from services.executor.engine.decide import Verdict
from services.executor.engine.state import RunState, RunStatus
from services.executor.engine.waits import Answer, Person
from services.executor.storage.postgres import PostgresRunStore
from services.kit.errors import DomainError, IdempotencyKeyReusedError
from services.kit.ids import new_id
from services.kit.postgres import open_pool
from tests.support import executors as support
from tests.support.executors import PROJECT, a_version, committing

EVE = Person(str(uuid4()), "eve@example.com", "editor")


class Executor(support.Executor):
    """An executor that people ask."""

    def __init__(self, store: PostgresRunStore) -> None:
        super().__init__(store)
        self.answers = Answers(store, self.committer, ResumeTokens(b"k" * 32))

    async def wait(self, node_type: str = "approval", **config: Any) -> NodeRef:
        """Start a run of one node that waits."""
        ref = NodeRef(new_id(), "ask")
        await self.start(ref.run_id, await a_version(self, {"key": "ask", "type": node_type, "config": config}))
        return ref

    async def resume(self, ref: NodeRef, decision: str = "approve", data: Any = None, *, key: str = "") -> RunStatus:
        said = Answer(decision, orjson.dumps(data), EVE)
        return (await self.answers.resume(PROJECT, ref, said, request_id=key)).status

    async def token(self, ref: NodeRef) -> str:
        """The token as an editor is shown it; empty where there is none."""
        ((_, node),) = await self.store.list_node_executions(PROJECT, ref.run_id, limit=10, after=None)
        return "" if node.wait_epoch is None else self.answers.token(ref, node.wait_epoch)

    async def output(self, run_id: UUID) -> Any:
        run = await self.store.get_run(PROJECT, run_id)
        return orjson.loads(run.output or b"null")


@pytest.fixture
async def executors(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[tuple[Executor, Executor]]:
    pool = await open_pool(await database("executor"), size=6)
    both = Executor(PostgresRunStore(pool)), Executor(PostgresRunStore(pool))
    async with committing(*both):
        yield both
    await pool.close()


async def outcome(answer: Awaitable[Any]) -> str:
    try:
        await answer
    except DomainError as error:
        return error.reason
    return "won"


async def test_of_answers_tokens_and_timers_at_once_exactly_one_counts(executors: tuple[Executor, Executor]) -> None:
    one, other = executors

    async def race(number: int) -> Counter[str]:
        ref = await one.wait(title="?", timeout_seconds=3600)
        token = await one.token(ref)

        def expire(state: RunState) -> Verdict:
            return decide.wake(state, state.root.nodes[0], 1)

        async def timer(executor: Executor) -> str:
            verdict = await executor.committer.submit(ref.run_id, expire, lambda _, verdict: verdict)
            return "won" if verdict is Verdict.ACCEPTED else "stale"

        contenders = [
            outcome(one.resume(ref)),
            outcome(other.resume(ref, "reject")),
            outcome(other.answers.deliver(token, b'{"decision": "approve"}', request_id="")),
            timer(other if number % 2 else one),
        ]
        found = Counter(await asyncio.gather(*(contenders[number % 4 :] + contenders[: number % 4])))
        run = await one.store.get_run(PROJECT, ref.run_id)
        assert run.status in (RunStatus.SUCCEEDED, RunStatus.FAILED)
        return found

    for batch in range(0, 1000, 50):
        for found in await asyncio.gather(*(race(number) for number in range(batch, batch + 50))):
            assert found["won"] == 1
            assert found.keys() <= {"won", "stale", "NODE_NOT_WAITING"}


async def test_the_same_request_again_gives_the_same_answer_and_no_other(executors: tuple[Executor, Executor]) -> None:
    one, other = executors
    ref = await one.wait(title="?")
    assert await one.resume(ref, data=1, key="k") is RunStatus.SUCCEEDED
    assert await other.resume(ref, data=1, key="k") is RunStatus.SUCCEEDED
    with pytest.raises(IdempotencyKeyReusedError):
        await other.resume(ref, data=2, key="k")
    for key in ("", "another"):
        with pytest.raises(NodeNotWaitingError):
            await one.resume(ref, data=1, key=key)


async def test_a_token_is_good_for_one_event_and_says_nothing_of_what_is_not_there(
    executors: tuple[Executor, Executor],
) -> None:
    one, other = executors
    ref = await one.wait("wait_for_event")
    token = await one.token(ref)
    await other.answers.deliver(token, b'{"paid": true}', request_id="k")
    await one.answers.deliver(token, b'{"paid": true}', request_id="k")
    assert await one.output(ref.run_id) == {"ask": {"paid": True}}
    assert await one.token(ref) == ""
    with pytest.raises(NodeNotWaitingError):
        await one.answers.deliver(token, b"1", request_id="")
    with pytest.raises(EventNotFoundError):
        await one.answers.deliver(one.answers.token(NodeRef(uuid4(), "ask"), 1), b"1", request_id="")
    with pytest.raises(EventNotFoundError):
        await one.answers.deliver(token[::-1], b"1", request_id="")


async def test_where_approvers_are_named_only_they_answer_and_there_is_no_token(
    executors: tuple[Executor, Executor],
) -> None:
    one, _ = executors
    ref = await one.wait(title="?", approvers=["bob@example.com"])
    assert await one.token(ref) == ""
    with pytest.raises(NodeNotWaitingError):
        await one.answers.deliver(one.answers.token(ref, 1), b'{"decision": "approve"}', request_id="")
    with pytest.raises(NotAnApproverError):
        await one.resume(ref)
    bob = Person(str(uuid4()), "bob@example.com", "editor")
    run = await one.answers.resume(PROJECT, ref, Answer("reject", b"null", bob), request_id="")
    assert await one.output(run.id) == {"ask": {"decision": "reject", "data": None, "by": bob.user_id}}


async def test_what_is_not_there_is_told_from_what_does_not_wait(executors: tuple[Executor, Executor]) -> None:
    one, _ = executors
    ref = await one.wait(title="?")
    for place in (NodeRef(ref.run_id, "nobody"), NodeRef(ref.run_id, "ask", "each[0]")):
        with pytest.raises(NodeNotFoundError):
            await one.resume(place)
