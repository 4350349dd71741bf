"""What must hold at every commit, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import orjson
from headrace.executor.v1 import worker_pb2 as pb

from tests.property.reference_interpreter import Expected
from tests.simulation.database import READY, RUNNING, WAITING, Change, Database, Row
from tests.simulation.trace import Trace, Violation
from tests.simulation.work import Execution, Ledger
from tests.simulation.workload import Case

PENDING = 1
SUCCEEDED, FAILED, SKIPPED, CANCELLED = 5, 6, 7, 8
RUN_SUCCEEDED, RUN_FAILED, RUN_CANCELLED = 4, 5, 6
STATUSES = {SUCCEEDED: "succeeded", FAILED: "failed", SKIPPED: "skipped", CANCELLED: "cancelled"}


class Checker:
    """Watches the database and the bus. A violation goes to `fail`, which ends the simulation."""

    def __init__(self, database: Database, ledger: Ledger, trace: Trace, fail: Callable[[Violation], None]) -> None:
        self._database = database
        self._ledger = ledger
        self._trace = trace
        self._report = fail
        self.accepted: dict[UUID, Case] = {}
        """Runs that a client was told of."""
        self.cancelled: set[UUID] = set()
        """Runs that a client has asked to cancel."""
        self._succeeded: set[tuple[Any, ...]] = set()
        self._was_ready: set[tuple[UUID, str, str]] = set()

    # At every commit.

    def committed(self, change: Change) -> None:
        """A commit has written one run."""
        run, before = change.after, change.before
        self._trace.note(
            f"commit {run['id'].hex[:6]} v{run['version']} status={run['status']} "
            + " ".join(f"{row['node_key']}{row['item_path']}={row['status']}@{row['epoch']}" for _, row in change.nodes)
        )
        if before is not None and before["status"] >= RUN_SUCCEEDED:
            self._fail("ended runs rest", f"run {run['id']} has moved after its end, from {before['status']}")
        self._events(change)
        for old, new in change.nodes:
            self._node(old, new)
        self._wakeable(run)

    def _events(self, change: Change) -> None:
        first = change.before["sequence"] + 1 if change.before else 1
        numbers = [event["sequence"] for event in change.events]
        if numbers != list(range(first, change.after["sequence"] + 1)):
            text = f"run {change.after['id']}: {numbers} do not lead from {first} to {change.after['sequence']}"
            self._fail("event numbers", text)
        for event in change.events:
            if event["type"] in ("node.succeeded", "run.started", "run.succeeded", "run.failed", "run.cancelled"):
                name = change.after["id"], event["type"], event.get("node_key"), event.get("item_path")
                if name in self._succeeded:
                    self._fail("recorded once", f"run {name[0]} has two {name[1]} of {name[2]}")
                self._succeeded.add(name)

    def _node(self, old: Row | None, new: Row) -> None:
        name = new["run_id"], new["node_key"], new["item_path"]
        epoch = old["epoch"] if old else 0
        if new["status"] == READY:
            self._was_ready.add(name)
        if new["epoch"] < epoch:
            self._fail("epochs rise", f"{name} went from epoch {epoch} to {new['epoch']}")
        if new["status"] == RUNNING and new["type"] == "work":
            is_held = old is not None and old["status"] == RUNNING and old["claim_id"] == new["claim_id"]
            if not is_held and new["epoch"] <= epoch:
                self._fail("epochs rise", f"{name} was claimed without a new epoch")
            if new["worker"] not in self._database.workers:
                self._fail("wakeable", f"{name} is held by {new['worker']}, which has no lease that could end")
        number = _execution(new)
        if number is None or (old is not None and _execution(old) == number):
            return
        execution = self._ledger.executions[number]
        # What changes nothing outside may be claimed by the commit that has its result.
        row = old if old is not None and old["status"] == RUNNING else new
        is_right = row is old or _reads(new)
        if not is_right or execution != Execution(name, row["worker"], row["epoch"], row["claim_id"]):
            self._fail("old epochs write nothing", f"{name} has the result of {execution}, the row was {row}")
        seen = _seen(new)
        if seen is not None and seen not in map(_execution, self._rows(new["run_id"])):
            self._fail("results rest on what is recorded", f"{name} has seen execution {seen}, which is not recorded")

    # At every effect.

    def acted(self, execution: Execution) -> None:
        """A handler acts on the outside: its claim is committed."""
        run_id, *_ = execution.name
        row = self._database.nodes.get(run_id, {}).get(execution.name)
        is_claimed = row is not None and (
            row["epoch"] > execution.epoch or (row["epoch"], row["worker"]) == (execution.epoch, execution.worker)
        )
        if not is_claimed:
            self._fail("claimed, then done", f"{execution} acts, the row is {row}")

    def _wakeable(self, run: Row) -> None:
        rows = self._database.nodes.get(run["id"], {}).values()
        alive = [row for row in rows if READY <= row["status"] <= WAITING]
        if run["status"] >= RUN_SUCCEEDED:
            if alive:
                self._fail(
                    "ended runs rest", f"run {run['id']} has ended with open {[row['node_key'] for row in alive]}"
                )
        elif run["status"] == PENDING:
            if run["concurrency_key"] is None:
                self._fail("wakeable", f"run {run['id']} is pending and is given no turn")
        elif run["continue_at"] is None and not any(row["due_at"] is not None for row in alive):
            self._fail("wakeable", f"nothing can wake run {run['id']}")

    def published(self, subject: str, data: bytes) -> None:
        """A message was published: wake-ups and notices speak only of what is committed."""
        if subject.startswith("headrace.jobs."):
            ref = pb.Wakeup.FromString(data).job
            if (UUID(ref.run_id), ref.node_key, ref.item_path) not in self._was_ready:
                self._fail(
                    "announced is committed", f"a wake-up for {ref.run_id}/{ref.node_key}, which was never ready"
                )
        elif subject.endswith(".moved"):
            notice, run_id = pb.RunMoved.FromString(data), UUID(subject.split(".")[2])
            run = self._database.runs.get(run_id)
            if run is None or run["sequence"] < notice.last_sequence:
                self._fail("announced is committed", f"a notice of event {notice.last_sequence} of run {run_id}")

    def accept(self, run_id: UUID, case: Case) -> None:
        """A client was told that its run is accepted."""
        self.accepted[run_id] = case
        if run_id not in self._database.runs:
            self._fail("accepted is committed", f"run {run_id} was accepted and is not there")

    # At the end.

    def finish(self) -> None:
        """Faults are over and every run has had its time."""
        for run_id in self.accepted:
            if run_id not in self._database.runs:
                self._fail("accepted is committed", f"run {run_id} was accepted and is gone")
        for run_id, run in self._database.runs.items():
            if run["status"] < RUN_SUCCEEDED:
                rows = [f"{row['node_key']}={row['status']}@{row['epoch']}" for row in self._rows(run_id)]
                self._fail("every run ends", f"run {run_id} is at {run['status']}: {rows}")
                return

    def outcome(self, run_id: UUID, case: Case) -> None:
        """Compare an ended run with the reference interpreter."""
        run, rows = self._database.runs[run_id], list(self._rows(run_id))
        lost, timed_out, inside = self._disturbances(run_id, case)
        self._effects(run, rows)
        if inside:
            return  # an item whose workers died is beyond the model, which knows nodes by their keys
        expected = case.expected(lost, timed_out)
        statuses = {row["node_key"]: STATUSES[row["status"]] for row in rows if not row["item_path"]}
        decided = {key: status for key, status in statuses.items() if status != "cancelled"}
        wrong = {key: status for key, status in decided.items() if expected.statuses[key] != status}
        if run["status"] == RUN_SUCCEEDED:
            right = statuses == expected.statuses and not expected.fatal and self._inside(rows, "", expected)
        elif run["status"] == RUN_FAILED and orjson.loads(run["error"])["reason"] == "RUN_TIMEOUT":
            right = not wrong and case.timeout is not None and run["finished_at"] > run["deadline_at"]
        elif run["status"] == RUN_FAILED:
            right = not wrong and orjson.loads(run["error"]).get("node_key") in expected.fatal
        else:
            right = not wrong and run_id in self.cancelled
        if not right:
            text = f"run {run_id} is {run['status']} with {statuses}; expected {expected}; {lost=} {timed_out=}"
            self._fail("as the reference says", text)

    def _inside(self, rows: list[Row], path: str, expected: Expected) -> bool:
        """Scopes of containers that succeeded are as expected."""
        for inner_path, inner in expected.inside.items():
            holder = inner_path.removeprefix(f"{path}/" if path else "").partition("[")[0]
            if expected.statuses[holder] != "succeeded" or inner.fatal:
                continue
            statuses = {row["node_key"]: STATUSES[row["status"]] for row in rows if row["item_path"] == inner_path}
            if statuses != inner.statuses or not self._inside(rows, inner_path, inner):
                return False
        return True

    def _disturbances(self, run_id: UUID, case: Case) -> tuple[set[str], dict[str, set[int]], bool]:
        """Nodes that were parked, attempts that ran out of time, and whether a node inside a container was parked."""
        lost: set[str] = set()
        timed_out: dict[str, set[int]] = {}
        inside = False
        starts: dict[str, int] = {}
        types = {(row["node_key"], row["item_path"]): row["type"] for row in self._rows(run_id)}
        for event in self._events_of(run_id):
            name, path, data = event.get("node_key", ""), event.get("item_path", ""), event.get("data", {})
            if types.get((name, path)) not in ("work", "retired"):
                continue
            key = f"{path}/{name}" if path else name
            reason = (data.get("error") or {}).get("reason")
            starts[key] = starts.get(key, 0) + (event["type"] == "node.started")
            if event["type"] not in ("node.retrying", "node.failed"):
                continue
            if reason == "TIMEOUT":
                timed_out.setdefault(key, set()).add(data["attempt"])
                if key not in case.hanging:
                    self._fail("no attempt is forgotten", f"{key} of run {run_id} ran out of time: nobody was at it")
            elif reason == "WORKER_LOST":
                lost.add(key)
                inside = inside or bool(path)
                if starts[key] < 5:
                    self._fail("parked after five", f"{key} of run {run_id} was parked after {starts[key]} claims")
            elif reason not in ("BROKEN", "RESULT_NOT_STORED", "UNKNOWN_NODE_TYPE"):
                self._fail("as the reference says", f"{key} of run {run_id} failed: {data}")
            starts[key] = 0
        return lost, timed_out, inside

    def _effects(self, run: Row, rows: list[Row]) -> None:
        results = [row for row in rows if row["status"] == SUCCEEDED and row["type"] == "work"]
        if run["model_calls"] != len(results):
            self._fail("recorded once", f"run {run['id']} counts {run['model_calls']} calls of {len(results)} results")
        for row in rows:
            name = row["run_id"], row["node_key"], row["item_path"]
            if row in results and not _reads(row) and name not in self._ledger.keys:
                self._fail("one effect", f"{name} succeeded and had no effect")
            if row["status"] == SKIPPED and name in self._ledger.keys:
                self._fail("one effect", f"{name} was skipped and had an effect")

    def _rows(self, run_id: UUID) -> Iterable[Row]:
        return self._database.nodes.get(run_id, {}).values()

    def _events_of(self, run_id: UUID) -> Iterable[dict[str, Any]]:
        return (event for _, batch in self._database.events.get(run_id, []) for event in batch)

    def _fail(self, invariant: str, text: str) -> None:
        self._report(Violation(invariant, text))


def _reads(row: Row) -> bool:
    """Whether a row of a node whose handler was called is of one without effects."""
    return bool(row["input"]) and bool(orjson.loads(row["input"]).get("reads"))


def _seen(row: Row) -> int | None:
    """Number of the handler call whose result was there for this one's config."""
    value = orjson.loads(row["input"]).get("value") if row["input"] else None
    output = value.get("output") if isinstance(value, dict) else None
    return output.get("execution") if isinstance(output, dict) else None


def _execution(row: Row) -> int | None:
    """Number of the handler call whose result a row holds."""
    if row["type"] != "work":
        return None
    if row["status"] == SUCCEEDED:
        return int(orjson.loads(row["output"])["execution"])
    if row["status"] in (WAITING, FAILED):
        details = orjson.loads(row["error"]).get("details") or {}
        return details.get("execution")
    return None
