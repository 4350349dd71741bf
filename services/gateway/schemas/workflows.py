"""Bodies of workflows, their definitions and versions."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from services.gateway.schemas.common import INT32_MAX, Input, Issue, JsonObject, Name, Output, Page, optional

Id = Annotated[str, Field(max_length=64)]
Key = Annotated[str, Field(max_length=256, examples=["search"])]
Port = Annotated[str, Field(max_length=256)]
Seconds = Annotated[float, Field(ge=0, le=315_576_000, examples=[60])]
Description = Annotated[str, Field(max_length=4096)]

EXAMPLE_DEFINITION: JsonValue = {
    "nodes": [
        {
            "key": "search",
            "type": "faiss_search",
            "name": "Find passages",
            "config": {"collection": "docs", "query": "{{ input.question }}"},
            "retry": {"max_attempts": 3},
            "timeout_seconds": 60,
            "position": {"x": 0, "y": 0},
        },
        {
            "key": "answer",
            "type": "llm_call",
            "config": {"prompt": "{{ input.question }}\n\n{{ nodes.search.output.results }}"},
        },
    ],
    "edges": [{"source": "search", "target": "answer"}],
}


class Position(Input):
    """A place on the canvas."""

    x: float = Field(0, ge=-1e9, le=1e9, description="Pixels to the right.")
    y: float = Field(0, ge=-1e9, le=1e9, description="Pixels downwards.")


class Retry(Input):
    """How often and how fast a failed node is tried again."""

    max_attempts: int = Field(3, ge=0, le=INT32_MAX, description="The first included.")
    initial_interval: Seconds = Field(0.5, description="Seconds before the second attempt.")
    backoff: float = Field(2.0, ge=0, le=1e6, description="Factor by which each further wait grows.")
    max_interval: Seconds = Field(30.0, description="Longest wait in seconds.")
    jitter: bool = Field(True, description="Spread each wait over 50% to 100% of its length.")
    when: str = Field("", max_length=16_384, description="CEL over `error` and `attempt`; empty = what is retryable.")


class NodeInput(Input):
    """A node."""

    model_config = ConfigDict(json_schema_extra={"example": {"key": "wait", "type": "delay", "config": {"seconds": 5}}})
    key: Key = Field("", description="Slug, unique in the workflow. Empty = made from the name or type.")
    type: str = Field(max_length=256, examples=["faiss_search"], description="One of GET /api/v1/node-types.")
    name: str = Field("", max_length=256)
    config: JsonObject = Field(
        default_factory=dict, description="By the type's config schema; strings may be templates."
    )
    retry: Retry | None = Field(None, description="null = one attempt.")
    timeout_seconds: Seconds | None = Field(None, description="Of one attempt; null = the type's default.")
    on_error: Literal["fail", "continue"] = Field("fail", description="What a final failure does.")
    join: Literal["all", "any"] = Field("all", description="Wait for all incoming edges, or for the first live one.")
    position: Position | None = None


class DefinitionNode(NodeInput):
    """A node of a definition; with its id when it is one that exists already."""

    id: Id | None = Field(None, description="As the server gave it; unknown ids are replaced.")


class EdgeInput(Input):
    """An edge, by node keys."""

    model_config = ConfigDict(json_schema_extra={"example": {"source": "search", "target": "wait"}})
    source: Key = Field(description="Key of the node it leaves.")
    target: Key = Field(description="Key of the node it enters.", examples=["answer"])
    source_port: Port | None = Field(None, description="null = `out`.")
    target_port: Port | None = Field(None, description="null = `in`.")


class DefinitionEdge(EdgeInput):
    """An edge of a definition; with its id when it is one that exists already."""

    id: Id | None = Field(None, description="As the server gave it; unknown ids are replaced.")


class Concurrency(Input):
    """How many runs with the same key go on at a time."""

    key: str = Field(min_length=1, max_length=4096, description="CEL over `input`.", examples=["input.customer"])
    max: int = Field(ge=1, le=1_000_000)


class RunLimits(Input):
    """How many runs go on at a time: one over them waits as pending, first come first served."""

    max_running_runs: int | None = Field(None, ge=1, le=1_000_000, description="Of the workflow; null = any number.")
    concurrency: Concurrency | None = Field(None, description="Of those that share a key; null = any number.")


class DefinitionInput(Input):
    """Nodes and edges."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE_DEFINITION})
    nodes: list[DefinitionNode] = Field(default_factory=list, max_length=20_000)
    edges: list[DefinitionEdge] = Field(default_factory=list, max_length=100_000)
    timeout_seconds: Seconds | None = Field(None, description="Of a whole run; null = the operator's limit.")
    limits: RunLimits | None = Field(None, description="null = as many runs at a time as are started.")


class WorkflowInput(Input):
    """A new workflow."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "ask-the-docs", "definition": EXAMPLE_DEFINITION}})
    name: Name
    description: Description = ""
    definition: DefinitionInput | None = Field(None, description="The first draft; null = empty.")


class WorkflowPatch(Input):
    """What to change of a workflow (JSON merge patch)."""

    model_config = ConfigDict(json_schema_extra={"example": {"description": "Answers from the manual."}})
    name: Name = optional("New name.")
    description: Description | None = optional("New description; null empties it.")
    definition: DefinitionInput = optional("New draft, replacing the old one.")


class NodePatch(Input):
    """What to change of a node (JSON merge patch): what is absent stays, null resets."""

    model_config = ConfigDict(json_schema_extra={"example": {"config": {"top_k": 8}, "timeout_seconds": None}})
    key: Key = optional("New key; edges follow.")
    type: str = optional("New type.", max_length=256)
    name: str | None = optional("New name.", max_length=256)
    config: JsonObject | None = optional("Merged into the config.")
    retry: JsonObject | None = optional("Merged into the retry policy.")
    timeout_seconds: Seconds | None = optional("New time-out.")
    on_error: Literal["fail", "continue"] | None = optional("What a final failure does.")
    join: Literal["all", "any"] | None = optional("When the node is decided.")
    position: JsonObject | None = optional("Merged into the position.")


class ValidateInput(Input):
    """What to check."""

    model_config = ConfigDict(json_schema_extra={"example": {"definition": EXAMPLE_DEFINITION}})
    definition: DefinitionInput | None = Field(None, description="In place of the draft; null = the draft.")


class PublishInput(Input):
    """A publication."""

    model_config = ConfigDict(json_schema_extra={"example": {"note": "Answers in two sentences."}})
    note: str = Field("", max_length=1024, description="Note of the publisher.")


class Node(Output):
    """A node."""

    id: str
    key: str
    type: str
    name: str
    config: JsonObject
    retry: Retry | None
    timeout_seconds: float | None
    on_error: Literal["fail", "continue"]
    join: Literal["all", "any"]
    position: Position | None


class NodeWithRevision(Node):
    """A node, with the revision that its workflow has now."""

    revision: int


class NodePage(Page):
    """A page of nodes, in the draft's order."""

    items: list[Node]
    revision: int = Field(description="Of the workflow.")


class Edge(Output):
    """An edge."""

    id: str
    source: str
    target: str
    source_port: str
    target_port: str


class EdgeWithRevision(Edge):
    """An edge, with the revision that its workflow has now."""

    revision: int


class EdgePage(Page):
    """A page of edges, in the draft's order."""

    items: list[Edge]
    revision: int = Field(description="Of the workflow.")


class ConcurrencyView(Output):
    """How many runs with the same key go on at a time."""

    key: str
    max: int


class RunLimitsView(Output):
    """How many runs go on at a time."""

    max_running_runs: int | None
    concurrency: ConcurrencyView | None


class Definition(Output):
    """Nodes and edges."""

    nodes: list[Node]
    edges: list[Edge]
    timeout_seconds: float | None
    limits: RunLimitsView | None


class WorkflowSummary(Output):
    """A workflow without its draft."""

    id: str
    name: str
    description: str
    revision: int = Field(description="Raised at every change; give it as If-Match.")
    latest_version: int | None = Field(description="Number of the newest published version; null = none.")
    created_at: str
    updated_at: str


class Workflow(WorkflowSummary):
    """A workflow with its draft."""

    definition: Definition


class WorkflowWithIssues(Workflow):
    """A workflow, with what keeps its draft from being published."""

    issues: list[Issue]


class WorkflowPage(Page):
    """A page of workflows, newest first."""

    items: list[WorkflowSummary]


class Verdict(Output):
    """What validation found."""

    valid: bool = Field(description="No issue of severity error.")
    issues: list[Issue]


class VersionSummary(Output):
    """A published version without its definition."""

    id: str
    workflow_id: str
    workflow_name: str = Field(description="When it was published.")
    number: int
    note: str
    content_hash: str
    created_at: str


class Version(VersionSummary):
    """A published version."""

    definition: Definition


class VersionPage(Page):
    """A page of versions, newest first."""

    items: list[VersionSummary]
