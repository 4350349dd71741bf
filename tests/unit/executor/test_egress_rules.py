"""Who may be connected to: URLs, addresses, headers, and names that change their answer."""

import asyncio
import zlib

import pytest

from services.executor.egress import Dialer, EgressError, Rules, parse_host_ports
from services.executor.egress.addresses import is_public
from services.executor.egress.decoding import decode_body
from services.executor.egress.headers import check_headers, headers_for_other_origin
from services.executor.egress.rules import HostPort
from tests.unit.executor.egress_corpus import ALLOWED, REFUSED


def resolver(*answers: list[str]):
    """Answers with each list in turn, the last one for ever; keeps what it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    resolve.asked = asked
    return resolve


PUBLIC = resolver(["93.184.216.34"])


async def reach(url: str, dialer: Dialer) -> list[str]:
    parsed = dialer.rules.parse_url(url)
    return await dialer.addresses(parsed.place, operator_allowed=parsed.operator_allowed)


def test_the_corpus_is_large_enough():
    assert len(set(REFUSED)) >= 88


@pytest.mark.parametrize("url", REFUSED)
async def test_a_hostile_url_is_refused_even_if_its_name_resolves_to_a_public_address(url):
    with pytest.raises(EgressError):
        await reach(url, Dialer(Rules(), resolve=PUBLIC))


@pytest.mark.parametrize("url", ALLOWED)
async def test_a_good_url_passes(url):
    assert await reach(url, Dialer(Rules(), resolve=PUBLIC))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "::1", "::127.0.0.1", "64:ff9b::a9fe:a9fe", "fec0::1", "::ffff:0:127.0.0.1",
     "168.63.129.16", "100.64.0.1", "224.0.0.1", "ff02::1", "fe80::1%lo", "not an address"],
)  # fmt: skip
async def test_a_name_is_refused_when_any_of_its_addresses_is_not_public(address):
    assert not is_public(address)
    dialer = Dialer(Rules(), resolve=resolver(["93.184.216.34", address]))
    with pytest.raises(EgressError) as caught:
        await reach("http://rebind.example.com/", dialer)
    assert caught.value.reason == "ADDRESS_NOT_ALLOWED"
    assert address not in caught.value.message


async def test_the_address_that_was_checked_is_the_one_that_is_dialled(monkeypatch):
    dialled: list[str] = []

    async def create_connection(make, host, port, **options):
        dialled.append(host)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection, raising=False)
    resolve = resolver(["93.184.216.34"], ["127.0.0.1"])
    dialer = Dialer(Rules(), resolve=resolve)
    place = HostPort("rebind.example.com", 80)
    with pytest.raises(EgressError, match="No connection"):
        await dialer.connect(asyncio.Protocol, place, operator_allowed=False, tls=False)
    assert (dialled, resolve.asked) == (["93.184.216.34"], ["rebind.example.com"])
    with pytest.raises(EgressError) as caught:
        await dialer.connect(asyncio.Protocol, place, operator_allowed=False, tls=False)
    assert caught.value.reason == "ADDRESS_NOT_ALLOWED"


async def test_the_operator_allows_exactly_one_host_and_port():
    rules = Rules(parse_host_ports("127.0.0.1:8080, receiver:9000,[::1]:81"))
    dialer = Dialer(rules, resolve=resolver(["10.1.2.3"]))
    for good in ("http://127.0.0.1:8080/", "http://receiver:9000/", "http://[0::1]:81/"):
        assert await reach(good, dialer)
    for bad in ("http://127.0.0.1/", "http://127.0.0.1:8081/", "http://receiver/", "http://127.0.0.2:8080/"):
        with pytest.raises(EgressError):
            await reach(bad, dialer)


async def test_a_denied_place_is_refused_by_name_and_by_address_even_when_it_is_allowed():
    place = parse_host_ports("10.0.0.5:5432,other.internal:5432")
    dialer = Dialer(Rules(place, parse_host_ports("10.0.0.5:5432")), resolve=resolver(["10.0.0.5"]))
    with pytest.raises(EgressError, match="operator"):
        dialer.rules.check_place(HostPort("10.0.0.5", 5432))
    with pytest.raises(EgressError, match="operator"):
        await dialer.addresses(HostPort("other.internal", 5432), operator_allowed=True)


@pytest.mark.parametrize("text", ["127.0.0.1", "http://a:1", "a:b", ":80", "a b:80"])
def test_a_malformed_operator_list_is_refused(text):
    with pytest.raises(ValueError, match="host:port"):
        parse_host_ports(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "a\r\nX-B: y"), ("X-A", "a\n b"), ("X-A", "\u010d\u010a"), ("X-A", "a\x00"), ("X-A", "a\x0bb"),
        ("X A", "a"), ("", "a"), ("X:A", "a"), ("X-Ä", "a"), ("X\r\n", "a"), ("X-A", "a" * 9000),
        ("Host", "localhost"), ("content-length", "0"), ("Transfer-Encoding", "chunked"), ("Connection", "close"),
        ("Proxy-Authorization", "a"), ("X-Forwarded-For", "127.0.0.1"), ("Upgrade", "h2c"), ("TE", "trailers"),
        ("Metadata-Flavor", "Google"), ("X-aws-ec2-metadata-token", "a"), ("Metadata", "true"), ("Expect", "100"),
        ("X-aws-ec2-metadata-token-ttl-seconds", "60"), ("Accept-Encoding", "gzip, gzip"),
    ],
)  # fmt: skip
def test_a_header_that_could_change_framing_or_route_is_refused_without_showing_its_value(name, value):
    with pytest.raises(EgressError) as caught:
        check_headers({name: value})
    assert "X-B" not in caught.value.message


def test_only_harmless_headers_follow_to_another_origin():
    headers = (("Authorization", "Bearer s"), ("Cookie", "s"), ("X-Api-Key", "s"), ("Accept", "a/b"))
    assert headers_for_other_origin((*headers, ("Idempotency-Key", "k"))) == (("Accept", "a/b"),)


def gzipped(data: bytes) -> bytes:
    stream = zlib.compressobj(9, wbits=31)
    return stream.compress(data) + stream.flush()


def test_one_layer_of_compression_is_undone():
    assert decode_body(gzipped(b"a" * 100), "gzip", 100) == b"a" * 100
    assert decode_body(gzipped(b"a") + gzipped(b"b"), "GZIP", 100) == b"ab"
    assert decode_body(zlib.compress(b"a"), "deflate", 100) == b"a"
    assert decode_body(zlib.compress(b"abc")[2:-4], "deflate", 100) == b"abc"


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (gzipped(bytes(10_000_000)), "gzip", "RESPONSE_TOO_LARGE"),
        (gzipped(gzipped(bytes(10_000_000))), "gzip, gzip", "UNSUPPORTED_ENCODING"),
        (gzipped(b"a" * 60) * 2, "gzip", "RESPONSE_TOO_LARGE"),
        (b"\x1b\x00", "br", "UNSUPPORTED_ENCODING"),
        (gzipped(b"abc")[:-9], "gzip", "INVALID_RESPONSE"),
        (b"plain", "gzip", "INVALID_RESPONSE"),
    ],
)
def test_a_bomb_or_a_damaged_body_is_refused(body, encoding, reason):
    with pytest.raises(EgressError) as caught:
        decode_body(body, encoding, 100)
    assert caught.value.reason == reason
