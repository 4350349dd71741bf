"""One simulation: a seed makes the machines, the people and the faults; `run` says what came of it."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from services.executor.domain import admission, committer, dispatch, jobs, sweeper, turns, versions, windows
from services.executor.domain.runs import Runs
from services.executor.domain.store import UnstorableError
from services.executor.engine import advance
from services.executor.transport import bus, workers
from services.executor.worker import executor_client, reports, runner, wakeups
from services.executor.worker import loop as worker_loop
from services.kit import ids, lifecycle
from services.kit.errors import UnavailableError
from tests.simulation.clients import People
from tests.simulation.database import Change, Database
from tests.simulation.faults import Faults
from tests.simulation.invariants import Checker
from tests.simulation.limit_invariants import LimitChecker
from tests.simulation.loop import Loop, Process
from tests.simulation.network import Server
from tests.simulation.programs import Executor, Program, WorkerProgram, Workflows
from tests.simulation.store import Connections
from tests.simulation.tight import draw
from tests.simulation.trace import Trace, Violation
from tests.simulation.work import Ledger
from tests.simulation.workload import random_case

BOUND, BOUND_IN_TURN = 300.0, 1500.0
"""Virtual seconds within which everything ends once faults have stopped, and where only so much goes on at a time."""
MAX_STEPS = 1_000_000
_LOGGING = (
    admission,
    committer,
    dispatch,
    jobs,
    sweeper,
    turns,
    lifecycle,
    bus,
    workers,
    executor_client,
    worker_loop,
    reports,
    runner,
    wakeups,
)


@dataclass(frozen=True)
class Outcome:
    """What came of a seed."""

    seed: int
    digest: str
    steps: int
    seconds: float
    """Virtual."""
    runs: int
    faults: Counter[str]
    violation: Violation | None
    last: tuple[str, ...]
    """The end of the trace."""


class World:
    """Everything there is in one simulation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = Random(seed)  # noqa: S311 - nothing secret
        self.loop = Loop(Random(rng.getrandbits(64)))  # noqa: S311
        self.trace = Trace(self.loop)
        self.violation: Violation | None = None
        self.faults = Faults(rng, self.trace)
        self.database = Database(self.loop.time)
        self.connections = Connections(self.loop, rng, self.faults, self.trace, self.database)
        self.server = Server(self.loop, rng, self.faults, self.trace)
        self.ledger = Ledger(self.trace, self.fail, self._kill_worker)
        self.checker = Checker(self.database, self.ledger, self.trace, self.fail)
        self.ledger.observe = self.checker.acted
        self.database.observe = self._committed
        self.server.observe = self.checker.published
        self.tight = tight = draw(rng)
        self.database.places.limits |= tight.limits
        self.cases = cases = [
            random_case(rng, rng.choice(tight.projects), turns=tight.turns, brisk=bool(tight.limits))
            for _ in range(rng.randint(1, 3))
        ]
        self.limit_checker = LimitChecker(self)
        self.workflows = Workflows(self, cases)
        self.programs: list[Program] = []
        self.last_crash = 0.0
        for number in range(rng.choice((1, 2, 2, 3))):
            self._boot(Executor, f"executor-{number}")
        for number in range(rng.choice((1, 2, 2, 3))):
            self._boot(WorkerProgram, f"worker-{number}")
        self.people = People(self)
        for number in range(tight.runs):
            late = self.faults.until + rng.uniform(10.0, 25.0) if tight.late and rng.random() < 0.5 else 0.0
            self.people.begin(rng.choice(cases), number, late)
        self._kinds = [kind for kind in ("crash", "pause", "drain") if kind in self.faults.chances]
        self._next_strike = self._draw_strike()

    def run(self) -> Outcome:
        """Let it happen."""
        with _in_the_world(self):
            world, loop, tight = self.loop.world, self.loop, self.tight
            loop.on_step = self._step
            loop.on_error = self._error
            for kind, mean in self.faults.periods.items():
                world.call_later(self.rng.expovariate(1 / mean), self._period, kind, mean)
            world.call_later(self.faults.until, self._calm_down)
            world.call_later(0.25, self._look)
            loop.run(self.faults.until + (BOUND if tight.is_roomy else BOUND_IN_TURN))
            if self.violation is None:
                self.checker.finish()
            if self.violation is None:
                for run_id, case in self.checker.accepted.items():
                    self.checker.outcome(run_id, case)
            if self.violation is None and not self.people.is_done:
                self.fail(Violation("clients are served", "somebody still waits for an answer"))
            loop.close()
        return Outcome(
            self.seed,
            self.trace.digest,
            loop.steps,
            loop.now,
            len(self.database.runs),
            self.trace.counts,
            self.violation,
            tuple(self.trace.last),
        )

    def _committed(self, change: Change) -> None:
        self.checker.committed(change)
        self.limit_checker.committed(change)

    def fail(self, violation: Violation) -> None:
        """Something is wrong: the first that is ends the simulation."""
        if self.violation is None and not self.loop.is_closed():
            self.violation = violation
            self.trace.note(f"VIOLATION {violation}")
            self.loop.stopped = True

    def workers(self) -> Iterator[WorkerProgram]:
        """Those that there are now."""
        return (program for program in self.programs if isinstance(program, WorkerProgram))

    def ask_someone(self, make: Callable[[Runs], Coroutine[Any, Any, None]]) -> bool:
        """Send a call to one of the executors that seem to serve."""
        serving = [program for program in self.programs if isinstance(program, Executor) and program.runs is not None]
        if not serving:
            return False
        program = self.rng.choice(serving)

        def arrive() -> None:
            if program.runs is not None:
                program.process.spawn(make(program.runs))

        self.server.hop(program.process, arrive, what="call")
        return True

    def crash(self, program: Program) -> None:
        """A process ends at once. NATS notices a little later, and whoever keeps processes running starts another."""
        if not program.process.alive:
            return
        program.process.kill()
        self.programs.remove(program)
        self.last_crash = self.loop.now
        self.loop.world.call_later(self.rng.uniform(0.0, 0.3), self.server.drop, program.client)
        boot = partial(self._boot, type(program), program.process.name)
        self.loop.world.call_later(self.rng.choice((0.05, 0.3, 2.0)), boot)

    def _kill_worker(self, worker_id: str) -> None:
        """A handler has taken its worker down with it."""
        for program in list(self.programs):
            if isinstance(program, WorkerProgram) and program.worker_id == worker_id:
                self.trace.note(f"{program.process.name} is killed by a handler")
                self.crash(program)

    def _boot(self, make: type[Program], name: str) -> None:
        self.programs.append(make(self, name))

    # Faults at steps.

    def _draw_strike(self) -> float:
        total = sum(self.faults.chances[kind] for kind in self._kinds)
        return self.loop.steps + self.rng.expovariate(total) if total else float("inf")

    def _step(self, process: Process) -> None:
        steps = self.loop.steps
        if steps > MAX_STEPS:
            self.fail(Violation("no livelock", f"{steps} steps and no end"))
        if steps < self._next_strike or not self.faults.active:
            return
        self._next_strike = self._draw_strike()
        program = next((program for program in self.programs if program.process is process), None)
        if program is None:
            return
        kind = self.rng.choices(self._kinds, [self.faults.chances[kind] for kind in self._kinds])[0]
        self.trace.fault(kind, process.name)
        if kind == "crash":
            self.crash(program)
        elif kind == "drain":
            program.terminate()
        else:
            process.paused = True
            length = self.rng.choice((self.rng.uniform(0.05, 1.0), self.rng.uniform(1.0, 5.0)))
            self.loop.world.call_later(length, self._resume, process)

    def _resume(self, process: Process) -> None:
        self.trace.note(f"{process.name} goes on")
        process.paused = False

    # Faults that last.

    def _period(self, kind: str, mean: float) -> None:
        if not self.faults.active:
            return
        self.trace.fault(kind)
        length = self.rng.choice((self.rng.uniform(0.05, 0.5), self.rng.uniform(0.5, 3.0)))
        later = self.loop.world.call_later
        if kind == "nats_restart":
            self.server.up = False
            self.server.lose_stream()
            later(length, self._nats_is_back)
        elif kind == "nats_wipe":
            self.server.lose_stream()
        elif kind == "nats_cut" and self.server.clients:
            client = self.rng.choice(self.server.clients)
            client.up = False
            later(length, client.reconnect)
        elif kind == "postgres_restart":
            self.connections.up = False
            self.connections.generation += 1
            later(length, self._postgres_is_back)
        later(length + self.rng.expovariate(1 / mean), self._period, kind, mean)

    def _nats_is_back(self) -> None:
        self.trace.note("NATS is back")
        self.server.up = True
        for client in list(self.server.clients):
            client.process.call_later(self.rng.uniform(0.0, 0.2), client.reconnect)

    def _postgres_is_back(self) -> None:
        self.trace.note("PostgreSQL is back")
        self.connections.up = True

    def _calm_down(self) -> None:
        self.trace.note("faults are over")
        self.faults.active = False

    # Ends.

    def _look(self, *, again: bool = False) -> None:
        self.limit_checker.look()
        if not self.people.is_done or any(run["status"] < 4 for run in self.database.runs.values()):
            self.loop.world.call_later(0.25, self._look)
        elif again:
            self.loop.stopped = True
        else:
            # Late messages and zombies may still arrive.
            self.loop.world.call_later(self.rng.choice((0.0, 0.5, 5.0)), partial(self._look, again=True))

    def _error(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and "never retrieved" not in context["message"]:
            self.fail(Violation("no surprises", f"{context['message']}: {error!r}"))


class _Log:
    """Takes the place of the real code's loggers: what they call an error is one here."""

    def __init__(self, world: World) -> None:
        self._world = world

    def info(self, event: str, **fields: Any) -> None:
        """See structlog."""
        self._world.trace.note(f"log {event}")

    warning = info

    def error(self, event: str, **fields: Any) -> None:
        """See structlog."""
        foreseen = isinstance(sys.exc_info()[1], UnstorableError | UnavailableError)
        if foreseen or "UnstorableError" in fields.get("error", ""):
            self.info(event)  # the workload asks for it, or it is asked for again
            return
        if sys.exc_info()[0] is not None:
            fields["traceback"] = traceback.format_exc()
        self._world.fail(Violation("no surprises", f"{event} {fields}"))

    exception = error


@contextmanager
def _in_the_world(world: World) -> Iterator[None]:
    """Ids and log lines of the real code come from, and go to, the simulation; its limits are near in some seeds."""
    ids_rng = Random(world.seed)  # noqa: S311
    log = _Log(world)
    patches: list[Any] = [patch.object(module, "log", log) for module in _LOGGING]
    patches.append(patch.object(ids, "os", SimpleNamespace(urandom=ids_rng.randbytes)))
    patches.append(patch.object(ids, "time", SimpleNamespace(time_ns=lambda: int(world.loop.now * 1e9))))
    for module in (jobs, bus, versions):
        patches.append(patch.object(module, "time", SimpleNamespace(monotonic=lambda: world.loop.now)))
    patches.append(patch.object(advance, "INLINE_BUDGET", world.rng.choice((1, 2, 200))))
    patches.append(patch.object(committer, "MAX_BATCH", world.rng.choice((1, 3, 256))))
    patches.append(patch.object(versions, "_CACHE_NODES", world.rng.choice((0, 500_000))))
    patches.append(patch.object(committer, "_CACHE_BYTES", world.rng.choice((0, 2**28, 2**28))))
    patches.append(patch.object(committer, "_WAITING_BYTES", world.rng.choice((0, 2**24))))
    tight = world.tight
    patches.append(patch.object(windows, "MIN_WINDOW", tight.min_window))
    patches.append(patch.object(windows, "MAX_WINDOW", tight.max_window))
    patches.append(patch.object(dispatch, "_TAKEN_AT_ONCE", tight.places_at_once))
    patches.append(patch.object(dispatch, "PLACE_SECONDS", tight.place_seconds))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def simulate(seed: int) -> Outcome:
    """Run one seed."""
    return World(seed).run()
