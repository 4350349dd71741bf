"""Tables of the schema `executor`, as the queries see them. The revisions in `migrations/` make them.

`bytea` columns hold JSON that the engine never looks into by SQL: the bytes pass through untouched. Inputs, outputs,
variables of runs and `runs.rerun` over 16 KiB are held as references (`services.executor.storage.payloads`).
"""

from sqlalchemy import (
    ARRAY,
    TIMESTAMP,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    schema="executor",
    naming_convention={"pk": "%(table_name)s_pkey", "ix": "%(table_name)s_%(column_0_N_name)s_idx"},
)


def _time(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable)


# Definitions that runs use, kept here so that a run can go on whatever happens to the workflows service.
versions = Table(
    "versions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("project_id", Uuid, nullable=False),
    Column("workflow_id", Uuid, nullable=False),
    Column("workflow_name", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("definition", LargeBinary, nullable=False),  # a headrace.workflows.v1.Definition
)

runs = Table(
    "runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("project_id", Uuid, nullable=False),
    Column("workflow_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("version_number", Integer, nullable=False),
    Column("workflow_name", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("version", BigInteger, nullable=False),  # raised by every commit: what in-memory copies are checked by
    Column("sequence", BigInteger, nullable=False),  # number of the last event
    Column("input", LargeBinary, nullable=False),
    Column("output", LargeBinary),
    Column("error", LargeBinary),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("model_calls", Integer, nullable=False),
    Column("request_hash", LargeBinary),
    Column("started_by", Uuid),
    Column("traceparent", Text, nullable=False),
    Column("links", JSONB),  # versions of sub-workflows by link name
    Column("rerun_of", Uuid),
    Column("rerun", LargeBinary),  # how it goes again over that run
    Column("vars", LargeBinary),  # its own variables; null = none
    Column("project_vars", LargeBinary),  # its project's, as they were when it was accepted; null = none
    Column("timeout_seconds", Integer, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("concurrency_key", Text),  # of a run whose workflow runs only so often at a time; null = starts at once
    Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=func.now()),
    _time("deadline_at", nullable=False),
    _time("continue_at"),  # set while inline nodes or containers have more to do than one transition does
    _time("started_at"),
    _time("finished_at"),
    Index("runs_project_id_created_at_idx", "project_id", "created_at", "id"),
    Index("runs_workflow_id_created_at_idx", "workflow_id", "created_at", "id"),
    Index("runs_continue_at_idx", "continue_at", postgresql_where=text("continue_at IS NOT NULL")),
    Index("runs_deadline_at_idx", "deadline_at", postgresql_where=text("status < 4")),
    Index("runs_status_idx", "project_id", "status", "created_at", "id", postgresql_where=text("status <> 4")),
    Index("runs_rerun_of_idx", "rerun_of", postgresql_where=text("rerun_of IS NOT NULL")),
    Index("runs_open_idx", "project_id", postgresql_where=text("status < 4")),
    Index("runs_pending_idx", "workflow_id", "concurrency_key", "created_at", postgresql_where=text("status = 1")),
    postgresql_with={"fillfactor": "70"},
)

# Queue, outbox, lease and result in one row for each node and item.
node_executions = Table(
    "node_executions",
    metadata,
    Column("run_id", Uuid, nullable=False),
    Column("node_key", Text, nullable=False),
    Column("item_path", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("queue", Text, nullable=False),  # empty = inline
    Column("status", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("claims", Integer, nullable=False),
    Column("publications", SmallInteger, nullable=False),  # repeated wake-ups
    Column("worker", Text, nullable=False),
    Column("claim_id", Text, nullable=False),
    Column("port", Text, nullable=False),
    Column("input", LargeBinary),
    Column("output", LargeBinary),
    Column("error", LargeBinary),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("model_calls", Integer, nullable=False),
    Column("handler_seconds", Double),  # by the worker's clock
    Column("answer", Text),  # what the request is known by that answered its last wait
    Column("project_id", Uuid),  # the run's; null = decided before this column was
    Column("priority", SmallInteger, nullable=False, server_default="0"),  # the run's
    _time("due_at"),  # when the sweeper looks at it: next wake-up, end of the time-out, timer
    _time("queued_at"),
    _time("started_at"),
    _time("finished_at"),
    PrimaryKeyConstraint("run_id", "node_key", "item_path"),
    # Whom people and events answer: nothing else is written to it.
    Index(
        "node_executions_waits_idx",
        "run_id",
        "node_key",
        "item_path",
        postgresql_where=text("status = 4 AND type IN ('approval', 'wait_for_event')"),
    ),
    Index("node_executions_open_idx", "status", "due_at", postgresql_where=text("status IN (3, 4)")),
    # What is ready, in the order in which its project wants it: the backlog is read from here.
    Index(
        "node_executions_ready_idx",
        "project_id",
        "queue",
        text("priority DESC"),
        "queued_at",
        postgresql_where=text("status = 2"),
    ),
    postgresql_with={"fillfactor": "70"},
)

# Events of one commit in one row: a JSON array, numbered from first_sequence.
run_events = Table(
    "run_events",
    metadata,
    Column("run_id", Uuid, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("events", LargeBinary, nullable=False),
    Column("at", TIMESTAMP(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("run_id", "first_sequence"),
)

# Large values by content: the rows above hold a zero byte and the hash.
payloads = Table(
    "payloads",
    metadata,
    Column("project_id", Uuid, nullable=False),
    Column("hash", LargeBinary, nullable=False),  # SHA-256
    Column("data", LargeBinary, nullable=False),  # always out of line, so that a new used_at does not copy it
    Column("used_at", TIMESTAMP(timezone=True), nullable=False, server_default=func.now()),  # to the hour
    PrimaryKeyConstraint("project_id", "hash"),
    Index("payloads_used_at_idx", "used_at"),
    postgresql_with={"toast_tuple_target": "128"},
)

# Which runs hold a reference to a payload: from its first one until they are removed.
run_payloads = Table(
    "run_payloads",
    metadata,
    Column("run_id", Uuid, nullable=False),
    Column("project_id", Uuid, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("run_id", "hash"),
    Index("run_payloads_hash_idx", "hash", "project_id"),
)

# Days that ended runs are kept, of projects for which the operator's setting does not hold.
retentions = Table(
    "retentions",
    metadata,
    Column("project_id", Uuid, primary_key=True),
    Column("days", Integer, CheckConstraint("days BETWEEN 1 AND 36500", name="retentions_days_check"), nullable=False),
)

# Variables of projects that ever had any: rows stay, so that revisions only grow.
project_variables = Table(
    "project_variables",
    metadata,
    Column("project_id", Uuid, primary_key=True),
    Column("revision", BigInteger, nullable=False, server_default="1"),
    Column("variables", LargeBinary, nullable=False),  # a JSON object
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("draining", SmallInteger, nullable=False),
    _time("started_at", nullable=False),
    _time("lease_until", nullable=False),
    Column("slots", Integer, nullable=False, server_default="0"),
    Column("queues", ARRAY(Text), nullable=False, server_default="{}"),
)

# Executors that live: the window is shared among them.
executors = Table(
    "executors",
    metadata,
    Column("id", Text, primary_key=True),
    _time("lease_until", nullable=False),
)

project_limits = Table(
    "project_limits",
    metadata,
    Column("project_id", Uuid, primary_key=True),
    Column("weight", SmallInteger, nullable=False, server_default="1"),  # the operator's
    Column("own", JSONB, nullable=False, server_default="{}"),  # what the project has set
    Column("ceilings", JSONB, nullable=False, server_default="{}"),  # what it may set at most: the operator's
)

# A place for each limit that a running node execution, or an open run (node key empty), counts against.
places = Table(
    "places",
    metadata,
    Column("run_id", Uuid, nullable=False),
    Column("node_key", Text, nullable=False),
    Column("item_path", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("taken_at", TIMESTAMP(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("run_id", "node_key", "item_path", "scope"),
    Index("places_scope_idx", "scope"),
)
