"""The secrets of one local stack: made once, kept in its home with mode 0600, given to each process by need."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.local.errors import StackError
from deploy.local.files import write_private

ADMIN_EMAIL = "admin@example.com"


def _password() -> str:
    return secrets.token_urlsafe(24)


def _key() -> str:
    """32 random bytes, base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _signing_key() -> str:
    """An Ed25519 private key, PEM (PKCS 8)."""
    return (
        Ed25519PrivateKey.generate()
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


_MAKERS: dict[str, Callable[[], str]] = {
    "postgres_password": _password,
    "postgres_auth_password": _password,
    "postgres_workflows_password": _password,
    "postgres_executor_password": _password,
    "postgres_vector_password": _password,
    "nats_executor_password": _password,
    "nats_worker_password": _password,
    "internal_key": _key,
    "auth_signing_key": _signing_key,
    "auth_pepper": _key,
    "auth_credential_key": _key,
    "admin_password": _password,
}


class Secrets:
    """The secrets by name (`_MAKERS` lists them)."""

    def __init__(self, file: Path, *, has_data: bool) -> None:
        """Read the secrets, and make those that are missing.

        Args:
            has_data: whether the home holds a database that was made with earlier secrets.

        Raises:
            StackError: the file is damaged, or gone while the database needs it.
        """
        self._values = _read(file)
        if has_data and not self._values:
            raise StackError(
                f"{file} is gone, but the database beside it can only be opened with it. "
                f"Put the file back, or delete {file.parent} to begin anew without the data."
            )
        missing = [name for name in _MAKERS if name not in self._values]
        if missing:
            self._values |= {name: _MAKERS[name]() for name in missing}
            write_private(file, json.dumps(self._values, indent=1), durable=True)

    def __getitem__(self, name: str) -> str:
        return self._values[name]


def _read(file: Path) -> dict[str, str]:
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StackError(f"{file} cannot be read ({error}). Put it back from a copy.") from error
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise StackError(f"{file} is damaged: it should be one JSON object of strings. Put it back from a copy.")
    return values
