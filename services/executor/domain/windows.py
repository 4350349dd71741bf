"""What one executor has woken workers for and has not seen claimed: of each queue, a window of its backlog."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Histogram

from services.executor.domain.flows import Ready, RoundRobin
from services.executor.domain.model import NodeRef

MIN_WINDOW, MAX_WINDOW = 16, 5000
"""Wake-ups of one queue by one executor."""

_QUEUED = Histogram(
    "headrace_executor_queued_seconds",
    "From ready to claimed, of what this executor woke workers for or gave them. What they go on with is left out.",
    ["queue"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)


@dataclass(slots=True)
class Sent:
    """A wake-up that was published, or is as soon as it has its place."""

    ready: Ready
    at: float
    """When it was published, by the clock."""
    placed_at: float | None = None
    """When its place was asked for, where it needs one."""


class Window:
    """What one queue's workers are woken for."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.capacity = MIN_WINDOW
        self.sent = 0
        self.sent_by_project: Counter[str] = Counter()
        self.waiting = RoundRobin()
        self.denied = 0
        """Workers' slots that were freed for others and not used by a claim yet."""
        self.queued = _QUEUED.labels(queue)

    def resize(self, capacity: int) -> None:
        """Take so many wake-ups from now on, within bounds."""
        self.capacity = min(max(capacity, MIN_WINDOW), MAX_WINDOW)

    def sent_of_others(self, project_id: str) -> int:
        """Wake-ups sent for other projects than this."""
        return self.sent - self.sent_by_project[project_id]

    def waiting_of_others(self, project_id: str) -> int:
        """What waits here of other projects than this."""
        own = self.waiting.find(project_id)
        return self.waiting.size - (own.size if own else 0)


class Windows:
    """The windows by queue, and the wake-ups in them, oldest first."""

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self._sent: dict[NodeRef, Sent] = {}

    def __getitem__(self, queue: str) -> Window:
        """The queue's window, made when nothing was ready for it before."""
        window = self._windows.get(queue)
        if window is None:
            window = self._windows[queue] = Window(queue)
        return window

    def find(self, queue: str) -> Window | None:
        """The queue's window, if anything was ready for it."""
        return self._windows.get(queue)

    def __iter__(self) -> Iterator[Window]:
        """Those of queues that anything was ready for."""
        return iter(self._windows.values())

    def sent(self, ref: NodeRef) -> Sent | None:
        """The wake-up of a node execution, unless it has been claimed."""
        return self._sent.get(ref)

    def sent_of(self, queue: str) -> Iterator[Sent]:
        """Wake-ups of one queue."""
        return (sent for sent in self._sent.values() if sent.ready.queue == queue)

    def all_sent(self) -> Iterator[Sent]:
        """Wake-ups of all queues."""
        return iter(self._sent.values())

    def add(self, ready: Ready, at: float) -> None:
        """A wake-up takes a place in its window."""
        self._sent[ready.ref] = Sent(ready, at)
        window = self[ready.queue]
        window.sent += 1
        window.sent_by_project[ready.project_id] += 1

    def forget(self, ref: NodeRef) -> Sent | None:
        """Its place in the window is free; None if it had none."""
        sent = self._sent.pop(ref, None)
        if sent is not None:
            window = self[sent.ready.queue]
            window.sent -= 1
            window.sent_by_project[sent.ready.project_id] -= 1
            if not window.sent_by_project[sent.ready.project_id]:
                del window.sent_by_project[sent.ready.project_id]
        return sent
