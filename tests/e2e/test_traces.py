"""One trace from the REST call to the model's tokens, across an answer and retries, taken by a real receiver."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.client import PASSWORD, User, node
from tests.e2e.test_waiting import waiting
from tests.support.http_servers import RawServer
from tests.support.otlp import ReceivedSpan, Receiver
from tests.support.stack import LocalStack
from tests.support.waiting import await_until

CANARY = f"canary{secrets.token_hex(8)}"
"""In all that users say and models answer."""
LAST = {
    ("headrace-gateway", "POST /api/v1/workflows/{workflow_id}/runs"),
    ("headrace-executor", "run succeeded"),
    ("headrace-executor", "approval answered"),
    ("headrace-worker", "llm_call"),
    ("headrace-worker", "http_request"),
    ("headrace-llm", "headrace.llm.v1.LlmService/StreamGenerate"),
}
"""What each process ends last of the run."""
LAST_OF_ANSWER = {
    ("headrace-gateway", "POST /api/v1/runs/{run_id}/nodes/{node_key}/resume"),
    ("headrace-executor", "headrace.executor.v1.ExecutorService/ResumeNode"),
}


def ends(receiver: Receiver, trace_id: str) -> set[tuple[str, str]]:
    """Services and names of a trace's spans."""
    return {(span.service, span.name) for span in receiver.of(trace_id)}


def traceparent(*, sampled: bool = True) -> tuple[str, str, str]:
    """A caller's trace id, its span id, and the header that names them."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def one(spans: list[ReceivedSpan], name: str, **wanted: object) -> ReceivedSpan:
    """The one span with that name and what else is said of it."""
    found = [
        span
        for span in spans
        if span.name == name
        and all(
            (getattr(span, key) if hasattr(span, key) else span.attributes.get(key)) == value
            for key, value in wanted.items()
        )
    ]
    assert len(found) == 1, (name, wanted, found)
    return found[0]


@pytest.fixture(scope="module")
async def traced(stack: LocalStack, outside: RawServer, receiver: Receiver) -> dict[str, object]:
    """A run that waits for an approval, tries a flaky server three times and asks a model; both callers are traced."""
    user = await User.register(stack.gateway_url)
    try:
        ask = node("ask", "approval", {"title": f"Go on with {CANARY}?"})
        call = node(
            "call",
            "http_request",
            {
                "method": "POST",
                "url": f"{outside.url}/flaky",
                "query": {"q": CANARY},
                "headers": {"X-Secret": CANARY},
                "json": {"body": CANARY},
            },
            retry={"max_attempts": 3, "initial_interval": 0.05},
        )
        answer = node("answer", "llm_call", {"prompt": f"Say {CANARY}.", "max_tokens": 8, "temperature": 0.2})
        workflow_id = await user.workflow(ask, call, answer, edges=["ask>call", "call>answer"])
        began = traceparent()
        run = await user.start(workflow_id, {"word": CANARY}, traceparent=began[2])
        await waiting(user, run["id"])
        resumed = traceparent()
        await user.ask(
            "POST",
            f"/runs/{run['id']}/nodes/ask/resume",
            {"decision": "approve", "data": {"note": CANARY}},
            traceparent=resumed[2],
        )
        ended = await user.ended(run["id"])
        assert ended["status"] == "succeeded", ended
        # Every process sends what it has by itself, the last to end last.
        await await_until(lambda: ends(receiver, began[0]) >= LAST, within=20)
        await await_until(lambda: ends(receiver, resumed[0]) >= LAST_OF_ANSWER, within=20)
        return {"run": ended, "workflow": workflow_id, "began": began, "resumed": resumed}
    finally:
        await user.http.aclose()


async def test_a_trace_goes_from_the_request_through_every_attempt_to_the_models_tokens(
    traced, receiver: Receiver
) -> None:
    trace_id, caller, _ = traced["began"]
    run = traced["run"]
    spans = receiver.of(trace_id)

    request = one(spans, "POST /api/v1/workflows/{workflow_id}/runs", service="headrace-gateway", parent_id=caller)
    assert request.attributes["http.response.status_code"] == 202
    start = "headrace.executor.v1.ExecutorService/StartRun"
    called = one(spans, start, kind="client", parent_id=request.span_id)
    accepted = one(spans, start, kind="server", service="headrace-executor", parent_id=called.span_id)
    assert accepted.attributes["headrace.run.id"] == run["id"]

    tries = sorted(
        (span for span in spans if span.name == "http_request"),
        key=lambda span: span.attributes["headrace.node.attempt"],
    )
    assert [span.attributes["headrace.node.attempt"] for span in tries] == [1, 2, 3]
    assert [span.attributes["headrace.node.outcome"] for span in tries] == ["failure", "failure", "success"]
    assert [span.attributes.get("error.type") for span in tries] == ["HTTP_STATUS", "HTTP_STATUS", None]
    assert [span.is_error for span in tries] == [True, True, False]
    for span, status in zip(tries, (503, 503, 200), strict=True):
        assert (span.service, span.kind, span.parent_id) == ("headrace-worker", "consumer", accepted.span_id)
        named = {"headrace.run.id": run["id"], "headrace.node.key": "call", "headrace.workflow.id": traced["workflow"]}
        assert named.items() <= span.attributes.items()
        assert span.attributes["headrace.node.queued_seconds"] >= 0
        sent = one(spans, "POST", kind="client", parent_id=span.span_id)
        assert sent.attributes["http.response.status_code"] == status
        assert sent.attributes["server.address"] == "127.0.0.1"
        assert not {"url.full", "url.query", "url.path"} & sent.attributes.keys()

    attempt = one(spans, "llm_call", parent_id=accepted.span_id)
    generate = "headrace.llm.v1.LlmService/StreamGenerate"
    asked = one(spans, generate, kind="client", service="headrace-worker", parent_id=attempt.span_id)
    served = one(spans, generate, kind="server", service="headrace-llm", parent_id=asked.span_id)
    (chat,) = [span for span in spans if span.attributes.get("gen_ai.operation.name")]
    assert (chat.parent_id, chat.service, chat.kind) == (served.span_id, "headrace-llm", "client")
    said = chat.attributes
    assert chat.name == f"chat {said['gen_ai.request.model']}"
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.provider.name"] == "llamacpp"
    assert said["gen_ai.response.model"] == said["gen_ai.request.model"]
    assert said["gen_ai.request.max_tokens"] == 8
    assert said["gen_ai.request.temperature"] == pytest.approx(0.2)
    assert said["gen_ai.usage.input_tokens"] == run["usage"]["prompt_tokens"] > 0
    assert said["gen_ai.usage.output_tokens"] == run["usage"]["completion_tokens"] > 0
    assert said["gen_ai.response.finish_reasons"] in (["stop"], ["length"])
    assert said["gen_ai.response.time_to_first_chunk"] > 0

    whole = one(spans, "run succeeded", service="headrace-executor", parent_id=accepted.span_id)
    assert whole.attributes["headrace.run.id"] == run["id"]
    assert whole.seconds >= attempt.seconds + sum(span.seconds for span in tries)


async def test_a_persons_answer_has_a_trace_of_its_own_linked_with_the_runs(traced, receiver: Receiver) -> None:
    trace_id, caller, _ = traced["resumed"]
    spans = receiver.of(trace_id)
    (request,) = [span for span in spans if span.parent_id == caller]
    assert request.name == "POST /api/v1/runs/{run_id}/nodes/{node_key}/resume"
    served = one(spans, "headrace.executor.v1.ExecutorService/ResumeNode", kind="server")
    run_trace, _, _ = traced["began"]
    accepted = one(receiver.of(run_trace), "headrace.executor.v1.ExecutorService/StartRun", kind="server")
    assert served.links == [(run_trace, accepted.span_id)]
    answered = one(receiver.of(run_trace), "approval answered", parent_id=accepted.span_id)
    assert answered.links == [(trace_id, served.span_id)]


async def test_spans_hold_nothing_that_users_said_sent_or_got(traced, receiver: Receiver, user: User) -> None:
    assert CANARY.encode() not in bytes(receiver.bytes)
    password = PASSWORD.encode()
    assert password not in bytes(receiver.bytes)
    services = {resource["service.name"] for resource in receiver.resources}
    assert {"headrace-gateway", "headrace-executor", "headrace-worker", "headrace-llm"} <= services
    assert all(resource["service.version"] and resource["service.instance.id"] for resource in receiver.resources)


async def test_logs_hold_nothing_that_users_said_sent_or_got(traced, stack: LocalStack) -> None:
    assert traced
    logs = {Path(process["log"]) for process in stack.state["processes"]}
    assert len(logs) > 10
    for log in logs:
        assert CANARY not in log.read_text(errors="replace"), log


async def test_outsiders_are_not_told_of_the_trace(traced, outside: RawServer) -> None:
    received = [request for request in outside.requests if CANARY in request.target]
    assert len(received) == 3
    assert not any("traceparent" in request.headers for request in received)


async def test_what_is_not_sampled_is_not_sent_and_its_ids_are_in_the_logs(
    user: User, receiver: Receiver, stack: LocalStack
) -> None:
    trace_id, _, header = traceparent(sampled=False)
    request_id = f"req-{uuid4().hex}"
    await user.ask("GET", f"/runs/{uuid4()}", expect=404, traceparent=header, X_Request_Id=request_id)

    def lines(service: str) -> list[dict[str, object]]:
        text = "".join(stack.log(service, replica) for replica in range(2 if service == "executor" else 1))
        return [json.loads(line) for line in text.splitlines() if request_id in line]

    (refused,) = await await_until(lambda: lines("executor"), within=10)
    assert (refused["event"], refused["request_id"], refused["trace_id"]) == ("rpc_refused", request_id, trace_id)
    (answered,) = await await_until(lambda: lines("gateway"), within=10)
    assert (answered["status"], answered["trace_id"]) == (404, trace_id)
    assert not receiver.of(trace_id)
