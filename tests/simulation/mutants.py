"""`make mutants`: the real code, broken in one place at a time; every break must be caught in so many seeds."""

from __future__ import annotations

import inspect
import math
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from services.executor.domain import (
    admission,
    chains,
    committer,
    dispatch,
    idle_workers,
    jobs,
    refill,
    runs,
    sweeper,
    turns,
    windows,
)
from services.executor.engine import decide, graph
from services.executor.storage import limits
from services.executor.storage import turns as turn_store
from services.executor.worker import loop as worker_loop
from services.executor.worker import reports, takes
from tests.simulation import database, places, programs
from tests.simulation.world import Outcome, simulate

MAX_SEEDS = 1500


@dataclass(frozen=True)
class Mutant:
    """A function of `owner` (module or class) in whose source `before` is replaced by `after`, once."""

    name: str
    owner: Any
    function: str
    before: str
    after: str
    first: int = 0
    """The seed with which the search begins: where few seeds tell, a little before one that does."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Break the code for the length of a block."""
        original = inspect.getattr_static(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(original))
        if source.count(self.before) != 1:
            raise LookupError(f"mutant {self.name!r}: {self.function} does not hold {self.before!r} exactly once")
        made: dict[str, Any] = {}
        code = compile(source.replace(self.before, self.after), f"<mutant {self.name}>", "exec")
        exec(code, original.__globals__, made)  # noqa: S102 - our own source
        # Its code, for others may have imported the function itself.
        sound, original.__code__ = original.__code__, made[self.function].__code__
        try:
            yield
        finally:
            original.__code__ = sound


MUTANTS = (
    Mutant("no republish", refill.Refill, "_refill_queue", "self._dispatcher.refill(queue, ready, short)", "pass"),
    Mutant("sweeper off", sweeper.Sweeper, "step", "await self.sweep()", "True"),
    Mutant("lost worker keeps its jobs", sweeper.Sweeper, "sweep", "in overdue.lost\n", "in ()\n"),
    Mutant(
        "attempt in the idempotency key",
        jobs,
        "make_job",
        "run_text, spec.key, node.path)",
        'run_text, spec.key, node.path + f"/{node.failures}")',
    ),
    Mutant(
        "no epoch check in reports",
        jobs,
        "_record",
        "if is_running and report.claim_id and (",
        "report = replace(report, epoch=node.epoch, claim_id='')\n    if False and (",
    ),
    Mutant("no epoch check in claims", decide, "claim", "or node.epoch != epoch", "", first=1920),
    Mutant("a repeated claim is refused", decide, "claim", "node.claim_id == claim_id", "False"),
    Mutant(
        "wake-up acknowledged before its claim is answered",
        worker_loop.Worker,
        "_claim",
        "else {_name(ref) for _, ref in woken}",
        "else set()",
    ),
    Mutant(
        "a report is sent once",
        reports.Reports,
        "_hand_in",
        "tries, executor_id = tries + 1, ",
        "return\n        ",
    ),
    Mutant(
        "published before the commit",
        committer.Committer,
        "_commit",
        "batch.written = await self._store.commit(changed, batch.new)",
        "[self._announcer.announce(state, tuple(state.ready)) for state in changed]\n"
        "        batch.written = await self._store.commit(changed, batch.new)",
    ),
    Mutant(
        "accepted before the commit",
        runs.Runs,
        "_accept",
        "view = await self._committer.submit_new(\n"
        "            run_id, new, make, begin, lambda state, _: _view(state, new), patience=patience\n"
        "        )",
        "self._committer.submit_new(run_id, new, make, begin, lambda state, _: None)\n"
        "        early = make()\n"
        "        early.times = type('Times', (), dict.fromkeys(('created_at', 'started_at', 'finished_at')))\n"
        "        view = _view(early, new)",
    ),
    Mutant(
        "commit without the version guard",
        database.Database,
        "commit",
        'old["version"] == row["version"] or',
        "True or",
    ),
    Mutant("verdicts rest on old copies", committer.Committer, "_outdated", "if not unmoved:", "if True:", first=180),
    Mutant(
        "a lost commit is taken for done",
        committer.Committer,
        "_finish",
        "work.fail(batch.error)",
        "work.done.done() or work.done.set_result(None)",
    ),
    Mutant("a take is asked for once", takes.Takes, "_take", "tries, request.again = tries + 1, True", "return"),
    Mutant(
        "given before the commit",
        idle_workers.IdleWorkers,
        "_settle",
        "if is_committed and is_held_by",
        "if is_held_by",
    ),
    Mutant("a result belongs to no claim", jobs, "_record", "report.claim_id and (", "False and ("),
    Mutant("a claim has no past", chains, "claim_behind", "{first}>", "behind>", first=2310),
    Mutant(
        "effects begin early", idle_workers.IdleWorkers, "give", "waiting.takes_early and may_begin_early(node)", "True"
    ),
    Mutant(
        "effects are chained",
        graph.Graph,
        "_walk_reads",
        " or not self.nodes[targets[0]].may_begin_early",
        "",
        first=260,
    ),
    Mutant("given without a place", dispatch.Dispatcher, "may_give", " and project_id not in self._limits", ""),
    Mutant("a claim needs no place", dispatch.Dispatcher, "needs_place", "limits is None or", "True or"),
    Mutant(
        "a place is believed in for ever", dispatch.Dispatcher, "needs_place", "> PLACE_SECONDS / 2", "> 1e9", first=220
    ),
    Mutant(
        "successors need no place",
        dispatch.Dispatcher,
        "may_continue",
        "limits is not None and not limits.bypass_allowed",
        "False",
    ),
    Mutant("places are not counted", limits.PostgresLimitStore, "take", "if all(", "if True or all("),
    Mutant(
        "places are counted without a lock",
        limits.PostgresLimitStore,
        "take",
        "await connection.execute(_LOCK, project_id)",
        "pass",
    ),
    Mutant("places are never given back", places.PlaceTable, "free", "if not places:", "if True:"),
    Mutant("unused places are kept", refill.Refill, "take_census", "await self._limits.free_unused()", "pass"),
    Mutant(
        "runs move before the census", programs.Executor, "serve", "await self._refill.take_census()", "pass", first=140
    ),
    Mutant("turns are not counted", turn_store.PostgresTurnStore, "give_turns", "if all(", "if True or all("),
    Mutant("a turn not used is forgotten", turns.Turns, "step", "timeout(self._interval)", "timeout(None)"),
    Mutant("a run begins without its turn", decide, "hold", 'state.emit("run.pending")', "start(state)"),
    Mutant("a run begins twice", decide, "begin", "state.status is not RunStatus.PENDING", "False"),
    Mutant("the window is never free again", windows.Windows, "forget", "window.sent -= 1", "pass"),
    Mutant(
        "a lost wake-up keeps its place in the window",
        refill.Refill,
        "_look_for_lost",
        "if oldest is None or",
        "if True or",
    ),
    Mutant(
        "who waits for a place is not asked again", dispatch.Dispatcher, "tick", "window.waiting.unblock(flow)", "pass"
    ),
    Mutant("workers are always behind", admission.Admission, "_require_capacity", "late > ", "late >= 0 * "),
    Mutant(
        "a claim granted meanwhile is not answered",
        jobs.Jobs,
        "claim",
        "for ready in unplaced]\n",
        "for ready in unplaced if ready.ref in placed]\n",
        first=3370,
    ),
)


def catch(mutant: Mutant, *, seeds: int = MAX_SEEDS) -> Outcome | None:
    """The first seed that breaks with the mutant and not without it; None if it survives them all.

    Without the look for forgotten claims, which makes good what many of them break. A few seeds need it by themselves:
    the answer with an early job is lost, and another executor looks for its claim before that is committed.
    """
    with patch.object(database, "FORGOTTEN_AFTER_SECONDS", math.inf):
        for seed in range(mutant.first, mutant.first + seeds):
            with mutant.applied():
                outcome = simulate(seed)
            if outcome.violation is not None and simulate(seed).violation is None:
                return outcome
    return None


def main() -> int:
    """Try all mutants; the status is 1 if one survives."""
    survived = 0
    for mutant in MUTANTS:
        outcome = catch(mutant)
        if outcome is None:
            survived += 1
            print(f"SURVIVED  {mutant.name}: {MAX_SEEDS} seeds", flush=True)
        else:
            print(f"caught    {mutant.name}: seed {outcome.seed}, {str(outcome.violation)[:150]}", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
