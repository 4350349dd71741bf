"""OpenAI-compatible servers on bad days: each failure reaches the caller as what it is, and another replica helps."""

import asyncio
import base64
import json
import struct

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2 as llm
from headrace.llm.v1 import llm_service_pb2 as pb
from prometheus_client import REGISTRY

from services.kit import errors
from tests.integration.llm.conftest import TOKENS, ask
from tests.integration.llm.scripted_server import ScriptedServer, chunk, events, hang, status, usage
from tests.support.waiting import await_until

CHAT = "/v1/chat/completions"
KEY = "sk-a-key-that-nobody-may-see"
FINE = events(chunk(role="assistant"), chunk("Hel"), chunk("lo"), chunk(finish="stop"), usage(7, 2), "[DONE]")


def entry(*servers: ScriptedServer, **more):
    return {
        "name": "far",
        "backend": "openai",
        "replicas": [f"{server.url}/v1" for server in servers],
        "api_key": KEY,
        **more,
    }


async def test_calls_tokens_speed_and_spend_are_measured_by_model(scripted, serve_models):
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"headrace_llm_{name}", {"model": "far", **labels}) or 0.0

    def measured() -> list[float]:
        return [
            value("tokens_total", direction="prompt"),
            value("tokens_total", direction="completion"),
            value("calls_total", operation="generate", outcome="ok"),
            value("call_duration_seconds_count", operation="generate"),
            value("time_to_first_token_seconds_count"),
            value("tokens_per_second_count"),
            value("spend_total"),
        ]

    scripted.answers[CHAT] = FINE
    prices = {"price_per_million_input_tokens": 1e6, "price_per_million_output_tokens": 1e7}
    served = await serve_models(entry(scripted, **prices))
    before = measured()
    await generate(served)
    grown = [now - then for now, then in zip(measured(), before, strict=True)]
    assert grown == pytest.approx([7, 2, 1, 1, 1, 1, 27])


async def generate(served, **options) -> pb.GenerateResponse:
    return await served.rpc.call(
        served.stub.Generate, pb.GenerateRequest(**ask("secret prompt", **options)), timeout=10
    )


async def test_the_request_says_what_the_caller_asked_and_no_more(scripted, serve_models):
    scripted.answers[CHAT] = FINE
    served = await serve_models(entry(scripted, model="real/name", extra={"top_k": 5}))
    schema = value_pb2.Json(utf8=b'{"type": "object"}')
    answer = await generate(served, temperature=0, max_tokens=9, stop=["x"], seed=3, response_schema=schema)
    assert (answer.text, answer.model) == ("Hello", "far")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 2)
    (request,) = [one for one in scripted.requests if one.path == CHAT]
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "real/name",
        "messages": [{"role": "user", "content": "secret prompt"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.0,
        "stop": ["x"],
        "seed": 3,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
        },
        "top_k": 5,
    }


@pytest.mark.parametrize(("asked", "sent"), [({}, 100), ({"max_tokens": 5000}, 100), ({"max_tokens": 7}, 7)])
async def test_max_tokens_is_always_sent_and_capped(scripted, serve_models, asked, sent):
    scripted.answers[CHAT] = FINE
    served = await serve_models(entry(scripted), max_tokens=100)
    await generate(served, **asked)
    assert scripted.requests[-1].body["max_tokens"] == sent


async def test_tools_go_out_and_calls_come_back_whole(scripted, serve_models):
    def part(**call):
        return chunk(tool_calls=[{"index": 0, **call}])

    scripted.answers[CHAT] = events(
        part(id="call_1", function={"name": "weather", "arguments": ""}),
        part(function={"arguments": '{"city": '}),
        part(function={"arguments": '"Bern"}'}),
        chunk(finish="tool_calls"),
        usage(20, 9),
        "[DONE]",
    )
    served = await serve_models(entry(scripted))
    parameters = value_pb2.Json(utf8=b'{"type": "object"}')
    answer = await generate(served, tools=[llm.Tool(name="weather", description="d", parameters=parameters)])
    assert answer.finish_reason == llm.FINISH_REASON_TOOL_CALLS
    assert list(answer.tool_calls) == [llm.ToolCall(id="call_1", name="weather", arguments='{"city": "Bern"}')]
    assert scripted.requests[-1].body["tools"][0]["function"]["parameters"] == {"type": "object"}


async def test_usage_that_a_server_does_not_tell_is_estimated(scripted, serve_models):
    scripted.answers[CHAT] = events(chunk("a"), chunk("b"), chunk("c"), chunk(finish="length"), "[DONE]")
    served = await serve_models(entry(scripted))
    answer = await generate(served)
    assert answer.usage.completion_tokens == 3
    assert 1 <= answer.usage.prompt_tokens <= len("secret prompt")


REFUSALS = [
    (status(401, {"error": {"message": f"Incorrect API key {KEY}"}}), errors.FailedPreconditionError, "MISCONFIGURED"),
    (status(404, {"error": {"message": "no model"}}), errors.FailedPreconditionError, "MODEL_MISCONFIGURED"),
    (status(429, {"error": {"message": "slow"}}, retry_after="7"), errors.ResourceExhaustedError, "RATE_LIMITED"),
    (status(400, {"error": {"message": "bad schema"}}), errors.InvalidArgumentError, "MODEL_REFUSED_REQUEST"),
    (
        status(400, {"error": {"code": "context_length_exceeded", "message": "maximum context length is 8192 tokens"}}),
        errors.InvalidArgumentError,
        "PROMPT_TOO_LONG",
    ),
    (status(500, {"error": {"message": "out of memory"}}), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (status(200, "not what was asked for"), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (events("{broken"), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (events({"choices": [7]}), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (events(chunk("Hel"), then="cut"), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (events(chunk("Hel")), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (events(chunk("Hel"), {"error": {"code": 500, "message": "oops"}}), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (events(then="hang"), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    (hang, errors.UnavailableError, "MODEL_UNAVAILABLE"),
]


@pytest.mark.parametrize(("answer", "kind", "reason"), REFUSALS)
async def test_each_failure_is_told_as_what_it_is_without_key_or_prompt(scripted, serve_models, answer, kind, reason):
    scripted.answers[CHAT] = answer
    served = await serve_models(entry(scripted, silence_seconds=0.3))
    with pytest.raises(kind) as caught:
        await generate(served)
    assert caught.value.reason.endswith(reason)
    assert "'far'" in caught.value.message
    assert KEY not in caught.value.message
    assert "secret prompt" not in caught.value.message


async def test_a_rate_limit_tells_how_long_to_wait(scripted, serve_models):
    scripted.answers[CHAT] = status(429, {}, retry_after="7")
    served = await serve_models(entry(scripted))
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await generate(served)
    assert caught.value.retry_after == 7


async def test_a_server_that_is_not_there_is_unavailable(serve_models, scripted):
    gone = scripted.url
    await scripted.__aexit__()
    served = await serve_models({"name": "far", "backend": "openai", "base_url": gone})
    with pytest.raises(errors.UnavailableError):
        await generate(served)
    (listed,) = (await served.rpc.call(served.stub.ListModels, pb.ListModelsRequest(), timeout=5)).models
    assert not listed.available


@pytest.mark.parametrize("bad", [status(503, {}), status(429, {}), hang, events("{broken")])
async def test_another_replica_answers_when_one_fails_before_its_first_token(
    scripted, second_scripted, serve_models, bad
):
    scripted.answers[CHAT] = bad
    second_scripted.answers[CHAT] = FINE
    served = await serve_models(entry(scripted, second_scripted, silence_seconds=0.3))
    answers = await asyncio.gather(*(generate(served) for _ in range(4)))
    assert {answer.text for answer in answers} == {"Hello"}
    assert scripted.paths()


async def test_no_replica_is_tried_after_the_first_token(scripted, second_scripted, serve_models):
    for server in (scripted, second_scripted):
        server.answers[CHAT] = events(chunk("Hel"), then="cut")
    served = await serve_models(entry(scripted, second_scripted))
    with pytest.raises(errors.UnavailableError):
        await generate(served)
    assert len(scripted.paths() + second_scripted.paths()) == 1


async def test_a_replica_that_keeps_failing_is_left_alone(scripted, second_scripted, serve_models):
    scripted.answers[CHAT] = status(500, {})
    second_scripted.answers[CHAT] = FINE
    served = await serve_models(entry(scripted, second_scripted))
    for _ in range(30):
        assert (await generate(served)).text == "Hello"
    assert len(scripted.paths()) == 5
    assert len(second_scripted.paths()) == 30


async def test_streams_share_a_connection_to_their_server(serve_models):
    connections = set()

    async def chat(request: web.Request) -> web.StreamResponse:
        connections.add(request.transport)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for payload in (chunk("Hello"), chunk(finish="stop"), usage(7, 1)):
            await answer.write(b"data: " + json.dumps(payload).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        await asyncio.sleep(0.02)  # what ends the body comes behind the last event, as with real servers
        return answer

    application = web.Application()
    application.router.add_post(CHAT, chat)
    async with TestServer(application) as server:
        served = await serve_models(
            {"name": "far", "backend": "openai", "base_url": str(server.make_url("/v1")), "api_key": KEY}
        )
        for _ in range(10):
            assert (await generate(served)).text == "Hello"
    # A look at the server's health may have the first one just then.
    assert 1 <= len(connections) <= 2


async def test_leaving_a_stream_closes_the_connection_to_the_server(scripted, serve_models):
    scripted.answers[CHAT] = events(chunk("Hel"), then="hang")
    served = await serve_models(entry(scripted))
    stream = served.rpc.stream(served.stub.StreamGenerate, pb.StreamGenerateRequest(**ask("x")), timeout=30)
    async for piece in stream:
        assert piece.delta == "Hel"
        break
    await stream.aclose()
    await await_until(lambda: scripted.gone == 1)


async def test_a_client_that_does_not_read_and_leaves_stops_the_server(scripted, serve_models):
    # More than the windows of HTTP/2 and the sockets hold: the service waits in the middle of writing.
    scripted.answers[CHAT] = events(*[chunk("x" * 60_000)] * 60, then="hang")
    served = await serve_models(entry(scripted))
    call = served.stub.StreamGenerate(
        pb.StreamGenerateRequest(**ask("x")),
        timeout=30,
        metadata=(("authorization", f"Bearer {TOKENS.for_service('test')()}"),),
    )
    await call.read()
    call.cancel()
    await await_until(lambda: scripted.gone == 1)


async def test_calls_beyond_the_queue_are_refused_with_a_delay(scripted, serve_models):
    scripted.answers[CHAT] = hang
    served = await serve_models(entry(scripted, max_concurrency=2, max_queue=1))
    waiting = [asyncio.ensure_future(generate(served)) for _ in range(3)]
    await await_until(lambda: len(scripted.paths()) == 2)
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await generate(served)
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after >= 1
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await await_until(lambda: scripted.gone >= 2)
    scripted.answers[CHAT] = FINE
    assert (await generate(served)).text == "Hello"


async def test_an_answer_without_end_is_cut(scripted, serve_models):
    scripted.answers[CHAT] = events(*[chunk("x" * 500_000)] * 9, then="hang")
    served = await serve_models(entry(scripted))
    answer = await generate(served)
    assert answer.finish_reason == llm.FINISH_REASON_LENGTH
    assert 4 * 1024 * 1024 < len(answer.text) < 6 * 1024 * 1024
    await await_until(lambda: scripted.gone == 1)


@pytest.mark.parametrize("is_encoded", [True, False])
async def test_embeddings_keep_the_order_of_texts_over_batches(scripted, serve_models, is_encoded):
    def vector(text: str):
        numbers = [float(len(text)), 0.5]
        return base64.b64encode(struct.pack("<2f", *numbers)).decode() if is_encoded else numbers

    async def embed(request, writer):
        data = [{"index": index, "embedding": vector(text)} for index, text in enumerate(request.body["input"])]
        await status(200, {"data": data[::-1], "usage": {"prompt_tokens": len(data)}})(request, writer)

    scripted.answers["/v1/embeddings"] = embed
    served = await serve_models(entry(scripted, task="embed", embed_batch=4))
    texts = ["x" * index for index in range(1, 11)]
    response = await served.rpc.call(served.stub.Embed, pb.EmbedRequest(texts=texts), timeout=5)
    assert (response.dimension, response.usage.prompt_tokens) == (2, 10)
    assert struct.unpack("<20f", response.vectors)[::2] == tuple(range(1, 11))
    assert sorted(len(request.body["input"]) for request in scripted.requests if request.body) == [2, 4, 4]


@pytest.mark.parametrize(
    "body",
    [
        {"data": []},
        {"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": "?"}, {"index": 1, "embedding": "?"}]},
        {"data": [{"index": 0, "embedding": ["a"]}, {"index": 1, "embedding": ["b"]}]},
        [],
    ],
)
async def test_vectors_that_make_no_sense_are_no_answer(scripted, serve_models, body):
    scripted.answers["/v1/embeddings"] = status(200, body)
    served = await serve_models(entry(scripted, task="embed"))
    with pytest.raises(errors.UnavailableError):
        await served.rpc.call(served.stub.Embed, pb.EmbedRequest(texts=["a", "b"]), timeout=5)


async def test_counting_is_unsupported_where_no_tokenizer_is_shown(scripted, serve_models):
    served = await serve_models(entry(scripted))
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await served.rpc.call(served.stub.CountTokens, pb.CountTokensRequest(text="x"), timeout=5)
    assert caught.value.reason == "UNSUPPORTED"


async def test_messages_are_counted_by_vllm_too(scripted, serve_models):
    scripted.answers["/tokenize"] = status(200, {"count": 12, "max_model_len": 99, "tokens": [1]})
    served = await serve_models(entry(scripted))
    request = pb.CountTokensRequest(messages=[llm.Message(role="user", content="x")])
    assert (await served.rpc.call(served.stub.CountTokens, request, timeout=5)).tokens == 12


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [llm.Message(role="robot")]}, "messages[0].role"),
        ({"options": llm.GenerationOptions(temperature=3)}, "options.temperature"),
        ({"options": llm.GenerationOptions(temperature=float("nan"))}, "options.temperature"),
        ({"options": llm.GenerationOptions(max_tokens=0)}, "options.max_tokens"),
        ({"options": llm.GenerationOptions(stop=["x"] * 9)}, "options.stop"),
        ({"options": llm.GenerationOptions(response_schema=value_pb2.Json(utf8=b"{"))}, "options.response_schema"),
        ({"options": llm.GenerationOptions(response_schema=value_pb2.Json(utf8=b"7"))}, "options.response_schema"),
    ],
)
async def test_what_the_contract_forbids_is_refused_with_its_place(scripted, serve_models, fields, path):
    served = await serve_models(entry(scripted))
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await served.rpc.call(served.stub.Generate, pb.GenerateRequest(**{**ask("x"), **fields}), timeout=5)
    assert [violation.path for violation in caught.value.violations] == [path]
    assert not scripted.paths()


async def test_a_prompt_over_the_size_limit_is_refused_before_any_work(scripted, serve_models):
    served = await serve_models(entry(scripted), max_prompt_bytes=5)
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await generate(served)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert not scripted.paths()
