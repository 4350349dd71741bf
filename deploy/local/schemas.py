"""Which services' schemas are behind their code. Asking here spares a warm start four processes of a second each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import asyncpg

_SERVICES = Path(__file__).resolve().parent.parent.parent / "services"


async def services_to_migrate(urls: Mapping[str, str]) -> list[str]:
    """Return the services whose `migrate` command has something to do, or something to say.

    Revisions are numbered files (`services.kit.migrate`); the highest number is the newest.

    Args:
        urls: service -> URL of its database with its own role.
    """
    return [service for service, url in urls.items() if await _present(service, url) != _newest(service)]


def _newest(service: str) -> str:
    versions = _SERVICES / service / "storage" / "migrations" / "versions"
    return max((file.name[:4] for file in versions.glob("[0-9]*.py")), default="")


async def _present(service: str, url: str) -> str:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return str(await connection.fetchval(f'SELECT version_num FROM "{service}".alembic_version'))  # noqa: S608 - one of ours
    except asyncpg.PostgresError:  # no schema yet, or not a readable one: the command finds out
        return ""
    finally:
        await connection.close(timeout=5)
