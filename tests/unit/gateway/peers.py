"""The services behind the gateway, played at the network border: real gRPC, scripted answers."""

from __future__ import annotations

import base64
import os
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from headrace.auth.v1 import auth_pb2, auth_service_pb2
from headrace.auth.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server
from headrace.executor.v1.executor_service_pb2_grpc import add_ExecutorServiceServicer_to_server
from headrace.executor.v1.table_service_pb2_grpc import add_TableServiceServicer_to_server
from headrace.llm.v1.llm_service_pb2_grpc import add_LlmServiceServicer_to_server
from headrace.vector.v1.vector_service_pb2_grpc import add_VectorServiceServicer_to_server
from headrace.workflows.v1.workflow_service_pb2_grpc import add_WorkflowServiceServicer_to_server

from services.kit.errors import InternalError, NotFoundError, UnauthenticatedError, UnavailableError
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens

KEY = os.urandom(32)
KEY_ID = "key-1"
SIGNING_KEY = Ed25519PrivateKey.generate()
USER = "0d6f1a52-58c4-4a5c-9a0c-2d1c4b7e9f01"
HOME = "1d6f1a52-58c4-4a5c-9a0c-2d1c4b7e9f02"
"""The user's personal project."""
SHARED = "2d6f1a52-58c4-4a5c-9a0c-2d1c4b7e9f03"
"""A project in which a test may give the user a role."""

Reply = Any
_STREAMING = {"FollowRun", "StreamGenerate"}


def jwk(key: Ed25519PrivateKey, key_id: str = KEY_ID) -> dict[str, str]:
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    x = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "kid": key_id, "use": "sig", "alg": "EdDSA", "x": x}


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good token; None leaves one out."""
    now = int(time.time())
    good = {
        "iss": "headrace",
        "aud": "headrace",
        "sub": USER,
        "pid": HOME,
        "fam": str(uuid.uuid4()),
        "jti": str(uuid.uuid4()),
        "iat": now,
        "nbf": now,
        "exp": now + 900,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def access_token(key: Any = SIGNING_KEY, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
    wanted = {"typ": "at+jwt", "kid": KEY_ID} | (headers or {})
    return jwt.encode(claims(**changes), key, algorithm="EdDSA", headers=wanted)


class Peers:
    """Answers every method of every service by what a test has put in `replies`; remembers what was asked.

    A reply is a message, an exception, or a coroutine function of the request; for streams an async generator function.
    """

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.asked: defaultdict[str, list[Any]] = defaultdict(list)
        self.roles: dict[str, int] = {}
        """Project -> role of the user."""
        self.api_keys: dict[str, auth_service_pb2.VerifyApiKeyResponse] = {}
        self.jwks: list[dict[str, str]] | None = [jwk(SIGNING_KEY)]
        """None = auth does not answer."""

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        async def unary(request: Any, context: Any) -> Any:
            self.asked[method].append(request)
            reply = self.replies.get(method, InternalError(f"no reply to {method} is scripted"))
            if callable(reply):
                reply = await reply(request)
            if isinstance(reply, Exception):
                raise reply
            return reply

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            self.asked[method].append(request)
            async for message in self.replies[method](request):
                yield message

        return stream if method in _STREAMING else unary

    async def GetJwks(self, request: Any, context: Any) -> Any:
        self.asked["GetJwks"].append(request)
        if self.jwks is None:
            raise UnavailableError("Gone.")
        reply = auth_service_pb2.GetJwksResponse()
        reply.jwks.utf8 = orjson.dumps({"keys": self.jwks})
        return reply

    async def GetProject(self, request: Any, context: Any) -> Any:
        self.asked["GetProject"].append(request)
        if request.user_id != USER or request.project_id not in self.roles:
            raise NotFoundError("There is no such project.", reason="PROJECT_NOT_FOUND")
        project = auth_pb2.Project(id=request.project_id, name="p", role=self.roles[request.project_id], revision=1)
        project.created_at.GetCurrentTime()
        return auth_service_pb2.GetProjectResponse(project=project)

    async def VerifyApiKey(self, request: Any, context: Any) -> Any:
        self.asked["VerifyApiKey"].append(request)
        if "VerifyApiKey" in self.replies:
            raise self.replies["VerifyApiKey"]
        if request.secret not in self.api_keys:
            raise UnauthenticatedError("No such key.", reason="INVALID_API_KEY")
        return self.api_keys[request.secret]

    def add_api_key(self, *scopes: str, role: int = auth_pb2.ROLE_OWNER, project: str = HOME) -> str:
        secret = f"hr_{uuid.uuid4().hex}"
        self.api_keys[secret] = auth_service_pb2.VerifyApiKeyResponse(
            user_id=USER, project_id=project, role=role, scopes=scopes
        )
        return secret


_ADD: tuple[Callable[..., None], ...] = (
    add_AuthServiceServicer_to_server,
    add_WorkflowServiceServicer_to_server,
    add_ExecutorServiceServicer_to_server,
    add_TableServiceServicer_to_server,
    add_LlmServiceServicer_to_server,
    add_VectorServiceServicer_to_server,
)


async def serve(peers: Peers, address: str) -> GrpcServer:
    """Serve all services on one address."""
    server = GrpcServer(listen=address, tokens=CallerTokens(KEY), service_names=())
    for add in _ADD:
        add(peers, server.server)
    await server.start()
    await server.set_healthy(True)
    return server
