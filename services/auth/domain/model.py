"""What auth speaks of. Times are aware and UTC; ids are UUIDs."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from uuid import UUID


class Role(IntEnum):
    """What a member may do in a project; each includes the ones below it. Stored as numbers."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3
    OWNER = 4


@dataclass(frozen=True, slots=True)
class User:
    """A person with a password."""

    id: UUID
    email: str
    name: str
    created_at: datetime
    personal_project_id: UUID


@dataclass(frozen=True, slots=True)
class Account:
    """A user with what only the password check may see."""

    user: User
    password_hash: str = field(repr=False)
    request_hash: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to be stored."""

    id: UUID
    email: str
    name: str
    password_hash: str = field(repr=False)
    personal_project_id: UUID
    request_hash: bytes | None


@dataclass(frozen=True, slots=True)
class Project:
    """A project as one member sees it."""

    id: UUID
    name: str
    created_at: datetime
    revision: int
    role: Role
    """The member's own role."""
    personal_user_id: UUID | None
    """The user whose own project it is."""
    request_hash: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Member:
    """A user with a role in a project."""

    user_id: UUID
    email: str
    name: str
    role: Role
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Family:
    """The refresh tokens of one login, of which the one with number `counter` is good."""

    id: UUID
    user_id: UUID
    seed: bytes = field(repr=False)
    counter: int
    live: bool
    """Neither revoked nor expired."""
    just_rotated: bool
    """The last rotation is so recent that its answer may still be on the way."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a login and a refresh give."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in_seconds: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A long-lived secret that acts for a user in one project; without the secret."""

    id: UUID
    project_id: UUID
    user_id: UUID
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    seed: bytes = field(repr=False)
    request_hash: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """An API key to be stored."""

    id: UUID
    project_id: UUID
    user_id: UUID
    name: str
    prefix: str
    seed: bytes = field(repr=False)
    secret_hash: bytes = field(repr=False)
    scopes: tuple[str, ...]
    expires_at: datetime | None
    request_hash: bytes | None


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Whom the secret of an API key stands for."""

    key: ApiKey
    role: Role
    """The owner's present role in the key's project."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A named secret that nodes refer to; without its data."""

    id: UUID
    project_id: UUID
    name: str
    type: str
    created_at: datetime
    updated_at: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class SealedCredential:
    """A credential with its encrypted data."""

    credential: Credential
    ciphertext: bytes = field(repr=False)
    data_version: int
    request_hash: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A project's data key, encrypted under the key encryption key that `wrapped_by` names."""

    wrapped_by: str
    wrapped_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page starts: after this item, by time and then id."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class Throttle:
    """One rate that a login counts against."""

    key: bytes
    interval_seconds: float
    """One try is earned in this time."""
    burst: int
    """Tries that may follow each other at once."""
    forgiven_on_success: bool = False
    """A success clears it; else it only takes back its own try."""
