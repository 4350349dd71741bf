"""Node types that the executor evaluates itself (services.executor.engine.inline): what their configs hold."""

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from services.executor.handlers.base import ConfigModel, NodeType

_MAX_DELAY_SECONDS = 366 * 24 * 3600


class TransformConfig(ConfigModel):
    """Values by name."""

    values: dict[str, Any] = Field(title="Values", description="The output: each value may be a template.")


class ConditionConfig(ConfigModel):
    """A question."""

    when: str = Field(
        min_length=1,
        title="When",
        description="CEL expression without braces, true or false, such as size(nodes.search.output.results) > 0.",
    )


class ConditionOutput(ConfigModel):
    """The answer."""

    result: bool = Field(title="Result", description="Which port is live.")


class SwitchCase(ConfigModel):
    """One way out."""

    port: str = Field(
        min_length=1, max_length=64, title="Port", description="Live when this is the first case that is true."
    )
    when: str = Field(min_length=1, title="When", description="CEL expression without braces, true or false.")


class SwitchConfig(ConfigModel):
    """Ways out, in order."""

    cases: list[SwitchCase] = Field(
        min_length=1, max_length=100, title="Cases", description="The first true one wins; `default` if none is."
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> "SwitchConfig":
        ports = [case.port for case in self.cases]
        if len(set(ports)) != len(ports) or "default" in ports:
            raise ValueError("every case needs a port of its own, and none is called `default`")
        return self


class SwitchOutput(ConfigModel):
    """The way taken."""

    port: str = Field(title="Port", description="A case's port, or `default`.")


class OutputConfig(ConfigModel):
    """What the run returns."""

    value: Any = Field(title="Value", description="The run's output.")


class DelayConfig(ConfigModel):
    """How long."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["seconds"]}, {"required": ["until"]}]})

    seconds: float | None = Field(
        None, ge=0, le=_MAX_DELAY_SECONDS, title="Seconds", description="Instead of `until`. At most a year."
    )
    until: str | None = Field(
        None,
        title="Until",
        description="RFC 3339 time with a zone, such as 2030-01-31T12:00:00Z. Instead of `seconds`.",
    )

    @model_validator(mode="after")
    def _one_end(self) -> "DelayConfig":
        if (self.seconds is None) == (self.until is None):
            raise ValueError("give `seconds` or `until`, and not both")
        return self


class DelayOutput(ConfigModel):
    """Nothing."""


TRANSFORM = NodeType(
    name="transform",
    title="Transform",
    help="Builds an object from templates.",
    icon="braces",
    category="logic",
    config=TransformConfig,
    output={"type": "object", "title": "Values", "description": "The values of the config."},
    effect="pure",
)
CONDITION = NodeType(
    name="condition",
    title="Condition",
    help="Goes on at `true` or `false`.",
    icon="split",
    category="logic",
    config=ConditionConfig,
    output=ConditionOutput,
    ports=("true", "false"),
    expression_fields=("when",),
    effect="pure",
)
SWITCH = NodeType(
    name="switch",
    title="Switch",
    help="Goes on at the port of the first case that is true.",
    icon="route",
    category="logic",
    config=SwitchConfig,
    output=SwitchOutput,
    ports=("default",),
    dynamic_ports_field="cases",
    expression_fields=("cases[].when",),
    effect="pure",
)
DELAY = NodeType(
    name="delay",
    title="Delay",
    help="Waits without holding a worker.",
    icon="timer",
    category="logic",
    config=DelayConfig,
    output=DelayOutput,
    effect="pure",
)
OUTPUT = NodeType(
    name="output",
    title="Output",
    help="Sets what the run returns.",
    icon="log-out",
    category="logic",
    config=OutputConfig,
    output={"title": "Value", "description": "The run's output."},
    effect="pure",
)
