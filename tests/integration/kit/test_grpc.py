"""Calls between services over real sockets: identity, deadlines, and every error as it was raised."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise

import grpc
import pytest
from headrace.llm.v1 import llm_service_pb2 as pb
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceServicer, LlmServiceStub, add_LlmServiceServicer_to_server

from services.kit import errors
from services.kit.errors import DomainError, Violation
from services.kit.grpc_client import Rpc, open_channel
from services.kit.grpc_server import GrpcServer
from services.kit.grpc_status import error_from_rpc
from services.kit.identity import CallerTokens

TOKENS = CallerTokens(os.urandom(32))
SEARCHABLE = "/headrace.llm.v1.LlmService/Embed"


class RaisingServicer(LlmServiceServicer):
    """Answers with the error that a test has put in `error`."""

    error: Exception | None = None

    async def Generate(self, request, context):
        if self.error:
            raise self.error
        return pb.GenerateResponse(text="fine")

    async def StreamGenerate(self, request, context):
        yield pb.StreamGenerateResponse(delta="a")
        if self.error:
            raise self.error

    async def Embed(self, request, context):
        return pb.EmbedResponse(dimension=1)

    async def ListModels(self, request, context):
        return pb.ListModelsResponse()

    async def CountTokens(self, request, context):
        return pb.CountTokensResponse()


@pytest.fixture
async def served(tmp_path) -> AsyncIterator[tuple[RaisingServicer, str]]:
    address = f"unix:{tmp_path}/s"
    server = GrpcServer(listen=address, tokens=TOKENS, service_names=(), grant_methods=(SEARCHABLE,))
    servicer = RaisingServicer()
    add_LlmServiceServicer_to_server(servicer, server.server)
    await server.start()
    yield servicer, address
    await server.stop(0)


@pytest.fixture
async def stub(served) -> AsyncIterator[LlmServiceStub]:
    async with open_channel(served[1]) as channel:
        yield LlmServiceStub(channel)


def every_error() -> list[DomainError]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DomainError)]
    kinds = [kind for kind in kinds if kind not in (DomainError, errors.InternalError)]
    assert len(kinds) >= 12
    return [kind("A sentence.") for kind in kinds]


@pytest.mark.parametrize("raised", every_error(), ids=lambda error: type(error).__name__)
async def test_an_error_arrives_as_the_class_and_reason_that_were_raised(served, stub, raised):
    servicer, _ = served
    servicer.error = raised
    with pytest.raises(type(raised)) as caught:
        await Rpc(TOKENS.for_service("test")).call(stub.Generate, pb.GenerateRequest(), timeout=5)
    assert type(caught.value) is type(raised)
    assert (caught.value.reason, caught.value.message) == (raised.reason, raised.message)


async def test_violations_metadata_and_delay_survive_the_wire(served, stub):
    servicer, _ = served
    violation = Violation("BAD", "is bad", "nodes[1].config", node_key="a", severity="warning")
    servicer.error = errors.ResourceExhaustedError(
        "Slow down.", reason="QUEUE_FULL", metadata={"queue": "io"}, violations=(violation,), retry_after=2.5
    )
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await Rpc(TOKENS.for_service("test")).call(stub.Generate, pb.GenerateRequest(), timeout=5)
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.violations == (violation,)
    assert caught.value.metadata == {"queue": "io"}
    assert caught.value.retry_after == 2.5


async def test_an_unexpected_exception_is_masked_behind_an_incident_id(served, stub):
    servicer, _ = served
    servicer.error = KeyError("secret-detail")
    with pytest.raises(errors.InternalError) as caught:
        await Rpc(TOKENS.for_service("test")).call(stub.Generate, pb.GenerateRequest(), timeout=5)
    assert "secret-detail" not in caught.value.message
    assert caught.value.metadata["incident"]


async def test_a_stream_delivers_what_came_before_its_error(served, stub):
    servicer, _ = served
    servicer.error = errors.UnavailableError("Gone.")
    pieces = []

    async def read() -> None:
        rpc = Rpc(TOKENS.for_service("test"))
        async for piece in rpc.stream(stub.StreamGenerate, pb.StreamGenerateRequest(), timeout=5):
            pieces.append(piece.delta)

    with pytest.raises(errors.UnavailableError):
        await read()
    assert pieces == ["a"]


async def test_a_stream_whose_server_goes_before_it_has_answered_is_taken_by_the_next(served, tmp_path):
    def leave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        with suppress(FileNotFoundError):  # it came again before the next one was found
            (tmp_path / "s").rename(leaving)

    leaving = tmp_path / "leaving"
    async with await asyncio.start_unix_server(leave, leaving), open_channel(f"unix:{leaving}") as channel:
        rpc, stub = Rpc(TOKENS.for_service("test")), LlmServiceStub(channel)
        stream = rpc.stream(stub.StreamGenerate, pb.StreamGenerateRequest(), timeout=5)
        assert [piece.delta async for piece in stream] == ["a"]
    assert not (tmp_path / "s").exists()


def test_a_call_that_a_server_dropped_as_it_ended_may_be_repeated():
    # gRPC's server ends calls so that had arrived and nobody had taken up yet, with this and no word of ours.
    failure = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "CANCELLED")
    error = error_from_rpc(failure)
    assert isinstance(error, errors.UnavailableError)
    assert error.retry_after


async def test_a_call_without_a_deadline_is_refused(served, stub):
    metadata = (("authorization", f"Bearer {TOKENS.for_service('test')()}"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def forged() -> str:
    return CallerTokens(os.urandom(32)).for_service("gateway")()


def tampered() -> str:
    token = TOKENS.mint_grant(project_id="p1", run_id="r", lifetime_seconds=60)
    claims = base64.urlsafe_b64decode(token.partition(".")[0]).replace(b'"p1"', b'"p2"')
    return base64.urlsafe_b64encode(claims).decode() + "." + token.partition(".")[2]


@pytest.mark.parametrize(
    "token",
    ["", "x", "x.y", "e30=.", "\u00e9.\u00e9".encode().hex(), forged(), tampered()],
    ids=["empty", "word", "two words", "no signature", "odd", "forged", "tampered"],
)
async def test_a_token_that_we_did_not_sign_is_refused(served, stub, token):
    with pytest.raises(errors.UnauthenticatedError):
        await Rpc(lambda: token or " ").call(stub.Generate, pb.GenerateRequest(), timeout=5)


def test_keys_are_replaced_in_steps_in_each_of_which_services_accept_each_other():
    old, new = os.urandom(32), os.urandom(32)
    steps = [CallerTokens(old), CallerTokens(old, new), CallerTokens(new, old), CallerTokens(new)]
    for before, after in pairwise(steps):
        for minting, verifying in ((before, after), (after, before)):
            assert verifying.verify(minting.for_service("gateway")()).service == "gateway"
    with pytest.raises(errors.UnauthenticatedError):
        steps[-1].verify(steps[0].for_service("gateway")())


async def test_an_expired_grant_is_refused(served, stub):
    token = TOKENS.mint_grant(project_id="p", run_id="r", lifetime_seconds=-1)
    with pytest.raises(errors.UnauthenticatedError):
        await Rpc(lambda: token).call(stub.Embed, pb.EmbedRequest(project_id="p"), timeout=5)


async def test_a_grant_covers_its_own_project_and_the_listed_methods_only(served, stub):
    rpc = Rpc(lambda: TOKENS.mint_grant(project_id="p1", run_id="r", lifetime_seconds=60))
    assert (await rpc.call(stub.Embed, pb.EmbedRequest(project_id="p1"), timeout=5)).dimension == 1
    with pytest.raises(errors.NotFoundError):
        await rpc.call(stub.Embed, pb.EmbedRequest(project_id="p2"), timeout=5)
    with pytest.raises(errors.PermissionDeniedError):
        await rpc.call(stub.Generate, pb.GenerateRequest(project_id="p1"), timeout=5)


async def test_an_unreachable_service_is_unavailable_not_an_internal_error(tmp_path):
    async with open_channel(f"unix:{tmp_path}/nobody") as channel:
        with pytest.raises(errors.UnavailableError):
            await Rpc(TOKENS.for_service("test")).call(
                LlmServiceStub(channel).Generate, pb.GenerateRequest(), timeout=5
            )
