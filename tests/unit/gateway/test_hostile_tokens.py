"""Access tokens that must not be believed, and the one kind that must."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import uuid
from collections.abc import Callable
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.waiting import await_until
from tests.unit.gateway.peers import KEY_ID, SIGNING_KEY, USER, access_token, claims, jwk

STRANGER = Ed25519PrivateKey.generate()
HEADER = {"alg": "EdDSA", "typ": "at+jwt", "kid": KEY_ID}
PUBLIC_RAW = SIGNING_KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
PUBLIC_PEM = SIGNING_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed(header: Any, payload: Any, key: Ed25519PrivateKey = SIGNING_KEY) -> str:
    """Any header over any payload, rightly signed."""
    parts = [item if isinstance(item, bytes) else orjson.dumps(item) for item in (header, payload)]
    body = ".".join(encoded(part) for part in parts)
    return f"{body}.{encoded(key.sign(body.encode()))}"


def with_header(**changes: Any) -> str:
    header = {name: value for name, value in (HEADER | changes).items() if value is not None}
    return signed(header, claims())


def with_claims(**changes: Any) -> str:
    return signed(HEADER, claims(**changes))


def hmac_with(secret: bytes, algorithm: str = "HS256") -> str:
    body = f"{encoded(orjson.dumps(HEADER | {'alg': algorithm}))}.{encoded(orjson.dumps(claims()))}"
    return f"{body}.{encoded(hmac.digest(secret, body.encode(), hashlib.sha256))}"


def unsigned(algorithm: str) -> str:
    return f"{encoded(orjson.dumps(HEADER | {'alg': algorithm}))}.{encoded(orjson.dumps(claims()))}."


def tampered() -> str:
    head, _, signature = access_token().split(".")
    return f"{head}.{encoded(orjson.dumps(claims(sub=str(uuid.uuid4()))))}.{signature}"


def flipped() -> str:
    head, body, signature = access_token().split(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[7] ^= 1
    return f"{head}.{body}.{encoded(bytes(raw))}"


def by_other_algorithm(key: Any, algorithm: str) -> str:
    return jwt.encode(claims(), key, algorithm=algorithm, headers={"typ": "at+jwt", "kid": KEY_ID})


def duplicate_claims() -> str:
    text = orjson.dumps(claims(sub="not-a-uuid")).removesuffix(b"}")
    return signed(HEADER, text + b', "sub": 5}')


NOW = int(time.time())
HOSTILE: dict[str, Callable[[], str]] = {
    "signed by a stranger": lambda: access_token(STRANGER),
    "signed by a stranger, under its own key id": lambda: access_token(STRANGER, headers={"kid": "stranger"}),
    "unsigned": lambda: unsigned("none"),
    "unsigned, spelt None": lambda: unsigned("None"),
    "unsigned, spelt nOnE": lambda: unsigned("nOnE"),
    "unsigned, claiming EdDSA": lambda: unsigned("EdDSA"),
    "hmac under the public key": lambda: hmac_with(PUBLIC_RAW),
    "hmac under the public key as PEM": lambda: hmac_with(PUBLIC_PEM),
    "hmac under an empty key": lambda: hmac_with(b""),
    "hmac, claiming EdDSA": lambda: hmac_with(PUBLIC_RAW, "EdDSA"),
    "rsa": lambda: by_other_algorithm(rsa.generate_private_key(65537, 2048), "RS256"),
    "ecdsa": lambda: by_other_algorithm(ec.generate_private_key(ec.SECP256R1()), "ES256"),
    "algorithm named Ed25519": lambda: with_header(alg="Ed25519"),
    "algorithm in lower case": lambda: with_header(alg="eddsa"),
    "algorithm as a list": lambda: with_header(alg=["EdDSA"]),
    "no algorithm": lambda: with_header(alg=None),
    "type JWT": lambda: with_header(typ="JWT"),
    "type in capitals": lambda: with_header(typ="AT+JWT"),
    "no type": lambda: with_header(typ=None),
    "no key id": lambda: with_header(kid=None),
    "empty key id": lambda: with_header(kid=""),
    "key id is a path": lambda: with_header(kid="../../../../dev/null"),
    "key id is SQL": lambda: with_header(kid="x' UNION SELECT 'key"),
    "key id is a number": lambda: with_header(kid=1),
    "key id is a list": lambda: with_header(kid=[KEY_ID]),
    "brings its own key": lambda: signed(HEADER | {"jwk": jwk(STRANGER)}, claims(), STRANGER),
    "points at keys elsewhere": lambda: with_header(jku="https://attacker.example/jwks.json"),
    "points at a certificate": lambda: with_header(x5u="https://attacker.example/c.pem"),
    "brings a certificate": lambda: with_header(x5c=["MIIB"]),
    "certificate hash": lambda: with_header(x5t="abc"),
    "critical extension": lambda: with_header(crit=["exp"]),
    "unencoded payload": lambda: with_header(b64=False, crit=["b64"]),
    "compressed": lambda: with_header(zip="DEF"),
    "nested token": lambda: with_header(cty="JWT"),
    "tampered claims": tampered,
    "flipped signature": flipped,
    "expired": lambda: with_claims(iat=NOW - 1000, nbf=NOW - 1000, exp=NOW - 100),
    "not valid yet": lambda: with_claims(nbf=NOW + 600),
    "issued in the future": lambda: with_claims(iat=NOW + 600, exp=NOW + 900),
    "lives an hour": lambda: with_claims(exp=NOW + 3600),
    "lives for ever": lambda: with_claims(exp=2**62),
    "ends before it starts": lambda: with_claims(iat=NOW, exp=NOW),
    "exp as text": lambda: with_claims(exp=str(NOW + 600)),
    "exp as a float": lambda: with_claims(exp=NOW + 600.5),
    "exp is huge": lambda: with_claims(exp=1e300),
    "exp is true": lambda: with_claims(exp=True),
    "exp is a list": lambda: with_claims(exp=[NOW + 600]),
    "iat as text": lambda: with_claims(iat=str(NOW)),
    "nbf as text": lambda: with_claims(nbf=str(NOW)),
    **{f"no {name}": lambda name=name: with_claims(**{name: None}) for name in claims() if name != "fam"},
    "of another issuer": lambda: with_claims(iss="https://attacker.example"),
    "issuers as a list": lambda: with_claims(iss=["headrace"]),
    "for another audience": lambda: with_claims(aud="other"),
    "for many audiences": lambda: with_claims(aud=["headrace", "other"]),
    "audience is an object": lambda: with_claims(aud={"headrace": 1}),
    "subject is no id": lambda: with_claims(sub="admin"),
    "subject is a number": lambda: with_claims(sub=1),
    "subject is an object": lambda: with_claims(sub={"$ne": ""}),
    "project is no id": lambda: with_claims(pid="*"),
    "project is a list": lambda: with_claims(pid=[str(uuid.uuid4())]),
    "empty token id": lambda: with_claims(jti=""),
    "token id is a number": lambda: with_claims(jti=7),
    "claims twice": duplicate_claims,
    "claims are a list": lambda: signed(HEADER, [1, 2]),
    "claims are text": lambda: signed(HEADER, b'"x"'),
    "claims are not JSON": lambda: signed(HEADER, b"{"),
    "claims are not UTF-8": lambda: signed(HEADER, b"\xff\xfe{}"),
    "header is a list": lambda: signed([HEADER], claims()),
    "header is not JSON": lambda: signed(b"{", claims()),
    "header nests deep": lambda: signed(b'{"alg":' * 400 + b"1" + b"}" * 400, claims()),
    "claims nest deep": lambda: signed(HEADER, b'{"a":' * 600 + b"1" + b"}" * 600),
    "too long": lambda: with_claims(note="x" * 5000),
    "one part": lambda: "abc",
    "two parts": lambda: access_token().rpartition(".")[0],
    "four parts": lambda: access_token() + ".x",
    "five parts, as encrypted ones": lambda: "a.b.c.d.e",
    "empty parts": lambda: "..",
    "padded header": lambda: "=" + access_token(),
    "a space inside": lambda: access_token().replace(".", ". ", 1),
    "JSON serialisation": lambda: orjson.dumps({"payload": "e30", "signatures": []}).decode(),
}


def test_the_corpus_is_large():
    assert len(HOSTILE) >= 70


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_token_is_answered_401(client, make):
    reply = await client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {make()}"})
    assert reply.status_code == 401, reply.text
    assert reply.json()["reason"] in {"INVALID_TOKEN", "TOKEN_EXPIRED"}
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert reply.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Basic dXNlcjpwYXNz")],
        [("Authorization", f"Token {access_token()}")],
        [("Authorization", access_token())],
        [("Authorization", "Bearer \u00e9".encode("latin-1"))],
        [("Authorization", f"Bearer {access_token()}"), ("Authorization", f"Bearer {access_token()}")],
        [("Authorization", f"Bearer {access_token()}"), ("X-API-Key", "hr_x")],
        [("X-API-Key", "")],
        [("X-API-Key", "hr_" + "x" * 1000)],
        [("X-API-Key", access_token())],
    ],
)
async def test_a_request_without_one_good_credential_is_answered_401(anonymous, headers):
    assert (await anonymous.get("/api/v1/workflows", headers=headers)).status_code == 401


async def test_a_good_token_is_checked_without_a_call_and_speaks_for_its_user(client, peers):
    for _ in range(3):
        await client.get("/api/v1/auth/me")
    assert [request.user_id for request in peers.asked["GetUser"]] == [USER] * 3
    assert len(peers.asked["GetJwks"]) == 1


async def test_a_new_signing_key_is_found_and_made_up_key_ids_cause_no_storm(client, peers, monkeypatch):
    await client.get("/api/v1/node-types")
    monkeypatch.setattr("services.gateway.access_tokens._MIN_REFRESH_SECONDS", 0.0)
    successor = Ed25519PrivateKey.generate()
    peers.jwks = [jwk(SIGNING_KEY), jwk(successor, "key-2")]
    new = {"Authorization": f"Bearer {access_token(successor, headers={'kid': 'key-2'})}"}
    assert (await client.get("/api/v1/node-types", headers=new)).status_code != 401
    monkeypatch.setattr("services.gateway.access_tokens._MIN_REFRESH_SECONDS", 60.0)
    asked = len(peers.asked["GetJwks"])
    for number in range(20):
        made_up = {"Authorization": f"Bearer {access_token(STRANGER, headers={'kid': f'made-up-{number}'})}"}
        assert (await client.get("/api/v1/node-types", headers=made_up)).status_code == 401
    assert len(peers.asked["GetJwks"]) == asked


async def test_keys_at_hand_serve_while_auth_is_away(client, peers, gateway, monkeypatch):
    await client.get("/api/v1/node-types")
    monkeypatch.setattr("services.gateway.access_tokens._REFRESH_SECONDS", -1.0)
    monkeypatch.setattr("services.gateway.access_tokens._MIN_REFRESH_SECONDS", 0.0)
    peers.jwks = None
    for _ in range(3):
        fresh = {"Authorization": f"Bearer {access_token()}"}
        assert (await client.get("/api/v1/node-types", headers=fresh)).status_code != 401
    await await_until(lambda: len(peers.asked["GetJwks"]) > 1)


async def test_tokens_cannot_be_judged_before_there_are_keys(client, peers):
    peers.jwks = None
    reply = await client.get("/api/v1/node-types")
    assert (reply.status_code, reply.json()["reason"]) == (503, "UNAVAILABLE")
