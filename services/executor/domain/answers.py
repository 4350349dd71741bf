"""What people and programs say to node executions that wait for them. One answer wins."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from services.executor.domain.committer import Committer
from services.executor.domain.measures import trace_answer
from services.executor.domain.model import (
    EventNotFoundError,
    NodeNotFoundError,
    NodeNotWaitingError,
    NodeRef,
    NotAnApproverError,
    RunNotFoundError,
    RunView,
)
from services.executor.domain.resume_tokens import ResumeTokens, Wait
from services.executor.domain.store import RunStore
from services.executor.engine import decide, waits
from services.executor.engine.decide import Verdict
from services.executor.engine.state import NodeState, RunState
from services.executor.engine.waits import Answer
from services.kit.errors import IdempotencyKeyReusedError, InvalidArgumentError, Violation
from services.kit.ids import request_hash

_Outcome = Verdict | tuple[Violation, ...] | NotAnApproverError | None
"""None = there is no such node execution in memory: its scope has ended, or never was."""


class Answers:
    """Use cases of waits."""

    def __init__(self, store: RunStore, committer: Committer, tokens: ResumeTokens) -> None:
        self._store = store
        self._committer = committer
        self._tokens = tokens

    async def resume(self, project_id: UUID, ref: NodeRef, answer: Answer, *, request_id: str) -> RunView:
        """Answer as a person; the run as it is then.

        With a `request_id` this may be repeated. Raises RunNotFoundError, NodeNotFoundError, NodeNotWaitingError,
        NotAnApproverError, IdempotencyKeyReusedError, and InvalidArgumentError with all that is wrong with the answer.
        """
        await self._store.get_run(project_id, ref.run_id)
        said = replace(answer, request=_known_by(answer, request_id))
        await self._submit(ref, lambda node: said, epoch=None, request_id=request_id, known=said.request)
        return await self._store.get_run(project_id, ref.run_id)

    async def deliver(self, token: str, payload: bytes, *, request_id: str) -> None:
        """Answer by token. Raises EventNotFoundError for one that nobody made, else what `resume` raises."""
        wait = self._tokens.read(token)
        if wait is None:
            raise EventNotFoundError

        def answer(node: NodeState) -> Answer:
            found = waits.answer_of_payload(node.spec.type, payload, "")
            return replace(found, request=_known_by(found, request_id))

        try:
            await self._submit(wait.ref, answer, epoch=wait.epoch, request_id=request_id)
        except (RunNotFoundError, NodeNotFoundError) as error:
            raise EventNotFoundError from error  # deleted since

    def token(self, ref: NodeRef, epoch: int) -> str:
        """The token of a wait."""
        return self._tokens.make(Wait(ref, epoch))

    async def _submit(
        self, ref: NodeRef, make: Callable[[NodeState], Answer], *, epoch: int | None, request_id: str, known: str = ""
    ) -> None:
        request, node_type = known, ""

        def apply(state: RunState) -> _Outcome:
            nonlocal request, node_type
            node = state.find(ref.item_path, ref.node_key)
            if node is None:
                return None
            answer = make(node)
            request, node_type = answer.request, node.spec.type
            if epoch is not None and (epoch != node.epoch or not waits.takes_token(node.spec.type, node.input)):
                return Verdict.STALE
            if answer.by and waits.waits_for_answer(node) and not waits.may_answer(node, answer.by):
                return NotAnApproverError(ref.node_key)
            return decide.resume(state, node, answer)

        traceparent, outcome = await self._committer.submit(
            ref.run_id, apply, lambda state, outcome: (state.traceparent, outcome)
        )
        if isinstance(outcome, NotAnApproverError):
            raise outcome
        if isinstance(outcome, tuple):
            raise InvalidArgumentError(outcome[0].message, violations=outcome)
        if outcome is Verdict.ACCEPTED:
            trace_answer(traceparent, ref, node_type)
        else:
            await self._settle_repetition(ref, request, request_id)

    async def _settle_repetition(self, ref: NodeRef, request: str, request_id: str) -> None:
        """Return if this very request has answered before; else say why it cannot."""
        for stored in await self._store.load([ref.run_id]):
            row = stored.nodes.get(ref.item_path, {}).get(ref.node_key)
            if row is None:
                break
            if request_id and row.answer.partition(":")[0] == _hex(request_id):
                if request and row.answer != request:
                    raise IdempotencyKeyReusedError
                return
            raise NodeNotWaitingError(ref)
        raise NodeNotFoundError(ref)


def _known_by(answer: Answer, request_id: str) -> str:
    """The key and the content of a request, each as a hash; empty without a key."""
    if not request_id:
        return ""
    by = answer.by.user_id if answer.by else ""
    return f"{_hex(request_id)}:{request_hash(answer.decision, answer.data, by).hex()}"


def _hex(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()
