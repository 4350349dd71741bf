"""Auth's process: `python -m services.auth.main [serve|migrate|rewrap]`."""

import asyncio
import sys
from contextlib import AsyncExitStack

from headrace.auth.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server

from services.auth.domain.accounts import Accounts
from services.auth.domain.api_keys import ApiKeys
from services.auth.domain.credentials import Credentials
from services.auth.domain.envelope import KeyRing
from services.auth.domain.passwords import Passwords
from services.auth.domain.projects import Projects
from services.auth.domain.sessions import Sessions
from services.auth.domain.store import Store
from services.auth.domain.throttles import Throttles
from services.auth.domain.tokens import AccessTokens, RefreshTokens, derive_key, load_public_keys, load_signing_key
from services.auth.settings import DatabaseSettings, Settings
from services.auth.storage.postgres import PostgresStore
from services.auth.transport.grpc import GRANT_METHODS, SERVICE_NAME, AuthServicer
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.kit.lifecycle import run, serve_metrics
from services.kit.postgres import open_engine, watched_health
from services.kit.settings import InternalKeySettings, decode_key, decode_keys

SCHEMA = "auth"


def main() -> None:
    """Serve, or bring the schema up to date."""
    command = sys.argv[1] if len(sys.argv) > 1 else "serve"
    if command == "serve":
        run("auth", serve)
    elif command == "migrate":
        migrate_schema()
    elif command == "rewrap":
        print(f"{asyncio.run(rewrap(Settings()))} keys of projects are now wrapped by the present credential key.")
    else:
        sys.exit("usage: python -m services.auth.main [serve|migrate|rewrap]")


def migrate_schema() -> None:
    """Run the revisions that are missing."""
    from services.auth.storage import migrations  # noqa: PLC0415 - serving needs neither
    from services.kit.migrate import migrate  # noqa: PLC0415

    url = DatabaseSettings().postgres_url.get_secret_value()
    migrate(url, schema=SCHEMA, migrations=migrations)


async def rewrap(settings: Settings) -> int:
    """Encrypt the keys of all projects by the present credential key: then no earlier one is needed any more."""
    engine = open_engine(settings.postgres_url.get_secret_value())
    try:
        return await _credentials(PostgresStore(engine), settings).rewrap_all()
    finally:
        await engine.dispose()


async def serve(stack: AsyncExitStack) -> None:
    """Build the service and start it; the stack stops it."""
    settings, internal = Settings(), InternalKeySettings()
    serve_metrics(settings.metrics_listen)
    engine = open_engine(settings.postgres_url.get_secret_value())
    stack.push_async_callback(engine.dispose)
    passwords = Passwords(pepper_key=derive_key(decode_key(settings.pepper), "passwords"), cost=settings.bcrypt_cost)
    stack.callback(passwords.close)
    server = GrpcServer(
        listen=settings.listen,
        tokens=CallerTokens(*internal.keys),
        service_names=(SERVICE_NAME,),
        grant_methods=GRANT_METHODS,
    )
    servicer = build_servicer(PostgresStore(engine), passwords, settings)
    add_AuthServiceServicer_to_server(servicer, server.server)
    await server.start()
    stack.push_async_callback(server.stop)
    await stack.enter_async_context(watched_health(engine, schema=SCHEMA, report=server.set_healthy))


def build_servicer(store: Store, passwords: Passwords, settings: Settings) -> AuthServicer:
    """Wire the use cases."""
    pepper = decode_key(settings.pepper)
    throttles = Throttles(derive_key(pepper, "throttles"))
    access = AccessTokens(
        load_signing_key(settings.signing_key.get_secret_value().encode()),
        issuer=settings.issuer,
        audience=settings.audience,
        other_public_keys=load_public_keys(settings.previous_public_keys.encode()),
    )
    return AuthServicer(
        accounts=Accounts(store, passwords=passwords, throttles=throttles),
        sessions=Sessions(
            store,
            passwords=passwords,
            access=access,
            refresh=RefreshTokens(derive_key(pepper, "refresh tokens")),
            throttles=throttles,
        ),
        projects=Projects(store),
        api_keys=ApiKeys(store, key=derive_key(pepper, "api keys")),
        credentials=_credentials(store, settings),
        jwks=access.jwks,
    )


def _credentials(store: Store, settings: Settings) -> Credentials:
    ring = KeyRing(decode_key(settings.credential_key), decode_keys(settings.previous_credential_keys))
    return Credentials(store, ring=ring, hash_key=derive_key(decode_key(settings.pepper), "credential requests"))


if __name__ == "__main__":
    main()
