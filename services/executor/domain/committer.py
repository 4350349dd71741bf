"""Group commit: transitions of many runs, decided in memory, written in one transaction.

Each run belongs to one lane; a lane takes what has queued up while its last commit was under way, applies it to the
runs' states, and commits all of it at once. Nobody waits for a batch to fill: an idle lane commits a single transition
at once. A run that another executor has moved meanwhile is read again and its transitions are repeated.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.executor.domain.measures import count_ended
from services.executor.domain.model import NewRun, RunNotFoundError
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


@dataclass(slots=True)
class _Work(Generic[S, T]):
    run_id: UUID
    apply: Callable[[RunState], S]
    """Makes the transition; may be called again on a fresh state."""
    answer: Callable[[RunState, S], T]
    """Makes the reply once the transition is committed."""
    done: "asyncio.Future[T]"
    new: tuple[Callable[[], RunState], NewRun] | None = None
    result: Any = None
    tries: int = field(default=0)


class RunExistsError(Exception):
    """A new run's id is taken: the request is a repetition."""


class Committer:
    """Applies transitions to runs and commits them."""

    def __init__(self, store: RunStore, run_states: RunStates, announcer: Announcer, *, lanes: int) -> None:
        self._lanes = [_Lane(store, run_states, announcer) for _ in range(lanes)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to serve."""
        _QUEUED.set_function(lambda: self.queued)
        self._tasks = [asyncio.create_task(lane.run()) for lane in self._lanes]

    async def stop(self) -> None:
        """Finish what is queued, then end."""
        for lane in self._lanes:
            lane.close()
        await asyncio.gather(*self._tasks)

    def submit(
        self, run_id: UUID, apply: Callable[[RunState], S], answer: Callable[[RunState, S], T]
    ) -> "asyncio.Future[T]":
        """Queue a transition of a run; the future has the answer once it is committed.

        The future raises RunNotFoundError for an unknown run and UnavailableError when nobody knows whether the
        transition is committed: submit it again, it is guarded.
        """
        return self._lane(run_id).put(_Work(run_id, apply, answer, asyncio.get_running_loop().create_future()))

    def submit_new(
        self,
        run_id: UUID,
        new: NewRun,
        make: Callable[[], RunState],
        apply: Callable[[RunState], S],
        answer: Callable[[RunState, S], T],
    ) -> "asyncio.Future[T]":
        """Queue the first transition of the run that `make` makes; raises RunExistsError if its id is taken."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        return self._lane(run_id).put(_Work(run_id, apply, answer, future, new=(make, new)))

    @property
    def queued(self) -> int:
        """Transitions that wait for a commit."""
        return sum(lane.queued for lane in self._lanes)

    def _lane(self, run_id: UUID) -> "_Lane":
        return self._lanes[run_id.int % len(self._lanes)]


class _Lane:
    def __init__(self, store: RunStore, run_states: RunStates, announcer: Announcer) -> None:
        self._store = store
        self._run_states = run_states
        self._announcer = announcer
        self._queue: deque[_Work[Any, Any]] = deque()
        self._wanted = asyncio.Event()
        self._closing = False
        self._active, self._waiting = _Cache(_CACHE_BYTES), _Cache(_WAITING_BYTES)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def put(self, work: "_Work[S, T]") -> "asyncio.Future[T]":
        if self._closing:
            work.done.set_exception(UnavailableError("This executor is stopping. Try again.", retry_after=0.2))
        else:
            self._queue.append(work)
            self._wanted.set()
        return work.done

    def close(self) -> None:
        self._closing = True
        self._wanted.set()

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
                try:
                    await self._process(batch)
                except UnavailableError as error:
                    self._give_up(batch, error)
                except Exception as error:
                    log.exception("commit_failed", transitions=len(batch))
                    await self._one_by_one(batch, error)
            if self._closing:
                return
            self._wanted.clear()

    async def _one_by_one(self, batch: list[_Work[Any, Any]], error: Exception) -> None:
        """One value that the database refuses must not fail the transitions that shared its commit."""
        self._forget(batch)
        if len(batch) == 1:
            self._give_up(batch, error)
            return
        for work in batch:
            if work.done.done():
                continue
            try:
                await self._process([work])
            except Exception as cause:
                log.exception("transition_failed", run_id=str(work.run_id))
                self._give_up([work], cause)

    def _give_up(self, batch: list[_Work[Any, Any]], error: Exception) -> None:
        self._forget(batch)
        for work in batch:
            _fail(work, error)

    def _forget(self, batch: list[_Work[Any, Any]]) -> None:
        for run_id in {work.run_id for work in batch}:
            self._drop(run_id)

    def _drop(self, run_id: UUID) -> RunState | None:
        return self._active.take(run_id) or self._waiting.take(run_id)

    async def _process(self, batch: list[_Work[Any, Any]]) -> None:
        by_run: dict[UUID, list[_Work[Any, Any]]] = {}
        for work in batch:
            by_run.setdefault(work.run_id, []).append(work)
        states, cached = await self._states(by_run)
        new: dict[UUID, NewRun] = {}
        for run_id in list(by_run):
            state = states.get(run_id)
            if state is None:
                self._answer_missing(run_id, by_run.pop(run_id))
                continue
            by_run[run_id] = works = self._without_repeated_starts(state, by_run[run_id])
            for work in works:
                if work.new is not None:
                    new[run_id] = work.new[1]
                work.result = work.apply(state)
        for run_id in await self._outdated([states[run_id] for run_id in cached]):
            del states[run_id]
            self._queue.extend(by_run[run_id])
        changed = [state for state in states.values() if state.events or state.touched]
        if changed:
            _BATCH.observe(len(batch))
            begun = time.perf_counter()
            written = await self._store.commit(changed, new)
            _SECONDS.observe(time.perf_counter() - begun)
        else:
            written = {}
        for run_id, state in states.items():
            moved = bool(state.events or state.touched)
            if moved and run_id not in written:
                self._repeat(by_run[run_id])
            else:
                state.times = written.get(run_id)
                self._conclude(state, by_run[run_id], moved=moved)

    def _answer_missing(self, run_id: UUID, works: list[_Work[Any, Any]]) -> None:
        for work in works:
            if work.new is not None:
                self._queue.append(work)  # it came behind something about a run that nobody knew yet
            else:
                _fail(work, RunNotFoundError(run_id))

    def _without_repeated_starts(self, state: RunState, works: list[_Work[Any, Any]]) -> list[_Work[Any, Any]]:
        """The transitions to apply: a run is started once, by the first, however often that is asked for at a time."""
        kept: list[_Work[Any, Any]] = []
        for work in works:
            if work.new is None or (not state.version and not kept):
                kept.append(work)
            elif state.version:
                _fail(work, RunExistsError())
            else:
                self._queue.append(work)
        return kept

    async def _outdated(self, states: list[RunState]) -> list[UUID]:
        """Runs among these whose copies another executor has left behind, and that no commit will tell of.

        A transition that changes nothing is a judgement ("stale", "done before") that rests on the copy alone.
        """
        unmoved = {state.run_id: state.version for state in states if not state.events and not state.touched}
        if not unmoved:
            return []
        present = await self._store.run_versions(list(unmoved))
        return [run_id for run_id, version in unmoved.items() if present.get(run_id) != version]

    async def _states(self, by_run: dict[UUID, list[_Work[Any, Any]]]) -> tuple[dict[UUID, RunState], list[UUID]]:
        """States of the runs, and which of them were in the cache; they are out of it while they are worked on."""
        states: dict[UUID, RunState] = {}
        cached_ids, missing = [], []
        for run_id, works in by_run.items():
            cached = self._drop(run_id)
            if cached is not None:
                states[run_id] = cached
                cached_ids.append(run_id)
            elif works[0].new is not None:
                states[run_id] = works[0].new[0]()
            else:
                missing.append(run_id)
        if missing:
            states |= await self._run_states.load(missing)
        return states, cached_ids

    def _repeat(self, works: list[_Work[Any, Any]]) -> None:
        """Another executor has moved the run: apply the same transitions to what it is now."""
        _CONFLICTS.inc()
        for work in works:
            work.tries += 1
            if work.new is not None:
                _fail(work, RunExistsError())
            elif work.tries >= MAX_TRIES:
                _fail(work, UnavailableError("The run is changing too fast. Try again.", retry_after=0.5))
            else:
                self._queue.append(work)

    def _conclude(self, state: RunState, works: list[_Work[Any, Any]], *, moved: bool) -> None:
        if moved:
            state.version += 1
            ready = tuple(node for node in state.ready if node.status is NodeStatus.READY)
            count_ended(state.touched)
            state.clear_changes()
            self._announcer.announce(state, ready)
        if state.inline and not state.is_terminal:
            future = asyncio.get_running_loop().create_future()
            future.add_done_callback(_log_failure)
            self._queue.append(_Work(state.run_id, settle, lambda _, __: None, future))
        if not state.is_terminal:
            (self._waiting if state.status is RunStatus.WAITING else self._active).keep(state)
        for work in works:
            if not work.done.done():
                try:
                    work.done.set_result(work.answer(state, work.result))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
                    _fail(work, error)
        if moved:
            state.let_go()


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


def _fail(work: _Work[Any, Any], error: Exception) -> None:
    """Answer with an error, unless nobody waits for the answer any more."""
    if not work.done.done():
        work.done.set_exception(error)


def _log_failure(future: "asyncio.Future[None]") -> None:
    """The sweep finds the run again; here the reason is only noted."""
    if not future.cancelled() and (error := future.exception()):
        log.warning("continuation_failed", error=repr(error))
