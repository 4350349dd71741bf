"""The worker process: `python -m services.executor.worker.main`, and `… alone QUEUE` for one of its suspects."""

import asyncio
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import structlog

from services.executor.egress import Egress, parse_host_ports
from services.executor.handlers.clients import Services, Targets
from services.executor.handlers.registry import catalogue
from services.executor.queues import alone
from services.executor.worker.loop import LAST_REPORTS_SECONDS, Worker
from services.executor.worker.runner import Runner
from services.executor.worker.settings import PeerSettings, Settings
from services.executor.worker.suspects import ALONE, IDLE_SECONDS, Suspects, parent_has_ended
from services.executor.worker.watchdog import MemoryWatch, watch_loop
from services.kit import nats
from services.kit.grpc_server import GrpcServer
from services.kit.lifecycle import run, serve_metrics, stop, vital

log = structlog.get_logger(__name__)

_STOP_GRACE_SECONDS = 1.0
"""For the process of suspects, to end after it has handed in what it has."""


async def serve(stack: AsyncExitStack) -> None:
    """Build a worker from the environment and start it; the stack drains it."""
    settings = Settings()
    serve_metrics(settings.metrics_listen)
    health = GrpcServer(listen=settings.listen, tokens=None, service_names=())
    await health.start()
    stack.push_async_callback(health.stop)
    served = {kind.queue for kind in catalogue().values() if not kind.inline}
    wanted = {queue.strip() for queue in settings.queues.split(",") if queue.strip()} or served
    names = sorted(served & wanted)
    await _start(stack, settings, names, slots=settings.slots, watched=[alone(name) for name in names])
    await health.set_healthy(True)


async def serve_alone(queue: str, stack: AsyncExitStack) -> None:
    """Build the process of a queue's suspects; it ends when there are none, or without the worker that started it."""
    orphaned = asyncio.Event()
    worker = await _start(stack, Settings(), [queue], slots=1, orphaned=orphaned)

    async def end_when_idle() -> None:
        await worker.idle(IDLE_SECONDS)
        stop()

    async def end_without_parent() -> None:
        await parent_has_ended()
        # What runs has not killed that one, and would be lost again and again with those who come after it.
        log.warning("alone_worker_orphaned", queue=queue, pid=os.getpid())
        orphaned.set()
        stop()

    for task in (end_when_idle(), end_without_parent()):
        stack.callback(asyncio.create_task(task).cancel)


async def _start(
    stack: AsyncExitStack,
    settings: Settings,
    names: Sequence[str],
    *,
    slots: int,
    watched: Sequence[str] = (),
    orphaned: asyncio.Event | None = None,
) -> Worker:
    """Serve queues, and watch those of suspects; `orphaned`: what runs may end in its own time."""
    peers, node_types = PeerSettings(), catalogue()
    targets = Targets(peers.auth_target, peers.executor_target, peers.llm_target, peers.vector_target)
    egress = Egress(
        parse_host_ports(peers.egress_allow),
        parse_host_ports(peers.egress_deny),
        sends_traceparent=peers.egress_traceparent,
    )
    services = Services(targets, egress=egress)
    stack.push_async_callback(services.close)
    served: list[Worker | Suspects] = []

    async def reconnected() -> None:
        for each in served:
            each.reconnected()

    url = peers.nats_url.get_secret_value()
    client = await nats.connect(url, name="headrace-worker", on_reconnect=reconnected)
    stack.push_async_callback(client.close)
    worker = Worker(
        client,
        Runner(node_types, services),
        queues=names,
        slots=slots,
        heartbeat_seconds=settings.heartbeat_seconds,
        host=platform.node(),
        max_jobs=settings.max_jobs,
    )
    served.append(worker)
    # What a node execution's `worker` says, for who looks for its log or its process; before it takes any.
    log.info("worker_starting", worker_id=worker.worker_id, pid=os.getpid(), queues=names)
    for task in await worker.start():
        vital(task)
    stop_seconds = settings.drain_seconds + LAST_REPORTS_SECONDS + _STOP_GRACE_SECONDS
    suspects = [Suspects(client, queue, stop_seconds=stop_seconds) for queue in watched]
    served += suspects
    for each in suspects:
        each.start()
    _watch(worker, suspects, settings, orphaned or asyncio.Event(), stack)
    return worker


def _watch(
    worker: Worker, suspects: Sequence[Suspects], settings: Settings, orphaned: asyncio.Event, stack: AsyncExitStack
) -> None:
    """Have the worker drained when the process is told to stop, and the process stopped when it should not go on."""
    is_full = False

    def full() -> None:
        nonlocal is_full
        is_full = True
        stop()

    async def drain() -> None:
        seconds = None if orphaned.is_set() else settings.drain_seconds
        # Work that fills the memory and does not end is not handed on for free: see `services...worker.watchdog`.
        await asyncio.gather(worker.drain(seconds, hand_back=not is_full), *(each.stop() for each in suspects))

    async def recycle() -> None:
        await worker.enough.wait()
        log.info("worker_recycled", jobs=settings.max_jobs)
        stop()

    for task in (watch_loop(settings.stall_seconds), recycle()):
        stack.callback(asyncio.create_task(task).cancel)
    if settings.memory_bytes:
        watch = MemoryWatch(settings.memory_bytes, full)
        watch.start()
        stack.callback(watch.stop)
    # Last, so that it is done first: the watches go on meanwhile.
    stack.push_async_callback(drain)


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == [ALONE]:
        run("worker", partial(serve_alone, sys.argv[2]))
    else:
        run("worker", serve)


if __name__ == "__main__":
    main()
