"""The worker process: `python -m services.executor.worker.main`."""

import asyncio
import os
import platform
import signal
from contextlib import AsyncExitStack

import structlog

from services.executor.egress import Egress, parse_host_ports
from services.executor.handlers.clients import Services, Targets
from services.executor.handlers.registry import catalogue
from services.executor.worker.loop import Worker
from services.executor.worker.runner import Runner
from services.executor.worker.settings import PeerSettings, Settings
from services.executor.worker.watchdog import MemoryWatch, watch_loop
from services.kit import nats
from services.kit.grpc_server import GrpcServer
from services.kit.lifecycle import run, serve_metrics

log = structlog.get_logger(__name__)


async def serve(stack: AsyncExitStack) -> None:
    """Build a worker from the environment and start it; the stack drains it."""
    settings, peers = Settings(), PeerSettings()
    serve_metrics(settings.metrics_listen)
    health = GrpcServer(listen=settings.listen, tokens=None, service_names=())
    await health.start()
    stack.push_async_callback(health.stop)
    node_types = catalogue()
    targets = Targets(peers.auth_target, peers.executor_target, peers.llm_target, peers.vector_target)
    egress = Egress(parse_host_ports(peers.egress_allow), parse_host_ports(peers.egress_deny))
    services = Services(targets, egress=egress)
    stack.push_async_callback(services.close)
    workers: list[Worker] = []

    async def reconnected() -> None:
        for worker in workers:
            worker.reconnected()

    url = peers.nats_url.get_secret_value()
    client = await nats.connect(url, name="headrace-worker", on_reconnect=reconnected)
    stack.push_async_callback(client.close)
    served = {kind.queue for kind in node_types.values() if not kind.inline}
    wanted = {queue.strip() for queue in settings.queues.split(",") if queue.strip()} or served
    worker = Worker(
        client,
        Runner(node_types, services),
        queues=sorted(served & wanted),
        slots=settings.slots,
        heartbeat_seconds=settings.heartbeat_seconds,
        host=platform.node(),
        max_jobs=settings.max_jobs,
    )
    workers.append(worker)
    await worker.start()
    _watch(worker, settings, stack)
    await health.set_healthy(True)
    # What a node execution's `worker` says, for who looks for its log or its process.
    log.info("worker_ready", worker_id=worker.worker_id)


def _watch(worker: Worker, settings: Settings, stack: AsyncExitStack) -> None:
    """Have the worker drained when the process is told to stop, and the process stopped when it should not go on."""
    is_full = False

    def full() -> None:
        nonlocal is_full
        is_full = True
        stop()

    async def drain() -> None:
        # Work that fills the memory and does not end is not handed on for free: see `services...worker.watchdog`.
        await worker.drain(settings.drain_seconds, hand_back=not is_full)

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


def stop() -> None:
    """Stop as if told to from outside."""
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Command line."""
    run("worker", serve)


if __name__ == "__main__":
    main()
