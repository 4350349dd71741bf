"""Signing keys, and what refresh tokens prove."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.auth.domain.model import Family
from services.auth.domain.tokens import AccessTokens, RefreshTokens, load_public_keys, load_signing_key

FAMILY = Family(uuid.uuid4(), uuid.uuid4(), b"s" * 32, counter=1, live=True, just_rotated=False)


def public_pem(key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_published_keys_are_the_own_and_the_others_once_each() -> None:
    own, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    text = public_pem(other.public_key()) + b"\n" + public_pem(own.public_key())
    tokens = AccessTokens(own, issuer="i", audience="a", other_public_keys=load_public_keys(text))
    keys = json.loads(tokens.jwks)["keys"]
    assert len({key["kid"] for key in keys}) == len(keys) == 2


def test_only_ed25519_keys_sign() -> None:
    wrong = ec.generate_private_key(ec.SECP256R1())
    pem = wrong.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="Ed25519"):
        load_signing_key(pem)
    with pytest.raises(ValueError, match="Ed25519"):
        load_public_keys(public_pem(wrong.public_key()))
    with pytest.raises(ValueError, match="PEM"):
        load_public_keys(b"nonsense")


def test_a_refresh_token_is_genuine_only_under_its_key_family_and_seed() -> None:
    tokens = RefreshTokens(b"k" * 32)
    read = tokens.read(tokens.make(FAMILY, 1))
    assert read is not None
    assert (read.user_id, read.family_id, read.counter) == (FAMILY.user_id, FAMILY.id, 1)
    assert tokens.is_genuine(read, FAMILY)
    assert not RefreshTokens(b"o" * 32).is_genuine(read, FAMILY)
    assert not tokens.is_genuine(replace(read, counter=2), FAMILY)
    for other in ({"id": uuid.uuid4()}, {"user_id": uuid.uuid4()}, {"seed": b"o" * 32}):
        assert not tokens.is_genuine(read, replace(FAMILY, **other))


def test_secrets_are_not_in_representations() -> None:
    assert "ssss" not in repr(FAMILY)
