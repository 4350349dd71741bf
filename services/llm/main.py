"""The model service's process: reads its settings, builds its parts, serves, and undoes it all in reverse."""

import sys
from contextlib import AsyncExitStack

from headrace.llm.v1 import llm_service_pb2
from headrace.llm.v1.llm_service_pb2_grpc import add_LlmServiceServicer_to_server

from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.kit.lifecycle import run, serve_metrics
from services.kit.settings import InternalKeySettings
from services.llm.backends import hub
from services.llm.backends.llamacpp import LlamaCpp, LlamaCppOptions
from services.llm.backends.openai_compatible import OpenAICompatible, ServerOptions
from services.llm.backends.sentence_transformers import SentenceTransformers
from services.llm.backends.tgi import Tgi, TgiOptions
from services.llm.domain.backend import Backend
from services.llm.domain.catalogue import Catalogue, Model
from services.llm.domain.limits import Admission, SizeLimits
from services.llm.domain.streaming import Answering
from services.llm.settings import (
    LlamaCppSettings,
    LlmSettings,
    ModelSettings,
    OpenAISettings,
    SentenceTransformersSettings,
    TgiSettings,
    configured_models,
    embeds,
    generates,
    prices,
)
from services.llm.transport.grpc import LlmGrpc

SERVICE = llm_service_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name
GRANT_METHODS = tuple(f"/{SERVICE}/{method}" for method in ("Generate", "StreamGenerate", "Embed", "CountTokens"))
"""What a worker may call. ListModels has no project to bind a grant to."""


def main() -> None:
    """Serve until told to stop. The only command is `serve`: there is no database to migrate."""
    if sys.argv[1:] not in ([], ["serve"], ["migrate"]):
        sys.exit("usage: headrace-llm [serve]")
    if sys.argv[1:] != ["migrate"]:
        run("llm", serve)


async def serve(stack: AsyncExitStack) -> None:
    """Build and start the service by the environment."""
    await start(stack, LlmSettings(), CallerTokens(*InternalKeySettings().keys))


async def start(stack: AsyncExitStack, settings: LlmSettings, tokens: CallerTokens) -> Catalogue:
    """Start the service; `stack` undoes it. Returns its models."""
    catalogue = build_catalogue(settings)
    stack.push_async_callback(catalogue.close)
    server = GrpcServer(listen=settings.listen, tokens=tokens, service_names=(SERVICE,), grant_methods=GRANT_METHODS)
    add_LlmServiceServicer_to_server(LlmGrpc(Answering(catalogue), catalogue), server.server)
    await server.start()
    stack.push_async_callback(server.stop, settings.stop_seconds)
    serve_metrics(settings.metrics_listen)
    catalogue.start(preload=settings.preload)
    # Models load when they are needed: a call waits for that within its deadline, so the service is ready now.
    await server.set_healthy(True)
    return catalogue


def build_catalogue(settings: LlmSettings) -> Catalogue:
    """All configured models with their backends. Raises ValidationError that says what to change."""
    configured, defaults = configured_models(settings)
    models = [
        Model(
            name=entry.name,
            backend=build_backend(entry, settings),
            generates=generates(entry),
            embeds=embeds(entry),
            admission=Admission(entry.name, max_concurrency=entry.max_concurrency, max_queue=entry.max_queue),
            sizes=SizeLimits(max_prompt_bytes=settings.max_prompt_bytes, max_tokens=settings.max_tokens),
            is_default=entry.name in defaults,
            prices=prices(entry),
        )
        for entry in configured
    ]
    return Catalogue(models, check_interval=settings.check_seconds)


def build_backend(entry: ModelSettings, settings: LlmSettings) -> Backend:
    """What runs a model. Starts and loads nothing yet."""
    match entry:
        case OpenAISettings():
            options = ServerOptions(
                base_urls=entry.base_urls,
                model=entry.model or entry.name,
                api_key=entry.api_key.get_secret_value(),
                context_length=entry.context_length,
                max_tokens_field=entry.max_tokens_field,
                extra=entry.extra,
                embed_batch=entry.embed_batch,
                silence_seconds=entry.silence_seconds,
            )
            return OpenAICompatible(entry.name, options)
        case TgiSettings():
            return Tgi(
                entry.name,
                TgiOptions(
                    base_urls=tuple(url.removesuffix("/v1") for url in entry.base_urls),
                    api_key=entry.api_key.get_secret_value(),
                    context_length=entry.context_length,
                    extra=entry.extra,
                    silence_seconds=entry.silence_seconds,
                ),
            )
        case LlamaCppSettings():
            return LlamaCpp(
                entry.name,
                LlamaCppOptions(
                    find_file=_find_files(entry, entry.file),
                    context_length=entry.context_length,
                    parallel=entry.parallel,
                    connections=entry.max_concurrency,
                    threads=entry.threads or settings.threads,
                    embedding=entry.task == "embed",
                ),
            )
        case SentenceTransformersSettings():
            return SentenceTransformers(entry.name, _find_files(entry, None), threads=entry.threads or settings.threads)


def _find_files(entry: LlamaCppSettings | SentenceTransformersSettings, file: str | None) -> hub.FindFile:
    if entry.path is not None:
        return hub.local(entry.name, entry.path)
    return hub.from_hub(entry.name, repo=entry.repo, file=file, revision=entry.revision)


if __name__ == "__main__":
    main()
