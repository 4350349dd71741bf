"""Bodies of registration, login, the own account and API keys."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from services.gateway.schemas.common import Input, Name, Output, Page, Time, optional
from services.gateway.schemas.projects import RoleName

Password = Annotated[str, Field(min_length=8, max_length=256, description="8 to 256 characters.")]


class RegisterInput(Input):
    """A new user."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"email": "ada@example.org", "password": "correct horse battery", "name": "Ada"}}
    )
    email: str = Field(min_length=3, max_length=254, description="Compared without case.")
    password: Password
    name: str = Field("", max_length=128)


class LoginInput(Input):
    """What the OAuth2 password form holds; the other fields of that form are accepted and mean nothing here."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"username": "ada@example.org", "password": "correct horse battery"}}
    )
    username: str = Field(min_length=1, max_length=254, description="The e-mail address.")
    password: str = Field(min_length=1, max_length=256)
    grant_type: Literal["password", ""] | None = None
    scope: str | None = Field(None, max_length=1024)
    client_id: str | None = Field(None, max_length=256)
    client_secret: str | None = Field(None, max_length=256)


class RefreshInput(Input):
    """The last refresh token."""

    model_config = ConfigDict(json_schema_extra={"example": {"refresh_token": "hrt_…"}})
    refresh_token: str = Field(min_length=1, max_length=1024)


class TokenPair(Output):
    """Tokens for the API."""

    access_token: str = Field(description="JWT; goes into `Authorization: Bearer`.")
    refresh_token: str = Field(description="Single use: every refresh gives the next.")
    token_type: Literal["bearer"]
    expires_in: int = Field(description="Seconds until the access token expires.", examples=[900])


class User(Output):
    """A person with a password."""

    id: str
    email: str
    name: str
    created_at: str


class Membership(Output):
    """A project and the own role in it."""

    id: str
    name: str
    role: RoleName


class Me(User):
    """The caller."""

    projects: list[Membership]


class MeInput(Input):
    """What to change of the own account."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "Ada Lovelace"}})
    name: str = optional("New name.", max_length=128)
    new_password: Password = optional("Needs current_password; ends all other logins.")
    current_password: str = optional("The present one.", min_length=1, max_length=256)


class ApiKeyInput(Input):
    """A new API key, bound to the project of the request."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "ci", "scopes": ["write"]}})
    name: Name
    scopes: list[Literal["read", "write"]] = Field(
        default_factory=list, max_length=2, description="Empty = all that the owner's role allows."
    )
    expires_at: Time | None = Field(None, description="null = never.")


class ApiKey(Output):
    """An API key without its secret."""

    id: str
    name: str
    prefix: str = Field(description="First characters of the key, to recognise it by.")
    scopes: list[str]
    project_id: str
    created_at: str
    expires_at: str | None
    last_used_at: str | None = Field(description="To the minute.")


class NewApiKey(ApiKey):
    """An API key with its secret."""

    key: str = Field(description="Shown this once.", examples=["hr_…"])


class ApiKeyPage(Page):
    """A page of API keys."""

    items: list[ApiKey]
