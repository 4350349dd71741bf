"""PostgreSQL servers that credentials name: connections through egress, kept for a short while.

A credential gives structured fields only, never a connection string. The address is checked and dialled as in
`egress`; TLS verifies certificate and name unless the operator allows the place. Never a unix socket, never the
platform's own database.
"""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakValueDictionary

import asyncpg

from services.executor.egress import Dialer, EgressError, HostPort
from services.executor.egress.rules import normal_host
from services.executor.handlers.base import Context, HandlerError, RetryableError, TerminalError
from services.executor.handlers.clients import Credential
from services.executor.handlers.failures import failure_of_egress

_MAX_CONNECTIONS = 4
"""For each project and credential in one worker."""
_KEEP_SECONDS = 30.0
_AGE_SECONDS = 60.0
"""Names are resolved again at least this often."""
_CONNECT_SECONDS = 10.0
_STATEMENT_SECONDS = 30.0
_LOCK_SECONDS = 10.0
# Plain text or unverified TLS, where the operator answers for the way to the server.
_LENIENT_MODES = frozenset({"disable", "allow", "prefer"})

# SQLSTATE classes and codes after which another try may succeed (PostgreSQL manual, appendix A).
_PASSING = ("08", "40", "53", "55P03", "57")

Connection: TypeAlias = "asyncpg.Connection[Any]"  # generic for type checkers only


@dataclass(frozen=True, slots=True)
class Server:
    """Where a credential leads. Two that are equal may share connections."""

    project_id: str
    place: HostPort
    database: str
    username: str
    password: str
    sslmode: str

    def __repr__(self) -> str:
        return f"Server({self.place}, {self.database!r})"


class ExternalDatabases:
    """Connections by server. Invariant: a kept connection is idle, outside a transaction, and at most 60 s old."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._idle: defaultdict[Server, list[tuple[Connection, float]]] = defaultdict(list)
        self._slots: WeakValueDictionary[Server, asyncio.Semaphore] = WeakValueDictionary()
        self._expiries: set[asyncio.TimerHandle] = set()

    @asynccontextmanager
    async def transaction(
        self, context: Context, credential: Credential, *, read_only: bool = False
    ) -> AsyncIterator[Connection]:
        """A transaction at the credential's server with limits on time. Raises HandlerError.

        After a connection lost at commit nobody knows whether it happened: effects need a dedupe key within.
        """
        server = server_of(context.project_id, credential)
        slot = self._slots.setdefault(server, asyncio.Semaphore(_MAX_CONNECTIONS))
        try:
            async with asyncio.timeout(context.timeout_seconds), slot:
                connection, opened_at = await self._take(server)
                keep = False
                try:
                    async with connection.transaction(readonly=read_only):
                        await _limit(connection, context.timeout_seconds)
                        yield connection
                    keep = True
                except (HandlerError, asyncpg.PostgresError):
                    keep = True  # refused and rolled back: nothing is under way on the connection
                    raise
                finally:
                    self._give_back(server, connection, opened_at, keep=keep)
        except EgressError as error:
            raise failure_of_egress(error) from error
        except asyncpg.PostgresError as error:
            raise failure_of_postgres(error) from error
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if isinstance(error, TimeoutError):
                raise RetryableError(
                    "DATABASE_TIMEOUT",
                    f"The database {server.place} did not answer within {context.timeout_seconds:g} s. "
                    "Raise the node's `timeout_seconds`, or do less at once.",
                ) from error
            raise RetryableError(
                "CONNECTION_LOST",
                f"The connection to the database {server.place} was lost or refused.",
                outcome_unknown=not read_only,
            ) from error

    async def close(self) -> None:
        """Close all kept connections."""
        for expiry in self._expiries:
            expiry.cancel()
        for kept in self._idle.values():
            for connection, _ in kept:
                connection.terminate()
        self._idle.clear()

    async def _take(self, server: Server) -> tuple[Connection, float]:
        now = asyncio.get_running_loop().time()
        kept = self._idle[server]
        while kept:
            connection, opened_at = kept.pop()
            if not connection.is_closed() and now - opened_at < _AGE_SECONDS:
                return connection, opened_at
            connection.terminate()
        return await self._open(server), now

    def _give_back(self, server: Server, connection: Connection, opened_at: float, *, keep: bool) -> None:
        if not keep or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
            return
        self._idle[server].append((connection, opened_at))
        loop = asyncio.get_running_loop()
        self._expiries = {expiry for expiry in self._expiries if expiry.when() > loop.time()}
        self._expiries.add(loop.call_later(_KEEP_SECONDS, self._expire, server, connection))

    def _expire(self, server: Server, connection: Connection) -> None:
        kept = self._idle.get(server, [])
        remaining = [item for item in kept if item[0] is not connection]
        if len(remaining) == len(kept):
            return
        connection.terminate()
        if remaining:
            self._idle[server] = remaining
        else:
            del self._idle[server]

    async def _open(self, server: Server) -> Connection:
        allowed = self._dialer.rules.check_place(server.place)
        if server.sslmode == "disable" and not allowed:
            raise TerminalError(
                "TLS_REQUIRED",
                f"The credential turns TLS off for {server.place}, which only the operator can allow "
                f"(HEADRACE_EGRESS_ALLOW={server.place}). Set its `sslmode` to verify-full.",
            )
        tls: ssl.SSLContext | Literal["disable", "prefer"] = _verified_tls(server.place.host)
        if allowed and server.sslmode in _LENIENT_MODES:
            tls = "disable" if server.sslmode == "disable" else "prefer"
        addresses = await self._dialer.addresses(server.place, operator_allowed=allowed)
        failure: OSError | None = None
        for address in addresses:
            try:
                connection = await asyncpg.connect(
                    host=address,
                    port=server.place.port,
                    user=server.username,
                    password=server.password,
                    database=server.database,
                    ssl=tls,
                    timeout=_CONNECT_SECONDS,
                    # Poolers such as PgBouncer keep no prepared statements and take no other settings at start.
                    statement_cache_size=0,
                    server_settings={"application_name": "headrace"},
                )
            except ssl.SSLCertVerificationError as error:
                raise TerminalError(
                    "TLS_FAILED",
                    f"The TLS certificate of {server.place} is not valid: {error.verify_message}.",
                ) from error
            except OSError as error:
                failure = error
                continue
            await _refuse_platform(connection, server)
            return connection
        raise RetryableError("CONNECTION_FAILED", f"No connection to the database {server.place}.") from failure


def server_of(project_id: str, credential: Credential) -> Server:
    """The server that a credential names. Raises TerminalError when it is of another type."""
    if credential.type != "postgres":
        raise TerminalError(
            "CREDENTIAL_TYPE_MISMATCH",
            f"`target` names the credential {credential.name!r} of type {credential.type}; it must be `postgres`.",
        )
    data = credential.data
    host = str(data["host"])
    try:
        place = HostPort(host.lower() if ":" in host else normal_host(host), int(data.get("port") or 5432))
    except EgressError as error:
        raise failure_of_egress(error) from error
    return Server(
        project_id,
        place,
        database=data["database"],
        username=data["username"],
        password=data["password"],
        sslmode=data.get("sslmode") or "verify-full",
    )


def failure_of_postgres(error: asyncpg.PostgresError) -> HandlerError:
    """What the server complained about. Its own first line is shown: the database is the author's."""
    state = str(error.sqlstate or "")
    said = str(error.args[0] if error.args else error)[:300].replace("\x00", "")
    details = {"sqlstate": state}
    if state in {"28000", "28P01", "3D000"}:
        return TerminalError("CREDENTIAL_REJECTED", f"The database refused the credential: {said}.", details=details)
    if state == "23505":
        return TerminalError("DUPLICATE_KEY", f"{said}. Use operation `upsert` to replace a row.", details=details)
    if state == "21000":
        return TerminalError("DUPLICATE_KEY", "`rows` holds two rows with the same key.", details=details)
    if state == "42P10":
        return TerminalError(
            "KEY_REQUIRED", "`upsert` needs in `key` the columns of a unique constraint of the table.", details=details
        )
    if state == "42501":
        return TerminalError("PERMISSION_DENIED", f"The credential's role may not do this: {said}.", details=details)
    if state.startswith(_PASSING):
        return RetryableError("DATABASE_UNAVAILABLE", f"The database answered: {said}.", details=details)
    if state.startswith("22"):
        return TerminalError("TYPE_MISMATCH", f"A value does not fit its column: {said}.", details=details)
    return TerminalError("DATABASE_ERROR", f"The database answered: {said}.", details=details)


async def _limit(connection: Connection, timeout_seconds: float) -> None:
    statement = min(timeout_seconds, _STATEMENT_SECONDS)
    await connection.fetchval(
        "SELECT set_config('statement_timeout', $1::text, true), set_config('lock_timeout', $2::text, true)",
        f"{statement * 1000:.0f}",
        f"{min(statement, _LOCK_SECONDS) * 1000:.0f}",
    )


async def _refuse_platform(connection: Connection, server: Server) -> None:
    """The operator denies the platform's database by address; should that be forgotten, its schemas give it away."""
    try:
        own = await connection.fetchval(
            "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname IN ('executor', 'project_tables')"
        )
    except BaseException:
        connection.terminate()
        raise
    if own == 2:
        connection.terminate()
        raise TerminalError(
            "HOST_NOT_ALLOWED", f"{server.place} is this platform's own database, which no workflow may use."
        )


class _NamedContext(ssl.SSLContext):
    """TLS for a connection to an address, verified for the host name: asyncpg verifies what it dials."""

    host: str

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.host, session)


def _verified_tls(host: str) -> ssl.SSLContext:
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.host = host
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    return context
