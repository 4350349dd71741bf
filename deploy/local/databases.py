"""Databases and roles of the services, on any PostgreSQL server reached by an administrator's URL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

DATABASE = "headrace"
STATEFUL_SERVICES = ("auth", "workflows", "executor", "vector")
"""The services that have a schema and a role of their own."""


def url_with(url: str, *, database: str, user: str | None = None, password: str | None = None) -> str:
    """Return the URL with another database and, where given, another user; host and options stay."""
    parts = urlsplit(url)
    location = parts.netloc
    if user is not None:
        host = parts.netloc.rpartition("@")[2]
        location = f"{quote(user, safe='')}:{quote(password or '', safe='')}@{host}"
    return urlunsplit(parts._replace(netloc=location, path=f"/{quote(database)}"))


def role_of(service: str) -> str:
    """The name of a service's role."""
    return f"headrace_{service}"


async def answers(url: str) -> None:
    """Return if the server answers a query; raises what asyncpg raises when not."""
    connection = await asyncpg.connect(url, timeout=3)
    try:
        await connection.fetchval("SELECT 1")
    finally:
        await connection.close(timeout=3)


async def prepare_database(admin_url: str, roles: Mapping[str, str], *, database: str = DATABASE) -> None:
    """Make the database and the roles, with these passwords; what exists is brought in line.

    Each role may connect and create schemas; nobody else has any right. Not for two callers at once on one server.

    Args:
        roles: name -> password.
    """
    admin = await asyncpg.connect(admin_url, timeout=10)
    try:
        if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", database):
            await execute(admin, "CREATE DATABASE %I", database)
        for role, password in roles.items():
            exists = await admin.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role)
            await execute(admin, f"{'ALTER' if exists else 'CREATE'} ROLE %I LOGIN PASSWORD %L", role, password)
        await restrict_access(admin, database, roles)
    finally:
        await admin.close(timeout=5)
    owner = await asyncpg.connect(url_with(admin_url, database=database), timeout=10)
    try:
        await owner.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    finally:
        await owner.close(timeout=5)


async def restrict_access(admin: asyncpg.Connection[asyncpg.Record], database: str, roles: Iterable[str]) -> None:
    """Let these roles connect to the database and create schemas in it, and nobody else."""
    await execute(admin, "REVOKE ALL ON DATABASE %I FROM PUBLIC", database)
    for role in roles:
        await execute(admin, "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO %I", database, role)


async def execute(connection: asyncpg.Connection[asyncpg.Record], statement: str, *arguments: str) -> None:
    """Run a statement that takes no parameters of its own; %I is an identifier, %L a literal, quoted by the server."""
    places = ", ".join(f"${number}::text" for number in range(2, len(arguments) + 2))
    text = await connection.fetchval(f"SELECT format($1, {places})", statement, *arguments)
    await connection.execute(text)
