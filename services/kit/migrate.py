"""Migrations: one Alembic environment for every service, its schema as the parameter."""

import asyncio
from pathlib import Path
from types import ModuleType

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, text

from services.kit.postgres import open_engine

# Any fixed number: migrations of all services take turns on one database.
_LOCK = 7_263_001


def migrate(url: str, *, schema: str, migrations: ModuleType, metadata: MetaData) -> None:
    """Bring a service's schema to its newest revision; quick when it is there. Blocks; may run twice at a time.

    Each revision is one transaction; locks are waited for 10 s, a statement may take 15 min. `migrations` is the
    package whose `versions/` folder holds the revisions.
    """
    asyncio.run(_migrate(url, schema=schema, migrations=migrations, metadata=metadata))


async def _migrate(url: str, *, schema: str, migrations: ModuleType, metadata: MetaData) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(str(migrations.__file__)).parent))
    scripts = ScriptDirectory.from_config(config)
    engine = open_engine(url, pool_size=1)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade, config, scripts, schema, metadata)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, config: Config, scripts: ScriptDirectory, schema: str, metadata: MetaData) -> None:
    for setting in ("SET lock_timeout = '10s'", "SET statement_timeout = '15min'"):
        connection.execute(text(setting))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    connection.commit()

    def steps(revision: object, _: object) -> object:
        return scripts._upgrade_revs("head", revision)  # type: ignore[arg-type]  # what alembic's own upgrade does

    with EnvironmentContext(config, scripts, fn=steps) as environment:
        environment.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema=schema,
            include_schemas=True,
            transaction_per_migration=True,
        )
        with environment.begin_transaction():
            environment.run_migrations()
    connection.commit()
    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
    connection.commit()
