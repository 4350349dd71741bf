"""`llm_call`: asks a language model, streaming its answer."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from headrace.common.v1 import value_pb2
from headrace.llm.v1 import llm_pb2, llm_service_pb2
from pydantic import ConfigDict, Field, model_validator

from services.executor.handlers.base import (
    ConfigModel,
    Context,
    HandlerError,
    NodeType,
    Result,
    RetryableError,
    TerminalError,
    Usage,
)
from services.executor.handlers.clients import Services
from services.executor.handlers.lists import one_or_more
from services.kit import strict_json
from services.kit.errors import InvalidArgumentError

if TYPE_CHECKING:
    import jsonschema_rs

_FINISH_REASONS = {
    llm_pb2.FINISH_REASON_STOP: "stop",
    llm_pb2.FINISH_REASON_LENGTH: "length",
    llm_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    llm_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
_MAX_ANSWER_BYTES = 1024 * 1024
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL)


class ToolConfig(ConfigModel):
    """A function that the model may ask for. The form of the OpenAI API is taken too."""

    name: str = Field(title="Name", description="What the model calls it.")
    description: str = Field("", title="Description", description="What it does, for the model.")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        title="Parameters",
        description="JSON Schema of its arguments.",
    )

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
            return value["function"]
        return value


class ToolCallConfig(ConfigModel):
    """A function call that the model asked for."""

    id: str = Field(title="Id")
    name: str = Field(title="Name")
    arguments: str = Field("", title="Arguments", description="JSON text.")


class MessageConfig(ConfigModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(title="Role")
    content: str = Field("", title="Content", description="Text of the turn.")
    name: str = Field("", title="Name", description="Name of the speaker or tool.")
    tool_calls: list[ToolCallConfig] = Field(default_factory=list, title="Tool calls")
    tool_call_id: str = Field("", title="Tool call", description="For role `tool`: the call that this answers.")


class LlmCallConfig(ConfigModel):
    """What to ask, which model, and how it samples."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    model: str = Field("", title="Model", description="Name of a configured model. Empty = the default model.")
    system: str | None = Field(None, title="System prompt", description="What the model is told before all else.")
    prompt: str | None = Field(None, title="Prompt", description="The question. Instead of `messages`.")
    messages: list[MessageConfig] | None = Field(
        None, title="Messages", description="A whole conversation. Instead of `prompt`."
    )
    temperature: float = Field(0.7, ge=0, le=2, title="Temperature", description="0 = always the likeliest word.")
    max_tokens: int = Field(512, ge=1, title="Longest answer", description="Most tokens that the model may write.")
    stop: Annotated[list[str], one_or_more(str)] = Field(
        default_factory=list, max_length=8, title="Stop", description="Texts at which the model stops writing."
    )
    seed: int | None = Field(None, title="Seed", description="Same seed, same answer, where the backend can.")
    response_schema: dict[str, Any] | None = Field(
        None, title="Answer schema", description="JSON Schema of the answer, which is then in `json`."
    )
    tools: list[ToolConfig] = Field(
        default_factory=list, title="Tools", description="Functions offered to the model; its wishes are in the output."
    )

    @model_validator(mode="after")
    def _one_question(self) -> "LlmCallConfig":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give `prompt` or `messages`, and not both")
        if self.messages is not None and not self.messages:
            raise ValueError("`messages` needs at least one message")
        return self


class LlmCallOutput(ConfigModel):
    """The answer."""

    text: str = Field(title="Text", description="What the model wrote.")
    json_: Any = Field(None, alias="json", title="JSON", description="The answer parsed, with `response_schema`.")
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] = Field(
        title="Why it ended", description="`length` = cut off by `max_tokens`."
    )
    model: str = Field(title="Model", description="The model that answered.")
    tool_calls: list[ToolCallConfig] | None = Field(
        None, title="Tool calls", description="Functions that the model asks for."
    )


async def llm_call(context: Context, config: LlmCallConfig) -> Result:
    """Ask the model; pieces of its answer go to whoever watches."""
    services: Services = context.services
    validator = _validator(config.response_schema)
    pieces: list[str] = []
    last = llm_service_pb2.StreamGenerateResponse()
    model = ""
    async for message in services.stream(context, services.llm.StreamGenerate, _request(context, config)):
        if message.delta:
            pieces.append(message.delta)
            context.emit_token(message.delta)
        model = message.model or model
        last = message
    if last.finish_reason == llm_pb2.FINISH_REASON_UNSPECIFIED:
        raise RetryableError("ANSWER_CUT_OFF", "The language model service ended its answer early. Try again.")
    text = "".join(pieces).replace("\x00", "")
    usage = Usage(last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.calls or 1)
    finish_reason = _FINISH_REASONS.get(last.finish_reason, "stop")
    output: dict[str, Any] = {"text": text, "finish_reason": finish_reason, "model": model}
    if last.tool_calls:
        output["tool_calls"] = [
            {"id": call.id, "name": call.name, "arguments": call.arguments} for call in last.tool_calls
        ]
    elif validator is not None:
        output["json"] = _fulfilled(validator, text, finish_reason, config, usage)
    return Result(output, usage=usage)


def _request(context: Context, config: LlmCallConfig) -> llm_service_pb2.StreamGenerateRequest:
    messages = [] if config.system is None else [llm_pb2.Message(role="system", content=config.system)]
    if config.prompt is not None:
        messages.append(llm_pb2.Message(role="user", content=config.prompt))
    for item in config.messages or ():
        calls = [llm_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in item.tool_calls]
        messages.append(
            llm_pb2.Message(
                role=item.role,
                content=item.content,
                name=item.name,
                tool_calls=calls,
                tool_call_id=item.tool_call_id,
            )
        )
    options = llm_pb2.GenerationOptions(
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        stop=config.stop,
        seed=config.seed,
        tools=[
            llm_pb2.Tool(name=tool.name, description=tool.description, parameters=_json(tool.parameters))
            for tool in config.tools
        ],
    )
    if config.response_schema is not None:
        options.response_schema.CopyFrom(_json(config.response_schema))
    return llm_service_pb2.StreamGenerateRequest(
        project_id=context.project_id, model=config.model, messages=messages, options=options
    )


def _json(value: Any) -> value_pb2.Json:
    return value_pb2.Json(utf8=orjson.dumps(value))


def _validator(schema: dict[str, Any] | None) -> "jsonschema_rs.Validator | None":
    """Compile a schema. Fetches nothing, and its patterns take linear time."""
    if schema is None:
        return None
    import jsonschema_rs  # noqa: PLC0415 - most workers never need it

    try:
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except ValueError as error:
        raise TerminalError(
            "INVALID_RESPONSE_SCHEMA", f"`response_schema` is not a JSON Schema: {str(error).splitlines()[0]}"
        ) from error


def _fulfilled(
    validator: "jsonschema_rs.Validator", text: str, finish_reason: str, config: LlmCallConfig, usage: Usage
) -> Any:
    """The answer parsed and checked. Raises HandlerError; what the attempt consumed is in its details."""
    details = {
        "text": text[:1000],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "calls": usage.calls,
        },
    }
    if finish_reason == "length":
        raise TerminalError(
            "ANSWER_CUT_OFF",
            f"The model's answer was cut off after max_tokens={config.max_tokens}, so its JSON is not complete. "
            "Raise `max_tokens` or ask for less.",
            details=details,
        )
    fenced = _FENCED.fullmatch(text)
    try:
        value = strict_json.loads(fenced[1] if fenced else text, max_bytes=_MAX_ANSWER_BYTES)
    except InvalidArgumentError as error:
        raise _unfit(
            config,
            "ANSWER_NOT_JSON",
            f"The model's answer is not the JSON that was asked for: {error.message}",
            details,
        ) from error
    wrong = next(iter(validator.iter_errors(value)), None)
    if wrong is not None:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong.instance_path)
        raise _unfit(
            config,
            "ANSWER_SCHEMA_MISMATCH",
            f"The model's answer does not fulfil `response_schema` at ${place}: {wrong.message[:300]}.",
            details,
        )
    return value


def _unfit(config: LlmCallConfig, reason: str, message: str, details: dict[str, Any]) -> HandlerError:
    """Another try may do better where the model samples; without sampling it would write the same again."""
    advice = " Describe the JSON in the prompt, or use a larger model."
    if config.temperature == 0:
        return TerminalError(reason, message + advice, details=details)
    return RetryableError(reason, message + advice, details=details)


LLM_CALL = NodeType(
    name="llm_call",
    title="Language model",
    help="Asks a language model and streams its answer.",
    icon="sparkles",
    category="ai",
    config=LlmCallConfig,
    output=LlmCallOutput,
    handler=llm_call,
    default_timeout_seconds=300.0,
    effect="read",
)
