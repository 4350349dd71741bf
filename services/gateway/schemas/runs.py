"""Bodies of runs, node executions, events and node types."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, RootModel

from services.gateway.schemas.common import INT32_MAX, Input, JsonObject, Output, Page, Usage, optional

RunStatusName = Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"]
NodeStatusName = Literal["pending", "ready", "running", "waiting", "succeeded", "failed", "skipped", "cancelled"]


class RunInput(Input):
    """A new run."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"input": {"question": "How do I add a node type?"}, "version": "latest"}}
    )
    input: Any = Field(None, description="Any JSON; what expressions call `input`. Absent or null = {}.")
    version: Annotated[int, Field(ge=1, le=INT32_MAX)] | Literal["draft", "latest"] | None = Field(
        None, description="null = the newest published version, or the draft when none is published."
    )
    vars: JsonObject = Field(
        default_factory=dict,
        description="Variables of the run: any JSON by name, what expressions call `run.vars`. Names and sizes are as "
        "of the project's.",
    )
    priority: int = Field(
        0, ge=-100, le=100, description="Inside the project only: what is ready goes by priority, then by age."
    )


NodePlace = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        description="Key of a node, after its place inside maps, loops and sub-workflows: `fetch`, `each[3]/fetch`.",
        examples=["each[3]/fetch"],
    ),
]


class RerunInput(Input):
    """How to go again over a run."""

    model_config = ConfigDict(json_schema_extra={"example": {"from_node": "answer", "confirm": True}})
    from_node: NodePlace | None = Field(
        None, description="It and all that comes after it run again. null = what did not succeed, and what comes after."
    )
    overrides: dict[NodePlace, Any] = Field(
        default_factory=dict, max_length=1000, description="Outputs by node, to go on with in place of running it."
    )
    input: Any = Field(None, description="In place of the earlier run's; left out = that one.")
    vars: JsonObject = optional(
        "In place of the earlier run's; left out = those. Those of the project stay as it saw them."
    )
    version: Annotated[int, Field(ge=1, le=INT32_MAX)] | Literal["draft", "latest"] | None = Field(
        None, description="null = the version of the earlier run."
    )
    confirm: bool = Field(False, description="Effects that have happened may happen again.")


class ResumeInput(Input):
    """An answer to a node execution that waits."""

    model_config = ConfigDict(json_schema_extra={"example": {"decision": "approve", "data": {"amount": 120}}})
    decision: str = Field(
        "",
        max_length=256,
        description="A choice of the `approval`; for an outcome that nobody knows, `retry`, `fail` or `succeed`.",
    )
    data: Any = Field(
        None, description="By the form of the `approval`; the payload of the event; the output where it did succeed."
    )


class EventPayload(RootModel[Any]):
    """Any JSON."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "paid", "invoice": "2026-117"}})


class Failure(Output):
    """Why a node or a run failed."""

    reason: str = Field(examples=["HTTP_STATUS"])
    message: str
    node_key: str | None
    item_path: str | None = Field(description="Place of the failed node inside maps, loops and sub-workflows.")
    retryable: bool
    details: JsonObject | None


class RunSummary(Output):
    """A run without input and output."""

    id: str
    workflow_id: str
    workflow_name: str = Field(description="When the run started.")
    version_id: str
    version: int | None = Field(description="null = the draft, frozen when the run started.")
    status: RunStatusName
    error: Failure | None
    usage: Usage
    created_at: str
    started_at: str | None
    finished_at: str | None
    rerun_of: str | None = Field(description="The run that this one repeats.")


class ResumeUrl(Output):
    """Where a wait of a run is answered."""

    node_key: str
    item_path: str = Field(description="Place inside maps, loops and sub-workflows; empty at the top.")
    url: str = Field(description="Path at this server that answers the wait once, without a login. A secret.")


class Run(RunSummary):
    """One execution of one version."""

    input: Any
    output: Any
    vars: JsonObject = Field(description="Variables of the run.")
    resume_urls: list[ResumeUrl] | None = Field(
        description="Of what waits now, in its first 100 waits; the node executions show all. null where it is not "
        "told: to viewers, and in answers to other requests than GET."
    )


class RunPage(Page):
    """A page of runs, newest first."""

    items: list[RunSummary]


class NodeExecution(Output):
    """One node, one item, in one run."""

    node_key: str
    item_path: str = Field(
        description="Place inside maps, loops and sub-workflows, such as `each[3]`; empty at the top."
    )
    type: str
    status: NodeStatusName
    attempt: int = Field(description="The present or last, from 1; 0 = none yet.")
    input: Any = Field(description="Config after templates, where it was recorded.")
    output: Any
    port: str | None = Field(description="The live port where it is not `out`.")
    error: Failure | None = Field(description="The last failure, also of an attempt that was retried.")
    usage: Usage
    queued_at: str | None
    started_at: str | None
    finished_at: str | None
    worker: str | None
    handler_seconds: float | None = Field(description="Time that the last attempt spent in its handler.")
    resume_url: str | None = Field(
        description="While it waits: path at this server that answers it once, without a login. A secret; for editors."
    )


class NodeExecutionPage(Page):
    """A page of node executions, by the time they became ready."""

    items: list[NodeExecution]


class RunEvent(Output):
    """Something that happened in a run."""

    sequence: int = Field(description="From 1 in each run, without gaps; 0 = passing (`node.token`).")
    type: str = Field(examples=["node.succeeded"])
    at: str
    node_key: str | None
    item_path: str
    data: JsonObject


class RunEventPage(Page):
    """A page of a run's events, in order. `page_token` is the last sequence number."""

    items: list[RunEvent]


class NodeType(Output):
    """What a node can be."""

    type: str = Field(examples=["llm_call"])
    title: str
    help: str
    icon: str
    category: str
    config_schema: JsonObject = Field(description="JSON Schema of the config after templates.")
    output_schema: JsonObject = Field(description="JSON Schema of the output.")
    ports: list[str] = Field(description="`error` exists besides on every type that can fail.")
    dynamic_ports_field: str | None = Field(description="Config field whose items' `port` are further ports.")
    expression_fields: list[str] = Field(description="Config fields that are CEL without braces.")
    default_timeout_seconds: float | None
    effect: Literal["pure", "read", "idempotent", "effect"] | None = Field(
        description="What running a node again may do to the outside; null = its config decides."
    )


class NodeTypeList(Page):
    """All node types, by name."""

    items: list[NodeType]
