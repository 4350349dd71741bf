"""One stack for the session, two replicas of every service behind one gateway, and users in projects of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.e2e.client import User
from tests.support.http_servers import RawServer, Received, raw_server, response
from tests.support.otlp import Receiver, otlp_receiver
from tests.support.stack import LocalStack, running_stack

REPLICAS = {service: 2 for service in ("auth", "workflows", "executor", "llm", "vector", "worker")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of all waits for the stack, which takes a minute on a busy machine."""
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
async def outside() -> AsyncIterator[RawServer]:
    """A server outside the stack: /flaky answers each Idempotency-Key with 503 twice, /missing with 404."""
    seen: Counter[str] = Counter()

    def answer(request: Received) -> bytes:
        path = request.target.partition("?")[0]
        if path == "/flaky":
            key = request.headers["idempotency-key"]
            seen[key] += 1
            return response(b'{"tries": %d}' % seen[key], 503 if seen[key] < 3 else 200, "application/json")
        return response(status=404 if path == "/missing" else 200)

    async with raw_server(answer) as server:
        yield server


@pytest.fixture(scope="session")
async def receiver() -> AsyncIterator[Receiver]:
    """Where the stack's traces go: those alone whose callers say that they are recorded."""
    async with otlp_receiver() as running:
        yield running


@pytest.fixture(scope="session")
async def stack(
    tmp_path_factory: pytest.TempPathFactory, outside: RawServer, receiver: Receiver
) -> AsyncIterator[LocalStack]:
    home = tmp_path_factory.mktemp("e2e") / "home"
    environ = {
        "HEADRACE_EGRESS_ALLOW": f"127.0.0.1:{outside.port}",
        "HEADRACE_WORKER_DRAIN_SECONDS": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "HEADRACE_TRUST_TRACEPARENT": "true",
    }
    async with running_stack(home, replicas=REPLICAS, environ=environ) as running:
        yield running


@pytest.fixture
async def user(stack: LocalStack) -> AsyncIterator[User]:
    made = await User.register(stack.gateway_url)
    yield made
    await made.http.aclose()


@pytest.fixture
async def other_user(stack: LocalStack) -> AsyncIterator[User]:
    made = await User.register(stack.gateway_url)
    yield made
    await made.http.aclose()
