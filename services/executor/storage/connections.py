"""Connections of the executor's pool, with what is lost on them told in the house's words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from services.kit.pool import Pool
from services.kit.postgres import is_connection_loss, lost_connection


@asynccontextmanager
async def connection_of(pool: Pool) -> AsyncIterator["PoolConnectionProxy[asyncpg.Record]"]:
    """A connection; a lost or refused one raises UnavailableError."""
    try:
        async with pool.acquire(timeout=5) as connection:
            yield connection
    except Exception as error:
        if is_connection_loss(error):
            raise lost_connection() from error
        raise
