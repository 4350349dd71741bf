"""Bodies of variables and retention of projects."""

from typing import Annotated

from pydantic import ConfigDict, Field

from services.gateway.schemas.common import Input, JsonObject, Output

_RULE = "A name is a lower-case letter and up to 63 more of a-z, 0-9, _ and -. At most 200, of 64 KiB in all as JSON."


class Variables(Input):
    """All variables of a project."""

    model_config = ConfigDict(json_schema_extra={"example": {"variables": {"region": "eu", "limits": {"mails": 50}}}})
    variables: JsonObject = Field(description=f"Any JSON by name. {_RULE} Not for secrets: those are credentials.")


class ProjectVariables(Output):
    """All variables of a project."""

    variables: JsonObject


class Retention(Input):
    """How long ended runs are kept, with all they did."""

    model_config = ConfigDict(json_schema_extra={"example": {"days": 90}})
    days: Annotated[int, Field(ge=1, le=3650)] | None = Field(description="null = as the installation has it.")


class ProjectRetention(Output):
    """How long ended runs are kept: `days`, or `default_days` where it is null."""

    days: int | None
    default_days: int = Field(description="The installation's setting.")
