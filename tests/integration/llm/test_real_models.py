"""Real models: SmolLM2 in llama.cpp's server and all-MiniLM-L6-v2, through the service's gRPC."""

import array
import asyncio
import json
import math

import httpx
import psutil
import pytest
from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2 as llm
from headrace.llm.v1 import llm_service_pb2 as pb

from services.kit import errors
from tests.integration.llm.conftest import Served, ask
from tests.support.waiting import await_until

# What transformers and torch warn of while they are imported is not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    # One process loads the models for all of these tests (with `--dist loadgroup`); torch alone takes seconds.
    pytest.mark.xdist_group("llm_models"),
    pytest.mark.timeout(180),
]

PATIENT = 120
"""Seconds: the first call loads a model, on a machine that may be busy."""
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


def rows(response: pb.EmbedResponse) -> list[array.array]:
    numbers = array.array("f", response.vectors)
    return [numbers[start : start + response.dimension] for start in range(0, len(numbers), response.dimension)]


def dot(one: array.array, other: array.array) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


async def busy_slots(served: Served) -> int:
    url, key = served.backend("smollm2-135m-instruct").server_address
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as client:
        slots = (await client.get(f"{url}/slots")).json()
    return sum(slot["is_processing"] for slot in slots)


async def test_a_stream_is_text_in_pieces_and_one_ending_with_usage(real):
    request = pb.StreamGenerateRequest(**ask("Count from one to ten.", max_tokens=12, temperature=0, seed=1))
    pieces = [piece async for piece in real.rpc.stream(real.stub.StreamGenerate, request, timeout=PATIENT)]
    assert len(pieces) > 2
    assert {piece.model for piece in pieces} == {"smollm2-135m-instruct"}
    assert [piece.finish_reason for piece in pieces[:-1]] == [llm.FINISH_REASON_UNSPECIFIED] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == llm.FINISH_REASON_LENGTH
    assert (pieces[-1].usage.completion_tokens, pieces[-1].usage.calls) == (12, 1)

    whole = await real.rpc.call(
        real.stub.Generate,
        pb.GenerateRequest(**ask("Count from one to ten.", max_tokens=12, temperature=0, seed=1)),
        timeout=PATIENT,
    )
    assert whole.text == "".join(piece.delta for piece in pieces)
    assert whole.usage == pieces[-1].usage


async def test_prompt_usage_is_what_count_tokens_counts(real):
    fields = ask("How many tokens am I?", max_tokens=1)
    counted = await real.rpc.call(
        real.stub.CountTokens, pb.CountTokensRequest(messages=fields["messages"]), timeout=PATIENT
    )
    answer = await real.rpc.call(real.stub.Generate, pb.GenerateRequest(**fields), timeout=PATIENT)
    assert counted.tokens == answer.usage.prompt_tokens > 5
    plain = await real.rpc.call(real.stub.CountTokens, pb.CountTokensRequest(text="hello there"), timeout=PATIENT)
    assert plain.tokens == 2


async def test_an_answer_with_a_schema_fulfils_it(real):
    schema = value_pb2.Json(utf8=json.dumps(COLOUR).encode())
    request = pb.GenerateRequest(**ask("Name a colour.", max_tokens=60, response_schema=schema))
    answer = await real.rpc.call(real.stub.Generate, request, timeout=PATIENT)
    value = json.loads(answer.text)
    assert value["colour"] in ("red", "green")
    assert isinstance(value["sure"], bool)
    assert answer.finish_reason == llm.FINISH_REASON_STOP


async def test_writing_stops_at_a_stop_text_which_is_left_out(real):
    request = pb.GenerateRequest(**ask("Count: 1, 2, 3", max_tokens=60, temperature=0, stop=["3"]))
    answer = await real.rpc.call(real.stub.Generate, request, timeout=PATIENT)
    assert "3" not in answer.text
    assert answer.finish_reason == llm.FINISH_REASON_STOP


async def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(real):
    with pytest.raises(errors.InvalidArgumentError, match=r"tokens.*4096") as caught:
        await real.rpc.call(real.stub.Generate, pb.GenerateRequest(**ask("word " * 6000)), timeout=PATIENT)
    assert caught.value.reason == "PROMPT_TOO_LONG"


async def test_leaving_a_stream_frees_the_slot(real):
    request = pb.StreamGenerateRequest(**ask("Write a very long story.", max_tokens=3000))
    stream = real.rpc.stream(real.stub.StreamGenerate, request, timeout=PATIENT)
    async for piece in stream:
        if piece.delta:
            break
    assert await busy_slots(real) == 1
    await stream.aclose()
    await await_until(lambda: is_idle(real), within=20)


async def test_a_passed_deadline_frees_the_slot(real):
    long_story = ask("Write a very long story.", max_tokens=3000)
    await real.rpc.call(real.stub.Generate, pb.GenerateRequest(**ask("Hi", max_tokens=1)), timeout=PATIENT)
    with pytest.raises(errors.DeadlineExceededError):
        await real.rpc.call(real.stub.Generate, pb.GenerateRequest(**long_story), timeout=0.5)
    await await_until(lambda: is_idle(real), within=20)


async def is_idle(served: Served) -> bool:
    return await busy_slots(served) == 0


async def test_the_model_comes_back_after_its_process_was_killed(real):
    request = pb.GenerateRequest(**ask("Hi", max_tokens=2))
    await real.rpc.call(real.stub.Generate, request, timeout=PATIENT)
    backend = real.backend("smollm2-135m-instruct")
    first = backend.server_address
    (child,) = [one for one in psutil.Process().children() if "llamacpp_server" in " ".join(one.cmdline())]
    child.kill()
    await await_until(lambda: backend.server_address is None)
    answer = await real.rpc.call(real.stub.Generate, request, timeout=PATIENT)
    assert answer.usage.completion_tokens == 2
    assert backend.server_address not in (None, first)


async def test_vectors_have_length_one_and_near_texts_have_near_vectors(real):
    texts = ["A cat sleeps on the sofa.", "The kitten naps on the couch.", "Interest rates rose by two percent."]
    response = await real.rpc.call(real.stub.Embed, pb.EmbedRequest(texts=texts), timeout=PATIENT)
    assert (response.dimension, response.model) == (384, "all-minilm-l6-v2")
    assert len(response.vectors) == 3 * 384 * 4
    cat, kitten, rates = rows(response)
    assert all(math.isclose(dot(row, row), 1.0, rel_tol=1e-4) for row in (cat, kitten, rates))
    assert dot(cat, kitten) > 0.5 > dot(cat, rates)
    assert response.usage.prompt_tokens > 15


async def test_concurrent_embeddings_come_back_to_whom_they_belong(real):
    texts = [f"{index} " * (index % 7 + 1) for index in range(24)]
    whole = await real.rpc.call(real.stub.Embed, pb.EmbedRequest(texts=texts), timeout=PATIENT)
    alone = await asyncio.gather(
        *(real.rpc.call(real.stub.Embed, pb.EmbedRequest(texts=[text]), timeout=PATIENT) for text in texts)
    )
    for row, response in zip(rows(whole), alone, strict=True):
        assert dot(row, rows(response)[0]) > 0.999


async def test_models_are_listed_with_what_they_can_do(real):
    await real.rpc.call(real.stub.Embed, pb.EmbedRequest(texts=["x"]), timeout=PATIENT)
    listed = (await real.rpc.call(real.stub.ListModels, pb.ListModelsRequest(), timeout=PATIENT)).models
    assert [(model.name, model.backend) for model in listed] == [
        ("all-minilm-l6-v2", "sentence_transformers"),
        ("smollm2-135m-instruct", "llamacpp"),
    ]
    embedder, writer = listed
    assert (embedder.embeds, embedder.generates, embedder.dimension) == (True, False, 384)
    assert (writer.embeds, writer.generates, writer.context_length) == (False, True, 4096)
    assert embedder.is_default
    assert writer.is_default
    assert embedder.available
    assert writer.available


async def test_an_unknown_model_is_not_found_and_the_others_are_named(real):
    with pytest.raises(errors.NotFoundError, match="smollm2-135m-instruct") as caught:
        await real.rpc.call(real.stub.Generate, pb.GenerateRequest(model="SmolLM2", **ask("x")), timeout=5)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(errors.NotFoundError, match="all-minilm-l6-v2"):
        await real.rpc.call(real.stub.Embed, pb.EmbedRequest(model="smollm2-135m-instruct", texts=["x"]), timeout=5)


async def test_a_real_server_elsewhere_is_used_by_its_url(real, serve_models):
    await real.rpc.call(real.stub.Generate, pb.GenerateRequest(**ask("Hi", max_tokens=1)), timeout=PATIENT)
    url, key = real.backend("smollm2-135m-instruct").server_address
    entry = {"name": "far", "backend": "openai", "base_url": f"{url}/v1", "api_key": key}
    served = await serve_models({**entry, "model": "smollm2-135m-instruct"})
    answer = await served.rpc.call(served.stub.Generate, pb.GenerateRequest(**ask("Hi", max_tokens=3)), timeout=PATIENT)
    assert (answer.model, answer.usage.completion_tokens) == ("far", 3)
    counted = await served.rpc.call(served.stub.CountTokens, pb.CountTokensRequest(text="hello there"), timeout=5)
    assert counted.tokens == 2
    (listed,) = (await served.rpc.call(served.stub.ListModels, pb.ListModelsRequest(), timeout=5)).models
    assert (listed.available, listed.context_length) == (True, 4096)
