"""Group commit: transitions of many runs, decided in memory, written in one transaction.

One commit is under way at a time. What comes meanwhile is applied to the runs' states at once, unless their run is in
that commit, and is written together by the next, which is sent before the callers of the last one are answered. Nobody
waits for a batch to fill: without a commit under way, a single transition is committed at once. A run that another
executor has moved meanwhile is read again and its transitions are repeated.

A new run whose caller waits for its end anyway has patience: when all that it begins with is with workers already, it
is committed with the first of their results, or when its time is up.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.executor.domain.batches import Batch, Giver, Work
from services.executor.domain.measures import count_ended
from services.executor.domain.model import NewRun, RunNotFoundError
from services.executor.domain.patience import Patience
from services.executor.domain.run_states import RunStates
from services.executor.domain.store import RunStore
from services.executor.engine.advance import settle
from services.executor.engine.state import NodeState, NodeStatus, RunState, RunStatus
from services.kit.errors import UnavailableError

log = structlog.get_logger(__name__)

T = TypeVar("T")
S = TypeVar("S")

MAX_BATCH = 256
MAX_TRIES = 20
"""Times a transition is repeated because its run kept moving."""
_CACHE_BYTES = 256 * 1024 * 1024
_WAITING_BYTES = 16 * 1024 * 1024
"""Runs that only wait: any number of them may, and each is read again when its turn comes."""

_BATCH = Histogram(
    "headrace_executor_commit_transitions", "Transitions in a commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
_SECONDS = Histogram(
    "headrace_executor_commit_duration_seconds",
    "Time that PostgreSQL takes for a commit.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
_QUEUED = Gauge("headrace_executor_commit_queue", "Transitions that wait for a commit.")
_CONFLICTS = Counter("headrace_executor_commit_conflicts_total", "Runs read again because another executor moved them.")


class Announcer(Protocol):
    """Told what a commit has made true. Must not block or raise."""

    def announce(self, state: RunState, ready: Sequence[NodeState]) -> None:
        """The run has moved; `ready` are worker nodes that wait for a worker."""
        ...


class RunExistsError(Exception):
    """A new run's id is taken: the request is a repetition."""


class Committer:
    """Applies transitions to runs and commits them."""

    def __init__(self, store: RunStore, run_states: RunStates, announcer: Announcer, giver: Giver) -> None:
        self._store = store
        self._run_states = run_states
        self._announcer = announcer
        self._giver = giver
        giver.tell(self._give_again)
        self._queue: deque[Work[Any, Any]] = deque()
        """What `_next` has no room for."""
        self._next = Batch()
        self._patience = Patience(giver, self._hand_out_soon, self._lose_patience)
        self._busy: dict[UUID, list[Work[Any, Any]]] = {}
        """Runs in a commit that is under way or not answered yet, and what has come for them meanwhile."""
        self._unread: dict[UUID, list[Work[Any, Any]]] = {}
        """Runs that are not in memory, and what waits for them to be read."""
        self._read_states: dict[UUID, RunState] = {}
        """Those that have been read, until what has waited for them is applied."""
        self._reading: asyncio.Task[None] | None = None
        self._active, self._waiting = _Cache(_CACHE_BYTES), _Cache(_WAITING_BYTES)
        self._wanted = asyncio.Event()
        self._closing = False
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        """Begin to serve; the task that does, until `stop`."""
        _QUEUED.set_function(lambda: self.queued)
        self._serving = asyncio.create_task(self._serve())
        return self._serving

    async def stop(self) -> None:
        """Finish what is queued, then end."""
        self._closing = True
        self._patience.end_all()
        self._wanted.set()
        if self._serving is not None:
            await self._serving

    def submit(
        self, run_id: UUID, apply: Callable[[RunState], S], answer: Callable[[RunState, S], T]
    ) -> "asyncio.Future[T]":
        """Queue a transition of a run; the future has the answer once it is committed.

        The future raises RunNotFoundError for an unknown run and UnavailableError when nobody knows whether the
        transition is committed: submit it again, it is guarded.
        """
        return self._put(Work(run_id, apply, answer, asyncio.get_running_loop().create_future()))

    def submit_new(
        self,
        run_id: UUID,
        new: NewRun,
        make: Callable[[], RunState],
        apply: Callable[[RunState], S],
        answer: Callable[[RunState, S], T],
        *,
        patience: float = 0.0,
    ) -> "asyncio.Future[T]":
        """Queue the first transition of the run that `make` makes; raises RunExistsError if its id is taken.

        It may wait so many seconds for results of what it begins with, to be committed with them.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        return self._put(Work(run_id, apply, answer, future, new=(make, new), patience=patience))

    @property
    def queued(self) -> int:
        """Transitions that wait for a commit."""
        held = (works for waiting in (self._busy, self._unread) for works in waiting.values())
        return len(self._queue) + len(self._patience) + self._next.size + sum(map(len, held))

    def _put(self, work: "Work[S, T]") -> "asyncio.Future[T]":
        if self._closing:
            work.done.set_exception(UnavailableError("This executor is stopping. Try again.", retry_after=0.2))
        else:
            self._queue.append(work)
            self._take_in()
        return work.done

    # Before a commit.

    def _take_in(self) -> None:
        """Apply what has queued up, as far as the next commit has room."""
        while self._queue and self._next.size < MAX_BATCH:
            self._place(self._queue.popleft())
        self._wanted.set()

    def _place(self, work: Work[Any, Any]) -> None:
        run_id, batch = work.run_id, self._next
        for waiting in (self._busy, self._unread):
            if run_id in waiting:
                waiting[run_id].append(work)
                return
        self._end_patience(run_id)
        state = batch.states.get(run_id) or self._drop(run_id)
        if state is None and work.new is not None:
            self._begin(work, *work.new)
        elif state is None:
            self._unread[run_id] = [work]
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
        elif work.new is None:
            self._apply(batch, work, state)
        elif state.version:
            if run_id not in batch.states:
                self._keep(state)
            work.fail(RunExistsError())
        else:
            batch.later.append(work)

    def _apply(self, batch: Batch, work: Work[Any, Any], state: RunState) -> None:
        try:
            work.result = work.apply(state)
        except Exception as error:
            log.exception("transition_failed", run_id=str(work.run_id))
            # Nobody knows what it has left of the state: the others go on from what is stored.
            self._queue.extend(batch.take_out(work.run_id))
            work.fail(error)
        else:
            self._give(batch, state)
            batch.states[work.run_id] = state
            batch.works.setdefault(work.run_id, []).append(work)
            batch.size += 1

    def _begin(self, work: Work[Any, Any], make: Callable[[], RunState], new: NewRun) -> None:
        batch, run_id = Batch(), work.run_id
        batch.new[run_id] = new
        self._apply(batch, work, make())
        state = batch.states.get(run_id)
        if state is not None and not self._patience.begin(batch, state, work.patience):
            self._next.join(batch)

    def _end_patience(self, run_id: UUID) -> None:
        if (batch := self._patience.end(run_id)) is not None:
            self._next.join(batch)

    def _hand_out_soon(self) -> None:
        """With a commit under way they go when the next one is sent: more of them in an answer."""
        if not self._busy:
            asyncio.get_running_loop().call_soon(self._giver.hand_out)

    def _lose_patience(self, run_id: UUID) -> None:
        self._end_patience(run_id)
        self._wanted.set()

    def _give(self, batch: Batch, state: RunState) -> None:
        if state.ready and (settle_gift := self._giver.give(state)) is not None:
            batch.gifts.setdefault(state.run_id, []).append(settle_gift)

    def _give_again(self) -> None:
        """What is not on its way to PostgreSQL yet may still be claimed by the commit that makes it ready."""
        for state in self._next.states.values():
            self._give(self._next, state)
        self._patience.give_again(self._give)

    async def _read(self) -> None:
        """Read the runs that are not in memory, and apply what waits for them."""
        while self._unread:
            asked = list(islice(self._unread, MAX_BATCH))
            try:
                states = await self._run_states.load(asked)
            except UnavailableError as error:
                self._read_in(asked, {}, error)
            except Exception:
                # Whichever of them it is: each by itself, so that the others are served.
                log.exception("runs_not_read", runs=len(asked))
                for run_id in asked:
                    await self._read_alone(run_id)
            else:
                self._read_in(asked, states, None)
        self._reading = None
        self._wanted.set()

    async def _read_alone(self, run_id: UUID) -> None:
        """One run that cannot be read must not fail those that were asked for with it."""
        try:
            states = await self._run_states.load([run_id])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's alone
            self._read_in([run_id], {}, error)
        else:
            self._read_in([run_id], states, None)

    def _read_in(self, asked: list[UUID], states: Mapping[UUID, RunState], error: Exception | None) -> None:
        for run_id in asked:
            works = self._unread.pop(run_id)
            if run_id in states:
                self._read_states[run_id] = states[run_id]
                self._queue.extend(works)
                continue
            for work in works:
                if work.new is not None and error is None:
                    self._queue.append(work)  # it came behind something about a run that nobody knew yet
                else:
                    work.fail(error or RunNotFoundError(run_id))
        self._take_in()

    # The commit.

    async def _serve(self) -> None:
        while not (self._closing and self._reading is None and not self._queue and not self._next.size):
            await self._wanted.wait()
            self._wanted.clear()
            landed: Batch | None = None
            while self._next.size:
                batch, self._next = self._next, Batch()
                self._giver.hand_out()
                batch.runs = list(batch.states)
                self._busy |= {run_id: [] for run_id in batch.runs}
                if landed is None:
                    await self._write(batch)
                else:
                    writing = asyncio.create_task(self._write(batch))
                    await asyncio.sleep(0)  # to PostgreSQL first: the answers are made while it is at work
                    self._finish(landed)
                    await writing
                landed = batch
            if landed is not None:
                self._finish(landed)

    async def _write(self, batch: Batch) -> None:
        """Commit a batch and note in it what has become of it."""
        try:
            await self._commit(batch)
        except UnavailableError as error:
            batch.error = error
        except Exception as error:
            log.exception("commit_failed", transitions=batch.size)
            batch.error = error
            if batch.size > 1:
                await self._one_by_one(batch)

    async def _commit(self, batch: Batch) -> None:
        batch.outdated = await self._outdated(batch)
        changed = [state for state in batch.states.values() if state.events or state.touched]
        if changed:
            _BATCH.observe(batch.size)
            begun = time.perf_counter()
            batch.written = await self._store.commit(changed, batch.new)
            _SECONDS.observe(time.perf_counter() - begun)

    async def _outdated(self, batch: Batch) -> frozenset[UUID]:
        """Runs whose copies another executor has left behind, and that no commit will tell of.

        A transition that changes nothing is a judgement ("stale", "done before") that rests on the copy alone.
        """
        states = batch.states.items()
        unmoved = {run_id: state.version for run_id, state in states if not state.events and not state.touched}
        if not unmoved:
            return frozenset()
        present = await self._store.run_versions(list(unmoved))
        return frozenset(run_id for run_id, version in unmoved.items() if present.get(run_id) != version)

    async def _one_by_one(self, batch: Batch) -> None:
        """One value that the database refuses must not fail the transitions that shared its commit."""
        for run_id in list(batch.works):
            for work in batch.take_out(run_id):
                alone = Batch()
                try:
                    state = await self._state_for(work)
                    if state is None:
                        raise RunNotFoundError(run_id)
                    if work.new is not None:
                        alone.new[run_id] = work.new[1]
                    self._apply(alone, work, state)
                    await self._commit(alone)
                except Exception as error:
                    # What came behind a start that is refused finds no run.
                    if not isinstance(error, UnavailableError | RunNotFoundError):
                        log.exception("transition_failed", run_id=str(run_id))
                    alone.error = error
                    work.fail(error)
                else:
                    self._conclude_all(alone)
                self._settle_gifts(alone)

    async def _state_for(self, work: Work[Any, Any]) -> RunState | None:
        if work.new is not None:
            return work.new[0]()
        return self._drop(work.run_id) or (await self._run_states.load([work.run_id])).get(work.run_id)

    # After it.

    def _finish(self, batch: Batch) -> None:
        """Answer what a batch has brought, and let what has come meanwhile have its turn."""
        if batch.error is None:
            self._conclude_all(batch)
        else:
            for works in batch.works.values():
                for work in works:
                    work.fail(batch.error)
        self._settle_gifts(batch)
        for run_id in batch.runs:
            self._queue.extend(self._busy.pop(run_id))
        self._queue.extend(batch.later)
        self._take_in()
        self._giver.hand_out()

    def _conclude_all(self, batch: Batch) -> None:
        for run_id, state in batch.states.items():
            works = batch.works[run_id]
            moved = bool(state.events or state.touched)
            if run_id in batch.outdated:
                self._queue.extend(works)
            elif moved and run_id not in batch.written:
                self._repeat(works)
            else:
                state.times = batch.written.get(run_id)
                try:
                    self._conclude(state, works, moved=moved)
                except Exception as error:
                    # It is committed. Who asked asks again; the sweep and the refill find what was not announced.
                    log.exception("conclusion_failed", run_id=str(run_id))
                    for work in works:
                        work.fail(error)

    @staticmethod
    def _settle_gifts(batch: Batch) -> None:
        is_known = not isinstance(batch.error, UnavailableError)
        for run_id, gifts in batch.gifts.items():
            for settle_gift in gifts:
                settle_gift(run_id in batch.written if is_known else None)

    def _repeat(self, works: list[Work[Any, Any]]) -> None:
        """Another executor has moved the run: apply the same transitions to what it is now."""
        _CONFLICTS.inc()
        for work in works:
            work.tries += 1
            if work.new is not None:
                work.fail(RunExistsError())
            elif work.tries >= MAX_TRIES:
                work.fail(UnavailableError("The run is changing too fast. Try again.", retry_after=0.5))
            else:
                self._queue.append(work)

    def _conclude(self, state: RunState, works: list[Work[Any, Any]], *, moved: bool) -> None:
        if moved:
            state.version += 1
            ready = tuple(node for node in state.ready if node.status is NodeStatus.READY)
            count_ended(state.touched)
            state.clear_changes()
            self._announcer.announce(state, ready)
        if state.inline and not state.is_terminal:
            future = asyncio.get_running_loop().create_future()
            future.add_done_callback(_log_failure)
            self._queue.append(Work(state.run_id, settle, lambda _, __: None, future))
        if not state.is_terminal:
            self._keep(state)
        for work in works:
            if not work.done.done():
                try:
                    work.done.set_result(work.answer(state, work.result))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
                    work.fail(error)
        if moved:
            state.let_go()

    def _keep(self, state: RunState) -> None:
        (self._waiting if state.status is RunStatus.WAITING else self._active).keep(state)

    def _drop(self, run_id: UUID) -> RunState | None:
        """Take a run's state out of memory: while it is worked on, nobody else may find it."""
        return self._read_states.pop(run_id, None) or self._active.take(run_id) or self._waiting.take(run_id)


class _Cache:
    """States of runs, the ones used longest ago dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._states: OrderedDict[UUID, tuple[RunState, int]] = OrderedDict()
        self._bytes = 0

    def take(self, run_id: UUID) -> RunState | None:
        state, size = self._states.pop(run_id, (None, 0))
        self._bytes -= size
        return state

    def keep(self, state: RunState) -> None:
        size = state.size_bytes()
        self._states[state.run_id] = (state, size)
        self._bytes += size
        while self._bytes > self._max_bytes and len(self._states) > 1:
            self.take(next(iter(self._states)))


def _log_failure(future: "asyncio.Future[None]") -> None:
    """The sweep finds the run again; here the reason is only noted."""
    if not future.cancelled() and (error := future.exception()):
        log.warning("continuation_failed", error=repr(error))
