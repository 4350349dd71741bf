"""Projects and their members. Whoever is no member sees no project; what a member may do, the role says."""

from dataclasses import replace
from uuid import UUID

from services.auth.domain.accounts import user_not_found
from services.auth.domain.model import Member, Place, Project, Role
from services.auth.domain.names import checked_name
from services.auth.domain.store import Projects as ProjectStore
from services.auth.domain.store import Store
from services.kit.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    RevisionMismatchError,
)
from services.kit.ids import id_for_create, request_hash, require_same_request


class Projects:
    """The use cases about projects. `user_id` is always the caller."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, user_id: UUID, *, name: str, request_id: str) -> Project:
        """Make a project that the user owns; the same again for the same request id."""
        name = checked_name(name)
        project_id = id_for_create(user_id, "project", request_id)
        request = request_hash(name) if request_id else None
        async with self._store.transaction() as transaction:
            if await transaction.account(user_id) is None:
                raise user_not_found(user_id)
            project = await transaction.insert_project(
                project_id=project_id, user_id=user_id, name=name, request_hash=request
            )
            if project is None:
                project = await require_role(transaction, user_id, project_id, Role.VIEWER)
                require_same_request(project.request_hash, request or b"")
            return project

    async def page(self, user_id: UUID, *, after: Place | None, limit: int) -> list[Project]:
        """The user's projects, newest first."""
        async with self._store.transaction() as transaction:
            return await transaction.projects(user_id, after=after, limit=limit)

    async def get(self, user_id: UUID, project_id: UUID) -> Project:
        """A project. Raises NotFoundError (PROJECT_NOT_FOUND), also for who is no member."""
        async with self._store.transaction() as transaction:
            return await require_role(transaction, user_id, project_id, Role.VIEWER)

    async def update(self, user_id: UUID, project_id: UUID, *, name: str | None, revision: int) -> Project:
        """Rename a project; nothing without a name. Needs an admin. Raises RevisionMismatchError."""
        new_name = checked_name(name) if name is not None else None
        async with self._store.transaction() as transaction:
            project = await require_role(transaction, user_id, project_id, Role.ADMIN, lock=True)
            _require_revision(project, revision)
            if new_name is None:
                return project
            await transaction.rename_project(project_id, new_name)
            return replace(project, name=new_name, revision=project.revision + 1)

    async def delete(self, user_id: UUID, project_id: UUID, *, revision: int) -> None:
        """Delete a project with all that auth keeps of it. Needs an owner.

        Raises FailedPreconditionError (PERSONAL_PROJECT), RevisionMismatchError.
        """
        async with self._store.transaction() as transaction:
            project = await require_role(transaction, user_id, project_id, Role.OWNER, lock=True)
            if project.personal_user_id is not None:
                raise FailedPreconditionError("A personal project cannot be deleted.", reason="PERSONAL_PROJECT")
            _require_revision(project, revision)
            await transaction.delete_project(project_id)

    async def members(self, user_id: UUID, project_id: UUID, *, after: Place | None, limit: int) -> list[Member]:
        """A project's members by the time they joined. Needs a member."""
        async with self._store.transaction() as transaction:
            await require_role(transaction, user_id, project_id, Role.VIEWER)
            return await transaction.members(project_id, after=after, limit=limit)

    async def put_member(self, user_id: UUID, project_id: UUID, *, member_id: UUID, role: Role) -> Member:
        """Add a user or change a role. Needs an admin; an owner where an owner is made or unmade.

        Raises NotFoundError (USER_NOT_FOUND), FailedPreconditionError (LAST_OWNER, PERSONAL_PROJECT).
        """
        async with self._store.transaction() as transaction:
            project = await require_role(transaction, user_id, project_id, Role.ADMIN, lock=True)
            present = await transaction.member(project_id, member_id)
            if role is Role.OWNER or (present is not None and present.role is Role.OWNER):
                _require(project, Role.OWNER)
            if present is not None and role is not Role.OWNER:
                await _keep_an_owner(transaction, project, present)
            if not await transaction.put_member(project_id, member_id, role):
                raise user_not_found(member_id)
            member = await transaction.member(project_id, member_id)
        if member is None:
            raise user_not_found(member_id)
        return member

    async def delete_member(self, user_id: UUID, project_id: UUID, *, member_id: UUID) -> None:
        """Remove a user and the user's API keys of the project. Needs an admin (an owner for owners), or oneself.

        Raises NotFoundError (MEMBER_NOT_FOUND), FailedPreconditionError (LAST_OWNER, PERSONAL_PROJECT).
        """
        async with self._store.transaction() as transaction:
            project = await require_role(transaction, user_id, project_id, Role.VIEWER, lock=True)
            if member_id != user_id:
                _require(project, Role.ADMIN)
            present = await transaction.member(project_id, member_id)
            if present is None:
                raise NotFoundError(f"The user {member_id} is no member of the project.", reason="MEMBER_NOT_FOUND")
            if present.role is Role.OWNER:
                _require(project, Role.OWNER)
            await _keep_an_owner(transaction, project, present)
            await transaction.delete_member(project_id, member_id)


async def require_role(
    transaction: ProjectStore, user_id: UUID, project_id: UUID, role: Role, *, lock: bool = False
) -> Project:
    """The project, if the user has at least this role in it.

    Raises NotFoundError (PROJECT_NOT_FOUND) for who is no member, PermissionDeniedError (ROLE_REQUIRED) for a lesser
    role.
    """
    project = await transaction.project(user_id, project_id, lock=lock)
    if project is None:
        raise NotFoundError(f"There is no project with the id {project_id}.", reason="PROJECT_NOT_FOUND")
    _require(project, role)
    return project


def _require(project: Project, role: Role) -> None:
    if project.role < role:
        raise PermissionDeniedError(
            f"This needs the role {role.name.lower()} in the project; yours is {project.role.name.lower()}.",
            reason="ROLE_REQUIRED",
            metadata={"required": role.name.lower(), "actual": project.role.name.lower()},
        )


def _require_revision(project: Project, revision: int) -> None:
    if revision and revision != project.revision:
        raise RevisionMismatchError(expected=revision, actual=project.revision)


async def _keep_an_owner(transaction: ProjectStore, project: Project, leaving: Member) -> None:
    """Refuse to take the ownership of the last owner, or of whose own project it is."""
    if leaving.role is not Role.OWNER:
        return
    if project.personal_user_id == leaving.user_id:
        raise FailedPreconditionError(
            "A user stays the owner of the user's personal project.", reason="PERSONAL_PROJECT"
        )
    if await transaction.count_owners(project.id) == 1:
        raise FailedPreconditionError(
            "This is the last owner of the project. Make another member an owner first.", reason="LAST_OWNER"
        )
