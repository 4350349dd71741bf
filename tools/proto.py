"""Generates `gen/headrace` from `proto/`, or with --check fails when the committed stubs differ from it.

Messages and type stubs for every file; gRPC stubs only for `*_service.proto`. Because a proto's path is its import
path, nothing needs repair afterwards.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "gen" / "headrace"


def generate(destination: Path) -> None:
    """Write all stubs below `destination`, which must exist."""
    well_known = str(Path(protoc.__file__).parent / "_proto")
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    services = [name for name in files if name.endswith("_service.proto")]
    # Beside this Python, for its environment need not be on the PATH.
    names = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    plugins = [f"--plugin={Path(sys.executable).with_name(name)}" for name in names]
    include = ["protoc", *plugins, f"-I{PROTO}", f"-I{well_known}"]
    runs = [
        [*include, f"--python_out={destination}", f"--mypy_out=quiet:{destination}", *files],
        [*include, f"--grpc_python_out={destination}", f"--mypy_grpc_out=quiet:{destination}", *services],
    ]
    for arguments in runs:
        if protoc.main(arguments) != 0:
            sys.exit("protoc failed; its messages are above")
    for folder in {path.parent for path in destination.rglob("*_pb2.py")} | {destination / "headrace"}:
        (folder / "__init__.py").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Relative paths that differ between two trees, or exist in one only."""

    def contents(root: Path) -> dict[str, Path]:
        return {
            str(path.relative_to(root)): path
            for path in root.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    ours, theirs = contents(left), contents(right)
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not filecmp.cmp(ours[name], theirs[name], shallow=False)
    )


def main() -> None:
    """Command line: no argument = regenerate, --check = compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference, change nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = Path(scratch) / "headrace"
        if check:
            if changed := differences(GENERATED, fresh):
                sys.exit("stubs do not match proto/; run `make proto`:\n  " + "\n  ".join(changed))
            return
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)


if __name__ == "__main__":
    main()
