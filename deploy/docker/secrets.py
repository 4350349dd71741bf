"""`python -m deploy.docker.secrets FOLDER`: makes the secret files that compose.yaml hands to the containers.

Each is named as the variable that it stands for (services/kit/settings.py). What FOLDER/secrets.json remembers from an
earlier call stays as it was, so that the call may be repeated; keep a copy of that file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deploy.local import databases
from deploy.local.files import write_private
from deploy.local.nats_config import server_config
from deploy.local.secrets import Secrets

_ADMIN_URL = "postgresql://postgres@postgres:5432/postgres"
_PREVIOUS = (
    "HEADRACE_PREVIOUS_INTERNAL_KEYS",
    "HEADRACE_AUTH_PREVIOUS_PUBLIC_KEYS",
    "HEADRACE_AUTH_PREVIOUS_CREDENTIAL_KEYS",
)
"""For who replaces keys (docs/operations/keys.md): made empty, and not touched again."""


def make_files(folder: Path) -> None:
    """Make the folder, which only its owner may enter, and all files in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    files = contents(Secrets(folder / "secrets.json", has_data=False))
    files |= {name: "" for name in _PREVIOUS if not (folder / name).exists()}
    for name, content in files.items():
        file = folder / name
        write_private(file, content)
        # Compose mounts a file as it is, and the containers' users are others than the folder's owner.
        file.chmod(0o444)


def contents(secrets: Secrets) -> dict[str, str]:
    """Return the files: name -> text."""

    def database_url(service: str) -> str:
        role, password = databases.role_of(service), secrets[f"postgres_{service}_password"]
        return databases.url_with(_ADMIN_URL, database=databases.DATABASE, user=role, password=password)

    admin_password = secrets["postgres_password"]
    database_urls = {
        f"HEADRACE_{service.upper()}_POSTGRES_URL": database_url(service) for service in databases.STATEFUL_SERVICES
    }
    passwords = {user: secrets[f"nats_{user}_password"] for user in ("executor", "worker")}
    nats = server_config(listen="0.0.0.0:4222", store_dir="/data", passwords=passwords)
    return {
        "postgres_password": admin_password,
        "HEADRACE_POSTGRES_URL": databases.url_with(
            _ADMIN_URL, database="postgres", user="postgres", password=admin_password
        ),
        **database_urls,
        # The monitoring port is for the health check in the same container alone.
        "nats.conf": json.dumps(nats | {"http": "127.0.0.1:8222"}, indent=1),
        **{f"{user}_nats_url": f"nats://{user}:{password}@nats:4222" for user, password in passwords.items()},
        "HEADRACE_INTERNAL_KEY": secrets["internal_key"],
        "HEADRACE_AUTH_SIGNING_KEY": secrets["auth_signing_key"],
        "HEADRACE_AUTH_PEPPER": secrets["auth_pepper"],
        "HEADRACE_AUTH_CREDENTIAL_KEY": secrets["auth_credential_key"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.docker.secrets", description=__doc__)
    parser.add_argument("folder", type=Path)
    make_files(parser.parse_args().folder)


if __name__ == "__main__":
    main()
