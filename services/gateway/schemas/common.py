"""What all request and response models share."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, Strict

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

ABSENT: Any = None
"""Default of a field that may be left out but not be null; see `optional`."""


class Input(BaseModel):
    """A request's body: nothing but the fields it names, of the types it names."""

    model_config = ConfigDict(extra="forbid", strict=True, regex_engine="rust-regex")


class Output(BaseModel):
    """An answer's body, for the documentation: answers are built as plain values."""

    model_config = ConfigDict(extra="forbid")


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def optional(description: str, **limits: Any) -> Any:
    """A field that may be left out, which `model_fields_set` tells; its value is then None, whatever its type."""
    return Field(default=ABSENT, description=description, json_schema_extra=_drop_default, **limits)


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


def _in_protobuf_range(value: datetime) -> datetime:
    # A shift to UTC may leave years 1 to 9999, which is all that timestamps hold.
    if not 1 < value.year < 9999:
        raise ValueError("must lie between the years 2 and 9998")
    return value.astimezone(UTC)


Time = Annotated[AwareDatetime, Strict(False), AfterValidator(_in_protobuf_range)]
"""RFC 3339 with an offset."""

Name = Annotated[str, Field(min_length=1, max_length=128)]
JsonObject = dict[str, Any]
Severity = Literal["error", "warning"]


class Violation(Output):
    """One thing wrong with a request."""

    code: str = Field(description="UPPER_SNAKE; never changes its meaning.", examples=["STRING_TOO_SHORT"])
    message: str = Field(description="A sentence.")
    path: str = Field(
        description="JSON path in the body, or the name of the parameter.", examples=["nodes[2].config.url"]
    )
    node_key: str = Field("", description="Key of the node concerned, in definitions.")
    severity: Severity = "error"


class OpenAIError(Output):
    """The error as OpenAI's clients read it; below `/v1/` only."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:headrace:problem:workflow-not-found"])
    title: str = Field(examples=["Workflow not found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no workflow with the id 'x'."])
    instance: str = Field(description="Path of the request.")
    reason: str = Field(description="UPPER_SNAKE; never changes its meaning.", examples=["WORKFLOW_NOT_FOUND"])
    request_id: str = Field(description="As in the header X-Request-Id; quote it when you report the error.")
    violations: list[Violation] = Field(default=ABSENT, description="All that is wrong with a bad input.")
    metadata: dict[str, str] = Field(default=ABSENT, description="More for programs.")
    error: OpenAIError = Field(default=ABSENT)


class Issue(Output):
    """One thing wrong with a definition."""

    code: str = Field(examples=["UNKNOWN_NODE_TYPE"])
    message: str
    path: str = Field(examples=["nodes[2].config.url"])
    node_key: str = Field(examples=["search"])
    severity: Severity


class Usage(Output):
    """Tokens that model calls used."""

    prompt_tokens: int
    completion_tokens: int
    calls: int


class Page(Output):
    """A page of a list."""

    next_page_token: str | None = Field(description="Give it as `page_token` for the next page; null on the last.")
