"""PostgreSQL over TLS: what a URL says of it holds for engines, which migrations use, and for pools."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from urllib.parse import quote, urlsplit

import pytest
from sqlalchemy import text

from services.kit.postgres import open_engine, open_pool
from tests.support import backends
from tests.support.certificates import certificate
from tests.support.tcp_postgres import tcp_door


@pytest.fixture
async def tls_url(tmp_path) -> AsyncIterator[str]:
    """The URL of an empty database behind TLS; what follows verifies the server by its certificate."""
    tls, file = certificate(tmp_path, "localhost")
    url = await backends.empty_database()
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    async with tcp_door(url, tls) as door:
        yield f"postgresql://{user}@localhost:{door.port}{parts.path}?sslmode=verify-full&sslrootcert={quote(str(file))}"
    await backends.drop_database(url)


async def test_engines_and_pools_connect_by_a_url_that_asks_for_tls(tls_url):
    engine, pool = open_engine(tls_url), await open_pool(tls_url, size=1)
    async with engine.connect() as connection, pool.acquire() as other:
        assert (await connection.execute(text("SELECT current_setting('application_name')"))).scalar() == "headrace"
        assert await other.fetchval("SELECT 1") == 1
    await engine.dispose()
    await pool.close()


async def test_a_server_that_another_authority_vouches_for_is_refused(tls_url, tmp_path):
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other", "localhost")
    engine = open_engine(tls_url.partition("&")[0] + f"&sslrootcert={quote(str(other))}")
    with pytest.raises(ssl.SSLCertVerificationError):
        async with engine.connect():
            pass
    await engine.dispose()
