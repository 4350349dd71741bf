"""REST and proto say the same."""

from __future__ import annotations

import orjson
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from headrace.workflows.v1 import definition_pb2, workflow_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.convert.collections import vector_from_proto, vector_to_proto
from services.gateway.convert.common import seconds_to_json, seconds_to_proto, time_to_json
from services.gateway.convert.definitions import definition_to_json, definition_to_proto
from services.gateway.schemas.workflows import EXAMPLE_DEFINITION, DefinitionInput

NODE = {
    "id": "5bf8415b-db6d-42f8-b003-a921db43a1f7",
    "key": "a",
    "type": "llm_call",
    "name": "A",
    "config": {"prompt": "{{ input.q }}", "n": 9007199254740993, "one": 1, "float": 1.0},
    "retry": {
        "max_attempts": 5,
        "initial_interval": 0.25,
        "backoff": 1.5,
        "max_interval": 10,
        "jitter": False,
        "when": "attempt < 3",
    },
    "timeout_seconds": 2.5,
    "on_error": "continue",
    "join": "any",
    "position": {"x": -1.5, "y": 2.0},
}
BARE = {"key": "b", "type": "output"}
DEFAULTS = {
    "id": "",
    "name": "",
    "config": {},
    "retry": None,
    "timeout_seconds": None,
    "on_error": "fail",
    "join": "all",
    "position": None,
}


def there_and_back(definition: dict[str, object]) -> object:
    message = definition_to_proto(DefinitionInput.model_validate(definition))
    assert definition_pb2.Definition.FromString(message.SerializeToString()) == message
    return orjson.loads(orjson.dumps(definition_to_json(message)))


def test_a_definition_survives_the_way_there_and_back():
    edge = {"id": "e", "source": "a", "target": "b", "source_port": "error", "target_port": "in"}
    limits = {"max_running_runs": 3, "concurrency": {"key": "input.customer", "max": 1}}
    given_one = {"nodes": [NODE, BARE], "edges": [edge], "timeout_seconds": 3600, "limits": limits}
    expected = given_one | {"nodes": [NODE, DEFAULTS | BARE]}
    assert there_and_back(given_one) == expected


def test_what_is_left_out_of_a_retry_has_the_defaults_of_the_documentation():
    back = there_and_back({"nodes": [BARE | {"retry": {}}]})
    assert back["nodes"][0]["retry"] == {
        "max_attempts": 3,
        "initial_interval": 0.5,
        "backoff": 2.0,
        "max_interval": 30,
        "jitter": True,
        "when": "",
    }


def test_the_example_is_a_definition():
    back = there_and_back(EXAMPLE_DEFINITION)
    assert [node["key"] for node in back["nodes"]] == ["search", "answer"]
    assert back["edges"][0] | {"id": ""} == {
        "id": "",
        "source": "search",
        "target": "answer",
        "source_port": "out",
        "target_port": "in",
    }


@given(st.integers(min_value=-62_135_596_800, max_value=253_402_300_799), st.integers(0, 999_999_999))
def test_times_are_those_of_protobuf_to_the_microsecond(seconds, nanos):
    workflow = workflow_pb2.Workflow(created_at=Timestamp(seconds=seconds, nanos=nanos))
    text = time_to_json(workflow, "created_at")
    back = Timestamp()
    back.FromJsonString(text)
    assert (back.seconds, back.nanos) == (seconds, nanos // 1000 * 1000)


@given(st.floats(min_value=0, max_value=315_576_000))
def test_seconds_are_kept_to_the_nanosecond(seconds):
    definition = definition_pb2.Definition(timeout=seconds_to_proto(seconds))
    assert seconds_to_json(definition, "timeout") == pytest.approx(seconds, abs=1e-9, rel=1e-12)


def test_whole_seconds_are_whole_numbers():
    back = seconds_to_json(definition_pb2.Definition(timeout=Duration(seconds=60)), "timeout")
    assert orjson.dumps(back) == b"60"


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=8))
def test_vectors_are_float32_little_endian(numbers):
    packed = vector_to_proto(numbers)
    assert len(packed) == 4 * len(numbers)
    assert vector_from_proto(packed) == numbers
    assert vector_to_proto([1.0]) == b"\x00\x00\x80?"
