"""Deficit round robin: whose turn it is to be woken for, among projects with a backlog in one queue.

Each node execution costs 1; a project's turn is as long as its weight (M. Shreedhar, G. Varghese, 1995). Inside a
project: highest priority first, then the longest ready.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from services.executor.domain.model import NodeRef


@dataclass(frozen=True, slots=True)
class Ready:
    """A node execution that waits for a worker. `since` is when it became ready, by the dispatcher's clock."""

    ref: NodeRef
    epoch: int
    """At which it is ready."""
    project_id: str
    type: str
    queue: str
    priority: int
    since: float
    traceparent: str = ""


class Flow:
    """One project's backlog in memory. Types that have limits of their own stand in lines of their own."""

    def __init__(self, project_id: str) -> None:
        self.project_id = project_id
        self.weight = 1
        self.deficit = 0
        self.size = 0
        self.is_blocked = False
        """Takes no turn until something of the project has ended."""
        self.has_more = False
        """PostgreSQL may hold ready node executions of the project that nobody holds in memory."""
        self.in_ring = False
        self._lines: dict[str, list[tuple[int, float, int, Ready]]] = {}
        self._count = 0

    def add(self, ready: Ready, line: str) -> None:
        """Let it wait."""
        self._count += 1
        heappush(self._lines.setdefault(line, []), (-ready.priority, ready.since, self._count, ready))
        self.size += 1

    def take(self, may_go: Callable[[str], bool]) -> Ready | None:
        """The first whose line may go on."""
        best: tuple[tuple[int, float, int, Ready], str] | None = None
        for line, waiting in self._lines.items():
            if waiting and (best is None or waiting[0] < best[0]) and may_go(line):
                best = waiting[0], line
        if best is None:
            return None
        heappop(self._lines[best[1]])
        if not self._lines[best[1]]:
            del self._lines[best[1]]
        self.size -= 1
        return best[0][3]

    def accepts(self, priority: int, bound: int) -> bool:
        """There is room; what is more urgent than all that waits finds some even then."""
        if self.size < bound:
            return True
        return self.size < 2 * bound and all(-waiting[0][0] < priority for waiting in self._lines.values())


class RoundRobin:
    """The flows of one queue."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}
        self._ring: deque[Flow] = deque()
        self.size = 0
        """All that wait."""

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def find(self, project_id: str) -> Flow | None:
        """A project's flow, if it has one."""
        return self._flows.get(project_id)

    def flow(self, project_id: str) -> Flow:
        """A project's flow."""
        found = self._flows.get(project_id)
        if found is None:
            found = self._flows[project_id] = Flow(project_id)
        return found

    def add(self, flow: Flow, ready: Ready, line: str) -> None:
        """Let a node execution wait in its project's flow."""
        flow.add(ready, line)
        self.size += 1
        self.enter(flow)

    def enter(self, flow: Flow) -> None:
        """Give the flow turns again, if it has what to use them for."""
        if flow.size and not flow.in_ring and not flow.is_blocked:
            flow.in_ring = True
            self._ring.append(flow)

    def block(self, flow: Flow) -> None:
        """Give the flow no more turns."""
        flow.is_blocked = True
        if flow.in_ring:
            self._ring.remove(flow)
            self._left(flow)

    def unblock(self, flow: Flow) -> None:
        """Give a blocked flow turns again."""
        flow.is_blocked = False
        self.enter(flow)
        self.prune(flow)

    def turn(self) -> Flow | None:
        """The flow whose turn it is."""
        return self._ring[0] if self._ring else None

    def served(self, flow: Flow) -> None:
        """One of the flow, whose turn it is, has gone on."""
        self.size -= 1
        if flow.deficit < 1:
            flow.deficit += flow.weight
        flow.deficit -= 1
        if not flow.size:
            self._ring.popleft()
            self._left(flow)
        elif flow.deficit < 1:
            self._ring.rotate(-1)

    def prune(self, flow: Flow) -> None:
        """Forget a flow that tells nothing any more."""
        if not flow.size and not flow.in_ring and not flow.is_blocked and not flow.has_more:
            self._flows.pop(flow.project_id, None)

    def _left(self, flow: Flow) -> None:
        flow.in_ring = False
        flow.deficit = 0
        self.prune(flow)
