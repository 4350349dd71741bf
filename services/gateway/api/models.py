"""Language models, as OpenAI's clients speak to them."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import Path
from headrace.llm.v1 import llm_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.gateway.api.parameters import Editor, Viewer, clients_of, gateway_of
from services.gateway.convert.models import (
    chat_to_proto,
    chat_usage_to_json,
    completion_to_json,
    delta_to_json,
    embeddings_to_json,
    model_to_json,
)
from services.gateway.problems import problem
from services.gateway.routing import Gateway, Json, new_router
from services.gateway.schemas.models import ChatCompletion, ChatInput, EmbeddingList, EmbeddingsInput, Model, ModelList
from services.kit.errors import DomainError, InvalidArgumentError, NotFoundError, Violation
from services.kit.ids import new_id

router = new_router("/v1", "models")

_STREAM = {
    "description": "The answer; with `stream`, as chunks that end with `data: [DONE]`.",
    "content": {
        "text/event-stream": {
            "itemSchema": {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        }
    },
}


@router.get("/models", response_model=ModelList)
async def list_models(request: Request, access: Viewer) -> Response:
    """List the models by name."""
    clients = clients_of(request)
    reply = await clients.call(clients.llm.ListModels, pb.ListModelsRequest())
    return Json({"object": "list", "data": [model_to_json(model) for model in reply.models]})


@router.get("/models/{model:path}", response_model=Model)
async def get_model(request: Request, access: Viewer, model: Annotated[str, Path(max_length=512)]) -> Response:
    """Get a model."""
    clients = clients_of(request)
    reply = await clients.call(clients.llm.ListModels, pb.ListModelsRequest())
    for known in reply.models:
        if known.name == model:
            return Json(model_to_json(known))
    raise NotFoundError("There is no model of that name. GET /v1/models lists all.", reason="MODEL_NOT_FOUND")


@router.post("/chat/completions", response_model=ChatCompletion, responses={200: _STREAM})
async def create_chat_completion(request: Request, access: Editor, body: ChatInput) -> Response:
    """Go on with a conversation, whole or as a stream."""
    gateway = gateway_of(request)
    clients = gateway.clients
    asked = chat_to_proto(body, access.project_id)
    seconds = gateway.settings.model_timeout_seconds
    answer_id, created = f"chatcmpl-{new_id().hex}", int(time.time())
    if not body.stream:
        reply = await clients.call(clients.llm.Generate, asked, timeout=seconds)
        return Json(completion_to_json(reply, answer_id=answer_id, created=created))
    streamed = pb.StreamGenerateRequest(
        project_id=asked.project_id, model=asked.model, messages=asked.messages, options=asked.options
    )
    pieces = clients.rpc.stream(clients.llm.StreamGenerate, streamed, timeout=seconds)
    try:
        # The first piece before the first byte, so that a wrong model is an error and not a broken stream.
        first = await anext(pieces)
    except StopAsyncIteration:
        first = pb.StreamGenerateResponse()
    chunk = {"id": answer_id, "object": "chat.completion.chunk", "created": created}
    wants_usage = bool(body.stream_options and body.stream_options.include_usage)
    content = _chunks(request, gateway, first, pieces, chunk=chunk, wants_usage=wants_usage)
    return StreamingResponse(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


@router.post("/embeddings", response_model=EmbeddingList)
async def create_embeddings(request: Request, access: Editor, body: EmbeddingsInput) -> Response:
    """Turn texts into vectors."""
    gateway = gateway_of(request)
    clients = gateway.clients
    texts = [body.input] if isinstance(body.input, str) else body.input
    asked = pb.EmbedRequest(project_id=access.project_id, model=body.model, texts=texts)
    reply = await clients.call(clients.llm.Embed, asked, timeout=gateway.settings.model_timeout_seconds)
    if body.dimensions is not None and body.dimensions != reply.dimension:
        message = f"The model makes vectors of {reply.dimension} numbers, and no others."
        raise InvalidArgumentError(message, violations=(Violation("UNSUPPORTED", message, "dimensions"),))
    return Json(embeddings_to_json(reply, as_base64=body.encoding_format == "base64"))


async def _chunks(
    request: Request,
    gateway: Gateway,
    first: pb.StreamGenerateResponse,
    rest: AsyncIterator[pb.StreamGenerateResponse],
    *,
    chunk: dict[str, Any],
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    """Chunks as OpenAI sends them. Leaving stops the generation."""
    # An async generator of ours, whose leaving cancels the call.
    async with contextlib.aclosing(rest):  # type: ignore[type-var]
        try:
            piece, is_first = first, True
            while True:
                choice = delta_to_json(piece, is_first=is_first)
                usage = {"usage": None} if wants_usage else {}
                yield _data({**chunk, "model": piece.model or chunk.get("model", ""), "choices": [choice], **usage})
                chunk.setdefault("model", piece.model)
                last, is_first = piece, False
                try:
                    piece = await anext(rest)
                except StopAsyncIteration:
                    break
            if wants_usage:
                yield _data({**chunk, "choices": [], "usage": chat_usage_to_json(last.usage)})
        except DomainError as error:
            # The status is sent already; OpenAI's clients raise for a chunk with `error`.
            yield _data(problem(error, request.scope))
            return
        yield b"data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(value)
