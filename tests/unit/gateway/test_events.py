"""Event streams: replay, resumption, other executors, heartbeats, endings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson
import pytest
from headrace.executor.v1 import executor_service_pb2 as pb
from headrace.executor.v1 import run_pb2

from services.kit.errors import NotFoundError, UnavailableError
from tests.support.waiting import await_until
from tests.unit.gateway.peers import access_token

RUN = "5bf8415b-db6d-42f8-b003-a921db43a1f7"
EVENTS = f"/api/v1/runs/{RUN}/events"
TYPES = ("run.started", "node.started", "node.succeeded", "run.succeeded")


def event(sequence: int, kind: str | None = None, **data: Any) -> pb.FollowRunResponse:
    body = run_pb2.RunEvent(sequence=sequence, type=kind or TYPES[sequence - 1], node_key="a")
    body.at.FromJsonString("2026-01-01T00:00:00.5Z")
    body.data.utf8 = orjson.dumps(data)
    return pb.FollowRunResponse(events=[body])


def together(*replies: pb.FollowRunResponse) -> pb.FollowRunResponse:
    return pb.FollowRunResponse(events=[event for reply in replies for event in reply.events])


def run(status: int) -> pb.GetRunResponse:
    return pb.GetRunResponse(run=run_pb2.Run(id=RUN, status=status))


@pytest.fixture(autouse=True)
def running(peers):
    peers.replies["GetRun"] = run(run_pb2.RUN_STATUS_RUNNING)


@pytest.fixture
async def stream(served) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {access_token()}", "Accept": "text/event-stream"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served}", headers=headers, timeout=20) as client:
        yield client


def parsed(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append(fields | {"data": orjson.loads(fields["data"])})
    return found


def scripted(*calls: Callable[[int], AsyncIterator[Any]]) -> Callable[[Any], AsyncIterator[Any]]:
    """Each call of FollowRun goes to the next of these."""
    remaining = list(calls)

    async def follow(request: Any) -> AsyncIterator[Any]:
        async for message in remaining.pop(0)(request.after_sequence):
            yield message

    return follow


async def whole_run(after: int) -> AsyncIterator[Any]:
    for sequence in range(after + 1, 5):
        yield event(sequence)


async def test_a_run_is_replayed_and_the_stream_ends_with_it(stream, peers):
    async def with_token(after: int) -> AsyncIterator[Any]:
        yield event(1)
        yield together(event(2), event(0, "node.token", text="Hel\nlo"))
        yield together(event(3), event(4))

    peers.replies["FollowRun"] = scripted(with_token)
    reply = await stream.get(EVENTS)
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.headers["Cache-Control"] == "no-cache"
    events = parsed(reply.text)
    assert [(item.get("id"), item["event"]) for item in events] == [
        ("1", "run.started"),
        ("2", "node.started"),
        (None, "node.token"),
        ("3", "node.succeeded"),
        ("4", "run.succeeded"),
    ]
    assert events[2]["data"] == {
        "sequence": 0,
        "type": "node.token",
        "at": "2026-01-01T00:00:00.500000Z",
        "node_key": "a",
        "item_path": "",
        "data": {"text": "Hel\nlo"},
    }


@pytest.mark.parametrize(
    ("path", "headers"),
    [(EVENTS, {"Last-Event-ID": "2"}), (f"{EVENTS}?after=2", {}), (f"{EVENTS}?after=1", {"Last-Event-ID": "2"})],
)
async def test_a_stream_goes_on_after_the_last_event(stream, peers, path, headers):
    peers.replies["FollowRun"] = scripted(whole_run)
    reply = await stream.get(path, headers=headers)
    assert [item["id"] for item in parsed(reply.text)] == ["3", "4"]
    assert [request.after_sequence for request in peers.asked["FollowRun"]] == [2]


async def test_when_executors_fail_others_go_on_without_gap_or_repeat(stream, peers):
    async def breaks(after: int) -> AsyncIterator[Any]:
        yield event(1)
        yield event(2)
        raise UnavailableError("Killed.")

    async def refuses(after: int) -> AsyncIterator[Any]:
        raise UnavailableError("Not there.")
        yield

    async def fails(after: int) -> AsyncIterator[Any]:
        raise RuntimeError("A bug, or a call cancelled by a stopping executor.")
        yield

    async def repeats_and_breaks(after: int) -> AsyncIterator[Any]:
        yield together(event(2), event(3))
        raise UnavailableError("Killed.")

    async def drains(after: int) -> AsyncIterator[Any]:
        # An executor that is being replaced ends its calls in peace while the run goes on.
        return
        yield

    peers.replies["FollowRun"] = scripted(breaks, refuses, fails, repeats_and_breaks, drains, whole_run)
    reply = await stream.get(EVENTS)
    assert [item["id"] for item in parsed(reply.text)] == ["1", "2", "3", "4"]
    assert [request.after_sequence for request in peers.asked["FollowRun"]] == [0, 2, 2, 2, 3, 3]


async def test_a_run_that_is_gone_ends_its_stream(stream, peers):
    async def gone(after: int) -> AsyncIterator[Any]:
        yield event(1)
        raise NotFoundError("Deleted by retention.", reason="RUN_NOT_FOUND")

    peers.replies["FollowRun"] = scripted(gone)
    assert [item["id"] for item in parsed((await stream.get(EVENTS)).text)] == ["1"]


async def test_a_stream_that_goes_on_after_the_end_is_empty(stream, peers):
    peers.replies["FollowRun"] = scripted(whole_run)
    peers.replies["GetRun"] = run(run_pb2.RUN_STATUS_SUCCEEDED)
    assert parsed((await stream.get(EVENTS, headers={"Last-Event-ID": "4"})).text) == []


async def test_a_quiet_stream_is_kept_open_by_comments_and_leaving_it_cancels_the_call(stream, peers):
    left = asyncio.Event()

    async def quiet(after: int) -> AsyncIterator[Any]:
        try:
            yield event(1)
            await asyncio.Event().wait()
        finally:
            left.set()

    peers.replies["FollowRun"] = scripted(quiet)
    async with stream.stream("GET", EVENTS) as reply:
        text = ""
        async for piece in reply.aiter_text():
            text += piece
            if text.count(": still here") == 2:
                break
    assert [item["id"] for item in parsed(text)] == ["1"]
    async with asyncio.timeout(5):
        await left.wait()


async def test_streams_end_when_the_gateway_stops(stream, peers, gateway):
    async def quiet(after: int) -> AsyncIterator[Any]:
        yield event(1)
        await asyncio.Event().wait()

    peers.replies["FollowRun"] = scripted(quiet)
    reading = asyncio.create_task(stream.get(EVENTS))
    await await_until(lambda: peers.asked["FollowRun"])
    gateway.stopping.set()
    assert (await reading).status_code == 200


async def test_an_unknown_run_is_a_404_and_not_an_empty_stream(stream, peers):
    peers.replies["GetRun"] = NotFoundError("No such run.", reason="RUN_NOT_FOUND")
    reply = await stream.get(EVENTS)
    assert (reply.status_code, reply.json()["reason"]) == (404, "RUN_NOT_FOUND")


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30, "\u0661".encode()])
async def test_a_last_event_id_that_we_never_gave_is_422(stream, last):
    assert (await stream.get(EVENTS, headers={"Last-Event-ID": last})).status_code == 422


async def test_events_come_as_a_list_where_json_is_wanted(client, peers):
    replies = [
        pb.ListRunEventsResponse(events=together(event(1), event(2)).events, has_more=True),
        pb.ListRunEventsResponse(events=event(3).events),
    ]

    async def listed(request: Any) -> Any:
        return replies.pop(0)

    peers.replies["ListRunEvents"] = listed
    accept = {"Accept": "application/json"}
    first = (await client.get(f"{EVENTS}?page_size=2", headers=accept)).json()
    assert [item["sequence"] for item in first["items"]] == [1, 2]
    path = f"{EVENTS}?page_size=2&page_token={first['next_page_token']}"
    second = (await client.get(path, headers=accept)).json()
    assert ([item["sequence"] for item in second["items"]], second["next_page_token"]) == ([3], None)
    assert [request.after_sequence for request in peers.asked["ListRunEvents"]] == [0, 2]
