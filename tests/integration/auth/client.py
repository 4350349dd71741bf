"""Calls to auth, as short as tests like them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from google.protobuf.message import Message
from headrace.auth.v1 import auth_pb2
from headrace.auth.v1 import auth_service_pb2 as pb
from headrace.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from headrace.common.v1.value_pb2 import Json

from services.kit.grpc_client import Rpc
from services.kit.identity import CallerTokens

PASSWORD = "a long and winding password"


def new_email() -> str:
    return f"u{uuid.uuid4().hex}@example.com"


class Client:
    """Makes calls as a service, or by a worker's grant."""

    def __init__(self, stub: AuthServiceStub, rpc: Rpc, tokens: CallerTokens) -> None:
        self.stub = stub
        self._rpc = rpc
        self._tokens = tokens

    async def call(self, request: Message, *, grant_of_project: str | None = None) -> Any:
        """Call the method that the request is of; raises what the service raises."""
        method = getattr(self.stub, type(request).__name__.removesuffix("Request"))
        grant = None
        if grant_of_project is not None:
            grant = self._tokens.mint_grant(project_id=grant_of_project, run_id="run", lifetime_seconds=60)
        return await self._rpc.call(method, request, timeout=20, token=grant)

    async def register(self, **fields: str) -> auth_pb2.User:
        request = pb.RegisterRequest(**{"email": new_email(), "password": PASSWORD, "name": "Ada"} | fields)
        response: pb.RegisterResponse = await self.call(request)
        return response.user

    async def login(self, email: str, password: str = PASSWORD, address: str = "") -> auth_pb2.TokenPair:
        response: pb.LoginResponse = await self.call(
            pb.LoginRequest(email=email, password=password, client_address=address)
        )
        return response.tokens

    async def refresh(self, token: str) -> auth_pb2.TokenPair:
        response: pb.RefreshResponse = await self.call(pb.RefreshRequest(refresh_token=token))
        return response.tokens

    async def project(self, user: auth_pb2.User, name: str = "Shared") -> auth_pb2.Project:
        response: pb.CreateProjectResponse = await self.call(pb.CreateProjectRequest(user_id=user.id, name=name))
        return response.project

    async def put_member(
        self, caller: auth_pb2.User, project: auth_pb2.Project, member: auth_pb2.User, role: auth_pb2.Role.ValueType
    ) -> auth_pb2.Member:
        response: pb.PutMemberResponse = await self.call(
            pb.PutMemberRequest(user_id=caller.id, project_id=project.id, member_user_id=member.id, role=role)
        )
        return response.member

    async def credential(
        self, project_id: str, name: str, kind: str, data: Any, request_id: str = ""
    ) -> auth_pb2.Credential:
        response: pb.CreateCredentialResponse = await self.call(
            pb.CreateCredentialRequest(
                project_id=project_id, name=name, type=kind, data=as_json(data), request_id=request_id
            )
        )
        return response.credential

    async def resolve(self, project_id: str, name: str) -> tuple[str, Any]:
        response: pb.ResolveCredentialResponse = await self.call(
            pb.ResolveCredentialRequest(project_id=project_id, name=name), grant_of_project=project_id
        )
        return response.type, json.loads(response.data.utf8)


def as_json(value: Any) -> Json:
    return Json(utf8=json.dumps(value).encode())
