"""`http_request` against real servers on loopback, which the operator's list allows."""

import asyncio
import base64
import zlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from headrace.auth.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server
from opentelemetry import context as otel_context
from pydantic import ValidationError

from services.executor.egress import Egress
from services.executor.egress.client import HttpRequest
from services.executor.handlers.base import HandlerError, RetryableError, TerminalError
from services.executor.handlers.http_request import HTTP_REQUEST, expected_statuses
from services.kit.tracing import context_of
from tests.support.handlers import Credentials, HandlerBench, handler_bench, served
from tests.support.http_servers import RawServer, Received, raw_server, response


class Site:
    """A server with an answer that a test sets, and a bench that may reach it."""

    def __init__(self, server: RawServer, bench: HandlerBench, credentials: Credentials) -> None:
        self.server, self.bench, self.credentials = server, bench, credentials

    def answers(self, answer: Any) -> None:
        self.server.answer = answer if callable(answer) else lambda _: answer

    async def get(self, path: str = "/", **config: Any) -> dict[str, Any]:
        output: dict[str, Any] = (await self.bench.run(HTTP_REQUEST, url=self.server.url + path, **config)).output
        return output

    async def fails(self, reason: str, kind: type[HandlerError] = TerminalError, **config: Any) -> HandlerError:
        with pytest.raises(kind) as caught:
            await self.get(**config)
        assert caught.value.reason == reason, caught.value.message
        return caught.value

    @property
    def last(self) -> Received:
        return self.server.requests[-1]


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[Site]:
    address = f"unix:{tmp_path}/auth"
    credentials = Credentials()
    registrations = [(add_AuthServiceServicer_to_server, credentials)]
    methods = ["/headrace.auth.v1.AuthService/ResolveCredential"]
    async with (
        served(address, registrations, methods),
        raw_server(lambda _: response(b"hello")) as server,
        handler_bench(target=address, allow=[server.place]) as bench,
    ):
        yield Site(server, bench, credentials)


async def test_a_server_is_told_the_trace_if_the_operator_says_so_and_the_author_says_nothing():
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    async with raw_server(lambda _: response()) as server:
        for sends, given, expected in ((False, (), None), (True, (), trace), (True, (("Traceparent", "own"),), "own")):
            egress = Egress([server.place], sends_traceparent=sends)
            token = otel_context.attach(context_of(trace))
            try:
                request = HttpRequest("GET", server.url, headers=given)
                await egress.request(request, project_id="p", timeout_seconds=5)
            finally:
                otel_context.detach(token)
                await egress.close()
            assert server.requests[-1].headers.get("traceparent") == expected


async def test_a_request_is_sent_as_the_config_says_and_its_answer_comes_back(site):
    site.answers(response(b'{"a": 1.5, "b": [9007199254740993]}', 201, "application/vnd.x+json; charset=utf-8"))
    output = await site.get(
        "/items?x=1#fragment", method="post", query={"q": "a b&c=ü", "n": 2, "on": True, "l": ["1", 2], "no": None},
        headers={"X-Count": 3}, json={"name": "näm"},
    )  # fmt: skip
    assert output["json"] == {"a": 1.5, "b": [9007199254740993]}
    assert (output["status"], output["headers"]["content-type"]) == (201, "application/vnd.x+json; charset=utf-8")
    sent = site.last
    assert (sent.method, sent.target) == ("POST", "/items?x=1&q=a%20b%26c%3D%C3%BC&n=2&on=true&l=1&l=2")
    assert orjson.loads(sent.body) == {"name": "näm"}
    assert (sent.headers["content-type"], sent.headers["x-count"]) == ("application/json", "3")
    assert (sent.headers["accept-encoding"], sent.headers["host"]) == ("identity", f"127.0.0.1:{site.server.port}")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_what_may_change_something_carries_the_idempotency_key_unless_the_author_set_one(site, method):
    await site.get(method=method, effect_key="run:node")
    assert site.last.headers["idempotency-key"] == "run:node"
    await site.get(method=method, headers={"idempotency-key": "mine"})
    assert site.last.headers["idempotency-key"] == "mine"
    await site.get()
    assert "idempotency-key" not in site.last.headers


async def test_credentials_become_headers_and_other_types_are_refused(site):
    site.credentials.known = {
        "bearer": ("http_bearer", {"token": "t0ken"}),
        "basic": ("http_basic", {"username": "u", "password": "p:ü"}),
        "header": ("http_header", {"name": "X-Api-Key", "value": "k"}),
        "pg": ("postgres", {}),
    }
    await site.get(credential="bearer", headers={"authorization": "mine"})
    assert site.last.headers["authorization"] == "Bearer t0ken"
    await site.get(credential="basic")
    assert site.last.headers["authorization"] == "Basic " + base64.b64encode("u:p:ü".encode()).decode()
    await site.get(credential="header")
    assert site.last.headers["x-api-key"] == "k"
    await site.fails("CREDENTIAL_TYPE_MISMATCH", credential="pg")
    await site.fails("CREDENTIAL_NOT_FOUND", credential="none")


@pytest.mark.parametrize(
    ("status", "expect", "kind"),
    [
        *((status, "2xx", RetryableError) for status in (408, 425, 429, 500, 503)),
        *((status, "2xx", TerminalError) for status in (301, 400, 404)),
        (200, "201", TerminalError),
        (404, "200-299,404", None),
        (503, "5xx", None),
        (302, "302", None),
    ],
)
async def test_a_status_is_success_terminal_or_retryable(site, status, expect, kind):
    site.answers(response(b"because", status, extra=(("Retry-After", "7"),)))
    if kind is None:
        assert (await site.get(expect_status=expect))["status"] == status
        return
    error = await site.fails("HTTP_STATUS", kind, expect_status=expect)
    assert error.details == {"status": status, "body": "because"}
    if isinstance(error, RetryableError):
        assert error.retry_after == 7


async def test_a_date_in_retry_after_is_honoured_up_to_an_hour(site):
    for text, expected in (("Fri, 01 Jan 2100 00:00:00 GMT", 3600), ("soon", None), ("-5", None), ("9" * 400, 3600)):
        site.answers(response(b"", 503, extra=(("Retry-After", text),)))
        error = await site.fails("HTTP_STATUS", RetryableError)
        assert error.retry_after == expected


def test_patterns_of_statuses():
    assert expected_statuses("2xx,404") == {*range(200, 300), 404}
    for wrong in ("", "ok", "600", "2x", "200-", "1-2"):
        with pytest.raises(ValueError, match="expect_status"):
            expected_statuses(wrong)
    for wrong in ({"json": 1, "body": "x"}, {"method": "TRACE"}, {"bdoy": 1}, {"expect_status": "x"}):
        with pytest.raises(ValidationError):
            HTTP_REQUEST.config.model_validate({"url": "http://example.com", **wrong})


async def test_bodies_are_decoded(site):
    site.answers(response("größe".encode("latin-1"), kind="text/plain; charset=ISO-8859-1"))
    assert (await site.get())["text"] == "größe"
    site.answers(response(b"a\x00\xff", kind="application/octet-stream"))
    assert (await site.get())["text"] == "a\ufffd\ufffd"
    site.answers(
        response(zlib.compress(b'{"a": 1}'), kind="application/json", extra=(("Content-Encoding", "deflate"),))
    )
    assert (await site.get())["json"] == {"a": 1}
    site.answers(response(b"", 204, kind="application/json"))
    assert (await site.get())["text"] == ""
    site.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n")
    assert (await site.get())["text"] == "abcde"
    site.answers(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + response(b"late"))
    assert (await site.get())["text"] == "late"
    site.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n")
    assert (await site.get(method="HEAD"))["status"] == 200

    async def until_closed(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nto the end")
        writer.close()

    site.answers(lambda _: until_closed)
    assert (await site.get())["text"] == "to the end"


@pytest.mark.parametrize("body", [b"{", b"NaN", b'"\\ud800"', b'"\\u0000"', b"[" * 70 + b"]" * 70, b"\xff"])
async def test_an_answer_that_is_called_json_and_is_not_usable_says_so(site, body):
    site.answers(response(body, kind="application/json"))
    await site.fails("INVALID_RESPONSE")


ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"a" * 0x10000 + b"\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(bytes(1024 * 1024 + 1)), "RESPONSE_TOO_LARGE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "RESPONSE_TOO_LARGE"),
        (ENDLESS + (b"10000\r\n" + b"a" * 0x10000 + b"\r\n") * 20, "RESPONSE_TOO_LARGE"),
        (response(zlib.compress(bytes(10_000_000)), extra=(("Content-Encoding", "deflate"),)), "RESPONSE_TOO_LARGE"),
        (response(b"x", extra=(("Content-Encoding", "gzip, gzip"),)), "UNSUPPORTED_ENCODING"),
        (response(b"x", extra=tuple((f"X-{n}", "a") for n in range(200))), "RESPONSE_TOO_LARGE"),
        (response(b"x", extra=(("X-Long", "a" * 70_000),)), "RESPONSE_TOO_LARGE"),
        (b"HTTP/1.1 200 OK\r\nX-Endless: " + b"a" * 200_000, "RESPONSE_TOO_LARGE"),
    ],
)
async def test_an_answer_over_a_limit_is_refused(site, answer, reason):
    site.answers(answer)
    await site.fails(reason)


@pytest.mark.parametrize(
    "answer",
    [
        b"not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
)
async def test_an_answer_that_is_not_proper_http_is_refused(site, answer):
    site.answers(answer)
    await site.fails("INVALID_RESPONSE", RetryableError)


async def test_an_answer_that_is_cut_short_is_not_taken_as_whole(site):
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        writer.close()

    site.answers(lambda _: cut)
    await site.fails("CONNECTION_LOST", RetryableError)


async def test_the_node_s_time_bounds_a_server_that_drips(site):
    released = asyncio.Event()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await writer.drain()
        await released.wait()

    site.answers(lambda _: drip)
    error = await site.fails("HTTP_TIMEOUT", RetryableError, timeout_seconds=0.2)
    assert "timeout_seconds" in error.message
    released.set()


async def test_connections_are_reused_for_a_project_and_never_carry_a_stray_answer(site):
    for _ in range(3):
        await site.get()
    assert site.server.connections == 1
    site.bench.project_id = "another"
    await site.get()
    assert site.server.connections == 2
    site.answers(response(b"right") + response(b"stray"))
    assert (await site.get())["text"] == "right"
    site.answers(response(b"right again"))
    assert (await site.get())["text"] == "right again"
    assert site.server.connections == 3


async def test_a_kept_connection_that_the_server_closed_is_replaced_for_safe_methods(site):
    async def close_first(writer: asyncio.StreamWriter) -> None:
        writer.close()

    await site.get()
    site.answers(lambda request: close_first if request.connection == 1 else response(b"fresh"))
    assert (await site.get())["text"] == "fresh"
    site.answers(lambda request: close_first)
    await site.fails("CONNECTION_LOST", RetryableError, method="POST")
    assert [request.method for request in site.server.requests].count("POST") == 1


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "//127.0.0.1/", "file:///etc/passwd", "http://localhost/", "http://[::1]/",
     "http://user@example.com/", "http://0x7f.1/", "gopher://example.com/", "http://127.0.0.1:1/"],
)  # fmt: skip
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_a_forbidden_place_is_not_followed(site, status, location):
    site.answers(response(b"", status, extra=(("Location", location),)))
    with pytest.raises(TerminalError, match="redirects"):
        await site.get()
    assert len(site.server.requests) == 1


async def test_redirects_are_followed_three_times_and_then_no_more(site):
    site.answers(lambda request: response(b"", 302, extra=(("Location", f"/{int(request.target[1:] or 0) + 1}"),)))
    await site.fails("TOO_MANY_REDIRECTS")
    assert len(site.server.requests) == 4
    site.answers(
        lambda request: response(b"", 302, extra=(("Location", "/b"),)) if request.target == "/" else response()
    )
    assert (await site.get())["status"] == 200


async def test_secrets_do_not_follow_to_another_origin(site):
    site.credentials.known = {"header": ("http_header", {"name": "X-Api-Key", "value": "secret"})}
    async with raw_server(lambda _: response(b"other")) as other:
        place = ((other.place,), (site.server.place,))
        async with handler_bench(target=site.bench.services._targets.auth, allow=place[0] + place[1]) as bench:
            site.bench = bench
            site.answers(response(b"", 307, extra=(("Location", other.url + "/x"),)))
            headers = {"Authorization": "Bearer s", "Cookie": "s", "X-Custom": "s", "Accept": "a/b"}
            output = await site.get(method="POST", body="b", credential="header", headers=headers)
    assert output["text"] == "other"
    assert site.last.headers["x-api-key"] == "secret"
    received = other.requests[0]
    assert received.headers.keys() == {
        "host",
        "accept-encoding",
        "accept",
        "user-agent",
        "content-length",
        "content-type",
    }
    assert (received.method, received.body, received.headers["accept"]) == ("POST", b"b", "a/b")


async def test_a_303_turns_a_post_into_a_get_without_body(site):
    site.answers(
        lambda request: response(b"", 303, extra=(("Location", "/b"),)) if request.target == "/" else response()
    )
    await site.get(method="POST", json={"a": 1})
    assert (site.last.method, site.last.body, "content-type" in site.last.headers) == ("GET", b"", False)


async def test_environment_proxies_are_ignored(site, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await site.get())["text"] == "hello"


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Metadata-Flavor", "X-Forwarded-For", "A\r\nB"])
async def test_a_header_that_a_workflow_may_not_set_is_refused(site, name):
    with pytest.raises(TerminalError):
        await site.get(headers={name: "1"})
    assert site.server.requests == []


async def test_a_place_that_is_not_allowed_is_refused_with_what_to_do(site):
    for url in ("http://127.0.0.1:1/", "http://localhost/", "http://169.254.169.254/"):
        with pytest.raises(TerminalError, match="HEADRACE_EGRESS_ALLOW"):
            await site.bench.run(HTTP_REQUEST, url=url)
