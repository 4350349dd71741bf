"""Bodies of projects and members."""

from typing import Literal

from pydantic import ConfigDict

from services.gateway.schemas.common import Input, Name, Output, Page, optional

RoleName = Literal["viewer", "editor", "admin", "owner"]


class ProjectInput(Input):
    """A new project."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "Support desk"}})
    name: Name


class ProjectPatch(Input):
    """What to change of a project."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "Support"}})
    name: Name = optional("New name.")


class Project(Output):
    """The unit of tenancy."""

    id: str
    name: str
    role: RoleName
    revision: int
    created_at: str


class ProjectPage(Page):
    """A page of projects."""

    items: list[Project]


class MemberInput(Input):
    """A member's role."""

    model_config = ConfigDict(json_schema_extra={"example": {"role": "editor"}})
    role: RoleName


class Member(Output):
    """A user in a project."""

    user_id: str
    email: str
    name: str
    role: RoleName
    created_at: str


class MemberPage(Page):
    """A page of members."""

    items: list[Member]
