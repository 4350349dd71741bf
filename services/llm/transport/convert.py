"""Messages of the contract to the domain's nouns and back; what the contract forbids is refused here."""

from collections.abc import Iterable
from typing import Any

from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2 as pb

from services.kit import strict_json
from services.kit.errors import InvalidArgumentError, Violation
from services.llm.domain.model import (
    Ending,
    FinishReason,
    Generation,
    Message,
    ModelInfo,
    Sampling,
    Tool,
    ToolCall,
    Usage,
)

MAX_TEXTS = 1000
_MAX_MESSAGES = 10_000
_MAX_STOPS = 8
_MAX_TOOLS = 128
_MAX_SCHEMA_BYTES = 128 * 1024
_ROLES = ("system", "user", "assistant", "tool")
_FINISH = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: pb.FINISH_REASON_CONTENT_FILTER,
}


def generation_from_proto(messages: Iterable[pb.Message], options: pb.GenerationOptions) -> Generation:
    """A conversation with its options. Raises InvalidArgumentError with all that is wrong."""
    found: list[Violation] = []
    converted = messages_from_proto(messages, found)
    sampling = _sampling_from_proto(options, found)
    schema = _schema_from_proto(options.response_schema, "options.response_schema", found)
    if len(options.tools) > _MAX_TOOLS:
        found.append(Violation("TOO_MANY", f"At most {_MAX_TOOLS} tools.", "options.tools"))
    tools = tuple(
        Tool(
            tool.name,
            tool.description,
            _schema_from_proto(tool.parameters, f"options.tools[{index}].parameters", found) or {"type": "object"},
        )
        for index, tool in enumerate(options.tools)
    )
    _refuse(found)
    return Generation(converted, sampling, schema, options.json_object, tools)


def messages_from_proto(messages: Iterable[pb.Message], found: list[Violation]) -> tuple[Message, ...]:
    """The turns of a conversation; what is wrong with them is added to `found`."""
    converted = tuple(_message_from_proto(message) for message in messages)
    if not 1 <= len(converted) <= _MAX_MESSAGES:
        found.append(Violation("OUT_OF_RANGE", f"1 to {_MAX_MESSAGES} messages are needed.", "messages"))
    for index, message in enumerate(converted):
        if message.role not in _ROLES:
            found.append(Violation("UNKNOWN_ROLE", f"A role is one of {', '.join(_ROLES)}.", f"messages[{index}].role"))
    return converted


def content_from_proto(messages: Iterable[pb.Message], text: str) -> str | tuple[Message, ...]:
    """What to count: messages or else text. Raises InvalidArgumentError when both are given."""
    given = list(messages)
    found: list[Violation] = []
    if given and text:
        found.append(Violation("EXCLUSIVE", "Give messages or text, not both.", "text"))
    content = messages_from_proto(given, found) if given else text
    _refuse(found)
    return content


def texts_from_proto(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts to embed. Raises InvalidArgumentError unless there are 1 to 1,000."""
    converted = tuple(texts)
    if not 1 <= len(converted) <= MAX_TEXTS:
        _refuse([Violation("OUT_OF_RANGE", f"1 to {MAX_TEXTS} texts can be embedded in one call.", "texts")])
    return converted


def finish_to_proto(reason: FinishReason) -> pb.FinishReason.ValueType:
    """Why writing ended."""
    return _FINISH[reason]


def usage_to_proto(usage: Usage) -> value_pb2.Usage:
    """Usage of one call."""
    return value_pb2.Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, calls=1)


def tool_calls_to_proto(ending: Ending) -> list[pb.ToolCall]:
    """The tools that the model asks for."""
    return [pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in ending.tool_calls]


def model_to_proto(info: ModelInfo) -> pb.Model:
    """A model of the list."""
    return pb.Model(
        name=info.name,
        backend=info.backend,
        generates=info.generates,
        embeds=info.embeds,
        dimension=info.dimension,
        context_length=info.context_length,
        available=info.available,
        is_default=info.is_default,
    )


def _message_from_proto(message: pb.Message) -> Message:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls)
    return Message(message.role, message.content, calls, message.tool_call_id, message.name)


def _sampling_from_proto(options: pb.GenerationOptions, found: list[Violation]) -> Sampling:
    def within(name: str, low: float, high: float) -> Any:
        if not options.HasField(name):  # type: ignore[arg-type]  # the names below are all optional fields
            return None
        value = getattr(options, name)
        if not low <= value <= high:  # NaN fails too
            found.append(Violation("OUT_OF_RANGE", f"{name} must be from {low} to {high}.", f"options.{name}"))
        return value

    if len(options.stop) > _MAX_STOPS:
        found.append(Violation("TOO_MANY", f"At most {_MAX_STOPS} stop texts.", "options.stop"))
    if any(not text for text in options.stop):
        found.append(Violation("EMPTY", "A stop text must not be empty.", "options.stop"))
    return Sampling(
        temperature=within("temperature", 0, 2),
        top_p=within("top_p", 1e-6, 1),
        max_tokens=within("max_tokens", 1, 2**31 - 1),
        stop=tuple(options.stop),
        seed=options.seed if options.HasField("seed") else None,
        frequency_penalty=within("frequency_penalty", -2, 2),
        presence_penalty=within("presence_penalty", -2, 2),
    )


def _schema_from_proto(json: value_pb2.Json, path: str, found: list[Violation]) -> dict[str, Any] | None:
    if not json.utf8:
        return None
    try:
        value = strict_json.loads(json.utf8, max_bytes=_MAX_SCHEMA_BYTES)
    except InvalidArgumentError as error:
        found.extend(Violation(item.code, item.message, path) for item in error.violations)
        return None
    if not isinstance(value, dict):
        found.append(Violation("NOT_A_SCHEMA", "A JSON Schema is an object here.", path))
        return None
    return value


def _refuse(found: list[Violation]) -> None:
    if found:
        raise InvalidArgumentError(" ".join(item.message for item in found), violations=tuple(found))
