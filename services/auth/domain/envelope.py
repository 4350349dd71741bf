"""Envelope encryption: AES-256-GCM under a data key per project, itself encrypted under the service's key.

What is encrypted is bound to its place by the authenticated data: a ciphertext copied to another row, project or
version does not open. Nonces are 96 random bits; a data key is good for 2^32 of them, more than a project will write.
"""

import hashlib
import os
from collections.abc import Sequence
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.auth.domain.model import WrappedKey
from services.kit.errors import InternalError

_NONCE_BYTES = 12


class KeyRing:
    """The keys that wrap data keys: the present one, and earlier ones that still open what they wrapped."""

    def __init__(self, present: bytes, earlier: Sequence[bytes] = ()) -> None:
        self._keys = {_key_id(key): AESGCM(key) for key in (*earlier, present)}
        self._present = _key_id(present)

    @property
    def present(self) -> str:
        """What the present key is called in `WrappedKey`."""
        return self._present

    def make(self, project_id: UUID) -> tuple[bytes, WrappedKey]:
        """A new data key, and its wrapped form to be stored."""
        key = AESGCM.generate_key(256)
        return key, self.wrap(project_id, key)

    def wrap(self, project_id: UUID, key: bytes) -> WrappedKey:
        """A data key encrypted under the present key."""
        return WrappedKey(self._present, _seal(self._keys[self._present], key, _place(project_id, self._present)))

    def unwrap(self, project_id: UUID, wrapped: WrappedKey) -> bytes:
        """The data key. Raises InternalError when the wrapping key is not on the ring or the row was tampered with."""
        if wrapped.wrapped_by not in self._keys:
            raise InternalError(
                f"the data key of project {project_id} is wrapped by {wrapped.wrapped_by}, which is neither "
                "HEADRACE_AUTH_CREDENTIAL_KEY nor among HEADRACE_AUTH_PREVIOUS_CREDENTIAL_KEYS"
            )
        return _open(self._keys[wrapped.wrapped_by], wrapped.wrapped_key, _place(project_id, wrapped.wrapped_by))

    def is_outdated(self, wrapped: WrappedKey) -> bool:
        """Wrapped by an earlier key: wrap it anew."""
        return wrapped.wrapped_by != self._present


def seal(key: bytes, data: bytes, *, project_id: UUID, credential_id: UUID, version: int) -> bytes:
    """A credential's data, encrypted for this row and version."""
    return _seal(AESGCM(key), data, _credential_place(project_id, credential_id, version))


def unseal(key: bytes, ciphertext: bytes, *, project_id: UUID, credential_id: UUID, version: int) -> bytes:
    """A credential's data. Raises InternalError when it was not sealed for this row and version."""
    return _open(AESGCM(key), ciphertext, _credential_place(project_id, credential_id, version))


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"headrace key id" + key).hexdigest()[:16]


def _place(project_id: UUID, key_id: str) -> bytes:
    return f"data-key|{project_id}|{key_id}".encode()


def _credential_place(project_id: UUID, credential_id: UUID, version: int) -> bytes:
    return f"{project_id}|{credential_id}|{version}".encode()


def _seal(cipher: AESGCM, data: bytes, place: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, data, place)


def _open(cipher: AESGCM, sealed: bytes, place: bytes) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
    except (InvalidTag, ValueError) as error:  # ValueError: cut too short
        raise InternalError(f"what is stored at {place.decode()} does not decrypt") from error
