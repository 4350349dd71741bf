"""Requests to executors over NATS: the one that holds a run in memory first, else any."""

import structlog
from headrace.executor.v1 import worker_pb2 as pb
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from services.executor.transport import streams

log = structlog.get_logger(__name__)

FIRST_TIMEOUT, LONGEST_TIMEOUT = 1.0, 10.0
"""Seconds that a request waits for its answer: short at first, because what a killed executor held shall go on soon,
longer with each repetition, because an executor that is slow is not helped by more requests."""


class ExecutorClient:
    """What a worker asks executors. A request that gets no answer gives None: repeat it, all of them are guarded."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def claim(self, request: pb.ClaimRequest, executor_id: str, *, tries: int = 0) -> pb.ClaimResponse | None:
        """Ask for jobs; `tries` is how often this request was made before."""
        data = await self._ask(streams.CLAIM, request.SerializeToString(), executor_id, tries)
        return None if data is None else pb.ClaimResponse.FromString(data)

    async def take(self, request: pb.TakeRequest, executor_id: str, *, tries: int = 0) -> pb.TakeResponse | None:
        """Wait for jobs, under a second; `tries` is how often this request was made before."""
        data = await self._ask(streams.TAKE, request.SerializeToString(), executor_id, tries)
        return None if data is None else pb.TakeResponse.FromString(data)

    async def report(self, request: pb.ReportRequest, executor_id: str, *, tries: int = 0) -> pb.ReportResponse | None:
        """Hand in results; `tries` is how often this request was made before."""
        data = await self._ask(streams.REPORT, request.SerializeToString(), executor_id, tries)
        return None if data is None else pb.ReportResponse.FromString(data)

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse | None:
        """Keep the claims alive."""
        data = await self._ask(streams.HEARTBEAT, request.SerializeToString(), "", 0)
        return None if data is None else pb.HeartbeatResponse.FromString(data)

    async def _ask(self, verb: str, data: bytes, executor_id: str, tries: int) -> bytes | None:
        timeout = min(FIRST_TIMEOUT * 2.0 ** min(tries, 10), LONGEST_TIMEOUT)
        for subject in dict.fromkeys((streams.executor_subject(verb, executor_id), streams.executor_subject(verb))):
            try:
                return (await self._client.request(subject, data, timeout=timeout)).data
            except NoRespondersError:
                continue
            except (NatsError, TimeoutError) as error:
                log.warning("executor_did_not_answer", verb=verb, timeout_seconds=timeout, error=repr(error))
                return None
        return None
