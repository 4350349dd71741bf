"""Bodies of limits of projects."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from services.gateway.schemas.common import Input, Output

_EXAMPLE: JsonDict = {
    "max_running_nodes": 50,
    "max_open_runs": 1000,
    "max_queued_nodes": None,
    "node_types": {"llm_call": {"rate": 2.5, "burst": 5, "max_running": 4}},
}
Count = Annotated[int, Field(ge=1, le=10_000_000)]


class NodeTypeLimits(Input):
    """What a project may use of one node type; null = no limit."""

    rate: float | None = Field(
        None, ge=0.001, le=100_000, allow_inf_nan=False, description="Starts per second, on average."
    )
    burst: Count = Field(1, description="Starts at once after a pause.")
    max_running: Count | None = Field(None, description="Nodes that run at a time.")


class Limits(Input):
    """What a project may use; null = no limit."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})
    max_running_nodes: Count | None = Field(None, description="Nodes that run at a time.")
    max_open_runs: Count | None = Field(None, description="Runs that have not ended; further ones are answered 429.")
    max_queued_nodes: Count | None = Field(
        None, description="Nodes that wait for a worker; from then on new runs are answered 429."
    )
    node_types: dict[str, NodeTypeLimits] = Field(default_factory=dict, max_length=100, description="By node type.")


class NodeTypeLimitsView(Output):
    """What is set for one node type."""

    rate: float | None
    burst: int
    max_running: int | None


class LimitsView(Output):
    """What is set."""

    max_running_nodes: int | None
    max_open_runs: int | None
    max_queued_nodes: int | None
    node_types: dict[str, NodeTypeLimitsView]


class ProjectLimits(LimitsView):
    """What the project has set, and what the operator has set for it: the lower of the two counts."""

    ceilings: LimitsView
    weight: int = Field(description="Turns of the project for one of a project with weight 1; the operator's.")
