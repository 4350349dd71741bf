"""Wake-ups from JetStream: one pull request under way per queue, for as many messages as there are free slots.

Written on the protocol (ADR-13 of nats-io/nats-architecture-and-design) and not with `fetch`, which makes two round
trips and a subscription for each batch.
"""

import asyncio
from collections.abc import Awaitable, Callable

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.executor.transport import streams

log = structlog.get_logger(__name__)

_EXPIRES_SECONDS = 5.0
_PAUSE_AFTER_FAILURE = 0.2

Receive = Callable[[Msg], None]


class Wakeups:
    """Pulls wake-ups of one queue and hands each to `receive`, which acknowledges it."""

    def __init__(self, client: Client, queue: str, receive: Receive, free_slots: Callable[[], Awaitable[int]]) -> None:
        """`free_slots` waits until there is at least one free slot and says how many there are."""
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{streams.STREAM}.{streams.consumer_name(queue)}"
        self._receive = receive
        self._free_slots = free_slots
        self._ended = asyncio.Event()
        self._expected = 0
        self._failed = False

    async def run(self) -> None:
        """Pull until cancelled."""
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=self._hear)
        try:
            while True:
                self._expected = await self._free_slots()
                self._failed = False
                self._ended.clear()
                await self._pull(inbox)
                if self._failed:
                    await asyncio.sleep(_PAUSE_AFTER_FAILURE)
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    def ask_again(self) -> None:
        """Give up the request under way: its answer will not come."""
        self._ended.set()

    async def _pull(self, inbox: str) -> None:
        request = {"batch": self._expected, "expires": int(_EXPIRES_SECONDS * 1e9)}
        try:
            await self._client.publish(self._subject, orjson.dumps(request), reply=inbox)
            async with asyncio.timeout(_EXPIRES_SECONDS + 1):
                await self._ended.wait()
        except (NatsError, TimeoutError) as error:
            log.info("pull_failed", error=repr(error))
            self._failed = True

    async def _hear(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status") if not message.data else None
        if status is None:
            self._receive(message)
            self._expected -= 1
        else:
            # 404, 408: none within the time. Others (503: the stream is gone, 409: the consumer is) are failures.
            self._failed = status not in ("404", "408")
            self._expected = 0
        if self._expected <= 0:
            self._ended.set()
