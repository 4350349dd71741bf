"""All node types: the literal table of ours, and those of installed packages (entry points `headrace.node_types`)."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

import structlog
from pydantic import BaseModel

from services.executor.handlers.base import NodeType
from services.executor.handlers.container_types import LOOP, MAP, SUB_WORKFLOW
from services.executor.handlers.db_query import DB_QUERY
from services.executor.handlers.db_write import DB_WRITE
from services.executor.handlers.embed import EMBED
from services.executor.handlers.faiss_search import FAISS_SEARCH
from services.executor.handlers.http_request import HTTP_REQUEST
from services.executor.handlers.inline_types import CONDITION, DELAY, OUTPUT, SWITCH, TRANSFORM
from services.executor.handlers.llm_call import LLM_CALL
from services.executor.handlers.noop import NOOP
from services.executor.handlers.vector_upsert import VECTOR_UPSERT
from services.executor.handlers.waiting_types import APPROVAL, WAIT_FOR_EVENT
from services.executor.queues import is_alone

log = structlog.get_logger(__name__)

ENTRY_POINT_GROUP = "headrace.node_types"

NODE_TYPES: Mapping[str, NodeType] = {
    "approval": APPROVAL,
    "condition": CONDITION,
    "db_query": DB_QUERY,
    "db_write": DB_WRITE,
    "delay": DELAY,
    "embed": EMBED,
    "faiss_search": FAISS_SEARCH,
    "http_request": HTTP_REQUEST,
    "llm_call": LLM_CALL,
    "loop": LOOP,
    "map": MAP,
    "noop": NOOP,
    "output": OUTPUT,
    "sub_workflow": SUB_WORKFLOW,
    "switch": SWITCH,
    "transform": TRANSFORM,
    "vector_upsert": VECTOR_UPSERT,
    "wait_for_event": WAIT_FOR_EVENT,
}


@cache
def catalogue() -> Mapping[str, NodeType]:
    """All node types by name, ours first. An entry point that cannot be used is logged and left out."""
    found = dict(NODE_TYPES)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            node_type = entry.load()
        except Exception as error:  # noqa: BLE001 - a broken package must not take all others down
            log.error("node_type_not_loaded", entry_point=entry.value, error=repr(error))
            continue
        if not isinstance(node_type, NodeType) or node_type.inline or node_type.name in found:
            log.error("node_type_not_usable", entry_point=entry.value, hint="a NodeType with a handler and a new name")
            continue
        if is_alone(node_type.queue):
            log.error("node_type_not_usable", entry_point=entry.value, hint="a queue whose name has another ending")
            continue
        found[node_type.name] = node_type
    return MappingProxyType(found)


def config_schema(node_type: NodeType) -> dict[str, Any]:
    """JSON Schema of a config, for the editor and for validation."""
    return _schema(node_type.config) | {"title": node_type.title, "description": node_type.help}


def output_schema(node_type: NodeType) -> dict[str, Any]:
    """JSON Schema of an output."""
    if isinstance(node_type.output, Mapping):
        return dict(node_type.output)
    return _schema(node_type.output) | {"title": f"Output of {node_type.title}"}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = _without_null(model.model_json_schema(by_alias=True))
    return schema  # type: ignore[no-any-return]  # an object stays an object


def _without_null(value: Any) -> Any:
    """An optional field is absent or has a value; its null would only be a second way to say absent."""
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    if not isinstance(value, dict):
        return value
    cleaned = {key: _without_null(item) for key, item in value.items() if not (key == "default" and item is None)}
    choices = cleaned.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        choices = [item for item in choices if item != {"type": "null"}]
        del cleaned["anyOf"]
        cleaned = cleaned | (choices[0] if len(choices) == 1 else {"anyOf": choices})
    return cleaned
