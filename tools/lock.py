"""Resolve the newest versions that pyproject.toml allows, and write them to constraints.txt: `make lock`."""

import json
import subprocess
import sys
from pathlib import Path

from tools.install import WITHOUT_DEPENDENCIES

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The versions that are installed, tested together. `make lock` writes this file anew from pyproject.toml.
"""


def main() -> None:
    versions = resolve("-e", ".[dev]") | resolve("--no-deps", WITHOUT_DEPENDENCIES)
    del versions["headrace"]
    # A local version (torch's +cpu) is a build of the same release, which another index may not have.
    lines = [f"{name}=={versions[name].partition('+')[0]}" for name in sorted(versions, key=str.lower)]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")


def resolve(*arguments: str) -> dict[str, str]:
    """Return the name and version of everything pip would install into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    output = subprocess.run([*command, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(output)["install"]}


if __name__ == "__main__":
    main()
