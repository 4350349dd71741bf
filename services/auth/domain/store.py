"""What auth needs of its storage.

Every method runs in the transaction that it is called on. Reads see what is committed; what a method changes is
visible to the later ones of the same transaction. A lost connection raises UnavailableError. Time comes from the
database's clock alone.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol
from uuid import UUID

from services.auth.domain.model import (
    Account,
    ApiKey,
    Credential,
    Family,
    KeyHolder,
    Member,
    NewApiKey,
    NewUser,
    Place,
    Project,
    Role,
    SealedCredential,
    Throttle,
    User,
    WrappedKey,
)


class Accounts(Protocol):
    """Users, their refresh families and the back-off of their logins."""

    async def insert_user(self, user: NewUser) -> User | None:
        """Store a user, the personal project and the membership; None when the id or the e-mail is taken."""

    async def account(self, user_id: UUID) -> Account | None:
        """A user by id."""

    async def account_by_email(self, email: str) -> Account | None:
        """A user by normalised e-mail."""

    async def rename_user(self, user_id: UUID, name: str) -> None:
        """Set the name; nothing when the user is gone."""

    async def replace_password(self, user_id: UUID, *, seen: str, new: str) -> bool:
        """Set the password hash if it is still `seen`. The row stays locked, so logins of the user wait or fail."""

    async def insert_family(
        self, *, family_id: UUID, user_id: UUID, seed: bytes, password_hash: str, idle_days: int, days: int
    ) -> bool:
        """Start a family, if the password is still the one that was checked. Drops the user's expired families."""

    async def family(self, user_id: UUID, family_id: UUID, *, grace_seconds: float) -> Family | None:
        """A family; `just_rotated` within `grace_seconds` after the last rotation."""

    async def advance_family(self, user_id: UUID, family_id: UUID, *, counter: int, idle_days: int) -> bool:
        """Raise the counter from `counter` by one, if it is that and the family lives. One of many callers succeeds."""

    async def revoke_family(self, user_id: UUID, family_id: UUID) -> bool:
        """End a family; False when there is none or it had ended."""

    async def revoke_families(self, user_id: UUID) -> None:
        """End all families of a user."""

    async def spend_tries(self, throttles: Sequence[Throttle]) -> float:
        """Count a try against each rate; the seconds to wait until it were allowed, 0 when it is.

        Roll the transaction back when it is not: a refused try costs nothing.
        """

    async def return_tries(self, throttles: Sequence[Throttle]) -> None:
        """Take back what a successful try cost, and clear the rates that success forgives."""


class Projects(Protocol):
    """Projects and members. A project is seen through a membership: others get None."""

    async def insert_project(
        self, *, project_id: UUID, user_id: UUID, name: str, request_hash: bytes | None
    ) -> Project | None:
        """Store a project with its first owner; None when the id is taken."""

    async def project(self, user_id: UUID, project_id: UUID, *, lock: bool = False) -> Project | None:
        """A project as a member sees it. `lock` holds off every other change of the project and its members."""

    async def projects(self, user_id: UUID, *, after: Place | None, limit: int) -> list[Project]:
        """Projects of a member, newest first."""

    async def rename_project(self, project_id: UUID, name: str) -> None:
        """Set the name and raise the revision."""

    async def delete_project(self, project_id: UUID) -> None:
        """Delete a project with its members, API keys and credentials."""

    async def members(self, project_id: UUID, *, after: Place | None, limit: int) -> list[Member]:
        """Members by the time they joined."""

    async def member(self, project_id: UUID, user_id: UUID) -> Member | None:
        """One member."""

    async def count_owners(self, project_id: UUID) -> int:
        """Number of owners."""

    async def put_member(self, project_id: UUID, user_id: UUID, role: Role) -> bool:
        """Add a member or change the role; False when there is no such user."""

    async def delete_member(self, project_id: UUID, user_id: UUID) -> None:
        """Remove a member and the API keys that the member has in the project."""


class Secrets(Protocol):
    """API keys and credentials."""

    async def insert_api_key(self, key: NewApiKey) -> ApiKey | None:
        """Store a key; None when the id is taken."""

    async def api_key(self, project_id: UUID, user_id: UUID, key_id: UUID) -> ApiKey | None:
        """A key by id."""

    async def api_keys(self, project_id: UUID, user_id: UUID, *, after: Place | None, limit: int) -> list[ApiKey]:
        """A user's keys in a project, newest first."""

    async def delete_api_key(self, project_id: UUID, user_id: UUID, key_id: UUID) -> bool:
        """Delete a key; False when there is none."""

    async def key_holder(self, secret_hash: bytes) -> KeyHolder | None:
        """Whom an unexpired key stands for, if the owner is still a member. Notes the use, once a minute at most."""

    async def data_key(self, project_id: UUID) -> WrappedKey | None:
        """A project's data key."""

    async def projects_wrapped_otherwise(self, present: str, *, limit: int) -> list[UUID]:
        """Projects whose data key is not wrapped by this key."""

    async def insert_data_key(self, project_id: UUID, key: WrappedKey) -> WrappedKey:
        """Store a project's data key; the one that is there when someone was faster. NotFoundError: no such project."""

    async def rewrap_data_key(self, project_id: UUID, *, seen: WrappedKey, new: WrappedKey) -> None:
        """Replace the wrapping, if it is still `seen`."""

    async def insert_credential(
        self,
        *,
        credential_id: UUID,
        project_id: UUID,
        name: str,
        kind: str,
        ciphertext: bytes,
        request_hash: bytes | None,
    ) -> Credential | None:
        """Store a credential with data version 1; None when the id is taken. AlreadyExistsError: the name is."""

    async def credential(self, project_id: UUID, credential_id: UUID, *, lock: bool = False) -> SealedCredential | None:
        """A credential by id; `lock` holds off other changes of it."""

    async def credential_by_name(self, project_id: UUID, name: str) -> SealedCredential | None:
        """A credential by name."""

    async def credentials(self, project_id: UUID, *, after: Place | None, limit: int) -> list[Credential]:
        """A project's credentials, newest first."""

    async def update_credential(
        self, project_id: UUID, credential_id: UUID, *, name: str, ciphertext: bytes, data_version: int
    ) -> Credential:
        """Replace a locked credential and raise its revision. AlreadyExistsError: the name is taken."""

    async def delete_credential(self, project_id: UUID, credential_id: UUID) -> None:
        """Delete a credential."""


class Transaction(Accounts, Projects, Secrets, Protocol):
    """All of it."""


class Store(Protocol):
    """Where auth's state lives."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction: committed on leaving, rolled back on an exception."""
