"""NATS as the executor uses it: wake-ups out, notices about runs out and in."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import structlog
from headrace.executor.v1 import worker_pb2
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.flows import Ready
from services.executor.domain.model import NodeRef
from services.executor.domain.store import RunStore
from services.executor.domain.watchers import Token, Watch, Watchers
from services.executor.engine.state import NodeState, RunState
from services.executor.transport import streams
from services.executor.transport.convert import ref_to_proto
from services.executor.transport.followed import Followed
from services.kit.errors import DomainError

log = structlog.get_logger(__name__)

_CHECK_SECONDS = 2.0


class Bus:
    """Announces commits and watches runs. Implements Announcer, Publisher and WakeupBus: neither blocks nor raises.

    Publishing does not wait for an acknowledgement: a wake-up that is lost is published again by the sweep.
    """

    def __init__(self, executor_id: str, watchers: Watchers) -> None:
        self.executor_id = executor_id
        self._dispatcher: Dispatcher | None = None
        self._listeners: list[Callable[[RunState], None]] = []
        self._watchers = watchers
        self._client: Client | None = None
        self._followed = Followed(executor_id, lambda run_id: self._send_moved(run_id, 0, ended=False))
        self._outgoing: list[tuple[str, bytes, dict[str, str] | None]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def start(self, client: Client) -> None:
        """Publish by this connection, and hear by it of followers elsewhere."""
        self._client = client
        await self._followed.listen(client)

    def dispatch_by(self, dispatcher: Dispatcher) -> None:
        """Let it say when the wake-ups for what becomes ready are published."""
        self._dispatcher = dispatcher

    def tell(self, *listeners: Callable[[RunState], None]) -> None:
        """Call these for every run that a commit has moved."""
        self._listeners += listeners

    @property
    def is_connected(self) -> bool:
        """See WakeupBus."""
        return self._client is not None and self._client.is_connected

    def announce(self, state: RunState, ready: Sequence[NodeState]) -> None:
        """See Announcer."""
        dispatcher = self._dispatcher
        if dispatcher is not None:
            for node in ready:
                if node.spec.kind is not None:
                    dispatcher.offer(
                        Ready(
                            NodeRef(state.run_id, node.spec.key, node.path),
                            node.epoch,
                            state.project_id,
                            node.spec.type,
                            node.queue,
                            state.priority,
                            time.monotonic(),
                            state.traceparent,
                        )
                    )
            dispatcher.moved(state.project_id)
        for listener in self._listeners:
            listener(state)
        self._watchers.moved(state)
        if state.run_id in self._followed:
            self._send_moved(state.run_id, state.sequence, ended=state.is_terminal)

    def _send_moved(self, run_id: UUID, sequence: int, *, ended: bool) -> None:
        moved = worker_pb2.RunMoved(last_sequence=sequence, ended=ended)
        self._send(streams.run_subject(run_id, streams.MOVED), moved.SerializeToString())

    async def held(self, queue: str) -> int | None:
        """See WakeupBus."""
        if self._client is None or not self.is_connected:
            return None
        subject = streams.jobs_subject(queue, self.executor_id)
        try:
            info = await self._client.jetstream(timeout=2).stream_info(streams.STREAM, subjects_filter=subject)
        except NotFoundError:
            return 0
        except (NatsError, TimeoutError) as error:
            log.info("stream_not_asked", queue=queue, error=repr(error))
            return None
        return (info.state.subjects or {}).get(subject, 0)

    def publish(self, ref: NodeRef, epoch: int, queue: str, *, traceparent: str = "") -> None:
        """See Publisher. The run's trace context travels in the header, as W3C has it for HTTP."""
        wakeup = worker_pb2.Wakeup(job=ref_to_proto(ref, epoch), executor_id=self.executor_id)
        headers = {"traceparent": traceparent} if traceparent else None
        self._send(streams.jobs_subject(queue, self.executor_id), wakeup.SerializeToString(), headers)

    def _send(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        self._outgoing.append((subject, data, headers))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._outgoing:
                outgoing, self._outgoing = self._outgoing, []
                if self._client is None or not self.is_connected:
                    # The sweep publishes what is still ready when NATS is back.
                    continue
                try:
                    for subject, data, headers in outgoing:
                        await self._client.publish(subject, data, headers=headers)
                except NatsError as error:
                    log.warning("publish_failed", messages=len(outgoing), error=repr(error))
        finally:
            self._flushing = None

    @asynccontextmanager
    async def watch(self, run_id: UUID) -> AsyncIterator[Watch]:
        """Watch a run that any executor may move, tokens included."""
        with self._watchers.watch(run_id) as watch:
            if self._client is None:
                yield watch
                return
            # Before the others are told: their first notice shall be heard.
            subscription = await self._client.subscribe(streams.run_subject(run_id, "*"), cb=_listener(watch))
            try:
                async with self._followed.told(self._client, run_id):
                    yield watch
            finally:
                try:
                    await subscription.unsubscribe()
                except NatsError as error:
                    log.info("unsubscribe_failed", error=repr(error))


def _listener(watch: Watch):  # type: ignore[no-untyped-def]  # a callback of nats-py
    async def hear(message: Msg) -> None:
        if message.subject.endswith(streams.TOKEN):
            token = worker_pb2.NodeToken.FromString(message.data)
            watch.add_token(Token((token.item_path, token.node_key), message.data))
        elif message.subject.endswith(streams.MOVED):
            watch.notify(ended=worker_pb2.RunMoved.FromString(message.data).ended)

    return hear


class StreamKeeper:
    """Keeps the stream declared. When NATS has lost it, every ready node execution is due for a wake-up again."""

    def __init__(self, store: RunStore, dispatcher: Dispatcher, queues: list[str]) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._queues = queues
        self._wanted = asyncio.Event()
        self._wakeups_lost = False
        self._created: datetime | None = None

    async def reconnected(self) -> None:
        """The connection is a new one, perhaps to a server that knows nothing."""
        self._give_up()  # what was on its way may be lost
        self._wanted.set()

    async def run(self, client: Client) -> None:
        """Check for ever."""
        while True:
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self.check(client)
            except (NatsError, TimeoutError, DomainError) as error:
                log.warning("stream_check_failed", error=repr(error))
            except Exception:
                log.exception("stream_check_failed")

    async def check(self, client: Client) -> None:
        """Declare what is missing; may raise errors of NATS or the store."""
        was_missing, created = await streams.declare_stream(client.jetstream(timeout=2))
        if created != self._created:
            # Another stream, whoever has made it: what was published is not on it.
            self._created = created
            self._give_up()
        if was_missing:
            log.info("stream_declared")
            # Kept until it is done: the next check finds the stream, and not that its messages are gone.
            self._wakeups_lost = True
        await streams.declare_consumers(client.jetstream(timeout=2), self._queues)
        if self._wakeups_lost:
            await self._store.republish_all()
            self._wakeups_lost = False

    def _give_up(self) -> None:
        for queue in self._queues:
            self._dispatcher.give_up(queue)
