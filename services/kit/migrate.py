"""Migrations: one Alembic environment for every service, its schema as the parameter.

How a service uses it (auth is the example):

    services/auth/storage/migrations/__init__.py                a docstring, nothing else
    services/auth/storage/migrations/versions/0001_users.py     a revision, its number is the first word of the name

        revision = "0001"
        down_revision = None                # the number before: revisions form one line, in the order of their names

        def upgrade() -> None:
            op.create_table("users", ..., schema="auth")        # or op.execute("CREATE TABLE auth.users (...)")

    main.py, when called as `... migrate`, and only then (Alembic takes 0.3 s to import):

        from services.auth.storage import migrations
        from services.kit.migrate import migrate
        migrate(url, schema="auth", migrations=migrations)

The schema exists when the first revision runs. Revisions name their schema in full, never import `tables.py` (which
moves on while they must not), and have no `downgrade`: the way back is another revision. Each must leave the version
before it working, because during an update both run: add first, use next, remove last. A released revision is never
edited. `differences` is for the test that tables and revisions agree.
"""

import asyncio
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import asyncpg
import structlog

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

log = structlog.get_logger(__name__)

# Any fixed number: migrations of all services take turns on one database.
_LOCK = 7_263_001
_REVISION_FILE = re.compile(r"(\d{4})_\w+\.py")


def migrate(url: str, *, schema: str, migrations: ModuleType) -> None:
    """Bring a service's schema to its newest revision. Blocks.

    Two at a time are safe: the second waits, up to 15 min, and finds nothing to do. Nothing to do costs one connection
    and one query. A schema newer than this code knows is left as it is, with a warning. Each revision is one
    transaction; in it locks are waited for 10 s, a statement may take 15 min. Raises what PostgreSQL raises.
    """
    versions = versions_of(migrations)
    newest = newest_revision(versions)
    present = asyncio.run(_present_revision(url, schema))
    if present > newest:
        log.warning("schema_is_newer", schema=schema, present=present, newest_known=newest)
    elif present < newest:
        asyncio.run(_upgrade(url, schema, versions))
        log.info("schema_migrated", schema=schema, revision=newest)


async def is_current(url: str, *, schema: str, versions: Path) -> bool:
    """Whether `migrate` would find nothing to do; for who would have to start a process to call it."""
    return await _present_revision(url, schema) >= newest_revision(versions)


def versions_of(migrations: ModuleType) -> Path:
    """The folder with the revisions of a `migrations` package."""
    return Path(str(migrations.__file__)).parent / "versions"


def newest_revision(versions: Path) -> str:
    """The highest number among a folder's revision files. Raises ValueError for a file of another form, or none."""
    numbers = []
    for file in versions.glob("*.py"):
        if file.name != "__init__.py":
            match = _REVISION_FILE.fullmatch(file.name)
            if match is None:
                raise ValueError(f"{file} is no revision: name it like 0001_users.py")
            numbers.append(match[1])
    if not numbers:
        raise ValueError(f"{versions} holds no revisions")
    return max(numbers)


async def _present_revision(url: str, schema: str) -> str:
    """The revision that the schema is at; "" when it has none. Asks without Alembic, whose import costs more."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return str(await connection.fetchval(f'SELECT version_num FROM "{schema}".alembic_version') or "")  # noqa: S608 - the schema is a constant of the service
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return ""
    finally:
        await connection.close(timeout=5)


async def _upgrade(url: str, schema: str, versions: Path) -> None:
    from services.kit.postgres import open_engine  # noqa: PLC0415 - SQLAlchemy is not needed to find nothing to do

    engine = open_engine(url, pool_size=1)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade_in_turn, schema, versions)
    finally:
        await engine.dispose()


def _upgrade_in_turn(connection: "Connection", schema: str, versions: Path) -> None:
    """Run the revisions that are missing, under a lock that ends with the connection."""
    from alembic import command  # noqa: PLC0415 - imported only when there is something to do
    from alembic.config import Config  # noqa: PLC0415

    connection.exec_driver_sql("SET statement_timeout = '15min'")
    # The turn may take as long as a statement; a table's lock, which holds up its users, may not.
    connection.exec_driver_sql("SET lock_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
    connection.exec_driver_sql("SET lock_timeout = '10s'")
    exists = connection.exec_driver_sql("SELECT 1 FROM pg_namespace WHERE nspname = $1", (schema,)).scalar()
    if not exists:  # IF NOT EXISTS would ask for the right to create also when there is nothing to create
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
    connection.commit()

    config = Config(attributes={"connection": connection, "schema": schema})
    for option, value in (
        ("script_location", str(Path(__file__).parent / "migrations")),
        ("version_locations", str(versions)),
        ("path_separator", "newline"),
    ):
        config.set_main_option(option, value.replace("%", "%%"))
    command.upgrade(config, "head")
    connection.commit()


async def differences(url: str, *, schema: str, metadata: "MetaData") -> list[object]:
    """What differs between a migrated schema and the tables declared for it, as Alembic's operations. For tests."""
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - for tests only
    from alembic.migration import MigrationContext  # noqa: PLC0415

    from services.kit.postgres import open_engine  # noqa: PLC0415

    def compare(connection: "Connection") -> list[object]:
        options = {
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == schema,
            "version_table_schema": schema,
            "compare_server_default": True,
        }
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found

    engine = open_engine(url, pool_size=1)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(compare)
    finally:
        await engine.dispose()
