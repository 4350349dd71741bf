"""TGI's protocol through the hub library's client, against a scripted server."""

import pytest
from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2 as llm
from headrace.llm.v1 import llm_service_pb2 as pb

from services.kit import errors
from tests.integration.llm.conftest import ask
from tests.integration.llm.scripted_server import chunk, events, status, usage
from tests.support.waiting import await_until

CHAT = "/v1/chat/completions"
FINE = events(
    *[{**part, "created": 1, "model": "m", "system_fingerprint": "f"} for part in (chunk("Hel"), chunk("lo"))],
    chunk("", finish="eos_token"),
    {**usage(7, 2), "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}},
    "[DONE]",
)


def entry(server, **more):
    return {"name": "tgi", "backend": "tgi", "base_url": server.url, "api_key": "k", **more}


async def generate(served, **options) -> pb.GenerateResponse:
    return await served.rpc.call(served.stub.Generate, pb.GenerateRequest(**ask("x", **options)), timeout=10)


async def test_an_answer_streams_with_usage_and_a_schema_goes_out_in_tgis_form(scripted, serve_models):
    scripted.answers[CHAT] = FINE
    served = await serve_models(entry(scripted))
    schema = value_pb2.Json(utf8=b'{"type": "object"}')
    answer = await generate(served, temperature=0, max_tokens=5, response_schema=schema)
    assert (answer.text, answer.finish_reason) == ("Hello", llm.FINISH_REASON_STOP)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 2)
    request = next(one for one in scripted.requests if one.path == CHAT)
    assert request.headers["authorization"] == "Bearer k"
    assert request.body["response_format"] == {"type": "json", "value": {"type": "object"}}
    assert (request.body["max_tokens"], request.body["temperature"]) == (5, 0.01)


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (status(401, {"error": "no"}), errors.FailedPreconditionError, "MODEL_MISCONFIGURED"),
        (
            status(422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096", "error_type": "validation"}),
            errors.InvalidArgumentError,
            "PROMPT_TOO_LONG",
        ),
        (status(429, {"error": "overloaded"}, retry_after="4"), errors.ResourceExhaustedError, "MODEL_RATE_LIMITED"),
        (status(500, {"error": "cuda"}), errors.UnavailableError, "MODEL_UNAVAILABLE"),
        (events("{broken"), errors.UnavailableError, "MODEL_UNAVAILABLE"),
        (events(chunk("Hel")), errors.UnavailableError, "MODEL_UNAVAILABLE"),
        (events(chunk("Hel"), then="cut"), errors.UnavailableError, "MODEL_UNAVAILABLE"),
        (events({"error": "broke", "error_type": "generation"}), errors.UnavailableError, "MODEL_UNAVAILABLE"),
        (events(then="hang"), errors.UnavailableError, "MODEL_UNAVAILABLE"),
    ],
)
async def test_each_failure_is_told_as_what_it_is(scripted, serve_models, answer, kind, reason):
    scripted.answers[CHAT] = answer
    served = await serve_models(entry(scripted, silence_seconds=0.3))
    with pytest.raises(kind) as caught:
        await generate(served)
    assert caught.value.reason == reason


async def test_leaving_a_stream_closes_the_connection_to_the_server(scripted, serve_models):
    scripted.answers[CHAT] = events(chunk("Hel"), then="hang")
    served = await serve_models(entry(scripted))
    stream = served.rpc.stream(served.stub.StreamGenerate, pb.StreamGenerateRequest(**ask("x")), timeout=30)
    async for piece in stream:
        assert piece.delta == "Hel"
        break
    await stream.aclose()
    await await_until(lambda: scripted.gone == 1)


async def test_tokens_are_counted_by_the_server_and_its_limits_are_listed(scripted, serve_models):
    scripted.answers["/health"] = status(200)
    scripted.answers["/info"] = status(200, {"max_total_tokens": 2048})
    scripted.answers["/tokenize"] = status(200, [{"id": 1}, {"id": 2}])
    scripted.answers["/chat_tokenize"] = status(200, {"tokenize_response": [{"id": 1}], "templated_text": "x"})
    served = await serve_models(entry(scripted))
    (listed,) = (await served.rpc.call(served.stub.ListModels, pb.ListModelsRequest(), timeout=5)).models
    assert (listed.available, listed.context_length, listed.generates) == (True, 2048, True)
    text = await served.rpc.call(served.stub.CountTokens, pb.CountTokensRequest(text="x"), timeout=5)
    messages = pb.CountTokensRequest(messages=[llm.Message(role="user", content="x")])
    assert text.tokens == 2
    assert (await served.rpc.call(served.stub.CountTokens, messages, timeout=5)).tokens == 1
