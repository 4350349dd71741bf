"""Migrations against a real server, by roles that may do no more than they must."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import asyncpg
import pytest

from deploy.local import databases
from services.kit.migrate import is_current, migrate, newest_revision, versions_of
from tests.support import backends

FIRST = """
from alembic import op
revision = "0001"
down_revision = None
def upgrade():
    op.execute("CREATE TABLE things.first (id int)")
"""
SECOND = """
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade():
    op.execute("CREATE TABLE things.second (id int)")
    op.execute("{then}")
"""


@pytest.fixture
def migrations(tmp_path: Path) -> ModuleType:
    """A package whose path needs care: spaces and per cents are special to Alembic's settings."""
    versions = tmp_path / "50% of a folder" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(FIRST)
    package = ModuleType("migrations")
    package.__file__ = str(versions.parent / "__init__.py")
    return package


@pytest.fixture
def role() -> str:
    return f"headrace_test_{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def url(postgres_server: str, role: str) -> AsyncIterator[str]:
    """An empty database, by a role that owns nothing."""
    admin_url = await backends.empty_database()
    name = admin_url.partition("?")[0].rpartition("/")[2]
    await databases.prepare_database(postgres_server, {role: "x"}, database=name)
    yield databases.url_with(admin_url, database=name, user=role, password="x")
    await backends.drop_database(admin_url)
    admin = await asyncpg.connect(postgres_server)
    await databases.execute(admin, "DROP ROLE %I", role)
    await admin.close()


async def run(url: str, migrations: ModuleType) -> None:
    await asyncio.to_thread(migrate, url, schema="things", migrations=migrations)


async def value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_many_at_once_migrate_once(url: str, migrations: ModuleType) -> None:
    assert not await is_current(url, schema="things", versions=versions_of(migrations))
    await asyncio.gather(*(run(url, migrations) for _ in range(4)))
    assert await is_current(url, schema="things", versions=versions_of(migrations))
    assert await value(url, "SELECT version_num FROM things.alembic_version") == "0001"


async def test_a_failed_revision_leaves_the_one_before_and_no_traces(url: str, migrations: ModuleType) -> None:
    second = versions_of(migrations) / "0002_second.py"
    second.write_text(SECOND.format(then="SELECT 1/0"))
    with pytest.raises(Exception, match="division by zero"):
        await run(url, migrations)
    assert await value(url, "SELECT version_num FROM things.alembic_version") == "0001"
    assert await value(url, "SELECT to_regclass('things.second')") is None
    second.write_text(SECOND.format(then="SELECT 1"))
    await run(url, migrations)
    assert await value(url, "SELECT to_regclass('things.second')") is not None


async def test_a_schema_newer_than_the_code_is_left_alone(url: str, migrations: ModuleType) -> None:
    await run(url, migrations)
    connection = await asyncpg.connect(url)
    await connection.execute("UPDATE things.alembic_version SET version_num = '0009'")
    await connection.close()
    await run(url, migrations)
    assert await value(url, "SELECT version_num FROM things.alembic_version") == "0009"


async def test_a_role_that_may_not_create_schemas_migrates_its_own(
    url: str, migrations: ModuleType, role: str, postgres_server: str
) -> None:
    name = url.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(databases.url_with(postgres_server, database=name))
    await databases.execute(admin, "CREATE SCHEMA things AUTHORIZATION %I", role)
    await databases.execute(admin, "REVOKE CREATE ON DATABASE %I FROM %I", name, role)
    await admin.execute("CREATE SCHEMA of_another")
    await admin.close()
    await run(url, migrations)
    assert await value(url, "SELECT version_num FROM things.alembic_version") == "0001"


def test_files_that_are_no_revisions_are_told(migrations: ModuleType) -> None:
    versions = versions_of(migrations)
    assert newest_revision(versions) == "0001"
    (versions / "second.py").write_text("")
    with pytest.raises(ValueError, match="0001_users"):
        newest_revision(versions)
