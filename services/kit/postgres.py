"""PostgreSQL: engines for SQLAlchemy Core, pools of prepared statements for hot paths, and health.

Migrations: `services.kit.migrate`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import orjson
import structlog
from asyncpg.exceptions import PostgresConnectionError
from prometheus_client import Gauge
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from services.kit.errors import UnavailableError
from services.kit.pool import Pool, measure_pool

log = structlog.get_logger(__name__)

POSTGRES_UP = Gauge("headrace_postgres_up", "1 while PostgreSQL answers this process, else 0.")

# A forgotten transaction holds back vacuum for every table; a runaway statement holds a connection.
_SERVER_SETTINGS = {
    "application_name": "headrace",
    "idle_in_transaction_session_timeout": "10s",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "timezone": "UTC",
    "jit": "off",
}


def open_engine(url: str, *, pool_size: int = 8) -> AsyncEngine:
    """An engine for a `postgresql://` URL (`?host=/directory` for a unix socket). Connects when first used.

    JSON columns take and give Python values by way of orjson.
    """

    # SQLAlchemy does not know what libpq knows in a URL, such as `sslmode`; asyncpg does, here as in `open_pool`.
    async def connect() -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(url, server_settings=_SERVER_SETTINGS, timeout=5)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_timeout=5,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
    )
    measure_pool("engine", 2 * pool_size, lambda: _checked_out(engine))
    return engine


def _checked_out(engine: AsyncEngine) -> int:
    pool = engine.pool
    return pool.checkedout() if isinstance(pool, AsyncAdaptedQueuePool) else 0


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction, committed on leaving and rolled back on an exception.

    A lost or refused connection raises UnavailableError; after a loss at commit nobody knows whether it happened, so
    what is done in it must bear repeating.
    """
    try:
        async with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        if error.connection_invalidated or isinstance(error, InterfaceError) or is_connection_loss(error.orig):
            raise lost_connection() from error
        raise
    except Exception as error:
        # What SQLAlchemy does not wrap: failures to connect, and asyncpg's own of a connection that broke.
        if isinstance(error, asyncpg.PostgresError | asyncpg.InternalClientError | OSError | TimeoutError) and (
            is_connection_loss(error)
        ):
            raise lost_connection() from error
        raise


def is_connection_loss(error: BaseException | None) -> bool:
    """The error, or what caused it, says that the server is gone, restarting or out of connections."""
    seen = error
    while seen is not None:
        if isinstance(
            seen,
            OSError
            | TimeoutError
            | PostgresConnectionError
            | asyncpg.exceptions.CannotConnectNowError
            | asyncpg.exceptions.AdminShutdownError
            | asyncpg.exceptions.CrashShutdownError
            | asyncpg.exceptions.TooManyConnectionsError
            | asyncpg.exceptions.InterfaceError
            # asyncpg's word for a connection that broke between two of its own steps.
            | asyncpg.exceptions.InternalClientError,
        ):
            return True
        seen = seen.__cause__
    return False


def lost_connection() -> UnavailableError:
    """What callers are told when PostgreSQL does not answer."""
    return UnavailableError("The database does not answer at the moment. Try again shortly.", retry_after=1.0)


def constraint_of(error: DBAPIError) -> str:
    """Name of the constraint that a statement violated; empty when none. Errors are told apart by these names."""
    seen: BaseException | None = error.orig
    while seen is not None:
        if name := getattr(seen, "constraint_name", None):
            return str(name)
        seen = seen.__cause__
    return ""


# Plans outlive the sizes that they were made for: one that scans a table which was small is kept when it is large.
_BY_KEY = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}


async def open_pool(url: str, *, size: int, by_key: bool = True) -> Pool:
    """A pool of `size` connections for prepared statements. `json` and `jsonb` travel as bytes of text, unparsed.

    With `by_key` every statement is planned to find few rows by key, whatever a table's size was when it was planned;
    without it, statements may read whole tables.
    """

    async def prepare(connection: "asyncpg.Connection[Any]") -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name, encoder=bytes.decode, decoder=str.encode, schema="pg_catalog", format="text"
            )

    async def keep(_: "asyncpg.Connection[Any]") -> None:
        """Nothing to undo on release: sessions are changed by SET LOCAL only, and a reset is a round trip per use."""

    inner = await asyncpg.create_pool(
        dsn=url,
        min_size=1,
        max_size=size,
        init=prepare,
        reset=keep,
        server_settings=_SERVER_SETTINGS | (_BY_KEY if by_key else {}),
        timeout=5,
        command_timeout=30,
    )
    return Pool(inner, size)


@asynccontextmanager
async def watched_health(
    engine: AsyncEngine, *, schema: str, report: Callable[[bool], Awaitable[None]], every_seconds: float = 2.0
) -> AsyncIterator[None]:
    """While inside, tell `report` (as `GrpcServer.set_healthy`) whenever the schema starts or stops answering.

    It answers when PostgreSQL does and `migrate` has run. Asks once before entering, then every `every_seconds`.
    """
    healthy: bool | None = None

    async def look() -> None:
        nonlocal healthy
        now_healthy, reason = True, ""
        try:
            async with asyncio.timeout(5), engine.connect() as connection:
                await connection.exec_driver_sql(f'SELECT version_num FROM "{schema}".alembic_version')  # noqa: S608 - the schema is a constant of the service
        except Exception as error:  # noqa: BLE001 - whatever it is, the database does not answer
            now_healthy, reason = False, repr(error)
        POSTGRES_UP.set(now_healthy)
        if now_healthy is not healthy:
            healthy = now_healthy
            log.log(20 if healthy else 30, "database_answers" if healthy else "database_does_not_answer", error=reason)
            await report(healthy)

    async def watch() -> None:
        while True:
            await asyncio.sleep(every_seconds if healthy else 0.2)
            await look()

    await look()
    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
