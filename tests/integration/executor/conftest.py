"""Executors over a NATS server of their own, whose stream tests may wipe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest

from services.executor.transport import streams
from tests.support.fields import Field, field
from tests.support.servers import own_nats


@pytest.fixture(scope="module")
async def nats_urls(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mapping[str, str]]:
    async with own_nats(tmp_path_factory.mktemp("nats")) as urls:
        yield urls


@pytest.fixture
async def two(database: Callable[[str], Awaitable[str]], nats_urls: Mapping[str, str]) -> AsyncIterator[Field]:
    """Two executors."""
    async with field(await database("executor"), nats_urls) as made:
        yield made
        await made.client.jetstream().delete_stream(streams.STREAM)
