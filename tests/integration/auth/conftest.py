"""Auth over a unix socket, in this process, on a database of the module's own."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from headrace.auth.v1 import auth_pb2
from headrace.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from sqlalchemy.ext.asyncio import AsyncEngine

from services.auth import main
from services.auth.settings import Settings
from services.kit.grpc_client import Rpc, open_channel
from services.kit.identity import CallerTokens
from services.kit.postgres import open_engine
from tests.integration.auth.client import Client

INTERNAL_KEY = os.urandom(32)


def key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def signing_key() -> str:
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode()


@pytest.fixture(scope="module")
async def database_url(database: Callable[[str], Awaitable[str]]) -> str:
    return await database("auth")


@pytest.fixture(scope="module")
async def rows(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The database behind the service's back."""
    engine = open_engine(database_url, pool_size=2)
    yield engine
    await engine.dispose()


@pytest.fixture(scope="module")
def settings(database_url: str) -> Settings:
    return Settings.model_validate(
        {
            "listen": "unix:unused",
            "postgres_url": database_url,
            "signing_key": signing_key(),
            "pepper": key(),
            "credential_key": key(),
            "bcrypt_cost": 4,
        }
    )


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    # Not tmp_path: a socket's path has at most 107 bytes.
    with TemporaryDirectory(prefix="hr-auth-") as folder:
        yield f"unix:{Path(folder) / 'auth'}"


@pytest.fixture(scope="module")
async def auth(socket: str, settings: Settings, monkeypatch_module: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A client of the running service, as another service would be."""
    for name, value in {
        "LISTEN": socket,
        "POSTGRES_URL": settings.postgres_url.get_secret_value(),
        "SIGNING_KEY": settings.signing_key.get_secret_value(),
        "PEPPER": settings.pepper.get_secret_value(),
        "CREDENTIAL_KEY": settings.credential_key.get_secret_value(),
        "BCRYPT_COST": str(settings.bcrypt_cost),
    }.items():
        monkeypatch_module.setenv(f"HEADRACE_AUTH_{name}", value)
    monkeypatch_module.setenv("HEADRACE_INTERNAL_KEY", base64.b64encode(INTERNAL_KEY).decode())
    async with AsyncExitStack() as stack:
        await main.serve(stack)
        channel = open_channel(socket)
        tokens = CallerTokens(INTERNAL_KEY)
        yield Client(AuthServiceStub(channel), Rpc(tokens.for_service("gateway")), tokens)
        await channel.close()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
async def ada(auth: Client) -> auth_pb2.User:
    """A new user."""
    return await auth.register()
