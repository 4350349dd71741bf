"""Requests to executors over NATS: the one that holds a run in memory first, else any."""

import structlog
from headrace.executor.v1 import worker_pb2 as pb
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from services.executor.transport import streams

log = structlog.get_logger(__name__)

_TIMEOUT = 10.0


class ExecutorClient:
    """Claims, reports and heartbeats. A request that gets no answer gives None: repeat it, all of them are guarded."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def claim(self, request: pb.ClaimRequest, executor_id: str) -> pb.ClaimResponse | None:
        """Ask for jobs."""
        data = await self._ask(streams.CLAIM, request.SerializeToString(), executor_id)
        return None if data is None else pb.ClaimResponse.FromString(data)

    async def report(self, request: pb.ReportRequest, executor_id: str) -> pb.ReportResponse | None:
        """Hand in results."""
        data = await self._ask(streams.REPORT, request.SerializeToString(), executor_id)
        return None if data is None else pb.ReportResponse.FromString(data)

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse | None:
        """Keep the claims alive."""
        data = await self._ask(streams.HEARTBEAT, request.SerializeToString(), "")
        return None if data is None else pb.HeartbeatResponse.FromString(data)

    async def _ask(self, verb: str, data: bytes, executor_id: str) -> bytes | None:
        for subject in dict.fromkeys((streams.executor_subject(verb, executor_id), streams.executor_subject(verb))):
            try:
                return (await self._client.request(subject, data, timeout=_TIMEOUT)).data
            except NoRespondersError:
                continue
            except (NatsError, TimeoutError) as error:
                log.warning("executor_did_not_answer", verb=verb, error=repr(error))
                return None
        return None
