"""The OpenAI protocol on the wire: requests as JSON, answers from server-sent events, errors by their meaning."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from services.kit.errors import DomainError
from services.llm.domain.errors import (
    ModelMisconfiguredError,
    ModelRateLimitedError,
    ModelRefusedError,
    ModelUnavailableError,
    PromptTooLongError,
)
from services.llm.domain.model import Ending, FinishReason, Generation, Message, Piece, ToolCall, Usage

_MAX_LINE_BYTES = 8 * 1024 * 1024
_MAX_TOOL_CALLS = 128
_SHOWN = 300
"""Characters of a server's message that a caller sees."""
_FINISH = {
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
# llama.cpp: "exceeds the available context size"; vLLM, OpenAI: "maximum context length is"; TGI: "`inputs` tokens +
# `max_new_tokens` must be <="; SGLang: "is longer than the model's context length".
_TOO_LONG = re.compile(
    r"context (size|length|window)|too long|inputs. must have less than|max_new_tokens. must be", re.I
)


def message_json(message: Message) -> dict[str, Any]:
    """A message as the protocol has it."""
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        body["name"] = message.name
    if message.tool_call_id:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return body


def tools_json(generation: Generation) -> list[dict[str, Any]]:
    """The offered tools as the protocol has them."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in generation.tools
    ]


def chat_json(generation: Generation, *, model: str, max_tokens_field: str = "max_tokens") -> dict[str, Any]:
    """The body of `POST /chat/completions`, streaming with usage."""
    sampling = generation.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [message_json(message) for message in generation.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        max_tokens_field: sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "tools": tools_json(generation) or None,
    }
    if generation.response_schema is not None:
        schema = {"name": "answer", "strict": True, "schema": generation.response_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif generation.json_object:
        body["response_format"] = {"type": "json_object"}
    return {key: value for key, value in body.items() if value is not None}


def finish_reason(word: str) -> FinishReason:
    """The protocol's word, or TGI's, as ours; words that we do not know mean that the model stopped."""
    return _FINISH.get(word, FinishReason.STOP)


class ChatStream:
    """Reads the events of one answer. Feed it bytes as they come; what arrives together becomes one piece."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._rest = b""
        self._finish: FinishReason | None = None
        self._usage: Usage | None = None
        self._calls: dict[int, list[str]] = {}
        self.is_done = False
        """The server said so."""

    def feed(self, data: bytes) -> Piece | None:
        """The text in these bytes, if any. Raises a DomainError: an error event, or not the protocol."""
        texts: list[str] = []
        for event in self._events(data):
            error = event.get("error")
            if error is not None:
                raise error_event(self._model, error)
            self._take(event, texts)
        return Piece("".join(texts), tokens=len(texts)) if texts else None

    def ending(self) -> Ending | None:
        """How the answer ended; None when it broke off."""
        if self._finish is None:
            return None
        calls = tuple(ToolCall(*parts) for _, parts in sorted(self._calls.items()))
        return Ending(self._finish, self._usage, calls)

    def take_whole(self, body: bytes) -> Piece:
        """The text of an answer that came in one body although a stream was asked for."""
        texts: list[str] = []
        event = self._parse(body)
        if event.get("error") is not None:
            raise error_event(self._model, event["error"])
        for choice in event.get("choices") or ():
            if isinstance(choice, dict):
                choice["delta"] = choice.get("message") or {}
        self._take(event, texts)
        return Piece("".join(texts))

    def _events(self, data: bytes) -> Iterator[dict[str, Any]]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_LINE_BYTES:
            raise self._broken("an event without end")
        for line in lines:
            field, _, content = line.partition(b":")
            content = content.strip()
            if field not in (b"data", b"error") or not content:
                continue  # A comment or a field that the protocol does not use.
            if content == b"[DONE]":
                self.is_done = True
                return
            event = self._parse(content)
            yield {"error": event} if field == b"error" else event

    def _parse(self, content: bytes) -> dict[str, Any]:
        try:
            event = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise self._broken("malformed JSON") from error
        if not isinstance(event, dict):
            raise self._broken("JSON that is not an object")
        return event

    def _take(self, event: dict[str, Any], texts: list[str]) -> None:
        try:
            usage = event.get("usage")
            if usage:
                self._usage = Usage(int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0))
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                text = delta.get("content")
                if text:
                    texts.append(str(text))
                for call in delta.get("tool_calls") or ():
                    self._take_call(call)
                if choice.get("finish_reason"):
                    self._finish = finish_reason(choice["finish_reason"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._broken("fields of another type") from error

    def _take_call(self, call: dict[str, Any]) -> None:
        # Parts of one call share an index; its id and name come with the first.
        parts = self._calls.setdefault(int(call.get("index") or 0), ["", "", ""])
        if len(self._calls) > _MAX_TOOL_CALLS:
            raise self._broken("too many tool calls")
        function = call.get("function") or {}
        parts[0] = parts[0] or str(call.get("id") or "")
        parts[1] = parts[1] or str(function.get("name") or "")
        parts[2] += str(function.get("arguments") or "")

    def _broken(self, what: str) -> ModelUnavailableError:
        return ModelUnavailableError(self._model, f"its server does not speak the OpenAI protocol: it sent {what}.")


def error_event(model: str, error: object) -> DomainError:
    """The meaning of an error that came in the middle of a stream."""
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return error_from_answer(model, status, {}, orjson.dumps({"error": error}, default=str))


def error_from_answer(model: str, status: int, headers: Mapping[str, str], body: bytes) -> DomainError:
    """The meaning of an answer that is not 200. Keys and prompts stay out of the message."""
    kind, message = _described(body)
    if status in (401, 403):
        # The server's message may repeat a part of the key.
        return ModelMisconfiguredError(
            model, f"its server refuses the API key (HTTP {status}). Set `api_key` in HEADRACE_LLM_MODELS."
        )
    if status in (404, 405) or 300 <= status < 400:
        return ModelMisconfiguredError(
            model,
            f"its server knows no such address or model (HTTP {status}). Check `base_url` and `model` in "
            f"HEADRACE_LLM_MODELS. It said: {message}",
        )
    if status == 429:
        return ModelRateLimitedError(model, retry_after=_retry_after(headers))
    if status == 413 or (status < 500 and (kind in _TOO_LONG_KINDS or _TOO_LONG.search(message))):
        return PromptTooLongError(model, message)
    if status in (400, 409, 422):
        return ModelRefusedError(model, message)
    return ModelUnavailableError(
        model, f"its server failed (HTTP {status}): {message}", retry_after=_retry_after(headers)
    )


_TOO_LONG_KINDS = ("exceed_context_size_error", "context_length_exceeded")


def _described(body: bytes) -> tuple[str, str]:
    """Type and message of an error body, in any of the forms that servers use."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", body[:_SHOWN].decode(errors="replace") or "nothing"
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return "", str(error)[:_SHOWN]
    message = error.get("message") or error.get("detail") or error.get("error") or "nothing"
    kinds = [kind for kind in (error.get("code"), error.get("type"), error.get("error_type")) if isinstance(kind, str)]
    kind = next((kind for kind in kinds if kind in _TOO_LONG_KINDS), kinds[0] if kinds else "")
    return kind, str(message)[:_SHOWN]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds by `Retry-After` (RFC 9110 §10.2.3, its seconds form); 1 when absent or a date."""
    text = headers.get("retry-after", "")
    return float(min(int(text), 3600)) if text.isascii() and text.isdigit() else 1.0
