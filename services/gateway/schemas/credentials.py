"""Bodies of credentials."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from services.gateway.schemas.common import Input, JsonObject, Name, Output, Page, optional

CredentialType = Literal["postgres", "http_bearer", "http_basic", "http_header", "llm_provider"]
Data = Annotated[JsonObject, Field(description="Its fields depend on the type. Write-only: encrypted, never answered.")]


class CredentialInput(Input):
    """A new credential."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "crm", "type": "http_bearer", "data": {"token": "…"}}}
    )
    name: Name
    type: CredentialType
    data: Data


class CredentialPatch(Input):
    """What to change of a credential."""

    model_config = ConfigDict(json_schema_extra={"example": {"data": {"token": "…"}}})
    name: Name = optional("New name.")
    data: JsonObject = optional("New data, replacing the old.")


class Credential(Output):
    """A named secret, without its data."""

    id: str
    name: str
    type: str
    revision: int
    created_at: str
    updated_at: str


class CredentialPage(Page):
    """A page of credentials, newest first."""

    items: list[Credential]
