"""What a process says of itself, as a process: traces that nobody takes, and lines that nobody can forge."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

SERVE = """
import asyncio, os, signal
from services.kit.lifecycle import run
from services.kit.tracing import tracer

async def serve(stack):
    for _ in range(5):
        tracer.start_span("work").end()
        await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)

run("test", serve)
"""
FAIL = """
import asyncio
from services.kit.lifecycle import run, vital

async def fail():
    await asyncio.sleep(0.1)
    raise LookupError("nobody has foreseen this")

async def serve(stack):
    stack.callback(print, "stopped in order")
    vital(asyncio.create_task(fail()))

run("test", serve)
"""
LOG = r"""
import logging, sys
import structlog
from pydantic import SecretStr
from services.kit.logging import CURRENT_REQUEST, configure_logging

configure_logging("test")
CURRENT_REQUEST.set("req-1")
log = structlog.get_logger("test")
forged = 'a\n{"event": "forged"}\r\x1b[2J\x1b]0;title\x07\u2028\x85 b'
log.info("said", text=forged, secret=SecretStr("canary"))
log.info("said", nested={"text": forged})
logging.getLogger("library").warning("heard %s", forged)
"""


def run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "HEADRACE_"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8", **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_receiver_that_is_gone_costs_a_line_and_at_most_three_seconds_at_the_end() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        begun = time.monotonic()
        done = run(SERVE, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="50")
        took = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines if line["event"].startswith("service_")][-1] == "service_stopped"
    assert len([line for line in lines if "export" in line["event"].lower()]) <= 1
    assert took < 20, "start-up included"


def test_a_wrong_variable_of_the_standard_is_named_in_a_sentence() -> None:
    done = run(SERVE, OTEL_TRACES_SAMPLER="sometimes")
    assert done.returncode == 1
    assert "OTEL_TRACES_SAMPLER" in done.stderr
    assert "HEADRACE_…" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_strangers_wrote_makes_no_line_and_no_command_of_its_own(form: str) -> None:
    done = run(LOG, HEADRACE_LOG_FORMAT=form)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n")) == 4, done.stdout
    assert len(done.stdout.splitlines()) == 3, "by Unicode's line breaks either"
    assert not {character for character in done.stdout if ord(character) < 32} - {"\n"}
    assert "canary" not in done.stdout
    for line in done.stdout.splitlines():
        if form == "json":
            assert json.loads(line)["request_id"] == "req-1"
        else:
            assert "req-1" in line


def test_a_process_ends_in_order_when_a_task_fails_that_it_cannot_do_without() -> None:
    done = run(FAIL)
    assert done.returncode == 0, done.stderr
    assert "stopped in order" in done.stdout
    (failed,) = [line for line in done.stdout.splitlines() if "vital_task_failed" in line]
    assert "nobody has foreseen this" in failed
