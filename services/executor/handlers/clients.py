"""What handlers talk to: the other services under the job's grant, and the outside through egress."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from headrace.auth.v1 import auth_service_pb2
from headrace.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from headrace.executor.v1.table_service_pb2_grpc import TableServiceStub
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceStub

from services.executor.egress import Egress
from services.executor.handlers.base import Context, TerminalError
from services.executor.handlers.failures import failure_of_call
from services.kit import strict_json
from services.kit.errors import DomainError, NotFoundError
from services.kit.grpc_client import Rpc, open_channel

if TYPE_CHECKING:
    # The asynchronous stubs are names for type checkers only.
    from headrace.auth.v1.auth_service_pb2_grpc import AuthServiceAsyncStub
    from headrace.executor.v1.table_service_pb2_grpc import TableServiceAsyncStub
    from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceAsyncStub
    from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceAsyncStub

    from services.executor.handlers.external_postgres import ExternalDatabases

_MAX_CREDENTIAL_BYTES = 128 * 1024

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


@dataclass(frozen=True, slots=True)
class Targets:
    """gRPC names of the services, as in HEADRACE_<SERVICE>_TARGET."""

    auth: str
    executor: str
    llm: str
    vector: str


@dataclass(frozen=True, slots=True)
class Credential:
    """A resolved secret. Lives for one attempt; never logged, stored or put into an output."""

    name: str
    type: str
    data: dict[str, Any]

    def __repr__(self) -> str:
        return f"Credential(name={self.name!r}, type={self.type!r})"


class Services:
    """The clients of a worker process. Nothing connects before it is used; `close` ends all."""

    def __init__(self, targets: Targets, *, egress: Egress) -> None:
        self._targets = targets
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._rpc = Rpc(_no_identity)
        self.egress = egress

    @cached_property
    def auth(self) -> "AuthServiceAsyncStub":
        """Credentials."""
        return AuthServiceStub(self._channel(self._targets.auth))

    @cached_property
    def tables(self) -> "TableServiceAsyncStub":
        """The project's own tables."""
        return TableServiceStub(self._channel(self._targets.executor))

    @cached_property
    def llm(self) -> "LlmServiceAsyncStub":
        """Generation and embeddings."""
        return LlmServiceStub(self._channel(self._targets.llm))

    @cached_property
    def vector(self) -> "VectorServiceAsyncStub":
        """Collections."""
        return VectorServiceStub(self._channel(self._targets.vector))

    @cached_property
    def databases(self) -> "ExternalDatabases":
        """PostgreSQL servers that credentials name."""
        # asyncpg costs every worker megabytes and start-up time; most never need it.
        from services.executor.handlers.external_postgres import ExternalDatabases  # noqa: PLC0415

        return ExternalDatabases(self.egress.dialer)

    async def call(
        self, context: Context, method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> ResponseT:
        """Call a service under the job's grant within the node's time. Raises HandlerError."""
        try:
            return await self._rpc.call(method, request, timeout=context.timeout_seconds, token=context.grant)
        except DomainError as error:
            raise failure_of_call(error) from error

    async def stream(
        self, context: Context, method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> AsyncIterator[ResponseT]:
        """Iterate over a stream under the job's grant. Leaving the iteration cancels the call. Raises HandlerError."""
        answers = self._rpc.stream(method, request, timeout=context.timeout_seconds, token=context.grant)
        try:
            async for message in answers:
                yield message
        except DomainError as error:
            raise failure_of_call(error) from error
        finally:
            await answers.aclose()  # type: ignore[attr-defined]  # it is an async generator

    async def credential(self, context: Context, name: str) -> Credential:
        """Resolve a credential of the project. Raises HandlerError; CREDENTIAL_NOT_FOUND says how to make one."""
        request = auth_service_pb2.ResolveCredentialRequest(project_id=context.project_id, name=name)
        try:
            answer = await self._rpc.call(
                self.auth.ResolveCredential, request, timeout=context.timeout_seconds, token=context.grant
            )
        except NotFoundError as error:
            raise TerminalError(
                "CREDENTIAL_NOT_FOUND",
                f"There is no credential named {name!r} in this project. Create it with POST /api/v1/credentials, "
                "or name one that exists.",
            ) from error
        except DomainError as error:
            raise failure_of_call(error) from error
        data = strict_json.loads(answer.data.utf8, max_bytes=_MAX_CREDENTIAL_BYTES)
        return Credential(name, answer.type, data)

    async def close(self) -> None:
        """End all connections."""
        await self.egress.close()
        if "databases" in self.__dict__:
            await self.databases.close()
        for channel in self._channels.values():
            await channel.close()

    def _channel(self, target: str) -> grpc.aio.Channel:
        if target not in self._channels:
            self._channels[target] = open_channel(target)
        return self._channels[target]


def _no_identity() -> str:
    raise AssertionError("a worker has no identity of its own: pass token=context.grant")
