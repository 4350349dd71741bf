"""Which ready node executions workers are woken for, and when.

The backlog is in PostgreSQL. On the bus is a window of it: so many wake-ups per queue as workers have slots. What
becomes ready and fits is published at once; the rest waits here, as much as the window could take next, in turns by
project (`flows`), and what does not fit here is left to be read from PostgreSQL (`refill`). A place in the window is
free again when the claim is seen.

All of it is a hint: nothing is lost with it, a wake-up too many is harmless, and each executor has its own.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog
from prometheus_client import Gauge

from services.executor.domain.flows import Flow, Ready
from services.executor.domain.limits import NO_LIMITS, ProjectLimits
from services.executor.domain.model import NodeRef
from services.executor.domain.rates import Rates
from services.executor.domain.windows import Window, Windows
from services.executor.queues import is_alone

log = structlog.get_logger(__name__)

PLACE_SECONDS = 15.0
"""A place on which nothing has begun to run for so long is free again."""
_TAKEN_AT_ONCE = 16
"""Places asked for at a time for one project."""

_SENT = Gauge("headrace_executor_wakeups_sent", "Wake-ups published and not yet claimed.", ["queue"])
_WAITING = Gauge("headrace_executor_wakeups_waiting", "Ready node executions waiting in memory.", ["queue"])


class Woken(NamedTuple):
    """What is known of node executions that workers ask for; of those that another executor told of, nothing."""

    placed: dict[NodeRef, float]
    """When a place was taken for those that needed one, by the clock."""
    queued: dict[NodeRef, float]
    """Seconds that they were ready."""


class Publisher(Protocol):
    """Where workers are woken."""

    @property
    def is_connected(self) -> bool:
        """Workers can be woken."""
        ...

    def publish(self, ref: NodeRef, epoch: int, queue: str, *, traceparent: str = "") -> None:
        """Wake a worker for what is ready at this epoch; may be lost."""
        ...


class Places(Protocol):
    """Exact limits: places for what runs."""

    async def take(self, project_id: str, wanted: Sequence[Ready]) -> "tuple[set[NodeRef], list[Ready]]":
        """Take places, the first first: who has one now, and for whom there is none. The rest is not ready any more,
        or not at the epoch that is wanted: its place would be held for a claim that comes to nothing.

        Who has a place keeps it until the commit that ends what it was taken for, or loses it PLACE_SECONDS after it
        was last taken if nothing runs on it; its run has then moved.
        """
        ...


class Dispatcher:
    """The windows of one executor. All methods are for the event loop's thread; none blocks."""

    def __init__(self, publisher: Publisher, places: Places, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._publisher = publisher
        self._places = places
        self._clock = clock
        self.windows = Windows()
        self._waiting: dict[NodeRef, int] = {}
        """At which epoch each waits."""
        self._limits: Mapping[str, ProjectLimits] = {}
        self._executors = 1
        self._served: frozenset[str] = frozenset()
        """Queues that have workers, without those of suspects, whose waiting says nothing of a newcomer's; all, when
        there is no worker at all."""
        self._rates = Rates()
        self._taking: dict[str, asyncio.Task[None]] = {}
        """Requests for places under way, by project."""
        self._moved: set[str] = set()
        """Projects of which something ended while places were asked for."""
        self._hungry = asyncio.Event()

    # What the executor tells.

    def offer(self, ready: Ready) -> None:
        """A node execution is ready: publish its wake-up now, or let it wait for its project's turn."""
        if not self._publisher.is_connected:
            return  # its row is due for a wake-up when there is a way to send one
        window = self.windows[ready.queue]
        if window.sent < window.capacity and ready.project_id not in self._limits and not window.waiting.size:
            self.windows.forget(ready.ref)
            self._publish(ready)
            return
        # What is ready again was claimed in between, perhaps by way of another executor.
        self.windows.forget(ready.ref)
        self._enqueue(window, ready)
        self._pump(window)

    def claimed(self, refs: Iterable[NodeRef]) -> Woken:
        """A worker asks for these: their places in the window are free."""
        placed: dict[NodeRef, float] = {}
        queued: dict[NodeRef, float] = {}
        now = self._clock()
        windows: dict[str, Window] = {}
        for ref in refs:
            sent = self.windows.forget(ref)
            if sent is not None:
                windows[sent.ready.queue] = window = self.windows[sent.ready.queue]
                window.denied = max(0, window.denied - 1)
                queued[ref] = seconds = now - sent.ready.since
                window.queued.observe(seconds)
                if sent.placed_at is not None:
                    placed[ref] = sent.placed_at
        for window in windows.values():
            self._pump(window)
        return Woken(placed, queued)

    def moved(self, project_id: str) -> None:
        """Something of the project has been committed: perhaps a place is free."""
        if project_id not in self._limits:
            return
        if project_id in self._taking:
            self._moved.add(project_id)
        else:
            self._unblock(project_id)

    def may_give(self, project_id: str, queue: str, slots: int) -> bool:
        """Whether a worker that waits with so many slots may have what becomes ready, and nobody has to have it first.

        It keeps as many for what it is woken for: who was there before and has not come yet finds one.
        """
        window = self.windows.find(queue)
        is_free = window is None or (window.sent <= slots and not window.waiting.size)
        return is_free and project_id not in self._limits

    def gave(self, queue: str) -> None:
        """A worker that waited has been given what became ready."""
        self.windows[queue].queued.observe(0.0)

    def may_continue(self, project_id: str, queues: Iterable[str], *, is_full: bool) -> bool:
        """Whether a worker may go on with the same run's next node, and not come back to its queues.

        Always False for projects whose starts are counted; else False for a worker that is full, once for each that
        waits of other projects.
        """
        limits = self._limits.get(project_id)
        if limits is not None and not limits.bypass_allowed:
            return False
        if not is_full:
            return True
        for queue in queues:
            window = self.windows.find(queue)
            if window is None:
                continue
            if window.sent_of_others(project_id) + window.waiting_of_others(project_id) > window.denied:
                window.denied += 1
                return False
        return True

    def needs_place(self, project_id: str, node_type: str, placed_at: float | None) -> bool:
        """A place has to be taken before this may be claimed; `placed_at` is when it was taken last."""
        limits = self._limits.get(project_id)
        if limits is None or not limits.counts(node_type):
            return False
        return placed_at is None or self._clock() - placed_at > PLACE_SECONDS / 2

    async def take_places(self, wanted: Sequence[Ready]) -> dict[NodeRef, float]:
        """Take places for what workers ask for now; when each was taken. For whom there is none it waits its turn."""
        placed: dict[NodeRef, float] = {}
        for project_id in dict.fromkeys(ready.project_id for ready in wanted):
            now = self._clock()
            granted, refused = await self._places.take(
                project_id, [ready for ready in wanted if ready.project_id == project_id]
            )
            placed |= dict.fromkeys(granted, now)
            for ready in refused:
                self._enqueue(self.windows[ready.queue], ready, is_taken=True)
            if refused:
                self._block(project_id)
        return placed

    def limits_of(self, project_id: str) -> ProjectLimits:
        """What is set for a project."""
        return self._limits.get(project_id, NO_LIMITS)

    def unclaimed_seconds(self) -> float:
        """How long the oldest published wake-up waits for a worker: what a newcomer would wait at least."""
        oldest = next((sent.at for sent in self.windows.all_sent() if sent.ready.queue in self._served), None)
        return 0.0 if oldest is None else self._clock() - oldest

    # What the census and the refill tell and ask.

    def configure(self, capacities: Mapping[str, int], limits: Mapping[str, ProjectLimits], executors: int) -> None:
        """Take over what has changed: windows by queue for all executors together, limits, number of executors."""
        self._executors = max(1, executors)
        self._limits = limits
        served = (queue for queue, capacity in capacities.items() if capacity and not is_alone(queue))
        self._served = frozenset(served) or frozenset(capacities)
        for flow in (flow for window in self.windows for flow in window.waiting):
            flow.weight = limits.get(flow.project_id, NO_LIMITS).weight
        for queue, capacity in capacities.items():
            self.windows[queue].resize(-(-capacity // self._executors))
        self._rates.configure(limits, self._executors)

    def tick(self) -> None:
        """Some time has passed: let blocked projects try again."""
        for window in self.windows:
            window.denied = 0
            for flow in list(window.waiting):
                if flow.is_blocked and flow.project_id not in self._taking:
                    window.waiting.unblock(flow)
            self._pump(window)
            _SENT.labels(window.queue).set(window.sent)
            _WAITING.labels(window.queue).set(window.waiting.size)

    def full_projects(self, queue: str) -> list[str]:
        """Projects of which enough waits in memory."""
        window = self.windows[queue]
        return [flow.project_id for flow in window.waiting if flow.size * 2 >= window.capacity]

    def short_projects(self, queue: str) -> list[str]:
        """Projects of which PostgreSQL has more than memory."""
        window = self.windows[queue]
        return [flow.project_id for flow in window.waiting if flow.has_more and flow.size * 2 < window.capacity]

    async def hungry(self) -> None:
        """Wait until the window could take more of what PostgreSQL has."""
        await self._hungry.wait()
        self._hungry.clear()

    def refill(self, queue: str, found: Sequence[Ready], asked: Iterable[str]) -> None:
        """What PostgreSQL had; `asked` are projects that were said to be short."""
        window = self.windows[queue]
        brought = {ready.project_id for ready in found}
        for project_id in asked:
            flow = window.waiting.find(project_id)
            if flow is not None and project_id not in brought:
                flow.has_more = False
                window.waiting.prune(flow)
        for ready in found:
            self._enqueue(window, ready, is_taken=True)
        self._pump(window)
        if any(_is_short(window, flow) for flow in window.waiting):
            self._hungry.set()  # what was found may all have been known

    def give_up(self, queue: str, *, before: float = math.inf) -> None:
        """What was published by then and is not claimed seems lost: its place is free. The refill brings it again."""
        for sent in list(self.windows.sent_of(queue)):
            if sent.at <= before:
                self.windows.forget(sent.ready.ref)
        self._pump(self.windows[queue])

    # Inside.

    def _enqueue(self, window: Window, ready: Ready, *, is_taken: bool = False) -> None:
        """Let it wait, if there is room; what was taken from the backlog waits in any case: there it is not due."""
        sent = self.windows.sent(ready.ref)
        if max(self._waiting.get(ready.ref, -1), sent.ready.epoch if sent else -1) >= ready.epoch:
            return
        self.windows.forget(ready.ref)  # it was claimed in between, by way of another executor
        flow = window.waiting.flow(ready.project_id)
        limits = self._limits.get(ready.project_id, NO_LIMITS)
        flow.weight = limits.weight
        if is_taken or flow.accepts(ready.priority, window.capacity):
            self._waiting[ready.ref] = ready.epoch
            window.waiting.add(flow, ready, limits.line(ready.type))
        else:
            flow.has_more = True

    def _pump(self, window: Window) -> None:
        """Publish in turns as long as there is room."""
        wanted: dict[str, list[Ready]] = {}
        waiting = window.waiting
        while window.sent < window.capacity and self._publisher.is_connected and (flow := waiting.turn()):
            limits = self._limits.get(flow.project_id)
            if limits is None:
                self._next(window, flow, None)
            elif limits.needs_places and (
                flow.project_id in self._taking or len(wanted.get(flow.project_id, ())) == _TAKEN_AT_ONCE
            ):
                waiting.block(flow)
            elif (ready := self._next(window, flow, limits)) and limits.needs_places:
                wanted.setdefault(flow.project_id, []).append(ready)
        for project_id, refs in wanted.items():
            self._taking[project_id] = asyncio.create_task(self._take_places(window, project_id, refs))

    def _next(self, window: Window, flow: Flow, limits: ProjectLimits | None) -> Ready | None:
        """Bring the flow whose turn it is one further; what needs a place is returned."""
        now = self._clock()
        if limits is None:
            ready = flow.take(_any_line)
        else:
            ready = flow.take(lambda line: self._rates.delay(flow.project_id, line, now) <= 0)
        if ready is None:
            window.waiting.block(flow)
            self._wake_later(flow, limits or NO_LIMITS, now)
            return None
        window.waiting.served(flow)
        is_present = self._waiting.get(ready.ref) == ready.epoch
        if is_present:
            del self._waiting[ready.ref]
        if _is_short(window, flow):
            self._hungry.set()
        if not is_present:
            return None  # it waits at a later epoch, too
        if limits is not None:
            self._rates.use(flow.project_id, ready.type, now)
        if limits is None or not limits.needs_places:
            self._publish(ready)
        else:
            self.windows.add(ready, now)
        return ready

    def _publish(self, ready: Ready) -> None:
        self.windows.add(ready, self._clock())
        self._publisher.publish(ready.ref, ready.epoch, ready.queue, traceparent=ready.traceparent)

    async def _take_places(self, window: Window, project_id: str, wanted: list[Ready]) -> None:
        """Publish those that get a place; the others wait until something of the project has ended."""
        asked_at = self._clock()
        try:
            granted, refused = await self._places.take(project_id, wanted)
        except Exception as error:  # noqa: BLE001 - they are ready in PostgreSQL: the refill brings them again
            log.warning("places_not_taken", project_id=project_id, error=repr(error))
            granted, refused = set(), wanted
        finally:
            del self._taking[project_id]
        for ready in wanted:
            if ready.ref in granted:
                if (sent := self.windows.sent(ready.ref)) is not None:
                    sent.placed_at = asked_at  # not before: a claim may come while the place is asked for
                self._publisher.publish(ready.ref, ready.epoch, ready.queue, traceparent=ready.traceparent)
            else:
                self.windows.forget(ready.ref)
        for ready in refused:
            self._enqueue(window, ready, is_taken=True)
        if not refused or project_id in self._moved:
            self._moved.discard(project_id)
            self._unblock(project_id)
        else:
            self._block(project_id)
        self._pump(window)

    def _block(self, project_id: str) -> None:
        for window in self.windows:
            flow = window.waiting.find(project_id)
            if flow is not None:
                window.waiting.block(flow)

    def _unblock(self, project_id: str) -> None:
        for window in self.windows:
            flow = window.waiting.find(project_id)
            if flow is not None and flow.is_blocked:
                window.waiting.unblock(flow)
                self._pump(window)

    def _wake_later(self, flow: Flow, limits: ProjectLimits, now: float) -> None:
        """Try again when the first of the project's rates has a token."""
        delays = [self._rates.delay(flow.project_id, line, now) for line in limits.node_types]
        if positive := [delay for delay in delays if delay > 0]:
            asyncio.get_running_loop().call_later(min(positive), self._unblock, flow.project_id)


def _is_short(window: Window, flow: Flow) -> bool:
    """PostgreSQL has more, and memory will soon have none."""
    return flow.has_more and flow.size * 4 < window.capacity


def _any_line(_: str) -> bool:
    return True
