"""Wake-ups of suspects beside those of everybody."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.flows import Ready
from services.executor.domain.model import NodeRef


class Published:
    """The bus, as far as the window sees it; no project has limits, so no place is asked for."""

    is_connected = True

    def __init__(self) -> None:
        self.queues: list[str] = []

    def publish(self, ref: NodeRef, epoch: int, queue: str, *, traceparent: str = "") -> None:
        self.queues.append(queue)

    async def take(self, project_id: str, wanted: Sequence[Ready]) -> tuple[set[NodeRef], list[Ready]]:
        raise AssertionError(project_id)


def test_suspects_that_wait_long_do_not_have_new_runs_refused() -> None:
    bus, now = Published(), [0.0]
    dispatcher = Dispatcher(bus, bus, clock=lambda: now[0])
    dispatcher.configure({"default": 8, "default-alone": 1}, {}, 1)
    for at, queue in ((0.0, "default-alone"), (50.0, "default")):
        now[0] = at
        dispatcher.offer(Ready(NodeRef(uuid4(), "n", ""), 0, "p", "noop", queue, 0, at))
    now[0] = 60.0
    assert bus.queues == ["default-alone", "default"]
    assert dispatcher.unclaimed_seconds() == 10.0
