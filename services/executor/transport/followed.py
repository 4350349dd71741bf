"""Runs that are followed at other executors: notices of their moves go out for those alone.

Who follows a run says so when it begins and once a second from then on. An executor that hears it for the first time
answers with a notice, so that what moved before it heard is looked at as well; one that hears nothing more forgets it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.executor.transport import streams

log = structlog.get_logger(__name__)

_REMIND_SECONDS = 1.0
_FORGET_SECONDS = 3.5


class Followed:
    """What this executor knows of followers elsewhere, and tells of its own."""

    def __init__(self, executor_id: str, notify: Callable[[UUID], None]) -> None:
        """`notify` is called for a run that turns out to be followed."""
        self._executor_id = executor_id.encode()
        self._notify = notify
        self._until: OrderedDict[UUID, float] = OrderedDict()
        """In the order in which they are forgotten; by the event loop's clock."""

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._until and self._until[run_id] > asyncio.get_running_loop().time()

    async def listen(self, client: Client) -> None:
        """Hear of followers from now on."""
        await client.subscribe(streams.run_subject("*", streams.FOLLOWED), cb=self._hear)

    async def _hear(self, message: Msg) -> None:
        if message.data == self._executor_id:
            return
        try:
            run_id = UUID(message.subject.split(".")[2])
        except ValueError:
            log.warning("follower_malformed", subject=message.subject)
            return
        known = run_id in self
        now = asyncio.get_running_loop().time()
        self._until[run_id] = now + _FORGET_SECONDS
        self._until.move_to_end(run_id)
        while next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if not known:
            self._notify(run_id)

    @asynccontextmanager
    async def told(self, client: Client, run_id: UUID) -> AsyncIterator[None]:
        """Tell the other executors that this one follows a run, as long as the block lasts."""
        telling = asyncio.create_task(self._tell(client, run_id))
        try:
            yield
        finally:
            telling.cancel()

    async def _tell(self, client: Client, run_id: UUID) -> None:
        while True:
            try:
                await client.publish(streams.run_subject(run_id, streams.FOLLOWED), self._executor_id)
            except NatsError as error:
                log.info("follower_not_told", error=repr(error))
            await asyncio.sleep(_REMIND_SECONDS)
