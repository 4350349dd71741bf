"""`embed`: turns texts into vectors."""

from typing import Annotated

from headrace.llm.v1 import llm_service_pb2
from pydantic import Field

from services.executor.handlers.base import ConfigModel, Context, NodeType, Result, Usage
from services.executor.handlers.clients import Services
from services.executor.handlers.lists import one_or_more
from services.executor.handlers.vectors import unpack_vectors

_BATCH = 1000
"""What LlmService.Embed takes at once."""


class EmbedConfig(ConfigModel):
    """What to embed, and with which model."""

    texts: Annotated[list[str], one_or_more(str)] = Field(
        title="Texts", description="Texts to embed; one text alone is taken too."
    )
    model: str = Field("", title="Model", description="Name of an embedding model. Empty = the default one.")


class EmbedOutput(ConfigModel):
    """The vectors."""

    vectors: list[list[float]] = Field(title="Vectors", description="One for each text, in their order.")


async def embed(context: Context, config: EmbedConfig) -> Result:
    """Embed in batches."""
    services: Services = context.services
    vectors: list[list[float]] = []
    tokens = calls = 0
    for start in range(0, len(config.texts), _BATCH):
        request = llm_service_pb2.EmbedRequest(
            project_id=context.project_id, model=config.model, texts=config.texts[start : start + _BATCH]
        )
        answer = await services.call(context, services.llm.Embed, request)
        vectors += unpack_vectors(answer.vectors, answer.dimension)
        tokens += answer.usage.prompt_tokens
        calls += answer.usage.calls or 1
    return Result({"vectors": vectors}, usage=Usage(prompt_tokens=tokens, calls=calls))


EMBED = NodeType(
    name="embed",
    title="Embed",
    help="Turns texts into vectors.",
    icon="binary",
    category="ai",
    config=EmbedConfig,
    output=EmbedOutput,
    handler=embed,
    default_timeout_seconds=120.0,
    effect="read",
)
