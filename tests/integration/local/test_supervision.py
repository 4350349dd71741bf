"""Processes are restarted, stopped in order, and never left behind. PostgreSQL and NATS stand for all of them."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from deploy.local import databases, services
from deploy.local.errors import ProcessFailedError, StackError
from deploy.local.home import Home
from deploy.local.leftovers import marked, stop_leftovers
from deploy.local.ports import Ports
from deploy.local.processes import KeptProcess, Program, State, run_to_end
from deploy.local.secrets import Secrets
from deploy.local.supervisor import Supervisor
from tests.support.backend_host import READY_FILE, USERS_FILE
from tests.support.servers import embedded_servers
from tests.support.waiting import await_until

_ROOT = Path(__file__).resolve().parents[3]


def program(home: Home, *argv: str, service: str = "auth", **more: Any) -> Program:
    env = services.base_environment(os.environ, home)
    return Program(service=service, argv=argv, env=env, log=home.log(service), **more)


def python(home: Home, code: str, **more: Any) -> Program:
    return program(home, sys.executable, "-c", code, **more)


async def never_healthy() -> None:
    raise StackError("not healthy")


async def test_killed_servers_come_back_with_what_they_had_committed(home: Home) -> None:
    async with embedded_servers(home) as running:
        url = databases.url_with(running.postgres_url, database=databases.DATABASE)
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE kept (value integer)")
        await connection.execute("INSERT INTO kept VALUES (42)")
        before = {name: running.process(name).pid for name in ("postgres", "nats")}
        for pid in before.values():
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        for name, pid in before.items():
            await await_until(functools.partial(is_back, running.process(name), pid), within=20)
        connection.terminate()

        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT value FROM kept") == 42
        await connection.close()


def is_back(process: KeptProcess, killed_pid: int | None) -> bool:
    return process.is_ready and process.pid not in (None, killed_pid)


async def test_a_home_keeps_its_data_and_ports_across_starts(home: Home) -> None:
    async with embedded_servers(home) as running:
        nats_url = running.nats_urls
        connection = await asyncpg.connect(running.postgres_url)
        await connection.execute("CREATE TABLE kept (value integer)")
        await connection.close()
    async with embedded_servers(home) as running:
        assert running.nats_urls == nats_url
        connection = await asyncpg.connect(running.postgres_url)
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
        await connection.close()


async def test_a_stopped_stack_leaves_no_process_and_no_socket(home: Home) -> None:
    async with embedded_servers(home) as running:
        pids = [process.pid for process in running.supervisor.processes]
        socket_folder = running.postgres_url.partition("?host=")[2]
        assert os.listdir(socket_folder)

    assert not [pid for pid in pids if pid is not None and psutil.pid_exists(pid)]
    with pytest.raises(FileNotFoundError):
        os.listdir(socket_folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_the_launcher_and_the_next_start_works(tmp_path: Path, number: signal.Signals) -> None:
    for end in (number, signal.SIGTERM):
        launcher = launch_host(tmp_path / "home")
        await await_until((tmp_path / "home" / READY_FILE).exists, within=30)
        pids = server_pids(tmp_path / "home")
        launcher.send_signal(end)
        launcher.wait()
        await await_until(functools.partial(none_runs, pids), within=20)


def none_runs(pids: list[int]) -> bool:
    return not any(map(is_running, pids))


def server_pids(folder: Path) -> list[int]:
    return list(json.loads((folder / READY_FILE).read_text())["pids"].values())


def launch_host(folder: Path) -> subprocess.Popen[bytes]:
    """Start a launcher of PostgreSQL and NATS alone: the host of test sessions, run in this process's stead."""
    users = folder / USERS_FILE
    folder.mkdir(exist_ok=True)
    users.touch()
    (folder / READY_FILE).unlink(missing_ok=True)
    code = (
        "import asyncio, fcntl, pathlib, sys; from tests.support import backend_host\n"
        "users = open(sys.argv[2]); fcntl.flock(users, fcntl.LOCK_SH)\n"
        "asyncio.run(backend_host.main(pathlib.Path(sys.argv[1])))"
    )
    env = os.environ | {"PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'gen'}"}
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(users)], env=env)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_the_next_start_stops_a_database_server_that_was_left_running(home: Home) -> None:
    async with embedded_servers(home) as running:
        wanted = running.process("postgres").program
    left = leave_running(wanted)
    await await_until((home.path / "postgres" / "data" / "postmaster.pid").exists)

    async with embedded_servers(home) as running:
        left.wait()
        assert running.process("postgres").is_ready


def leave_running(wanted: Program) -> subprocess.Popen[bytes]:
    """Start a database server as a launcher would, that does not end with its parent."""
    socket_folder = Path(wanted.argv[wanted.argv.index("-k") + 1])
    socket_folder.mkdir(mode=0o700)
    user: dict[str, Any] = {}
    if wanted.owner:
        os.chown(socket_folder, wanted.owner.uid, wanted.owner.gid)
        user = {"user": wanted.owner.uid, "group": wanted.owner.gid, "extra_groups": []}
    return subprocess.Popen(wanted.argv, env=dict(wanted.env), start_new_session=True, **user)


def test_the_next_start_stops_what_carries_the_homes_mark_and_nothing_else(home: Home, tmp_path: Path) -> None:
    ours = subprocess.Popen(["sleep", "600"], env=marked(os.environ, home.path))
    others = subprocess.Popen(["sleep", "600"], env=marked(os.environ, tmp_path / "other"))
    try:
        assert stop_leftovers(home.path) == 1
        ours.wait(timeout=1)
        assert is_running(others.pid)
    finally:
        others.kill()
        others.wait()


async def test_a_postmaster_file_with_a_strangers_number_does_not_hinder(home: Home) -> None:
    async with embedded_servers(home):
        pass
    write_postmaster_file(home, pid=os.getppid())  # alive, and not a database server

    async with embedded_servers(home) as running:
        assert running.process("postgres").is_ready


def write_postmaster_file(home: Home, *, pid: int) -> None:
    (home.path / "postgres" / "data" / "postmaster.pid").write_text(f"{pid}\n")


async def test_a_process_that_keeps_ending_fails_the_start_with_its_last_words(home: Home) -> None:
    supervisor = Supervisor(lambda _: None)
    supervisor.keep([python(home, "import sys; sys.exit('the llama is not at home')", probe=never_healthy)])
    try:
        with pytest.raises(ProcessFailedError, match=r"auth-0 stopped 4 times .*exit code 1") as failure:
            await supervisor.wait_ready()
    finally:
        await supervisor.stop()

    assert "the llama is not at home" in str(failure.value)


async def test_a_process_that_ignores_its_signal_is_killed_with_its_children(home: Home, tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _: None)
    stubborn = f"trap '' TERM; sleep 600 & echo $! > {tmp_path}/child; wait"
    supervisor.keep([program(home, "/bin/sh", "-c", stubborn, stop_grace=0.2)])
    child = await await_until(lambda: pid_in(tmp_path / "child"))
    await supervisor.stop()

    await await_until(lambda: not is_running(child))


def pid_in(file: Path) -> int:
    """The number in a file; 0 while there is none."""
    return int(file.read_text() or 0) if file.exists() else 0


async def test_services_stop_in_order(home: Home) -> None:
    stopped: list[str] = []

    def note(process: KeptProcess) -> None:
        if process.state is State.STOPPED:
            stopped.append(process.program.service)

    supervisor = Supervisor(note)
    supervisor.keep(
        [program(home, "/bin/sleep", "600", service=name) for name in ("nats", "auth", "worker", "gateway")]
    )
    await supervisor.wait_ready()
    await supervisor.stop()

    assert stopped == ["gateway", "worker", "auth", "nats"]


async def test_a_program_that_fails_says_so(home: Home) -> None:
    with pytest.raises(ProcessFailedError, match=r"auth-0 failed \(exit code 3\)"):
        await run_to_end(python(home, "raise SystemExit(3)"), limit_seconds=20)


def test_two_launchers_never_share_a_home(home: Home) -> None:
    with pytest.raises(StackError, match=rf"Another launcher \(process {os.getpid()}\) already runs"):
        Home(home.path)


def test_two_stacks_never_share_a_port(tmp_path: Path) -> None:
    ports = [Ports(tmp_path / f"{number}.json") for number in range(5)]
    numbers = {each.of(name) for each in ports for name in ("nats", "auth-0")}
    for each in ports:
        each.close()

    assert len(numbers) == 10
    again = Ports(tmp_path / "0.json")
    assert again.of("auth-0") in numbers
    again.close()


def test_lost_secrets_are_not_replaced_while_there_is_data(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"secrets\.json is gone"):
        Secrets(tmp_path / "secrets.json", has_data=True)


def test_secrets_are_the_owners_alone_and_stay(tmp_path: Path) -> None:
    file = tmp_path / "secrets.json"
    first = Secrets(file, has_data=False)

    assert file.stat().st_mode & 0o777 == 0o600
    assert Secrets(file, has_data=True)["internal_key"] == first["internal_key"]


def test_a_nearly_full_disk_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.local.home.NEEDED_FREE", 2**62)

    with pytest.raises(StackError, match="MiB are free on the disk that holds"):
        Home(tmp_path / "home")


async def test_what_was_killed_for_good_is_not_started_again(home: Home) -> None:
    supervisor = Supervisor(lambda _: None)
    supervisor.keep([program(home, "/bin/sh", "-c", "trap '' TERM; while :; do sleep 600; done", stop_grace=600)])
    await supervisor.wait_ready()
    (process,) = supervisor.processes
    supervisor.kill()
    await supervisor.stop()

    assert process.state is State.STOPPED
    assert process.exits == 0
