"""Node types that hold other nodes (services.executor.engine.containers): what their configs hold."""

from typing import Any, Literal

from pydantic import Field, model_validator

from services.executor.handlers.base import ConfigModel, NodeType

_MAX_ITEMS = 10_000


def _body(*names: str) -> Any:
    """A definition of its own, in whose expressions `names` exist."""
    return Field(
        title="Body",
        description="Nodes and edges to run, as in a workflow; an `output` node in it says what they return.",
        json_schema_extra={"type": "object", "x-headrace-body": list(names)},
    )


class MapConfig(ConfigModel):
    """Once for each item."""

    items: list[Any] = Field(title="Items", description="A list, usually an expression. At most 10,000 items.")
    body: Any = _body("item", "index")
    concurrency: int = Field(10, ge=1, le=_MAX_ITEMS, title="Concurrency", description="Items under way at a time.")
    on_item_error: Literal["fail", "continue", "collect"] = Field(
        "fail",
        title="On item error",
        description="Fail the node, go on with null in the item's place, or that and list the errors in the output.",
    )


class MapOutput(ConfigModel):
    """What the items came to."""

    results: list[Any] = Field(title="Results", description="In the order of the items; null where an item failed.")
    errors: list[Any] | None = Field(
        None, title="Errors", description="`{index, error}` of each item that failed, with `collect`."
    )


class LoopConfig(ConfigModel):
    """Again and again."""

    body: Any = _body("state", "index")
    until: str = Field(
        min_length=1,
        title="Until",
        description="CEL expression without braces over `state`, which is what the body returned, and `index`.",
    )
    max_iterations: int = Field(
        100, ge=1, le=_MAX_ITEMS, title="Most iterations", description="Then the loop ends with the state it has."
    )
    state: Any = Field(None, title="State", description="What the first iteration sees as `state`.")


class LoopOutput(ConfigModel):
    """What the last iteration returned."""

    state: Any = Field(title="State", description="What the body returned last.")
    iterations: int = Field(title="Iterations", description="How often the body ran.")


class SubWorkflowConfig(ConfigModel):
    """Which workflow."""

    workflow: str = Field(min_length=1, max_length=128, title="Workflow", description="Name or id; no expression.")
    version: int | None = Field(
        None, ge=1, title="Version", description="A published version; the newest when the run begins, if left out."
    )
    input: Any = Field(default_factory=dict, title="Input", description="What it sees as `input`.")

    @model_validator(mode="after")
    def _is_literal(self) -> "SubWorkflowConfig":
        if "{{" in self.workflow:
            raise ValueError("`workflow` cannot be an expression: the version is fixed when the run begins")
        return self


MAP = NodeType(
    name="map",
    title="Map",
    help="Runs its body for each item of a list, several at a time.",
    icon="layers",
    category="logic",
    config=MapConfig,
    output=MapOutput,
    effect="pure",
    body_fields=("body",),
)
LOOP = NodeType(
    name="loop",
    title="Loop",
    help="Runs its body until a condition is true, carrying a state.",
    icon="repeat",
    category="logic",
    config=LoopConfig,
    output=LoopOutput,
    effect="pure",
    expression_fields=("until: state, index",),
    body_fields=("body",),
)
SUB_WORKFLOW = NodeType(
    name="sub_workflow",
    title="Sub-workflow",
    help="Runs another workflow and returns its output.",
    icon="workflow",
    category="logic",
    config=SubWorkflowConfig,
    output={"title": "Output", "description": "The output of the workflow."},
    effect="pure",
)
