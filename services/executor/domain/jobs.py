"""What workers do: claim jobs, report results, keep their leases."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

import structlog

from services.executor.domain.chains import ChainedJob, chain_behind, claim_behind
from services.executor.domain.committer import Committer
from services.executor.domain.dispatch import Dispatcher, Woken
from services.executor.domain.flows import Ready
from services.executor.domain.model import NodeRef, RunNotFoundError, WorkerLease
from services.executor.domain.store import Differences, RunStore, UnstorableError
from services.executor.engine import advance, decide
from services.executor.engine.containers import idempotency_key
from services.executor.engine.decide import Verdict
from services.executor.engine.state import Failure, NodeState, NodeStatus, RunState, Usage
from services.executor.engine.variables import referenced_nodes, variables_json
from services.kit.errors import UnavailableError
from services.kit.expressions import ExpressionError
from services.kit.templates import TemplateErrors

log = structlog.get_logger(__name__)

MAX_JOB_BYTES = 4 * 1024 * 1024
"""Config and variables of one job, or of all that come with one report; NATS carries messages of up to 8 MiB."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed node execution: all that a worker needs."""

    ref: NodeRef
    epoch: int
    attempt: int
    project_id: str
    workflow_id: str
    version_id: str
    type: str
    config: bytes
    variables: bytes
    timeout_seconds: float
    idempotency_key: str
    traceparent: str
    claim_id: str
    queued_seconds: float = 0.0
    """How long it was ready, where that is known."""
    is_early: bool = False
    """It goes out before its claim is committed."""
    chain: tuple[ChainedJob, ...] = ()


@dataclass(frozen=True, slots=True)
class Success:
    """A handler's result."""

    output: bytes
    port: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """A handler's failure; `retry_after` in seconds."""

    failure: Failure
    retry_after: float | None
    outcome_unknown: bool = False
    """It may have acted on the outside all the same."""


@dataclass(frozen=True, slots=True)
class Release:
    """Handed back; `started` = its handler had begun."""

    started: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """How an attempt ended."""

    ref: NodeRef
    epoch: int
    outcome: Success | AttemptFailure | Release
    shown_input: bytes | None
    handler_seconds: float
    claim_id: str = ""
    """As in the job; empty = the epoch says enough."""
    began: str = ""
    """The node of the chain that the worker has gone on with."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """Jobs granted, and those to be asked for again. The rest is done, held or not ready."""

    jobs: list[Job]
    retry: list[NodeRef]


@dataclass(frozen=True, slots=True)
class Reported:
    """`verdict` None = could not be committed now."""

    verdict: Verdict | None
    next: list[Job]
    goes_on: bool = False
    """What the worker has gone on with is its own, unless it has ended in the same commit."""


@dataclass(frozen=True, slots=True)
class _Reporter:
    worker_id: str
    free_slots: int
    queues: frozenset[str]


class Jobs:
    """Use cases of workers."""

    def __init__(self, store: RunStore, committer: Committer, dispatcher: Dispatcher, *, lease_seconds: float) -> None:
        self._store = store
        self._committer = committer
        self._dispatcher = dispatcher
        self._lease_seconds = lease_seconds

    async def claim(self, worker_id: str, wanted: Sequence[tuple[NodeRef, int]], claim_id: str) -> Claimed:
        """Claim node executions that are ready at an epoch. The same `claim_id` again gives the same jobs again."""
        claimed = Claimed([], [])
        woken = self._dispatcher.claimed([ref for ref, _ in wanted])
        unplaced = await self._claim_all(worker_id, wanted, claim_id, woken, claimed)
        if unplaced:
            try:
                placed = await self._dispatcher.take_places(unplaced)
            except UnavailableError:
                claimed.retry.extend(ready.ref for ready in unplaced)
            else:
                # Those without a place, too: an earlier request of this claim may have got them meanwhile.
                again = [(ready.ref, ready.epoch) for ready in unplaced]
                woken = woken._replace(placed=placed)
                left = await self._claim_all(worker_id, again, claim_id, woken, claimed)
                claimed.retry.extend(ready.ref for ready in left if ready.ref in placed)
        return claimed

    async def _claim_all(
        self,
        worker_id: str,
        wanted: Sequence[tuple[NodeRef, int]],
        claim_id: str,
        woken: Woken,
        claimed: Claimed,
    ) -> list[Ready]:
        """Claim, and add to `claimed`; returns those that need a place first."""
        futures = [self._claim(worker_id, ref, epoch, claim_id, woken) for ref, epoch in wanted]
        unplaced: list[Ready] = []
        for (ref, _), result in zip(wanted, await asyncio.gather(*futures, return_exceptions=True), strict=True):
            if isinstance(result, Job):
                claimed.jobs.append(result)
            elif isinstance(result, Ready):
                unplaced.append(result)
            elif isinstance(result, UnavailableError):
                claimed.retry.append(ref)
            elif isinstance(result, BaseException) and not isinstance(result, RunNotFoundError):
                # Not to be asked for at once again; the sweep wakes a worker in ever longer intervals.
                log.error("claim_failed", run_id=str(ref.run_id), node_key=ref.node_key, error=repr(result))
        return unplaced

    def _claim(
        self, worker_id: str, ref: NodeRef, epoch: int, claim_id: str, woken: Woken
    ) -> "asyncio.Future[Job | Ready | None]":
        """What needs a place and has none is answered with what it waits as."""
        is_repeated = False

        def apply(state: RunState) -> Verdict | Ready:
            nonlocal is_repeated
            # A run that has moved since may have lost the place.
            place, is_repeated = None if is_repeated else woken.placed.get(ref), True
            node = state.find(ref.item_path, ref.node_key)
            if node is None or state.is_terminal:
                return Verdict.STALE
            refusal = advance.exhausted(state, node) or job_size(state, node)[1]
            if refusal is not None:
                decide.refuse(state, node, refusal)
                return Verdict.STALE
            if node.status is NodeStatus.READY and self._dispatcher.needs_place(
                state.project_id, node.spec.type, place
            ):
                return Ready(ref, epoch, state.project_id, node.spec.type, node.queue, state.priority, time.monotonic())
            return decide.claim(state, node, epoch, worker=worker_id, claim_id=claim_id)

        def answer(state: RunState, verdict: Verdict | Ready) -> Job | Ready | None:
            if isinstance(verdict, Ready):
                return verdict
            node = state.find(ref.item_path, ref.node_key)
            if verdict is Verdict.STALE or node is None or not is_held_by(node, worker_id, claim_id):
                return None
            return self._job(state, node, woken.queued.get(ref, 0.0))

        return self._committer.submit(ref.run_id, apply, answer)

    async def held_by_claim(self, worker_id: str, claim_id: str) -> list[Job]:
        """What a worker holds by a claim whose answer it did not get."""
        refs = await self._store.claimed_by(worker_id, claim_id)

        def held(state: RunState, ref: NodeRef) -> NodeState | None:
            return state.find(ref.item_path, ref.node_key)

        def answer(state: RunState, node: NodeState | None) -> Job | None:
            return self._job(state, node) if node is not None and is_held_by(node, worker_id, claim_id) else None

        jobs = await asyncio.gather(
            *(self._committer.submit(ref.run_id, partial(held, ref=ref), answer) for ref in refs)
        )
        return [job for job in jobs if job is not None]

    async def report(
        self, worker_id: str, reports: Sequence[Report], *, free_slots: int, queues: frozenset[str]
    ) -> list[Reported]:
        """Record results; each answer may bring successors that were claimed for the worker in the same commit."""
        reporter = _Reporter(worker_id, free_slots, queues)
        by_run: dict[UUID, list[int]] = {}
        for place, report in enumerate(reports):
            by_run.setdefault(report.ref.run_id, []).append(place)
        futures = [self._report(reporter, [reports[place] for place in places]) for places in by_run.values()]
        answers = [Reported(None, [])] * len(reports)
        for places, result in zip(by_run.values(), await asyncio.gather(*futures, return_exceptions=True), strict=True):
            for number, place in enumerate(places):
                if isinstance(result, list):
                    answers[place] = result[number]
                elif isinstance(result, UnstorableError):
                    answers[place] = await self._report_alone(reporter, reports[place])
                else:
                    answers[place] = _not_recorded(result, reports[place])
        return answers

    async def _report_alone(self, reporter: _Reporter, report: Report) -> Reported:
        """Record what may be a result that the database refuses; the attempt then fails, and is not repeated."""
        try:
            return (await self._report(reporter, [report]))[0]
        except UnstorableError as error:
            log.error("report_not_stored", run_id=str(report.ref.run_id), node=report.ref.node_key, error=repr(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this report's alone
            return _not_recorded(error, report)
        message = f"The result of node {report.ref.node_key!r} could not be stored. See the executor's log."
        failure = Failure("RESULT_NOT_STORED", message, report.ref.node_key)
        outcome = AttemptFailure(failure, None, outcome_unknown=True)
        failed = replace(report, outcome=outcome, shown_input=None, began="")
        try:
            return (await self._report(_Reporter(reporter.worker_id, 0, frozenset()), [failed]))[0]
        except Exception as second:  # noqa: BLE001 - the worker repeats the report
            log.error("report_not_stored", run_id=str(report.ref.run_id), error=repr(second))
            return Reported(None, [])

    def _report(self, reporter: _Reporter, reports: Sequence[Report]) -> "asyncio.Future[list[Reported]]":
        """Reports of one run, in their order."""

        def apply(state: RunState) -> list[tuple[Verdict, list[NodeState]]]:
            return [self._apply_report(state, reporter, report) for report in reports]

        def answer(state: RunState, results: list[tuple[Verdict, list[NodeState]]]) -> list[Reported]:
            return [
                self._answer_report(state, reporter, report, *result)
                for report, result in zip(reports, results, strict=True)
            ]

        return self._committer.submit(reports[0].ref.run_id, apply, answer)

    def _apply_report(self, state: RunState, reporter: _Reporter, report: Report) -> tuple[Verdict, list[NodeState]]:
        """What becomes of a report, and what is claimed for its worker by it."""
        ref = report.ref
        node = state.find(ref.item_path, ref.node_key)
        if state.is_terminal:
            return _verdict_of_ended(node, report.epoch), []
        before = len(state.ready)
        # A node that cannot be found has been recorded: its scope has ended, and with it what it held is dropped.
        verdict = Verdict.REPEATED if node is None else _record(state, node, reporter.worker_id, report)
        if verdict is Verdict.REPEATED:
            return verdict, _claimed_by(state, reporter.worker_id, _next_claim(report))
        if isinstance(report.outcome, Release) or len(state.ready) == before:
            return verdict, []
        is_full = reporter.free_slots <= 1 and not report.began
        if not self._dispatcher.may_continue(state.project_id, reporter.queues, is_full=is_full):
            return verdict, []
        return verdict, _claim_successors(
            state,
            before,
            reporter.worker_id,
            claim_id=_next_claim(report),
            free_slots=reporter.free_slots,
            queues=reporter.queues,
            began=report.began,
        )

    def _answer_report(
        self,
        state: RunState,
        reporter: _Reporter,
        report: Report,
        verdict: Verdict,
        successors: Sequence[NodeState],
    ) -> Reported:
        # Most have ended in the same commit: of a chain they come together.
        held = [node for node in successors if node.status is NodeStatus.RUNNING]
        if not held:
            return Reported(verdict, [])
        claim_id = _next_claim(report)
        held = [node for node in held if is_held_by(node, reporter.worker_id, claim_id)]
        begun = [node for node in held if (node.spec.key, node.path) == (report.began, report.ref.item_path)]
        # A worker that is full asks after each node.
        has_room = reporter.free_slots > 1
        jobs = [self._job(state, node, may_chain=has_room) for node in held if node not in begun]
        return Reported(verdict, jobs, bool(begun))

    def _job(self, state: RunState, node: NodeState, queued_seconds: float = 0.0, *, may_chain: bool = True) -> Job:
        may_chain = may_chain and self._dispatcher.may_continue(state.project_id, (node.queue,), is_full=False)
        return make_job(state, node, queued_seconds, may_chain=may_chain)

    async def heartbeat(self, worker: WorkerLease, held: Sequence[tuple[NodeRef, int]]) -> Differences:
        """Keep a worker's claims alive, and tell it where it errs about them.

        A claim is forgotten when it was granted after its worker had been told "nothing": by an executor that stood
        still with the request in hand, while another one answered its repetition.
        """
        return await self._store.renew_lease(worker, held, seconds=self._lease_seconds)


def _not_recorded(error: BaseException, report: Report) -> Reported:
    """The answer to a report that came to nothing, or whose fate nobody knows."""
    if isinstance(error, RunNotFoundError):
        return Reported(Verdict.STALE, [])
    if not isinstance(error, UnavailableError):
        log.error("report_failed", run_id=str(report.ref.run_id), error=repr(error))
    return Reported(None, [])


def _record(state: RunState, node: NodeState, worker_id: str, report: Report) -> Verdict:
    is_running = node.status is NodeStatus.RUNNING
    if is_running and report.claim_id and (worker_id, report.claim_id) != (node.worker, node.claim_id):
        return Verdict.STALE  # of a claim that was never committed; another one may have its epoch
    verdict = _decide(state, node, report)
    if verdict is Verdict.ACCEPTED:
        node.handler_seconds = report.handler_seconds
    return verdict


def _decide(state: RunState, node: NodeState, report: Report) -> Verdict:
    outcome = report.outcome
    if isinstance(outcome, Success):
        return decide.report_success(
            state,
            node,
            report.epoch,
            output=outcome.output,
            port=outcome.port,
            usage=outcome.usage,
            shown_input=report.shown_input,
        )
    if isinstance(outcome, AttemptFailure):
        return decide.report_failure(
            state,
            node,
            report.epoch,
            outcome.failure,
            retry_after=outcome.retry_after,
            outcome_unknown=outcome.outcome_unknown,
            shown_input=report.shown_input,
        )
    return decide.release(state, node, report.epoch, started=outcome.started)


def _verdict_of_ended(node: NodeState | None, epoch: int) -> Verdict:
    """A report for a run that has ended: recorded before, if the node is at the report's epoch or its scope is over."""
    return Verdict.REPEATED if node is None or node.epoch == epoch else Verdict.STALE


def is_held_by(node: NodeState, worker_id: str, claim_id: str) -> bool:
    """Whether a node execution is a worker's by this claim.

    To be asked after the commit: what came after the claim in the same one may have ended it, or given it to another.
    """
    return node.status is NodeStatus.RUNNING and (node.worker, node.claim_id) == (worker_id, claim_id)


def _claimed_by(state: RunState, worker_id: str, claim_id: str) -> list[NodeState]:
    return [node for node in state.open_nodes() if is_held_by(node, worker_id, claim_id)]


def _next_claim(report: Report) -> str:
    """What a report claims under."""
    ref = report.ref
    return claim_behind(report.claim_id or f"{ref.node_key}/{ref.item_path}/{report.epoch}")


def _claim_successors(
    state: RunState,
    before: int,
    worker_id: str,
    *,
    claim_id: str,
    free_slots: int,
    queues: frozenset[str],
    began: str = "",
) -> list[NodeState]:
    """Claim what this report has made ready, as far as the worker can take it; the rest is left to be published.

    `began`: the node that it is at already.
    """
    taken: list[NodeState] = []
    left: list[NodeState] = []
    free_bytes = MAX_JOB_BYTES
    for node in state.ready[before:]:
        if node.status is not NodeStatus.READY:
            continue  # the scope that it was in has failed in the same transition
        if node.spec.key == began and advance.exhausted(state, node) is None:
            decide.claim(state, node, node.epoch, worker=worker_id, claim_id=claim_id)
            taken.append(node)
            continue
        if len(taken) < free_slots and node.queue in queues:
            size, refusal = job_size(state, node)
            if refusal is None and advance.exhausted(state, node) is None and size <= free_bytes:
                free_bytes -= size
                decide.claim(state, node, node.epoch, worker=worker_id, claim_id=claim_id)
                taken.append(node)
                continue
        left.append(node)
    state.ready[before:] = left
    return taken


def job_size(state: RunState, node: NodeState) -> tuple[int, Failure | None]:
    """Bytes of a node execution's job, about; and why it cannot be one, if it cannot."""
    spec, scope = node.spec, node.scope
    try:
        references = spec.references
    except (ExpressionError, TemplateErrors) as error:
        return 0, Failure("INVALID_CONFIG", f"Node {spec.key!r}: {error}", spec.key)
    size = len(spec.config) + (len(scope.input_json()) if "input" in references.names else 0)
    if "nodes" in references.names:
        size += sum(len(other.output or b"") for other in referenced_nodes(scope, references))
    size += len(state.vars.run.text) if references.reads("run", "vars") else 0
    size += len(state.vars.project.text) if references.reads("project", "vars") else 0
    if size <= MAX_JOB_BYTES:
        return size, None
    message = (
        f"Node {spec.key!r} reads {size} bytes of input, variables and other nodes' outputs; the limit is "
        f"{MAX_JOB_BYTES}. Store large data and pass its address, or read fewer outputs."
    )
    return size, Failure("JOB_TOO_LARGE", message, spec.key)


def make_job(
    state: RunState, node: NodeState, queued_seconds: float = 0.0, *, is_early: bool = False, may_chain: bool = False
) -> Job:
    """The job for a claimed node execution."""
    spec = node.spec
    return Job(
        ref=NodeRef(state.run_id, spec.key, node.path),
        epoch=node.epoch,
        attempt=node.failures + 1,
        project_id=state.project_id,
        workflow_id=state.workflow_id,
        version_id=state.version_id,
        type=spec.type,
        config=spec.config,
        variables=variables_json(state, node.scope, spec.references),
        timeout_seconds=spec.timeout_seconds,
        idempotency_key=idempotency_key(state.run_text, spec.key, node.path),
        traceparent=state.traceparent,
        claim_id=node.claim_id,
        queued_seconds=queued_seconds,
        is_early=is_early,
        chain=chain_behind(state, node) if may_chain else (),
    )
