"""Connections of the executor's pool, with what is lost on them told in the house's words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from services.kit.errors import UnavailableError
from services.kit.pool import Connection, Pool
from services.kit.postgres import is_connection_loss, lost_connection

_IN_THE_WAY = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
)

UNFLUSHED = "unflushed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))"
"""For a statement that reads from `unflushed` what it writes: its commit does not wait for the disk.

One round trip, where a transaction around it with SET LOCAL takes four.
"""


@asynccontextmanager
async def connection_of(pool: Pool) -> AsyncIterator[Connection]:
    """A connection; UnavailableError when it is lost or refused, or others held what was wanted for too long."""
    try:
        async with pool.acquire(timeout=5) as connection:
            yield connection
    except _IN_THE_WAY as error:
        message = "What was to be changed is being changed elsewhere. Try again."
        raise UnavailableError(message, retry_after=0.1) from error
    except Exception as error:
        if is_connection_loss(error):
            raise lost_connection() from error
        raise
