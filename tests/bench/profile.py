"""Where the processor time goes: py-spy on the stack's processes while a load runs."""

import asyncio
import sys
from collections import Counter
from pathlib import Path


async def record(pid: int, seconds: int, folder: Path) -> Counter[str]:
    """Samples by function (its own time, on the processor) of one process."""
    output = folder / f"{pid}.raw"
    py_spy = Path(sys.executable).parent / "py-spy"
    process = await asyncio.create_subprocess_exec(
        *(str(py_spy), "record", "--pid", str(pid), "--duration", str(seconds), "--rate", "200"),
        *("--format", "raw", "--output", str(output), "--nonblocking"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"py-spy failed: {errors.decode(errors='replace').strip()}")
    own: Counter[str] = Counter()
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        own[stack.rpartition(";")[2]] += int(count)
    return own


def shares(own: Counter[str], top: int) -> list[str]:
    """The functions with most samples, as lines with their share."""
    total = sum(own.values()) or 1
    return [f"{100 * count / total:5.1f}%  {name}" for name, count in own.most_common(top)]
