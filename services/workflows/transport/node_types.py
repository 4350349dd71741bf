"""The catalogue of node types, read from the executor and kept up to date."""

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson
import structlog
from headrace.executor.v1 import executor_service_pb2, run_pb2

from services.kit.errors import DomainError, UnavailableError
from services.kit.grpc_client import Rpc
from services.workflows.domain.catalogue import NodeType, NodeTypes, make_node_type

if TYPE_CHECKING:
    from headrace.executor.v1.executor_service_pb2_grpc import ExecutorServiceAsyncStub

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds between tries while there is no catalogue yet."""
_LEAST_INTERVAL = 2.0
"""Seconds between two refreshes that unknown types ask for."""


class GrpcNodeTypes:
    """The executor's node types. Between `start` and `stop` a task reads them, until they are there and then anew."""

    def __init__(self, stub: "ExecutorServiceAsyncStub", rpc: Rpc, *, least_interval: float = _LEAST_INTERVAL) -> None:
        self._list = stub.ListNodeTypes
        self._rpc = rpc
        self._least_interval = least_interval
        self._types: NodeTypes | None = None
        self._text = b""
        self._read_at = float("-inf")
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.loaded = asyncio.Event()
        """Set once the types were read."""

    async def start(self) -> None:
        """Begin to read; does not wait for the executor."""
        self._task = asyncio.create_task(self._keep_up_to_date())

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def node_types(self) -> NodeTypes:
        """The newest known. Raises UnavailableError while none were ever read."""
        if self._types is None:
            raise UnavailableError("The node types are not known yet, for the executor does not answer.", retry_after=1)
        return self._types

    async def refresh(self) -> None:
        """Read newer ones, at most every few seconds; the old ones stay when that fails."""
        async with self._turn:
            if time.monotonic() - self._read_at >= self._least_interval:
                await self._read()

    async def _keep_up_to_date(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            async with self._turn:
                succeeded = await self._read()
            if succeeded:
                await asyncio.sleep(_EVERY_SECONDS)
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE if self._types is None else _EVERY_SECONDS)

    async def _read(self) -> bool:
        try:
            response = await self._rpc.call(self._list, executor_service_pb2.ListNodeTypesRequest(), timeout=5)
        except DomainError as error:
            log.warning("node_types_not_read", reason=error.reason, message=error.message)
            return False
        self._read_at = time.monotonic()
        text = response.SerializeToString(deterministic=True)
        if text != self._text or self._types is None:
            types = [node_type for message in response.node_types if (node_type := _node_type(message))]
            self._types, self._text = {node_type.name: node_type for node_type in types}, text
            log.info("node_types_read", count=len(types))
        self.loaded.set()
        return True


def _node_type(message: run_pb2.NodeType) -> NodeType | None:
    """The node type of a message; None, with a log line, for one whose schema is none."""
    try:
        return make_node_type(
            message.type,
            orjson.loads(message.config_schema.utf8 or b"{}"),
            ports=tuple(message.ports),
            dynamic_ports_field=message.dynamic_ports_field,
            expression_fields=tuple(message.expression_fields),
        )
    except (ValueError, TypeError, AttributeError) as error:
        log.error("node_type_has_no_usable_schema", type=message.type, error=repr(error))
        return None
