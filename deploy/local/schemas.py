"""Which services' schemas are behind their code. Asking here spares a warm start four processes of a second each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from services.kit.migrate import is_current

_SERVICES = Path(__file__).resolve().parent.parent.parent / "services"


async def services_to_migrate(urls: Mapping[str, str]) -> list[str]:
    """Return the services whose `migrate` command has something to do.

    Args:
        urls: service -> URL of its database with its own role.
    """
    current = await asyncio.gather(
        *(is_current(url, schema=service, versions=_versions(service)) for service, url in urls.items())
    )
    return [service for service, is_there in zip(urls, current, strict=True) if not is_there]


def _versions(service: str) -> Path:
    return _SERVICES / service / "storage" / "migrations" / "versions"
