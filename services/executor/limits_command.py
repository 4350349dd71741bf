"""`python -m services.executor.main limits PROJECT …`: what the operator sets for a project, and no project can."""

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson

from services.executor.domain.limit_settings import LimitSettings
from services.executor.domain.limits import limits_from_json
from services.executor.handlers.registry import catalogue
from services.executor.settings import Settings
from services.executor.storage.limits import PostgresLimitStore
from services.kit.errors import DomainError
from services.kit.postgres import open_pool


def limits_command(arguments: Sequence[str]) -> None:
    """Show what is set for a project, after setting what is given."""
    parser = argparse.ArgumentParser(prog="headrace-executor limits", description=__doc__)
    parser.add_argument("project", type=UUID)
    parser.add_argument("--weight", type=int, help="turns of the project for one of a project with weight 1")
    parser.add_argument(
        "--ceilings", type=_json_object, help='JSON as in PUT /projects/{id}/limits, such as {"max_open_runs": 1000}'
    )
    asked = parser.parse_args(arguments)
    try:
        print(orjson.dumps(asyncio.run(_apply(asked)), option=orjson.OPT_INDENT_2).decode())
    except DomainError as error:
        parser.error(error.message)
    except TypeError as error:
        parser.error(f"The ceilings have a field that limits do not have: {error}")


def _json_object(text: str) -> dict[str, Any]:
    value = orjson.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


async def _apply(asked: argparse.Namespace) -> dict[str, Any]:
    pool = await open_pool(Settings(listen="").postgres_url.get_secret_value(), size=1)
    try:
        node_types = [name for name, node_type in catalogue().items() if not node_type.inline]
        settings = LimitSettings(PostgresLimitStore(pool), node_types)
        own, ceilings = await settings.get(asked.project)
        if asked.weight is not None or asked.ceilings is not None:
            weight = ceilings.weight if asked.weight is None else asked.weight
            value = ceilings.as_json() if asked.ceilings is None else asked.ceilings
            await settings.set_ceilings(asked.project, limits_from_json(value, weight=weight))
            own, ceilings = await settings.get(asked.project)
    finally:
        await pool.close()
    return {"limits": own.as_json(), "ceilings": ceilings.as_json(), "weight": ceilings.weight}
