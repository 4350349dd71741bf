"""Projects, members and what each role may do."""

from __future__ import annotations

import asyncio

import pytest
from headrace.auth.v1 import auth_pb2
from headrace.auth.v1 import auth_service_pb2 as pb
from headrace.auth.v1.auth_pb2 import ROLE_ADMIN, ROLE_EDITOR, ROLE_OWNER, ROLE_VIEWER

from services.kit.errors import (
    FailedPreconditionError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RevisionMismatchError,
)
from tests.integration.auth.client import Client


@pytest.fixture
async def bob(auth: Client) -> auth_pb2.User:
    return await auth.register(name="Bob")


@pytest.fixture
async def shared(auth: Client, ada: auth_pb2.User) -> auth_pb2.Project:
    """A project of Ada's."""
    return await auth.project(ada)


async def members(auth: Client, user: auth_pb2.User, project: auth_pb2.Project) -> dict[str, int]:
    response = await auth.call(pb.ListMembersRequest(user_id=user.id, project_id=project.id))
    return {each.user_id: each.role for each in response.members}


async def test_a_project_is_made_once_per_request_id(auth: Client, ada: auth_pb2.User, bob: auth_pb2.User) -> None:
    request = {"user_id": ada.id, "name": "Once", "request_id": "r1"}
    made = await asyncio.gather(*(auth.call(pb.CreateProjectRequest(**request)) for _ in range(3)))
    assert len({each.project.id for each in made}) == 1
    with pytest.raises(IdempotencyKeyReusedError):
        await auth.call(pb.CreateProjectRequest(**request | {"name": "Twice"}))
    other = await auth.call(pb.CreateProjectRequest(**request | {"user_id": bob.id}))
    assert other.project.id != made[0].project.id


async def test_projects_come_in_pages_newest_first(auth: Client, ada: auth_pb2.User) -> None:
    made = [(await auth.project(ada, f"p{number}")).id for number in range(4)]
    listed: list[str] = []
    token = ""
    while True:
        page = await auth.call(pb.ListProjectsRequest(user_id=ada.id, page_size=2, page_token=token))
        listed += [each.id for each in page.projects]
        token = page.next_page_token
        if not token:
            break
        assert len(page.projects) == 2
    assert listed == [*reversed(made), ada.personal_project_id]


@pytest.mark.parametrize("token", ["nonsense", "W10", "WzEsMl0", "WyIyMDI2LTAxLTAxIiwieCJd", "💥"])
async def test_a_page_token_of_nobody_is_refused(auth: Client, ada: auth_pb2.User, token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await auth.call(pb.ListProjectsRequest(user_id=ada.id, page_token=token))


async def test_a_project_does_not_exist_for_others(auth: Client, bob: auth_pb2.User, shared: auth_pb2.Project) -> None:
    who = {"user_id": bob.id, "project_id": shared.id}
    for request in (
        pb.GetProjectRequest(**who),
        pb.UpdateProjectRequest(**who, name="Mine"),
        pb.DeleteProjectRequest(**who),
        pb.ListMembersRequest(**who),
        pb.PutMemberRequest(**who, member_user_id=bob.id, role=ROLE_OWNER),
        pb.DeleteMemberRequest(**who, member_user_id=bob.id),
        pb.CreateApiKeyRequest(**who, name="key"),
        pb.ListApiKeysRequest(**who),
        pb.DeleteApiKeyRequest(**who, api_key_id=shared.id),
    ):
        with pytest.raises(NotFoundError) as refused:
            await auth.call(request)
        assert refused.value.reason == "PROJECT_NOT_FOUND", type(request).__name__


async def test_renaming_needs_an_admin_and_the_present_revision(
    auth: Client, ada: auth_pb2.User, bob: auth_pb2.User, shared: auth_pb2.Project
) -> None:
    rename = {"project_id": shared.id, "name": "Renamed", "revision": shared.revision}
    await auth.put_member(ada, shared, bob, ROLE_EDITOR)
    with pytest.raises(PermissionDeniedError) as refused:
        await auth.call(pb.UpdateProjectRequest(user_id=bob.id, **rename))
    assert refused.value.reason == "ROLE_REQUIRED"
    await auth.put_member(ada, shared, bob, ROLE_ADMIN)
    changed = (await auth.call(pb.UpdateProjectRequest(user_id=bob.id, **rename))).project
    assert (changed.name, changed.revision, changed.role) == ("Renamed", shared.revision + 1, ROLE_ADMIN)
    with pytest.raises(RevisionMismatchError):
        await auth.call(pb.UpdateProjectRequest(user_id=bob.id, **rename))


async def test_an_admin_makes_no_owners_and_unmakes_none(
    auth: Client, ada: auth_pb2.User, bob: auth_pb2.User, shared: auth_pb2.Project
) -> None:
    await auth.put_member(ada, shared, bob, ROLE_ADMIN)
    carol = await auth.register(name="Carol")
    await auth.put_member(bob, shared, carol, ROLE_VIEWER)
    for forbidden in (
        pb.PutMemberRequest(user_id=bob.id, project_id=shared.id, member_user_id=bob.id, role=ROLE_OWNER),
        pb.PutMemberRequest(user_id=bob.id, project_id=shared.id, member_user_id=ada.id, role=ROLE_VIEWER),
        pb.DeleteMemberRequest(user_id=bob.id, project_id=shared.id, member_user_id=ada.id),
        pb.DeleteMemberRequest(user_id=carol.id, project_id=shared.id, member_user_id=bob.id),
        pb.DeleteProjectRequest(user_id=bob.id, project_id=shared.id),
    ):
        with pytest.raises(PermissionDeniedError):
            await auth.call(forbidden)
    assert await members(auth, ada, shared) == {ada.id: ROLE_OWNER, bob.id: ROLE_ADMIN, carol.id: ROLE_VIEWER}


async def test_the_last_owner_stays(
    auth: Client, ada: auth_pb2.User, bob: auth_pb2.User, shared: auth_pb2.Project
) -> None:
    leave = pb.DeleteMemberRequest(user_id=ada.id, project_id=shared.id, member_user_id=ada.id)
    for last in (
        leave,
        pb.PutMemberRequest(user_id=ada.id, project_id=shared.id, member_user_id=ada.id, role=ROLE_ADMIN),
    ):
        with pytest.raises(FailedPreconditionError) as refused:
            await auth.call(last)
        assert refused.value.reason == "LAST_OWNER"
    await auth.put_member(ada, shared, bob, ROLE_OWNER)
    await auth.call(leave)
    assert await members(auth, bob, shared) == {bob.id: ROLE_OWNER}


async def test_two_owners_who_leave_at_once_leave_one(
    auth: Client, ada: auth_pb2.User, bob: auth_pb2.User, shared: auth_pb2.Project
) -> None:
    await auth.put_member(ada, shared, bob, ROLE_OWNER)
    results = await asyncio.gather(
        *(
            auth.call(pb.DeleteMemberRequest(user_id=user.id, project_id=shared.id, member_user_id=user.id))
            for user in (ada, bob)
        ),
        return_exceptions=True,
    )
    assert {type(each) for each in results} == {pb.DeleteMemberResponse, FailedPreconditionError}


async def test_a_personal_project_stays_with_its_user(auth: Client, ada: auth_pb2.User, bob: auth_pb2.User) -> None:
    own = auth_pb2.Project(id=ada.personal_project_id)
    await auth.put_member(ada, own, bob, ROLE_OWNER)
    for request in (
        pb.DeleteProjectRequest(user_id=ada.id, project_id=own.id),
        pb.DeleteMemberRequest(user_id=bob.id, project_id=own.id, member_user_id=ada.id),
        pb.PutMemberRequest(user_id=bob.id, project_id=own.id, member_user_id=ada.id, role=ROLE_VIEWER),
    ):
        with pytest.raises(FailedPreconditionError) as refused:
            await auth.call(request)
        assert refused.value.reason == "PERSONAL_PROJECT"


async def test_a_deleted_project_is_gone_with_its_secrets(
    auth: Client, ada: auth_pb2.User, shared: auth_pb2.Project
) -> None:
    key = await auth.call(pb.CreateApiKeyRequest(user_id=ada.id, project_id=shared.id, name="key"))
    await auth.credential(shared.id, "c", "http_bearer", {"token": "t"})
    with pytest.raises(RevisionMismatchError):
        await auth.call(pb.DeleteProjectRequest(user_id=ada.id, project_id=shared.id, revision=7))
    await auth.call(pb.DeleteProjectRequest(user_id=ada.id, project_id=shared.id, revision=shared.revision))
    for request in (
        pb.GetProjectRequest(user_id=ada.id, project_id=shared.id),
        pb.CreateCredentialRequest(project_id=shared.id, name="c", type="http_bearer", data={"utf8": b'{"token":"t"}'}),
    ):
        with pytest.raises(NotFoundError):
            await auth.call(request)
    with pytest.raises(Exception, match="not valid"):
        await auth.call(pb.VerifyApiKeyRequest(secret=key.secret))


async def test_members_are_users_with_roles(auth: Client, ada: auth_pb2.User, bob: auth_pb2.User) -> None:
    own = auth_pb2.Project(id=ada.personal_project_id)
    for unknown in ("00000000-0000-7000-8000-000000000000", "nonsense", ""):
        with pytest.raises(NotFoundError) as refused:
            await auth.put_member(ada, own, auth_pb2.User(id=unknown), ROLE_VIEWER)
        assert refused.value.reason == "USER_NOT_FOUND"
    for role in (auth_pb2.ROLE_UNSPECIFIED, 99):
        with pytest.raises(InvalidArgumentError):
            await auth.put_member(ada, own, bob, role)
