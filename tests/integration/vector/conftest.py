"""One replica of the vector service per module, and a fresh project per test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from services.kit.ids import new_id
from tests.support.vector_service import VectorClient, hashing_llm, vector_service


@dataclass
class Place:
    """Where the module's replicas work."""

    url: str
    folder: Path
    llm_target: str
    stack: AsyncExitStack
    first: VectorClient


@pytest.fixture(scope="module")
async def place(
    database: Callable[[str], Awaitable[str]], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("vector")
    async with AsyncExitStack() as stack:
        url = await database("vector")
        llm_target = await stack.enter_async_context(hashing_llm(folder))
        first = await stack.enter_async_context(
            vector_service(url, folder / "first", "", llm_target=llm_target, housekeeping_seconds=0.2)
        )
        yield Place(url, folder, llm_target, stack, first)


@pytest.fixture
def client(place: Place) -> VectorClient:
    """The shared replica, as a project that nobody else uses."""
    return replace(place.first, project_id=str(new_id()))


@pytest.fixture
async def another(place: Place, client: VectorClient, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await another()`: one more replica over the same database, with files of its own."""
    async with AsyncExitStack() as stack:

        async def make(folder: Path = tmp_path, **settings: Any) -> VectorClient:
            settings = {"llm_target": place.llm_target} | settings
            service = vector_service(place.url, folder, client.project_id, **settings)
            return await stack.enter_async_context(service)

        yield make
