"""Refuse changes to proto/ that break clients: `python -m tools.buf_breaking`.

Compared with the contracts of the last release (proto/released.binpb) once there is one; else with the last commit.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "proto" / "released.binpb"


def main() -> int:
    if RELEASED.exists():
        against = str(RELEASED)
    elif _has_contracts_in_head():
        against = ".git#ref=HEAD,subdir=proto"
    else:
        print("buf breaking: nothing to compare with (no release, no commit with contracts).")
        return 0
    buf = Path(sys.executable).with_name("buf")
    return subprocess.run([buf, "breaking", "proto", "--against", against], cwd=ROOT, check=False).returncode


def _has_contracts_in_head() -> bool:
    command = ["git", "cat-file", "-e", "HEAD:proto/buf.yaml"]
    try:
        return subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:  # no git: sources from an archive
        return False


if __name__ == "__main__":
    sys.exit(main())
