"""What must hold of limits, turns, the backlog and admission."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from services.executor.transport import streams
from tests.simulation.database import READY, RUNNING, Change, Row
from tests.simulation.trace import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

HANDED_OUT_SECONDS = 30.0
"""Within which, once faults are over, a worker that is idle gets what is ready and may run."""
TURN_SECONDS = 6.0
"""Within which, once faults are over, a run begins that nothing is in the way of."""
_AFTERMATH_SECONDS = streams.ACK_WAIT_SECONDS + 6.0
"""A wake-up that a worker has taken with it to its death comes again, or is missed, within so long."""
_PENDING, _ENDED = 1, 4
_KEYS = ("=0", "=1")
"""concurrency_key of the inputs there are; without a key in the definition it makes no difference."""
Holder = tuple[UUID, str, str]


class LimitChecker:
    """Watches the database, and refusals."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._places = world.database.places
        self._cases = {case.workflow_id: case for case in world.cases}
        self._most: dict[str, int] = {}
        """How many may be in a scope."""
        for project_id, limits in self._places.limits.items():
            self._most |= limits.scopes(str(project_id), "work")
        for case in world.cases:
            for key in _KEYS:
                self._most |= case.turn_scopes(key)
        self._inside: dict[str, set[Holder]] = {}
        """What runs, or goes on, by scope."""
        self._due: dict[Holder, float] = {}
        """Since when each could have begun at any moment, and has not."""
        self._places.observe = self._taken

    def committed(self, change: Change) -> None:
        """A commit has written one run."""
        run = change.after
        for _, row in change.nodes:
            if row["type"] == "work":
                name = row["run_id"], row["node_key"], row["item_path"]
                self._move(name, self._node_scopes(run), row["status"] == RUNNING)
        goes_on = _PENDING < run["status"] < _ENDED
        scopes = self._turn_scopes(run)
        if goes_on and scopes and (change.before is None or change.before["status"] == _PENDING):
            self._in_turn(run, scopes)
        self._move((run["id"], "", ""), scopes, goes_on)

    def _move(self, name: Holder, scopes: dict[str, int], runs: bool) -> None:
        for scope, most in scopes.items():
            inside = self._inside.setdefault(scope, set())
            if not runs:
                inside.discard(name)
                continue
            inside.add(name)
            if len(inside) > most:
                self._fail("at most so many", f"{len(inside)} at a time in {scope}, of which {most} may")
            if (*name[1:], scope) not in self._places.held.get(name[0], {}):
                self._fail("who runs has a place", f"{name} runs without a place in {scope}")

    def _in_turn(self, run: Row, scopes: dict[str, int]) -> None:
        """Those that came before it to the same queue have their turns."""
        for other in self._world.database.runs.values():
            is_before = (other["created_at"], other["id"]) < (run["created_at"], run["id"])
            same = other["workflow_id"] == run["workflow_id"] and other["concurrency_key"] == run["concurrency_key"]
            if other["status"] == _PENDING and same and is_before and not self._places.held.get(other["id"]):
                self._fail("first come, first served", f"run {run['id']} has begun before {other['id']}")

    def _taken(self, scope: str, used: int) -> None:
        """A place was taken."""
        if used > self._most[scope]:
            self._fail("at most so many", f"{used} places are taken in {scope}, of {self._most[scope]}")

    # From time to time.

    def look(self) -> None:
        """Whatever could go on goes on in time."""
        world, now = self._world, self._world.loop.now
        if world.faults.active or not any(program.is_idle for program in world.workers()):
            self._due.clear()
            return
        due = dict(self._could_begin())
        self._due = {name: self._due.get(name, now) for name in due}
        for name, since in self._due.items():
            if now - since > due[name]:
                what = f"node {name[1]}{name[2]} of run {name[0]}" if name[1] else f"run {name[0]}"
                self._fail("handed out in time", f"{what} could have begun for {now - since:.1f} s")
                return

    def _could_begin(self) -> Iterator[tuple[Holder, float]]:
        database = self._world.database
        for name, row in database.open.items():
            if row["status"] == READY and row["type"] == "work":
                scopes = self._node_scopes(database.runs[name[0]])
                if self._has_room(scopes):
                    yield name, HANDED_OUT_SECONDS
        for run in database.runs.values():
            if run["status"] == _PENDING and self._has_room(self._turn_scopes(run)):
                yield (run["id"], "", ""), TURN_SECONDS

    def _has_room(self, scopes: dict[str, int]) -> bool:
        return all(len(self._inside.get(scope, ())) < most for scope, most in scopes.items())

    def refused(self, reason: str) -> None:
        """A start was refused."""
        world, now = self._world, self._world.loop.now
        world.trace.note(f"refused: {reason}")
        if reason != "WORKERS_BEHIND" or now < max(world.faults.until, world.last_crash) + _AFTERMATH_SECONDS:
            return
        ages = [now - row["queued_at"] for row in world.database.open.values() if row["status"] == READY]
        if max(ages, default=0.0) < world.tight.admission.shed_after_seconds / 2 and any(
            program.is_idle for program in world.workers()
        ):
            self._fail("refused for a reason", f"workers are not behind: what is ready waits for {ages} s")

    def _node_scopes(self, run: Row) -> dict[str, int]:
        limits = self._places.limits.get(run["project_id"])
        return limits.scopes(str(run["project_id"]), "work") if limits else {}

    def _turn_scopes(self, run: Row) -> dict[str, int]:
        return self._cases[run["workflow_id"]].turn_scopes(run["concurrency_key"])

    def _fail(self, invariant: str, text: Any) -> None:
        self._world.fail(Violation(invariant, text))
