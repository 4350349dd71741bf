"""Fixtures for all tests: real servers, and databases of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support import backends


@pytest.fixture(scope="session")
def postgres_server() -> str:
    """An administrator's URL of a real PostgreSQL server, shared by the session."""
    return backends.postgres_server()


@pytest.fixture(scope="session")
def nats_server() -> str:
    """The executor's URL of a real NATS server with JetStream, shared by the session: use subjects of your own."""
    return backends.nats_url()


@pytest.fixture(scope="module")
async def database() -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """`await database("auth")`: the URL of a new, migrated, empty database; gone when the module's tests are done."""
    made: list[str] = []

    async def make(service: str) -> str:
        made.append(await backends.fresh_database(service))
        return made[-1]

    yield make
    for url in made:
        await backends.drop_database(url)
