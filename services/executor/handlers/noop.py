"""`noop`: returns its value. For trying out a workflow and for benchmarks."""

import asyncio
from typing import Any

from pydantic import Field

from services.executor.handlers.base import ConfigModel, Context, NodeType, Result


class NoopConfig(ConfigModel):
    """What to return, and when."""

    value: Any = Field(None, title="Value", description="Becomes the output.")
    seconds: float = Field(0, ge=0, le=3600, title="Seconds", description="Keeps the worker's slot for so long first.")


async def noop(context: Context, config: NoopConfig) -> Result:
    """Return the value."""
    if config.seconds:
        await asyncio.sleep(config.seconds)
    return Result(config.value)


NOOP = NodeType(
    name="noop",
    title="No operation",
    help="Returns its value; for trying out a workflow.",
    icon="circle-dashed",
    category="debug",
    config=NoopConfig,
    output={"title": "Value", "description": "The value of the config."},
    handler=noop,
    effect="pure",
)
