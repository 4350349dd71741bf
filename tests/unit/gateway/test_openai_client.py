"""The official OpenAI client against the gateway."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2
from headrace.llm.v1 import llm_service_pb2 as pb

from services.kit.errors import NotFoundError, ResourceExhaustedError, UnavailableError
from tests.unit.gateway.peers import HOME

USAGE = value_pb2.Usage(prompt_tokens=5, completion_tokens=2, calls=1)
ASK: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def ai(served, peers) -> AsyncIterator[openai.AsyncOpenAI]:
    key = peers.add_api_key("write")
    async with openai.AsyncOpenAI(api_key=key, base_url=f"http://127.0.0.1:{served}/v1", max_retries=0) as client:
        yield client


def pieces(*more: Exception) -> Any:
    async def write(request: Any) -> AsyncIterator[Any]:
        yield pb.StreamGenerateResponse(delta="Hel", model="small")
        for error in more:
            raise error
        yield pb.StreamGenerateResponse(delta="lo", model="small")
        yield pb.StreamGenerateResponse(finish_reason=llm_pb2.FINISH_REASON_STOP, usage=USAGE, model="small")

    return write


async def test_a_whole_answer(ai, peers):
    peers.replies["Generate"] = pb.GenerateResponse(
        text="Hello", finish_reason=llm_pb2.FINISH_REASON_LENGTH, usage=USAGE, model="small"
    )
    answer = await ai.chat.completions.create(
        **ASK, temperature=0, max_completion_tokens=7, stop=["x"], seed=3, user="ignored"
    )
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.total_tokens == 7
    asked = peers.asked["Generate"][0]
    assert (asked.project_id, asked.model, asked.messages[0].content) == (HOME, "small", "Hi")
    options = asked.options
    assert (options.temperature, options.max_tokens, options.stop[:], options.seed) == (0, 7, ["x"], 3)
    assert options.HasField("temperature")


async def test_a_streamed_answer_with_usage(ai, peers):
    peers.replies["StreamGenerate"] = pieces()
    chunks = await ai.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    received = [chunk async for chunk in chunks]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in received if chunk.choices) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in received if chunk.choices] == [None, None, "stop"]
    assert received[-1].usage
    assert received[-1].usage.total_tokens == 7


async def test_tools_and_a_schema_for_the_answer(ai, peers):
    call = llm_pb2.ToolCall(id="c1", name="weather", arguments='{"city": "Rome"}')
    peers.replies["Generate"] = pb.GenerateResponse(tool_calls=[call], finish_reason=llm_pb2.FINISH_REASON_TOOL_CALLS)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    answer = await ai.chat.completions.create(**ASK, tools=[tool], response_format=form)
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Rome"}'
    options = peers.asked["Generate"][0].options
    assert (options.tools[0].name, options.response_schema.utf8) == ("weather", b'{"type":"object"}')


async def test_leaving_a_stream_stops_the_generation(ai, peers):
    left = asyncio.Event()

    async def endless(request: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield pb.StreamGenerateResponse(delta="x")
                await asyncio.sleep(0)
        finally:
            left.set()

    peers.replies["StreamGenerate"] = endless
    chunks = await ai.chat.completions.create(**ASK, stream=True)
    async for _ in chunks:
        break
    await chunks.close()
    async with asyncio.timeout(5):
        await left.wait()


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_embeddings_in_both_encodings(ai, peers, encoding):
    vectors = struct.pack("<4f", 0.25, -1, 2, 3)
    peers.replies["Embed"] = pb.EmbedResponse(vectors=vectors, dimension=2, usage=USAGE, model="mini")
    more = {"encoding_format": encoding} if encoding else {}
    answer = await ai.embeddings.create(model="mini", input=["a", "b"], **more)
    found = [item.embedding for item in answer.data]
    if encoding == "base64":
        found = [list(struct.unpack("<2f", __import__("base64").b64decode(text))) for text in found]
    assert found == [[0.25, -1], [2, 3]]
    assert peers.asked["Embed"][0].texts[:] == ["a", "b"]


async def test_models_are_listed_and_found_by_name(ai, peers):
    model = llm_pb2.Model(name="org/small", backend="llamacpp", generates=True, available=True)
    peers.replies["ListModels"] = pb.ListModelsResponse(models=[model])
    assert [item.id async for item in ai.models.list()] == ["org/small"]
    assert (await ai.models.retrieve("org/small")).owned_by == "headrace"
    with pytest.raises(openai.NotFoundError):
        await ai.models.retrieve("none")


async def test_errors_are_what_openais_client_raises_and_say_why(ai, peers):
    peers.replies["Generate"] = NotFoundError("There is no model 'small'.", reason="MODEL_NOT_FOUND")
    with pytest.raises(openai.NotFoundError, match="There is no model 'small'") as missing:
        await ai.chat.completions.create(**ASK)
    assert (missing.value.code, missing.value.type) == ("model_not_found", "invalid_request_error")
    peers.replies["Generate"] = ResourceExhaustedError("Full.", reason="QUEUE_FULL", retry_after=1)
    with pytest.raises(openai.RateLimitError):
        await ai.chat.completions.create(**ASK)
    with pytest.raises(openai.UnprocessableEntityError):
        await ai.chat.completions.create(**ASK, n=2)
    with pytest.raises(openai.AuthenticationError):
        await ai.with_options(api_key="hr_wrong").chat.completions.create(**ASK)


async def test_an_error_before_the_first_token_has_a_status_and_one_after_it_breaks_the_stream(ai, peers):
    async def refuses(request: Any) -> AsyncIterator[Any]:
        raise NotFoundError("There is no model 'small'.", reason="MODEL_NOT_FOUND")
        yield

    peers.replies["StreamGenerate"] = refuses
    with pytest.raises(openai.NotFoundError):
        await ai.chat.completions.create(**ASK, stream=True)
    peers.replies["StreamGenerate"] = pieces(UnavailableError("The backend is gone."))
    received = []

    async def read() -> None:
        async for chunk in await ai.chat.completions.create(**ASK, stream=True):
            received.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="backend is gone"):
        await read()
    assert received == ["Hel"]
