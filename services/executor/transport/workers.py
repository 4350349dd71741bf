"""The workers' side of the executor over NATS request-reply: claim, take, report, heartbeat."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from uuid import UUID

import structlog
from google.protobuf.message import DecodeError
from headrace.executor.v1 import worker_pb2 as pb
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from services.executor.domain.idle_workers import IdleWorkers, claim_id
from services.executor.domain.jobs import Job, Jobs
from services.executor.domain.model import WorkerLease
from services.executor.transport import streams
from services.executor.transport.convert import (
    job_to_proto,
    ref_from_proto,
    ref_to_proto,
    report_from_proto,
    report_status,
)
from services.kit.errors import DomainError
from services.kit.identity import CallerTokens
from services.kit.lifecycle import end

log = structlog.get_logger(__name__)

MAX_REPLY_BYTES = 7 * 1024 * 1024
_GRANT_GRACE_SECONDS = 60
"""A grant outlives the attempt's time-out by so much: for the clean-up after it."""
_GRANT_STEP_SECONDS = 30
"""Grants end on multiples of this, so that the jobs of one run share them, here and where they are verified."""
_MAX_GRANTS = 4096
_STOP_SECONDS = 5.0
"""For requests under way at the end: longer than a commit takes, and not for ever if nobody commits any more."""

Answer = Callable[[bytes], Awaitable[bytes]]


def _grants(tokens: CallerTokens) -> Callable[[str, UUID, float], str]:
    """Mints grants for a project and run that end at a time; the same again for the same three."""

    @lru_cache(_MAX_GRANTS)
    def grant(project_id: str, run_id: UUID, expires_at: float) -> str:
        return tokens.mint_grant(project_id=project_id, run_id=str(run_id), lifetime_seconds=expires_at - time.time())

    return grant


class WorkerTransport:
    """Answers workers. Several requests are under way at a time; each is one message in and one out."""

    def __init__(
        self, client: Client, jobs: Jobs, idle_workers: IdleWorkers, tokens: CallerTokens, executor_id: str
    ) -> None:
        self._client = client
        self._jobs = jobs
        self._idle_workers = idle_workers
        self._grant = _grants(tokens)
        self._executor_id = executor_id
        self._subscriptions: list[Subscription] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take requests."""
        answers: dict[str, Answer] = {
            streams.CLAIM: self._claim,
            streams.TAKE: self._take,
            streams.REPORT: self._report,
            streams.HEARTBEAT: self._heartbeat,
        }
        for verb, answer in answers.items():
            hear = self._listener(verb, answer)
            own, shared = streams.executor_subject(verb, self._executor_id), streams.executor_subject(verb)
            self._subscriptions.append(await self._client.subscribe(own, cb=hear))
            self._subscriptions.append(await self._client.subscribe(shared, queue=streams.EXECUTORS, cb=hear))

    async def stop(self) -> None:
        """Take no more requests and finish those under way, unless they cannot be: their workers ask again."""
        for subscription in self._subscriptions:
            try:
                await subscription.unsubscribe()
            except NatsError as error:
                log.info("unsubscribe_failed", error=repr(error))
        self._idle_workers.close()
        if self._under_way:
            _, left = await asyncio.wait(self._under_way, timeout=_STOP_SECONDS)
            await end(*left)

    def _listener(self, verb: str, answer: Answer) -> Callable[[Msg], Awaitable[None]]:
        async def hear(message: Msg) -> None:
            task = asyncio.create_task(self._respond(verb, answer, message))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

        return hear

    async def _respond(self, verb: str, answer: Answer, message: Msg) -> None:
        """Answer a request; one that cannot be answered is left to the worker's time-out, and it asks again."""
        try:
            await message.respond(await answer(message.data))
        except (DecodeError, ValueError) as error:
            log.warning("worker_request_malformed", verb=verb, error=repr(error))
        except DomainError as error:
            log.warning("worker_request_failed", verb=verb, reason=error.reason, message=error.message)
        except Exception:
            log.exception("worker_request_failed", verb=verb)

    async def _claim(self, data: bytes) -> bytes:
        request = pb.ClaimRequest.FromString(data)
        wanted = [(ref_from_proto(ref), ref.epoch) for ref in request.jobs]
        claimed = await self._jobs.claim(request.worker_id, wanted, request.claim_id)
        response = pb.ClaimResponse(retry=[ref_to_proto(ref) for ref in claimed.retry])
        size = 0
        for job in claimed.jobs:
            message = self._job(job)
            size += message.ByteSize()
            if size > MAX_REPLY_BYTES and response.jobs:
                # Claimed already: the same claim_id asks for it again and gets it.
                response.retry.append(message.ref)
            else:
                response.jobs.append(message)
        return response.SerializeToString()

    async def _take(self, data: bytes) -> bytes:
        request = pb.TakeRequest.FromString(data)
        take = request.worker_id, request.number
        jobs: list[Job] = []
        if request.again and not self._idle_workers.knows(*take):
            jobs = await self._jobs.held_by_claim(request.worker_id, claim_id(request.number))
        if not jobs:
            jobs = await self._idle_workers.wait(*take, request.queues, request.slots, takes_early=request.takes_early)
        return pb.TakeResponse(jobs=[self._job(job) for job in jobs]).SerializeToString()

    async def _report(self, data: bytes) -> bytes:
        request = pb.ReportRequest.FromString(data)
        reports = [report_from_proto(report) for report in request.reports]
        results = await self._jobs.report(
            request.worker_id, reports, free_slots=request.free_slots, queues=frozenset(request.queues)
        )
        response = pb.ReportResponse()
        size = 0
        for result in results:
            answer = pb.ReportResult(
                status=report_status(result.verdict),
                next=[self._job(job) for job in result.next],
                goes_on=result.goes_on,
            )
            size += answer.ByteSize()
            if size > MAX_REPLY_BYTES and response.results:
                # Recorded already: the same report again is answered with the same jobs.
                answer = pb.ReportResult(status=pb.REPORT_STATUS_RETRY)
            response.results.append(answer)
        return response.SerializeToString()

    async def _heartbeat(self, data: bytes) -> bytes:
        request = pb.HeartbeatRequest.FromString(data)
        worker = WorkerLease(request.worker_id, request.host, request.draining, request.slots, tuple(request.queues))
        named = [(ref_from_proto(held.ref), held.epoch) for held in request.held]
        differences = await self._jobs.heartbeat(worker, named)
        return pb.HeartbeatResponse(
            revoked=[pb.HeldJob(ref=ref_to_proto(ref), epoch=epoch) for ref, epoch in differences.revoked],
            forgotten=[pb.HeldJob(ref=ref_to_proto(ref), epoch=epoch) for ref, epoch in differences.forgotten],
            executor_id=self._executor_id,
        ).SerializeToString()

    def _job(self, job: Job) -> pb.Job:
        seconds = job.timeout_seconds + sum(chained.timeout_seconds for chained in job.chain)
        latest = time.time() + seconds + _GRANT_GRACE_SECONDS
        expires_at = (latest // _GRANT_STEP_SECONDS + 1) * _GRANT_STEP_SECONDS
        grant = self._grant(job.project_id, job.ref.run_id, expires_at)
        return job_to_proto(job, grant=grant, executor_id=self._executor_id)
