"""The store on PostgreSQL (SQLAlchemy Core)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine

from services.auth.storage.account_rows import AccountRows
from services.auth.storage.project_rows import ProjectRows
from services.auth.storage.secret_rows import SecretRows
from services.kit.postgres import transaction


class PostgresTransaction(AccountRows, ProjectRows, SecretRows):
    """All rows of the schema on one connection; `domain/store.py` says what each method promises."""


class PostgresStore:
    """Auth's state in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """A transaction at READ COMMITTED: each statement sees what was committed before it began."""
        async with transaction(self._engine) as connection:
            yield PostgresTransaction(connection)
