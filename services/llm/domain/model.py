"""The nouns of the model service: conversations, answers, vectors."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call that a model asks for. `arguments` is JSON text as the model wrote it; it may be invalid."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for. `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. None = the server's own default, except max_tokens, which the service always sets."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What to write an answer to. `response_schema` is a JSON Schema that the answer must fulfil."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    response_schema: dict[str, Any] | None = None
    json_object: bool = False
    tools: tuple[Tool, ...] = ()

    def size_bytes(self) -> int:
        """Least size of the prompt in UTF-8: the texts, without what a chat template adds."""
        return sum(
            len(message.content.encode()) + sum(len(call.arguments.encode()) for call in message.tool_calls)
            for message in self.messages
        )


class FinishReason(StrEnum):
    """Why writing ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in whatever currency the operator counts."""

    input: float = 0.0
    output: float = 0.0

    def of(self, usage: Usage) -> float:
        """What was spent."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended. `usage` is None only inside a backend whose server told nothing."""

    finish_reason: FinishReason
    usage: Usage | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to append. `ending` is set on the last piece and on no other. `tokens` written in it, about."""

    delta: str = ""
    ending: Ending | None = None
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings. `data`: float32, little-endian, row after row: texts x dimension."""

    data: bytes
    dimension: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A configured model as callers see it. Zero for `dimension` or `context_length` = not known."""

    name: str
    backend: str
    generates: bool
    embeds: bool
    dimension: int
    context_length: int
    available: bool
    is_default: bool
