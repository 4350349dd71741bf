"""Access tokens (signed, short) and refresh tokens (opaque, single use). No I/O: `sessions.py` uses them."""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import jwt
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.auth.domain.model import Family, User

ACCESS_TOKEN_SECONDS = 900
_PEM_END = b"-----END PUBLIC KEY-----"


def derive_key(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, so that no two uses of the pepper share a key."""
    return hmac.digest(secret, f"headrace auth {purpose}".encode(), "sha256")


def load_signing_key(pem: bytes) -> Ed25519PrivateKey:
    """The private key in a PEM. Raises ValueError when it is none, or not Ed25519."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("must be an Ed25519 key: `openssl genpkey -algorithm ed25519` makes one")
    return key


def load_public_keys(pem: bytes) -> list[Ed25519PublicKey]:
    """The public keys in a text of PEMs, one after the other. Raises ValueError when one is not Ed25519."""
    keys = []
    for part in pem.split(_PEM_END)[:-1]:
        key = serialization.load_pem_public_key(part + _PEM_END)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("must be Ed25519 public keys")
        keys.append(key)
    if not keys and pem.strip():
        raise ValueError("must be public keys in PEM")
    return keys


class AccessTokens:
    """Signs access tokens (RFC 9068) and publishes the keys that verify them."""

    def __init__(
        self,
        signing_key: Ed25519PrivateKey,
        *,
        issuer: str,
        audience: str,
        other_public_keys: Sequence[Ed25519PublicKey] = (),
    ) -> None:
        """`other_public_keys` are published too: those of keys that signed before, or will next."""
        self._key = signing_key
        self._issuer = issuer
        self._audience = audience
        own = _jwk(signing_key.public_key())
        self._key_id = own["kid"]
        # By key id, so that a key listed twice is published once.
        keys = {key["kid"]: key for key in (own, *map(_jwk, other_public_keys))}
        self.jwks = orjson.dumps({"keys": list(keys.values())})
        """RFC 7517 JSON Web Key Set, as text."""

    def sign(self, user: User, family_id: UUID) -> str:
        """A token for a user, good for 15 min. Claims beside the registered ones: `pid` the personal project, `fam`."""
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user.id),
            "jti": str(uuid4()),
            "iat": now,
            "nbf": now,
            "exp": now + ACCESS_TOKEN_SECONDS,
            "pid": str(user.personal_project_id),
            "fam": str(family_id),
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": self._key_id})


def _jwk(key: Ed25519PublicKey) -> dict[str, Any]:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    jwk = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}
    # RFC 7638: the hash of these members in this order names the key.
    thumbprint = _base64url(hashlib.sha256(orjson.dumps(jwk)).digest())
    return {**jwk, "kid": thumbprint, "use": "sig", "alg": "EdDSA"}


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What a refresh token says of itself; to be believed once `RefreshTokens.is_genuine`."""

    user_id: UUID
    family_id: UUID
    counter: int
    proof: bytes


class RefreshTokens:
    """Makes and reads refresh tokens: `hrt_`, user, family and counter, and an HMAC over them and the family's seed.

    None is stored. A token follows from its family's row and a key that is not in the database, so whoever holds one of
    the two can make none, and the successor of a token can be given a second time (docs/adr/0004).
    """

    _PREFIX = "hrt_"
    _LENGTH = 16 + 16 + 4 + 32

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, family: Family, counter: int) -> str:
        """The token of a family with this number."""
        head = family.user_id.bytes + family.id.bytes + counter.to_bytes(4, "big")
        return self._PREFIX + _base64url(head + self._prove(head, family.seed))

    def read(self, token: str) -> RefreshToken | None:
        """What a token says; None when it is not of the form."""
        if not token.startswith(self._PREFIX) or len(token) > 2 * self._LENGTH or not token.isascii():
            return None
        text = token.removeprefix(self._PREFIX)
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except binascii.Error:
            return None
        if len(data) != self._LENGTH:
            return None
        return RefreshToken(
            user_id=UUID(bytes=data[:16]),
            family_id=UUID(bytes=data[16:32]),
            counter=int.from_bytes(data[32:36], "big"),
            proof=data[36:],
        )

    def is_genuine(self, token: RefreshToken, family: Family) -> bool:
        """This service made the token for this family."""
        head = family.user_id.bytes + family.id.bytes + token.counter.to_bytes(4, "big")
        return hmac.compare_digest(self._prove(head, family.seed), token.proof)

    def _prove(self, head: bytes, seed: bytes) -> bytes:
        return hmac.digest(self._key, head + seed, "sha256")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
