"""The one door to real PostgreSQL and NATS.

In this order: the servers at HEADRACE_TEST_POSTGRES_URL and HEADRACE_TEST_NATS_URL; containers with
HEADRACE_TEST_BACKEND=containers, of HEADRACE_POSTGRES_IMAGE and HEADRACE_NATS_IMAGE if set; else the servers from the
wheels, started when first asked for and shared by all processes of the test session (`tests.support.backend_host`).
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import asyncpg

from deploy.local import databases
from services.kit.migrate import migrate
from tests.support.backend_host import READY_FILE, USERS_FILE

_START_TIMEOUT = 60.0
_ROOT = Path(__file__).resolve().parent.parent.parent
_ROLE_PASSWORD = "of-a-role-in-throw-away-databases"
_TEMPLATE_LOCK = 7_263_002
"""Any fixed number: one process at a time makes a template."""


def postgres_server() -> str:
    """Return an administrator's URL of a real PostgreSQL server."""
    return os.environ.get("HEADRACE_TEST_POSTGRES_URL") or str(_session_servers()["postgres_url"])


def nats_url(user: str = "executor") -> str:
    """Return the URL of a real NATS server with JetStream, for `executor` (default) or `worker`."""
    return os.environ.get("HEADRACE_TEST_NATS_URL") or str(_session_servers()["nats_urls"][user])


async def fresh_database(service: str) -> str:
    """Return the URL, with the service's own role, of a new database that holds the service's schema and no rows.

    Copied from a template that is migrated once, so it costs some tens of milliseconds.
    """
    role = f"headrace_test_{service}"
    admin = await asyncpg.connect(postgres_server())
    try:
        template = await _template(admin, service, role)
        name = f"headrace_test_{service}_{uuid.uuid4().hex[:12]}"
        await databases.execute(admin, "CREATE DATABASE %I TEMPLATE %I", name, template)
        await databases.restrict_access(admin, name, [role])
    finally:
        await admin.close()
    return databases.url_with(postgres_server(), database=name, user=role, password=_ROLE_PASSWORD)


async def empty_database() -> str:
    """Return an administrator's URL of a new database without anything in it."""
    name = f"headrace_test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres_server())
    try:
        await databases.execute(admin, "CREATE DATABASE %I", name)
    finally:
        await admin.close()
    return databases.url_with(postgres_server(), database=name)


async def drop_database(url: str) -> None:
    """Drop a database that `fresh_database` or `empty_database` made, with whoever is still connected to it."""
    name = url.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(postgres_server())
    try:
        await databases.execute(admin, "DROP DATABASE IF EXISTS %I WITH (FORCE)", name)
    finally:
        await admin.close()


async def _template(admin: asyncpg.Connection[Any], service: str, role: str) -> str:
    """Return the name of the database with this version of the service's schema; made by whoever comes first."""
    migrations = importlib.import_module(f"services.{service}.storage.migrations")
    template = f"headrace_template_{service}_{_digest(Path(str(migrations.__file__)).parent)}"
    await admin.execute("SELECT pg_advisory_lock($1)", _TEMPLATE_LOCK)
    try:
        if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", template):
            part = f"{template}_part"
            await databases.execute(admin, "DROP DATABASE IF EXISTS %I WITH (FORCE)", part)
            await databases.prepare_database(postgres_server(), {role: _ROLE_PASSWORD}, database=part)
            url = databases.url_with(postgres_server(), database=part, user=role, password=_ROLE_PASSWORD)
            await asyncio.to_thread(migrate, url, schema=service, migrations=migrations)
            await databases.execute(admin, "ALTER DATABASE %I RENAME TO %I", part, template)
    finally:
        await admin.execute("SELECT pg_advisory_unlock($1)", _TEMPLATE_LOCK)
    return template


def _digest(migrations: Path) -> str:
    """Name the state of a service's migrations: templates outlive a session on a server given by URL."""
    digest = hashlib.sha256()
    for file in sorted(migrations.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def _session_servers() -> dict[str, Any]:
    """Return what the session's host says of its servers; starts the host if no other process has."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    folder = Path(tempfile.gettempdir()) / f"headrace-tests-{os.getuid()}-{session[:16]}"
    folder.mkdir(mode=0o711, exist_ok=True)
    users = os.open(folder / USERS_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(users, fcntl.LOCK_SH)  # held until this process ends: never closed
    with (folder / "starting").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        if not (folder / READY_FILE).exists():
            _start_host(folder)
    content: dict[str, Any] = json.loads((folder / READY_FILE).read_text())
    return content


def _start_host(folder: Path) -> None:
    log = folder / "host.log"
    try:
        with log.open("wb") as output:
            subprocess.run(
                [sys.executable, "-m", "tests.support.backend_host", str(folder)],
                cwd=_ROOT,
                env=os.environ | {"PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'gen'}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                check=True,
                timeout=_START_TIMEOUT,
            )
    except subprocess.SubprocessError as error:
        raise RuntimeError(
            "PostgreSQL and NATS did not start. Name servers with HEADRACE_TEST_POSTGRES_URL and "
            f"HEADRACE_TEST_NATS_URL, or mend what {log} says:\n{log.read_text()[-3000:]}"
        ) from error
