"""People: they start runs until they are told that they are accepted, start them again, follow them, cancel some."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from services.executor.domain.model import EventView, RunView, VersionSelector
from services.executor.domain.runs import Runs
from services.executor.engine.state import RUN_TERMINAL
from services.kit.errors import (
    DomainError,
    IdempotencyKeyReusedError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.simulation.loop import Process
from tests.simulation.trace import Violation
from tests.simulation.workload import Case

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")

_PATIENCE = 3.0


class People:
    """All clients of a simulation, in a process that never dies."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._process = Process(world.loop, "people")
        self._busy = 0
        self._streaming: dict[asyncio.Queue[EventView], asyncio.Task[None] | None] = {}

    @property
    def is_done(self) -> bool:
        """Everybody has what they wanted."""
        return self._busy == 0

    def begin(self, case: Case, number: int, after: float) -> None:
        """Let somebody want a run, after a while."""
        self._spawn(self._want(case, number, after))

    def _spawn(self, coroutine: Any) -> None:
        self._busy += 1
        self._process.spawn(self._counted(coroutine))

    async def _counted(self, coroutine: Any) -> None:
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001 - whatever a client meets is a finding
            # A start may be refused because its workflow was deleted before anybody accepted the run.
            if not (isinstance(error, NotFoundError) and error.reason == "WORKFLOW_NOT_FOUND"):
                self._world.fail(Violation("clients are served", repr(error)))
        self._busy -= 1

    async def _want(self, case: Case, number: int, after: float) -> None:
        rng, world = self._rng, self._world
        await asyncio.sleep(after + rng.choice((0.5, rng.uniform(0.0, 2.0))))
        given = b'{"n":1,"k":%d}' % rng.randint(0, 1)
        request_id = f"request-{number}" if rng.random() < 0.9 else ""
        waits = rng.random() < 0.2
        start = partial(self._start, case, request_id, given)
        if request_id and rng.random() < 0.3:
            self._spawn(self._again(start, case))
        run = await self._insist(partial(start, wait_seconds=2.0 if waits else 0.0))
        world.checker.accept(run.id, case)
        if rng.random() < 0.25:
            self._spawn(self._cancel(case.project_id, run.id, rng.uniform(0.0, 4.0)))
        if not waits and rng.random() < 0.3:
            self._spawn(self._follow(case.project_id, run.id))
        if request_id and rng.random() < 0.3:
            await asyncio.sleep(rng.uniform(0.0, 3.0))
            if rng.random() < 0.5:
                world.workflows.gone.add(case.workflow_id)
            changed = rng.random() < 0.3
            again = b"[]" if changed else given
            await self._repeat(partial(self._start, case, request_id, again), run, changed)

    async def _again(self, start: Callable[[Runs], Awaitable[RunView]], case: Case) -> None:
        run = await self._insist(start)
        self._world.checker.accept(run.id, case)

    async def _repeat(self, start: Callable[[Runs], Awaitable[RunView]], run: RunView, changed: bool) -> None:
        try:
            again = await self._insist(start)
        except IdempotencyKeyReusedError:
            if not changed:
                raise
            return
        if again.id != run.id or changed:
            self._world.fail(Violation("started once", f"a repeated start of {run.id} gave {again.id} ({changed=})"))

    def _start(
        self, case: Case, request_id: str, input_json: bytes, runs: Runs, wait_seconds: float = 0.0
    ) -> Awaitable[RunView]:
        return runs.start(
            case.project_id,
            case.workflow_id,
            VersionSelector(),
            input_json=input_json,
            request_id=request_id,
            started_by=None,
            traceparent="",
            wait_seconds=wait_seconds,
        )

    async def _cancel(self, project_id: UUID, run_id: UUID, after: float) -> None:
        await asyncio.sleep(after)
        self._world.checker.cancelled.add(run_id)
        run = await self._insist(lambda runs: runs.cancel(project_id, run_id))
        if run.status not in RUN_TERMINAL:
            self._world.fail(Violation("cancel ends", f"run {run_id} was cancelled and is {run.status.name}"))

    async def _follow(self, project_id: UUID, run_id: UUID) -> None:
        """Follow a run's events, by one executor after the other, until its last one."""
        after, kind = 0, ""
        while not kind.startswith(("run.succeeded", "run.failed", "run.cancelled")):
            heard: asyncio.Queue[EventView] = asyncio.Queue()
            if not self._world.ask_someone(
                lambda runs, heard=heard, after=after: self._tell(runs, project_id, run_id, after, heard)
            ):
                await asyncio.sleep(0.2)
                continue
            try:
                while not kind.startswith(("run.succeeded", "run.failed", "run.cancelled")):
                    async with asyncio.timeout(_PATIENCE):
                        event = await heard.get()
                    if event.sequence != after + 1:
                        text = f"a follower of run {run_id} got event {event.sequence} after {after}"
                        self._world.fail(Violation("events in order", text))
                    after, kind = event.sequence, event.type
            except TimeoutError:
                continue
            finally:
                self._hang_up(heard)

    def _hang_up(self, heard: asyncio.Queue[EventView]) -> None:
        """End a stream, as gRPC does for a call whose client is gone. One that is still to come finds nobody."""
        task = self._streaming.get(heard)
        self._streaming[heard] = None
        if task is not None:
            task.cancel()

    async def _tell(
        self, runs: Runs, project_id: UUID, run_id: UUID, after: int, heard: asyncio.Queue[EventView]
    ) -> None:
        """Inside an executor: pass the stream on. A call that comes twice is a stream once."""
        if heard in self._streaming:
            return
        self._streaming[heard] = asyncio.current_task()
        try:
            async for happened in runs.follow(project_id, run_id, after):
                for item in happened:
                    if isinstance(item, EventView):
                        self._process.call(heard.put_nowait, item)
        except DomainError as error:
            self._world.trace.note(f"stream broke: {error!r}")

    async def _insist(self, make: Callable[[Runs], Awaitable[T]]) -> T:
        """Ask any executor until one answers; raises what it answers, unless it says to try again."""
        while True:
            answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._world.ask_someone(lambda runs, answer=answer: self._answer(runs, make, answer))
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await answer
            except (TimeoutError, UnavailableError):
                await asyncio.sleep(0.2)
            except ResourceExhaustedError as error:
                await asyncio.sleep(error.retry_after or 1.0)

    async def _answer(self, runs: Runs, make: Callable[[Runs], Awaitable[T]], answer: asyncio.Future[T]) -> None:
        """Inside an executor: do what is asked and send the answer back."""
        result: T | None = None
        error: Exception | None = None
        try:
            result = await make(runs)
        except DomainError as raised:
            error = raised
            if isinstance(raised, ResourceExhaustedError):
                self._world.limit_checker.refused(raised.reason)
        except Exception as raised:  # noqa: BLE001 - nobody is to see such a thing
            self._world.fail(Violation("no surprises", repr(raised)))

        def arrive() -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        self._world.server.hop(self._process, arrive, what="answer")
