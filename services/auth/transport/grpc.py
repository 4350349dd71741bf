"""AuthService: convert in, one domain call, convert out."""

from typing import Any
from uuid import UUID

from headrace.auth.v1 import auth_service_pb2 as pb
from headrace.auth.v1 import auth_service_pb2_grpc
from headrace.common.v1 import value_pb2

from services.auth.domain.accounts import Accounts
from services.auth.domain.api_keys import ApiKeys
from services.auth.domain.credentials import Credentials
from services.auth.domain.projects import Projects
from services.auth.domain.sessions import Sessions
from services.auth.transport import convert
from services.kit.errors import PermissionDeniedError
from services.kit.grpc_server import Context, current_caller
from services.kit.ids import parse_id
from services.kit.paging import page_size

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["AuthService"].full_name
GRANT_METHODS = (f"/{SERVICE_NAME}/ResolveCredential",)
"""What a worker's grant may call."""


class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    """Answers the calls of the contract; `auth_service.proto` says what each promises."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        sessions: Sessions,
        projects: Projects,
        api_keys: ApiKeys,
        credentials: Credentials,
        jwks: bytes,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._projects = projects
        self._api_keys = api_keys
        self._credentials = credentials
        self._jwks = jwks

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        user = await self._accounts.register(
            email=request.email, password=request.password, name=request.name, request_id=request.request_id
        )
        return pb.RegisterResponse(user=convert.user_message(user))

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.LoginResponse:
        pair = await self._sessions.login(
            email=request.email, password=request.password, client_address=request.client_address
        )
        return pb.LoginResponse(tokens=convert.token_message(pair))

    async def Refresh(self, request: pb.RefreshRequest, context: Context) -> pb.RefreshResponse:
        pair = await self._sessions.refresh(request.refresh_token)
        return pb.RefreshResponse(tokens=convert.token_message(pair))

    async def Logout(self, request: pb.LogoutRequest, context: Context) -> pb.LogoutResponse:
        await self._sessions.logout(request.refresh_token)
        return pb.LogoutResponse()

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.GetUserResponse:
        user, projects = await self._accounts.get(_user(request))
        return pb.GetUserResponse(
            user=convert.user_message(user), projects=[convert.project_message(project) for project in projects]
        )

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Context) -> pb.UpdateUserResponse:
        user = await self._accounts.update(
            _user(request),
            name=request.name if request.HasField("name") else None,
            new_password=request.new_password if request.HasField("new_password") else None,
            current_password=request.current_password if request.HasField("current_password") else None,
        )
        return pb.UpdateUserResponse(user=convert.user_message(user))

    async def GetJwks(self, request: pb.GetJwksRequest, context: Context) -> pb.GetJwksResponse:
        return pb.GetJwksResponse(jwks=value_pb2.Json(utf8=self._jwks))

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Context) -> pb.CreateApiKeyResponse:
        key, secret = await self._api_keys.create(
            _user(request),
            _project(request),
            name=request.name,
            scopes=tuple(request.scopes),
            expires_at=convert.moment(request, "expires_at"),
            request_id=request.request_id,
        )
        return pb.CreateApiKeyResponse(api_key=convert.api_key_message(key), secret=secret)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:
        size = page_size(request.page_size)
        keys = await self._api_keys.page(
            _user(request), _project(request), after=convert.place(request.page_token), limit=size + 1
        )
        return pb.ListApiKeysResponse(
            api_keys=[convert.api_key_message(key) for key in keys[:size]],
            next_page_token=convert.next_page_token([(key.created_at, key.id) for key in keys], size),
        )

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, context: Context) -> pb.DeleteApiKeyResponse:
        key_id = parse_id(request.api_key_id, resource="api_key")
        await self._api_keys.delete(_user(request), _project(request), key_id)
        return pb.DeleteApiKeyResponse()

    async def VerifyApiKey(self, request: pb.VerifyApiKeyRequest, context: Context) -> pb.VerifyApiKeyResponse:
        holder = await self._api_keys.verify(request.secret)
        return pb.VerifyApiKeyResponse(
            user_id=str(holder.key.user_id),
            project_id=str(holder.key.project_id),
            role=convert.role_message(holder.role),
            scopes=holder.key.scopes,
            api_key_id=str(holder.key.id),
            expires_at=convert.timestamp(holder.key.expires_at),
        )

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.CreateProjectResponse:
        project = await self._projects.create(_user(request), name=request.name, request_id=request.request_id)
        return pb.CreateProjectResponse(project=convert.project_message(project))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        size = page_size(request.page_size)
        projects = await self._projects.page(_user(request), after=convert.place(request.page_token), limit=size + 1)
        return pb.ListProjectsResponse(
            projects=[convert.project_message(project) for project in projects[:size]],
            next_page_token=convert.next_page_token([(each.created_at, each.id) for each in projects], size),
        )

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> pb.GetProjectResponse:
        project = await self._projects.get(_user(request), _project(request))
        return pb.GetProjectResponse(project=convert.project_message(project))

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Context) -> pb.UpdateProjectResponse:
        project = await self._projects.update(
            _user(request),
            _project(request),
            name=request.name if request.HasField("name") else None,
            revision=request.revision,
        )
        return pb.UpdateProjectResponse(project=convert.project_message(project))

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: Context) -> pb.DeleteProjectResponse:
        await self._projects.delete(_user(request), _project(request), revision=request.revision)
        return pb.DeleteProjectResponse()

    async def ListMembers(self, request: pb.ListMembersRequest, context: Context) -> pb.ListMembersResponse:
        size = page_size(request.page_size)
        members = await self._projects.members(
            _user(request), _project(request), after=convert.place(request.page_token), limit=size + 1
        )
        return pb.ListMembersResponse(
            members=[convert.member_message(member) for member in members[:size]],
            next_page_token=convert.next_page_token([(each.created_at, each.user_id) for each in members], size),
        )

    async def PutMember(self, request: pb.PutMemberRequest, context: Context) -> pb.PutMemberResponse:
        member = await self._projects.put_member(
            _user(request),
            _project(request),
            member_id=parse_id(request.member_user_id, resource="user"),
            role=convert.role(request.role),
        )
        return pb.PutMemberResponse(member=convert.member_message(member))

    async def DeleteMember(self, request: pb.DeleteMemberRequest, context: Context) -> pb.DeleteMemberResponse:
        await self._projects.delete_member(
            _user(request), _project(request), member_id=parse_id(request.member_user_id, resource="member")
        )
        return pb.DeleteMemberResponse()

    async def CreateCredential(
        self, request: pb.CreateCredentialRequest, context: Context
    ) -> pb.CreateCredentialResponse:
        credential = await self._credentials.create(
            _project(request),
            name=request.name,
            kind=request.type,
            data=request.data.utf8,
            request_id=request.request_id,
        )
        return pb.CreateCredentialResponse(credential=convert.credential_message(credential))

    async def ListCredentials(self, request: pb.ListCredentialsRequest, context: Context) -> pb.ListCredentialsResponse:
        size = page_size(request.page_size)
        credentials = await self._credentials.page(
            _project(request), after=convert.place(request.page_token), limit=size + 1
        )
        return pb.ListCredentialsResponse(
            credentials=[convert.credential_message(credential) for credential in credentials[:size]],
            next_page_token=convert.next_page_token([(each.created_at, each.id) for each in credentials], size),
        )

    async def UpdateCredential(
        self, request: pb.UpdateCredentialRequest, context: Context
    ) -> pb.UpdateCredentialResponse:
        credential = await self._credentials.update(
            _project(request),
            parse_id(request.credential_id, resource="credential"),
            name=request.name if request.HasField("name") else None,
            data=request.data.utf8,
            revision=request.revision,
        )
        return pb.UpdateCredentialResponse(credential=convert.credential_message(credential))

    async def DeleteCredential(
        self, request: pb.DeleteCredentialRequest, context: Context
    ) -> pb.DeleteCredentialResponse:
        credential_id = parse_id(request.credential_id, resource="credential")
        await self._credentials.delete(_project(request), credential_id, revision=request.revision)
        return pb.DeleteCredentialResponse()

    async def ResolveCredential(
        self, request: pb.ResolveCredentialRequest, context: Context
    ) -> pb.ResolveCredentialResponse:
        if not current_caller().is_grant:
            # Not even the gateway, which talks to strangers, needs a secret in clear.
            raise PermissionDeniedError("Only a worker's grant resolves credentials.", reason="GRANT_REQUIRED")
        kind, data = await self._credentials.resolve(_project(request), request.name)
        return pb.ResolveCredentialResponse(type=kind, data=value_pb2.Json(utf8=data))


def _user(request: Any) -> UUID:
    return parse_id(request.user_id, resource="user")


def _project(request: Any) -> UUID:
    return parse_id(request.project_id, resource="project")
