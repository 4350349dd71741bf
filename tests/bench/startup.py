"""How soon each service is healthy after its process starts, and what memory the processes hold."""

import asyncio
import os
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from rich.console import Console

from deploy.local import sample
from deploy.local.errors import last_lines
from deploy.local.health import GrpcHealth, HttpReadiness
from deploy.local.info import StackInfo
from deploy.local.ports import LOWEST, is_free
from deploy.local.services import SERVICES
from tests.support.stack import LocalStack

STARTS = 5
_LONGEST_START = 120.0


@dataclass(frozen=True)
class Start:
    """One start, to the moment the process is healthy: seconds by the clock, and of processor time, children's too."""

    seconds: float
    cpu_seconds: float


def memory(stack: LocalStack) -> list[str]:
    """Lines with the memory of each process of a stack and its children, and of all."""
    lines, total = [], 0
    for entry in stack.state["processes"]:
        # Proportional, so that pages that PostgreSQL's processes share count once.
        size = sum(member.memory_full_info().pss for member in _family(entry["pid"]))
        total += size
        lines.append(f"  {entry['service']}-{entry['replica']:<3} {size / 2**20:7.1f} MiB")
    return [*lines, f"  {'all':<10} {total / 2**20:7.1f} MiB"]


async def starts(stack: LocalStack) -> list[str]:
    """Lines with the starts of each service: a replica more of it, while nothing else starts or works."""
    lines = []
    for service in SERVICES:
        had = [await _start_once(stack, service) for _ in range(STARTS)]
        seconds, cpu = [start.seconds for start in had], [start.cpu_seconds for start in had]
        lines.append(
            f"  {service:<10} {statistics.median(seconds):5.2f} s ({min(seconds):.2f}-{max(seconds):.2f}), "
            f"of the processor {statistics.median(cpu):5.2f} s ({min(cpu):.2f}-{max(cpu):.2f})"
        )
    return lines


async def run_sample(stack: LocalStack) -> None:
    """Run the sample workflow as `make run` does, without its words."""
    allowed = psutil.Process(stack.process("worker")["pid"]).environ()["HEADRACE_EGRESS_ALLOW"]
    info = StackInfo(
        gateway_url=stack.gateway_url,
        admin_email=stack.admin["email"],
        admin_password=stack.admin["password"],
        receiver_port=int(allowed.rpartition(":")[2]),
        console=Console(quiet=True),
    )
    if await sample.run(info) != 0:
        raise RuntimeError("the sample failed; run `make run ARGS=--once` to see where")


async def _start_once(stack: LocalStack, service: str) -> Start:
    """Start a process with the environment of the one that runs, at addresses of its own, and stop it again."""
    running = psutil.Process(stack.process(service)["pid"])
    listen, metrics = _free_ports(2)
    env = running.environ() | {
        f"HEADRACE_{service.upper()}_LISTEN": f"127.0.0.1:{listen}",
        f"HEADRACE_{service.upper()}_METRICS_LISTEN": f"127.0.0.1:{metrics}",
    }
    log = stack.home / "logs" / f"{service}-start.log"
    with _opened(log) as output:
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *running.cmdline(), env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        async with asyncio.timeout(_LONGEST_START):
            await _until_healthy(process, service, f"127.0.0.1:{listen}", log)
        seconds = time.perf_counter() - began
        return Start(seconds, sum(sum(member.cpu_times()[:2]) for member in _family(process.pid)))
    finally:
        await _stop(process)


async def _until_healthy(process: asyncio.subprocess.Process, service: str, address: str, log: Path) -> None:
    probe = HttpReadiness(address) if service == "gateway" else GrpcHealth(address)
    host, _, port = address.rpartition(":")
    listens = False
    try:
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"{service} ended with {process.returncode}:\n{last_lines(log, 40)}")
            try:
                if not listens:
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                    listens = True
                await probe()
                return
            except Exception:  # noqa: BLE001 - whatever a probe raises means "not yet"
                await asyncio.sleep(0.01)
    finally:
        await probe.close()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(20):
            await process.wait()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports below the blocks that stacks take."""
    return [port for port in range(LOWEST - 1, LOWEST - 1000, -1) if is_free(port)][:count]


def _opened(log: Path) -> BinaryIO:
    return log.open("wb")


def _family(pid: int) -> list[Any]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
