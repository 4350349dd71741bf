"""A connection to NATS that outlives the server: it reconnects for ever and says so in the log."""

import asyncio
from collections.abc import Awaitable, Callable

import nats
import structlog
from nats.aio.client import Client
from prometheus_client import Gauge

log = structlog.get_logger(__name__)

_CONNECTED = Gauge("headrace_nats_connected", "1 while this process is connected to NATS, else 0.")


async def connect(url: str, *, name: str, on_reconnect: Callable[[], Awaitable[None]] | None = None) -> Client:
    """Connect, waiting for the server as long as it takes; `on_reconnect` is called after each later reconnection."""

    async def reconnected() -> None:
        log.info("nats_reconnected")
        if on_reconnect is not None:
            await on_reconnect()

    async def disconnected() -> None:
        log.warning("nats_disconnected")

    async def failed(error: Exception) -> None:
        log.warning("nats_error", error=repr(error))

    while True:
        try:
            client = await nats.connect(
                url,
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                connect_timeout=2,
                ping_interval=10,
                max_outstanding_pings=2,
                allow_reconnect=True,
                reconnected_cb=reconnected,
                disconnected_cb=disconnected,
                error_cb=failed,
                pending_size=8 * 1024 * 1024,
            )
            _measure(client)
            return client
        except (OSError, TimeoutError, nats.errors.Error) as error:
            log.warning("nats_not_reachable", error=repr(error))
            await asyncio.sleep(0.3)


def _measure(client: Client) -> None:
    _CONNECTED.set_function(lambda: client.is_connected)
