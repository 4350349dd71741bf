"""Handlers that call other services, which are played at the network border; and the catalogue of all types."""

import re
from collections.abc import AsyncIterator
from typing import Any

import jsonschema_rs
import orjson
import pytest
from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2
from headrace.llm.v1 import llm_service_pb2 as llm
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceServicer, add_LlmServiceServicer_to_server
from headrace.vector.v1 import vector_pb2
from headrace.vector.v1 import vector_service_pb2 as vector
from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceServicer, add_VectorServiceServicer_to_server
from pydantic import ValidationError

from services.executor.handlers.base import HandlerError, RetryableError, TerminalError, Usage
from services.executor.handlers.embed import EMBED
from services.executor.handlers.faiss_search import FAISS_SEARCH
from services.executor.handlers.llm_call import LLM_CALL
from services.executor.handlers.noop import NOOP
from services.executor.handlers.registry import catalogue, config_schema, output_schema
from services.executor.handlers.vector_upsert import VECTOR_UPSERT
from services.executor.handlers.vectors import pack_vector, unpack_vectors
from services.kit.errors import (
    DomainError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.support.handlers import HandlerBench, handler_bench, served

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


class Models(LlmServiceServicer):
    """Answers `text` piece by piece, or raises."""

    def __init__(self) -> None:
        self.text = "one two three"
        self.finish_reason = llm_pb2.FINISH_REASON_STOP
        self.tool_calls: list[llm_pb2.ToolCall] = []
        self.error: Exception | None = None
        self.requests: list[Any] = []

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[llm.StreamGenerateResponse]:
        self.requests.append(request)
        if self.error:
            raise self.error
        for start in range(0, len(self.text), 4):
            yield llm.StreamGenerateResponse(delta=self.text[start : start + 4], model="tiny")
        usage = value_pb2.Usage(prompt_tokens=7, completion_tokens=3, calls=1)
        yield llm.StreamGenerateResponse(
            finish_reason=self.finish_reason, usage=usage, model="tiny", tool_calls=self.tool_calls
        )

    async def Embed(self, request: Any, context: Any) -> llm.EmbedResponse:
        self.requests.append(request)
        vectors = b"".join(pack_vector([len(text), 0.9]) for text in request.texts)
        usage = value_pb2.Usage(prompt_tokens=len(request.texts), calls=1)
        return llm.EmbedResponse(vectors=vectors, dimension=2, usage=usage, model="e")


class Collections(VectorServiceServicer):
    """Finds one record, and takes all."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def Search(self, request: Any, context: Any) -> vector.SearchResponse:
        self.requests.append(request)
        record = vector_pb2.Record(id="r1", text="found", metadata=value_pb2.Json(utf8=b'{"lang":"de"}'))
        return vector.SearchResponse(matches=[vector_pb2.Match(record=record, score=0.9)])

    async def UpsertRecords(self, request: Any, context: Any) -> vector.UpsertRecordsResponse:
        self.requests.append(request)
        return vector.UpsertRecordsResponse(ids=[record.id for record in request.records])


@pytest.fixture(scope="module")
async def border(tmp_path_factory) -> AsyncIterator[tuple[HandlerBench, Models, Collections]]:
    address = f"unix:{tmp_path_factory.mktemp('handlers')}/s"
    models, collections = Models(), Collections()
    registrations = [
        (add_LlmServiceServicer_to_server, models),
        (add_VectorServiceServicer_to_server, collections),
    ]
    methods = [f"/headrace.llm.v1.LlmService/{name}" for name in ("StreamGenerate", "Embed")]
    methods += [f"/headrace.vector.v1.VectorService/{name}" for name in ("Search", "UpsertRecords")]
    async with served(address, registrations, methods), handler_bench(target=address) as bench:
        yield bench, models, collections


@pytest.fixture
def bench(border) -> HandlerBench:
    border[0].tokens.clear()
    return border[0]


@pytest.fixture
def models(border) -> Models:
    border[1].__init__()
    return border[1]


@pytest.fixture
def collections(border) -> Collections:
    border[2].__init__()
    return border[2]


async def fails(run: Any, kind: type[HandlerError], reason: str) -> HandlerError:
    with pytest.raises(kind) as caught:
        await run
    assert caught.value.reason == reason, caught.value.message
    return caught.value


async def test_an_answer_streams_and_comes_with_its_usage(bench, models):
    result = await bench.run(LLM_CALL, system="Be brief.", prompt="Why?", temperature=0, seed=1, stop="END")
    assert result.output == {"text": "one two three", "finish_reason": "stop", "model": "tiny"}
    assert result.usage == Usage(prompt_tokens=7, completion_tokens=3, calls=1)
    assert "".join(bench.tokens) == "one two three"
    assert len(bench.tokens) == 4
    request = models.requests[0]
    assert [(item.role, item.content) for item in request.messages] == [("system", "Be brief."), ("user", "Why?")]
    options = request.options
    assert (options.temperature, options.max_tokens, options.seed, list(options.stop)) == (0, 512, 1, ["END"])
    assert (request.project_id, request.model) == (bench.project_id, "")


@pytest.mark.parametrize("text", ['{"answer": "42"}', '```json\n{"answer": "42"}\n```', ' \n{"answer":"42"}\n'])
async def test_an_answer_by_schema_is_parsed(bench, models, text):
    models.text = text
    result = await bench.run(LLM_CALL, prompt="?", response_schema=SCHEMA)
    assert result.output["json"] == {"answer": "42"}
    assert orjson.loads(models.requests[0].options.response_schema.utf8) == SCHEMA


@pytest.mark.parametrize(
    ("text", "reason"),
    [("It is 42.", "ANSWER_NOT_JSON"), ('{"answer": 42}', "ANSWER_SCHEMA_MISMATCH"), ("[]", "ANSWER_SCHEMA_MISMATCH")],
)
async def test_an_answer_that_breaks_the_schema_is_tried_again_only_where_the_model_samples(
    bench, models, text, reason
):
    models.text = text
    error = await fails(bench.run(LLM_CALL, prompt="?", response_schema=SCHEMA), RetryableError, reason)
    assert (error.details["text"], error.details["usage"]["completion_tokens"]) == (text, 3)
    await fails(bench.run(LLM_CALL, prompt="?", response_schema=SCHEMA, temperature=0), TerminalError, reason)


async def test_a_cut_off_answer_says_which_limit_to_raise(bench, models):
    models.finish_reason = llm_pb2.FINISH_REASON_LENGTH
    run = bench.run(LLM_CALL, prompt="?", response_schema=SCHEMA, max_tokens=9)
    assert "max_tokens=9" in (await fails(run, TerminalError, "ANSWER_CUT_OFF")).message
    assert (await bench.run(LLM_CALL, prompt="?")).output["finish_reason"] == "length"


@pytest.mark.parametrize("schema", [{"type": 5}, {"$ref": "http://127.0.0.1:1/x"}, {"pattern": "(?=a)"}])
async def test_a_schema_that_is_none_or_would_be_fetched_is_refused_before_the_model_is_asked(bench, models, schema):
    await fails(bench.run(LLM_CALL, prompt="?", response_schema=schema), TerminalError, "INVALID_RESPONSE_SCHEMA")
    assert models.requests == []


async def test_tools_are_offered_and_the_model_s_wishes_come_back(bench, models):
    models.text, models.finish_reason = "", llm_pb2.FINISH_REASON_TOOL_CALLS
    models.tool_calls = [llm_pb2.ToolCall(id="c1", name="add", arguments='{"a":1}')]
    tools = [{"type": "function", "function": {"name": "add"}}, {"name": "sub", "parameters": {"type": "object"}}]
    result = await bench.run(LLM_CALL, prompt="?", tools=tools, response_schema=SCHEMA)
    assert result.output["tool_calls"] == [{"id": "c1", "name": "add", "arguments": '{"a":1}'}]
    assert [tool.name for tool in models.requests[0].options.tools] == ["add", "sub"]


@pytest.mark.parametrize(
    ("raised", "kind", "retry_after"),
    [
        (ResourceExhaustedError("busy", reason="QUEUE_FULL", retry_after=3), RetryableError, 3),
        (UnavailableError("down", reason="MODEL_UNAVAILABLE"), RetryableError, None),
        (InternalError("bug"), RetryableError, None),
        (NotFoundError("no such model", reason="MODEL_NOT_FOUND"), TerminalError, None),
        (InvalidArgumentError("too long", reason="PROMPT_TOO_LONG"), TerminalError, None),
    ],
)
async def test_errors_of_the_model_service_become_failures_of_the_node(bench, models, raised, kind, retry_after):
    models.error = raised
    error = await fails(bench.run(LLM_CALL, prompt="?"), kind, raised.reason)
    assert isinstance(raised, DomainError)
    assert getattr(error, "retry_after", None) == retry_after


@pytest.mark.parametrize("config", [{}, {"prompt": "a", "messages": []}, {"messages": []}, {"promt": "a"}])
def test_a_call_without_one_question_is_refused(config):
    with pytest.raises(ValidationError):
        LLM_CALL.config.model_validate(config)


async def test_texts_are_embedded_in_batches(bench, models):
    result = await bench.run(EMBED, texts=["ab"] * 1500)
    assert [len(request.texts) for request in models.requests] == [1000, 500]
    assert result.output["vectors"][1499] == [2, 0.9]
    assert result.usage == Usage(prompt_tokens=1500, calls=2)
    assert (await bench.run(EMBED, texts="abc")).output == {"vectors": [[3, 0.9]]}


async def test_search_passes_query_and_filter_on(bench, collections):
    where = {"field": "lang", "op": "eq", "value": "de"}
    result = await bench.run(FAISS_SEARCH, collection="docs", query="who?", filter=where, min_score=0.5)
    assert result.output == {"results": [{"id": "r1", "score": 0.9, "text": "found", "metadata": {"lang": "de"}}]}
    request = collections.requests[0]
    assert (request.text, request.top_k, request.min_score) == ("who?", 5, 0.5)
    assert orjson.loads(request.filter.utf8) == where
    await bench.run(FAISS_SEARCH, collection="docs", vector=[1, 0.5])
    assert unpack_vectors(collections.requests[1].vector, 2) == [[1, 0.5]]
    assert not collections.requests[1].HasField("min_score")
    await fails(bench.run(FAISS_SEARCH, collection="d", vector=[1e300]), TerminalError, "INVALID_VECTOR")


async def test_records_without_id_get_the_same_one_at_every_attempt(bench, collections):
    records = [{"text": "a"}, {"id": "mine", "vector": [1, 2], "metadata": {"a": 1}}, {"text": "a"}]
    for _ in range(2):
        assert (await bench.run(VECTOR_UPSERT, effect_key="run:node", collection="docs", records=records)).output == {
            "upserted": 3
        }
    first, second = collections.requests
    assert first == second
    ids = [record.id for record in first.records]
    assert (ids[1], len(set(ids))) == ("mine", 3)
    await bench.run(VECTOR_UPSERT, effect_key="other", collection="docs", records=records[0])
    assert collections.requests[2].records[0].id not in ids


async def test_noop_returns_its_value(bench):
    assert (await bench.run(NOOP, value={"a": [1]}, seconds=0.001)).output == {"a": [1]}


def test_the_catalogue_publishes_clean_schemas():
    types = catalogue()
    assert {"llm_call", "http_request", "faiss_search", "db_write", "db_query", "embed", "vector_upsert", "transform",
            "condition", "switch", "delay", "output", "noop", "map", "loop"} <= types.keys()  # fmt: skip
    for name, node_type in types.items():
        assert (node_type.name, node_type.inline) == (name, node_type.category == "logic")
        schema = config_schema(node_type)
        jsonschema_rs.meta.validate(schema)
        jsonschema_rs.meta.validate(output_schema(node_type))
        assert schema["additionalProperties"] is False
        assert '"null"' not in orjson.dumps(schema).decode()
        for field, described in schema["properties"].items():
            assert described.keys() >= {"title", "description"}, (name, field)
        names = {re.split(r"[\[:]", part)[0] for part in node_type.expression_fields} | {
            node_type.dynamic_ports_field
        } - {""}
        assert names <= schema["properties"].keys()


def test_schema_and_model_agree_on_what_is_right():
    for name, config, right in (
        ("llm_call", {"prompt": "a"}, True),
        ("llm_call", {}, False),
        ("http_request", {"url": "http://example.com", "method": "GET"}, True),
        ("http_request", {"url": "http://example.com", "retries": 3}, False),
        ("db_write", {"table": "t", "rows": {"a": 1}}, True),
        ("db_write", {"table": "t", "rows": [{"a": 1}], "operation": "drop"}, False),
        ("faiss_search", {"collection": "c", "query": "q", "top_k": 0}, False),
        ("switch", {"cases": [{"port": "a", "when": "true"}]}, True),
        ("switch", {"cases": []}, False),
        ("delay", {}, False),
        ("delay", {"seconds": 1}, True),
    ):
        node_type = catalogue()[name]
        assert jsonschema_rs.is_valid(config_schema(node_type), config) is right, (name, config)
        if right:
            node_type.config.model_validate(config)
        else:
            with pytest.raises(ValidationError):
                node_type.config.model_validate(config)
