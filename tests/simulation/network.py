"""NATS, as far as Headrace uses it: request-reply, notices, and one work queue stream with pull consumers.

Messages are lost, doubled, late and out of order, in either direction; the server restarts with nothing in memory,
loses its stream, or one client is cut off. The client has the methods of nats.aio.client.Client that the real code
calls.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import nats.errors
import nats.js.errors
import orjson
from nats.aio.msg import Msg

from services.executor.transport import streams
from tests.simulation.faults import Faults
from tests.simulation.loop import Loop, Process
from tests.simulation.trace import Trace

_JOBS = "headrace.jobs."
_NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{streams.STREAM}."
_ACK = "$JS.ACK."


@dataclass(eq=False)
class Subscription:
    """One interest of one client."""

    server: Server
    client: Client
    subject: str
    queue: str
    callback: Callable[[Msg], Awaitable[None]]

    async def unsubscribe(self) -> None:
        """See nats.aio.subscription.Subscription."""
        self.server.forget(self)


@dataclass(eq=False)
class _Pull:
    client: Client
    inbox: str
    left: int


@dataclass(eq=False)
class _Stream:
    """What is in the server's memory. `waiting` and `pulls` are by consumer."""

    created: float
    consumers: set[str] = field(default_factory=set)
    waiting: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    unacknowledged: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    subjects: dict[int, str] = field(default_factory=dict)
    """Of all messages that are not acknowledged."""
    pulls: dict[str, list[_Pull]] = field(default_factory=dict)


class Server:
    """The NATS server and the wires to it. `observe` sees what clients publish."""

    def __init__(self, loop: Loop, rng: Random, faults: Faults, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.faults = faults
        self.trace = trace
        self.up = True
        self.clients: list[Client] = []
        self.observe: Callable[[str, bytes], None] = lambda subject, data: None
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._stream: _Stream | None = None
        self._number = 0

    # Wires.

    def hop(self, process: Process, arrive: Callable[..., None], *args: Any, what: str = "") -> None:
        """Carry a message to a process, or to the server itself: never, once or twice, at once or later."""
        if self.faults.strikes("message_lost", what):
            return
        for copy in range(2 if self.faults.strikes("message_twice", what) else 1):
            delay = self.rng.expovariate(2000.0) + copy * self.rng.choice((0.0, self.rng.uniform(0.0, 5.0)))
            if self.faults.strikes("message_late", what):
                delay += self.rng.uniform(0.05, 4.0)
            process.call_later(delay, arrive, *args)

    def next_number(self) -> int:
        """A number that nothing else has."""
        self._number += 1
        return self._number

    # Core NATS.

    def add(self, subscription: Subscription) -> None:
        """A client subscribes."""
        self._subscriptions.setdefault(subscription.subject, []).append(subscription)

    def forget(self, subscription: Subscription) -> None:
        """A client unsubscribes."""
        found = self._subscriptions.get(subscription.subject, [])
        if subscription in found:
            found.remove(subscription)

    def receivers(self, subject: str) -> list[Subscription]:
        """Who gets a message: every plain subscription, and one of each queue group."""
        found: list[Subscription] = []
        groups: dict[str, list[Subscription]] = {}
        for name in (subject, f"{subject.rpartition('.')[0]}.*"):
            for subscription in self._subscriptions.get(name, ()):
                if not subscription.client.up:
                    continue
                if subscription.queue:
                    groups.setdefault(subscription.queue, []).append(subscription)
                else:
                    found.append(subscription)
        return found + [self.rng.choice(members) for members in groups.values()]

    def publish(self, client: Client, subject: str, data: bytes, reply: str, headers: Any) -> None:
        """A client publishes: to the stream, to its consumers, or to whoever listens."""
        if subject.startswith(_JOBS):
            if not self.faults.strikes("wakeup_lost"):
                self.hop(self.loop.world, self._store, subject, data, what="wake-up")
        elif subject.startswith(_NEXT):
            consumer = subject.removeprefix(_NEXT)
            self.hop(self.loop.world, self._take_pull, client, consumer, orjson.loads(data), reply, what="pull")
        elif subject.startswith(_ACK):
            self.hop(self.loop.world, self._take_verdict, int(subject.removeprefix(_ACK)), data, what="ack")
        else:
            for subscription in self.receivers(subject):
                self.send(subscription, Msg(cast("Any", subscription.client), subject, reply, data, headers))

    def send(self, subscription: Subscription, message: Msg) -> None:
        """Deliver to one subscription."""
        self.hop(subscription.client.process, _hear, subscription, message, what=message.subject)

    def drop(self, client: Client) -> None:
        """The client's process is dead and the server has noticed."""
        if client in self.clients:
            self.clients.remove(client)
        for name, found in self._subscriptions.items():
            self._subscriptions[name] = [subscription for subscription in found if subscription.client is not client]

    # JetStream.

    def lose_stream(self) -> None:
        """The stream is gone with its messages and consumers; some who wait are told, some are not."""
        stream, self._stream = self._stream, None
        for pulls in (stream.pulls if stream else {}).values():
            for pull in pulls:
                if self.rng.random() < 0.5:
                    self._answer_pull(pull, "409")

    async def ask_api(self, client: Client, request: Callable[[], Any]) -> Any:
        """A request to JetStream's API and its answer."""
        await asyncio.sleep(self.rng.expovariate(1000.0))
        if not client.is_connected or self.faults.strikes("message_lost", "api"):
            await asyncio.sleep(2.0)
            raise nats.errors.TimeoutError
        return request()

    @property
    def stream(self) -> _Stream:
        """The stream. Raises NotFoundError."""
        if self._stream is None:
            raise nats.js.errors.NotFoundError
        return self._stream

    def make_stream(self) -> _Stream:
        """Declare it, if it is missing."""
        if self._stream is None:
            self._stream = _Stream(self.loop.now)
        return self._stream

    def make_consumer(self, name: str) -> None:
        """Declare it, if it is missing."""
        self.stream.consumers.add(name)
        self._match(name)

    def find_stream(self) -> SimpleNamespace:
        """Since when it is there, and its messages by subject. Raises NotFoundError."""
        subjects = dict(Counter(self.stream.subjects.values()))
        return SimpleNamespace(created=self.stream.created, state=SimpleNamespace(subjects=subjects))

    def find_consumer(self, name: str) -> None:
        """Raises NotFoundError for one that is missing."""
        if name not in self.stream.consumers:
            raise nats.js.errors.NotFoundError

    def _store(self, subject: str, data: bytes) -> None:
        if self._stream is not None and self.up:
            name = streams.consumer_name(subject.split(".")[2])
            number = self.next_number()
            self._stream.subjects[number] = subject
            self._stream.waiting.setdefault(name, []).append((number, data))
            self._match(name)

    def _take_pull(self, client: Client, consumer: str, request: dict[str, Any], inbox: str) -> None:
        if not client.is_connected:
            return
        pull = _Pull(client, inbox, request["batch"])
        if self._stream is None or consumer not in self._stream.consumers:
            self._answer_pull(pull, "503")
            return
        self._stream.pulls.setdefault(consumer, []).append(pull)
        self.loop.world.call_later(request["expires"] / 1e9, self._expire, self._stream, consumer, pull)
        self._match(consumer)

    def _expire(self, stream: _Stream, consumer: str, pull: _Pull) -> None:
        if stream is self._stream and pull in stream.pulls[consumer]:
            stream.pulls[consumer].remove(pull)
            self._answer_pull(pull, "408")

    def _answer_pull(self, pull: _Pull, status: str) -> None:
        for subscription in self.receivers(pull.inbox):
            self.send(subscription, Msg(cast("Any", pull.client), pull.inbox, "", b"", {"Status": status}))

    def _match(self, consumer: str) -> None:
        stream = self._stream
        if stream is None or consumer not in stream.consumers:
            return
        waiting, pulls = stream.waiting.setdefault(consumer, []), stream.pulls.setdefault(consumer, [])
        while waiting and pulls:
            last = len(waiting) if len(waiting) > 1 and self.faults.strikes("wakeups_reordered") else 1
            pull = pulls[int(self.rng.random() * len(pulls))]
            if pull.client not in self.clients:
                pulls.remove(pull)  # the server knows that nobody is there any more
                continue
            number, data = waiting.pop(int(self.rng.random() * last))
            pull.left -= 1
            if pull.left == 0:
                pulls.remove(pull)
            stream.unacknowledged[number] = consumer, data
            self.loop.world.call_later(streams.ACK_WAIT_SECONDS, self._redeliver, stream, number)
            for subscription in self.receivers(pull.inbox):
                self.send(subscription, Msg(cast("Any", pull.client), pull.inbox, f"{_ACK}{number}", data))

    def _redeliver(self, stream: _Stream, number: int) -> None:
        if stream is self._stream and number in stream.unacknowledged:
            consumer, data = stream.unacknowledged.pop(number)
            stream.waiting[consumer].append((number, data))
            self._match(consumer)

    def _take_verdict(self, number: int, verdict: bytes) -> None:
        if self._stream is None:
            return
        if verdict.startswith(Msg.Ack.Nak):
            self._redeliver(self._stream, number)
        else:
            self._stream.unacknowledged.pop(number, None)
            self._stream.subjects.pop(number, None)


def _hear(subscription: Subscription, message: Msg) -> None:
    if subscription.client.is_connected:
        subscription.client.process.spawn(cast("Any", subscription.callback(message)))


class Client:
    """One process's connection; see nats.aio.client.Client."""

    def __init__(self, server: Server, process: Process, reconnected: Callable[[], Awaitable[None]]) -> None:
        self.server = server
        self.process = process
        self.up = True
        self._reconnected = reconnected
        self._requests: dict[str, asyncio.Future[Msg]] = {}
        server.clients.append(self)

    @property
    def is_connected(self) -> bool:
        """See nats.aio.client.Client."""
        return self.up and self.server.up and self.process.alive

    def reconnect(self) -> None:
        """The connection is back, and the process is told."""
        self.up = True
        if self.process.alive:
            self.process.spawn(cast("Any", self._reconnected()))

    def new_inbox(self) -> str:
        """See nats.aio.client.Client."""
        return f"_INBOX.{self.server.next_number()}"

    async def publish(self, subject: str, data: bytes = b"", reply: str = "", headers: Any = None) -> None:
        """See nats.aio.client.Client. What is published while there is no connection is lost."""
        if self.server.rng.random() < 0.1:
            await asyncio.sleep(0)  # the write buffer was full: a moment to be killed in
        if not self.is_connected:
            return
        self.server.observe(subject, data)
        self.server.publish(self, subject, data, reply, headers)

    async def subscribe(
        self, subject: str, queue: str = "", cb: Callable[[Msg], Awaitable[None]] | None = None
    ) -> Subscription:
        """See nats.aio.client.Client."""
        assert cb is not None
        subscription = Subscription(self.server, self, subject, queue, cb)
        self.server.add(subscription)
        return subscription

    async def request(self, subject: str, data: bytes, timeout: float) -> Msg:  # noqa: ASYNC109 - as in nats-py
        """See nats.aio.client.Client."""
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        inbox = self.new_inbox()
        subscription = await self.subscribe(inbox, cb=_settling(future))
        try:
            if self.is_connected and not self.server.receivers(subject):
                await asyncio.sleep(self.server.rng.expovariate(2000.0))
                raise nats.errors.NoRespondersError
            await self.publish(subject, data, reply=inbox)
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise nats.errors.TimeoutError from None
        finally:
            self.server.forget(subscription)

    def jetstream(self, timeout: float) -> JetStream:
        """See nats.aio.client.Client."""
        return JetStream(self)


def _settling(future: asyncio.Future[Msg]) -> Callable[[Msg], Awaitable[None]]:
    async def hear(message: Msg) -> None:
        if not future.done():
            future.set_result(message)

    return hear


class JetStream:
    """What transport/streams.py asks of nats.js.JetStreamContext."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._server = client.server

    async def stream_info(self, name: str, subjects_filter: str | None = None) -> Any:
        """See JetStreamContext."""
        return await self._server.ask_api(self._client, self._server.find_stream)

    async def add_stream(self, config: Any) -> Any:
        """See JetStreamContext."""
        return await self._server.ask_api(self._client, self._server.make_stream)

    async def consumer_info(self, stream: str, name: str) -> Any:
        """See JetStreamContext."""
        return await self._server.ask_api(self._client, lambda: self._server.find_consumer(name))

    async def add_consumer(self, stream: str, config: Any) -> None:
        """See JetStreamContext."""
        await self._server.ask_api(self._client, lambda: self._server.make_consumer(config.durable_name))
