"""Bodies of the OpenAI-compatible endpoints.

Fields that OpenAI knows and Headrace has no use for (`user`, `store`, `metadata`, …) are accepted and ignored, as
OpenAI's clients send them freely; those that would change the answer are refused unless they ask for the default.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.gateway.schemas.common import INT32_MAX, INT64_MAX, JsonObject, Output

Text = Annotated[str, Field(max_length=2_000_000)]


class OpenAIInput(BaseModel):
    """A request's body as OpenAI defines it: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(OpenAIInput):
    """A piece of a message. Only text is understood."""

    type: Literal["text"]
    text: Text


class FunctionCall(OpenAIInput):
    """What the assistant asked a tool."""

    name: str = Field(max_length=256)
    arguments: Text = ""


class ToolCallInput(OpenAIInput):
    """A call that the assistant asked for."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(OpenAIInput):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: list[ToolCallInput] | None = Field(None, max_length=128)
    tool_call_id: str | None = Field(None, max_length=256)


class Function(OpenAIInput):
    """A function that the model may ask for."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = Field(None, max_length=16_384)
    parameters: JsonObject | None = None


class Tool(OpenAIInput):
    """A tool that the model may ask for."""

    type: Literal["function"]
    function: Function


class JsonSchemaFormat(OpenAIInput):
    """A named JSON Schema."""

    name: str | None = Field(None, max_length=256)
    schema_: JsonObject = Field(alias="schema")


class ResponseFormat(OpenAIInput):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StreamOptions(OpenAIInput):
    """How to stream."""

    include_usage: bool | None = None


class ChatInput(OpenAIInput):
    """A conversation to go on with."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={
            "example": {
                "model": "smollm2-135m-instruct",
                "messages": [{"role": "user", "content": "Say hello."}],
                "max_tokens": 32,
            }
        },
    )
    model: str = Field(max_length=512, description="One of GET /v1/models; empty = the default.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description="The newer name of max_tokens.")
    stop: Text | Annotated[list[Text], Field(max_length=8)] | None = None
    seed: int | None = Field(None, ge=-INT64_MAX, le=INT64_MAX)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["auto", "none"] | None = Field(None, description="`none` withholds the tools.")
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None


class EmbeddingsInput(OpenAIInput):
    """Texts to embed."""

    model_config = ConfigDict(
        extra="ignore", strict=True, json_schema_extra={"example": {"model": "all-minilm-l6-v2", "input": ["hello"]}}
    )
    model: str = Field(max_length=512, description="One of GET /v1/models; empty = the default.")
    input: (
        Annotated[str, Field(min_length=1, max_length=1_000_000)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1_000_000)]], Field(min_length=1, max_length=1000)
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=INT32_MAX, description="Must be the model's own.")


class Model(Output):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    capabilities: list[Literal["chat", "embeddings"]]
    context_length: int | None
    dimension: int | None
    available: bool


class ModelList(Output):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class ChatUsage(Output):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnsweredFunction(Output):
    """What the model asks a tool."""

    name: str
    arguments: str


class AnsweredToolCall(Output):
    """A tool that the model asks for."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnswerMessage(Output):
    """The model's turn."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[AnsweredToolCall] = Field(default_factory=list)


class Choice(Output):
    """An answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    logprobs: None


class ChatCompletion(Output):
    """A whole answer. With `stream`, the same as chunks (`text/event-stream`)."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class Embedding(Output):
    """A vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Text when encoding_format is base64: float32, little-endian.")


class EmbeddingsUsage(Output):
    """Tokens used."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Output):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
