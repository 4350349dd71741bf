"""OpenAI's shapes from and to the llm service's messages."""

import base64
from typing import Any

from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2, llm_service_pb2

from services.gateway.convert.collections import vector_from_proto
from services.gateway.convert.common import json_to_proto
from services.gateway.schemas.models import ChatInput, ChatMessage, Tool
from services.kit.errors import InvalidArgumentError, Violation

_FINISH_REASONS = {
    llm_pb2.FINISH_REASON_STOP: "stop",
    llm_pb2.FINISH_REASON_LENGTH: "length",
    llm_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    llm_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
# OpenAI's newer models call it developer; all others know it as system.
_ROLES = {"developer": "system"}


def chat_to_proto(body: ChatInput, project_id: str) -> llm_service_pb2.GenerateRequest:
    """A conversation with its options."""
    options = llm_pb2.GenerationOptions(
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or (),
        seed=body.seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        tools=[_tool_to_proto(tool) for tool in body.tools or ()] if body.tool_choice != "none" else (),
    )
    if body.response_format is not None:
        if body.response_format.type == "json_object":
            options.json_object = True
        elif body.response_format.type == "json_schema":
            if body.response_format.json_schema is None:
                raise _missing("response_format.json_schema")
            options.response_schema.CopyFrom(json_to_proto(body.response_format.json_schema.schema_))
    return llm_service_pb2.GenerateRequest(
        project_id=project_id,
        model=body.model,
        messages=[_message_to_proto(message) for message in body.messages],
        options=options,
    )


def model_to_json(model: llm_pb2.Model) -> dict[str, Any]:
    """A model."""
    capabilities = [name for name, can in (("chat", model.generates), ("embeddings", model.embeds)) if can]
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "headrace",
        "capabilities": capabilities,
        "context_length": model.context_length or None,
        "dimension": model.dimension or None,
        "available": model.available,
    }


def completion_to_json(reply: llm_service_pb2.GenerateResponse, *, answer_id: str, created: int) -> dict[str, Any]:
    """A whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None if reply.tool_calls else reply.text}
    if reply.tool_calls:
        message["tool_calls"] = [_tool_call_to_json(call) for call in reply.tool_calls]
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": created,
        "model": reply.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": _FINISH_REASONS.get(reply.finish_reason, "stop"),
                "logprobs": None,
            }
        ],
        "usage": chat_usage_to_json(reply.usage),
    }


def delta_to_json(piece: llm_service_pb2.StreamGenerateResponse, *, is_first: bool) -> dict[str, Any]:
    """The choice of one chunk."""
    delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
    if piece.delta or is_first:
        delta["content"] = piece.delta
    if piece.tool_calls:
        delta["tool_calls"] = [
            {"index": index, **_tool_call_to_json(call)} for index, call in enumerate(piece.tool_calls)
        ]
    return {"index": 0, "delta": delta, "finish_reason": _FINISH_REASONS.get(piece.finish_reason), "logprobs": None}


def chat_usage_to_json(usage: value_pb2.Usage) -> dict[str, int]:
    """Tokens used."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def embeddings_to_json(reply: llm_service_pb2.EmbedResponse, *, as_base64: bool) -> dict[str, Any]:
    """Vectors in the order of the texts."""
    width = reply.dimension * 4
    rows = [reply.vectors[start : start + width] for start in range(0, len(reply.vectors), width)] if width else []
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row).decode() if as_base64 else vector_from_proto(row),
            }
            for index, row in enumerate(rows)
        ],
        "model": reply.model,
        "usage": {"prompt_tokens": reply.usage.prompt_tokens, "total_tokens": reply.usage.prompt_tokens},
    }


def _message_to_proto(message: ChatMessage) -> llm_pb2.Message:
    content = message.content
    return llm_pb2.Message(
        role=_ROLES.get(message.role, message.role),
        content=content if isinstance(content, str) else "".join(part.text for part in content or ()),
        tool_calls=[
            llm_pb2.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ],
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
    )


def _tool_to_proto(tool: Tool) -> llm_pb2.Tool:
    function = tool.function
    parameters = json_to_proto(function.parameters) if function.parameters is not None else None
    return llm_pb2.Tool(name=function.name, description=function.description or "", parameters=parameters)


def _tool_call_to_json(call: llm_pb2.ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _missing(path: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path} is missing.", violations=(Violation("MISSING", "is missing", path),))
