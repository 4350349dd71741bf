"""The worker's loop: wake-ups to claims, claims to running jobs, results to reports, successors to jobs again."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import structlog
from google.protobuf.message import DecodeError
from headrace.executor.v1 import worker_pb2 as pb
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from prometheus_client import Counter, Gauge

from services.executor.transport import streams
from services.executor.worker.chains import Chain, Held, held_by
from services.executor.worker.executor_client import ExecutorClient
from services.executor.worker.reports import Reports
from services.executor.worker.runner import Runner, failed_report
from services.executor.worker.takes import Takes
from services.executor.worker.wakeups import Wakeups
from services.kit.ids import new_id
from services.kit.lifecycle import end

log = structlog.get_logger(__name__)

MAX_BATCH = 64
_REQUESTS_UNDER_WAY = 4
"""Of claims, and as many of reports."""
_PAUSE_AFTER_FAILURE = 0.2
_COMMIT_SECONDS = 5.0
"""So long an early job may run whose claim is not stored."""
_TURN_SECONDS = 0.005
"""So long a chain may keep the event loop to itself."""
LAST_REPORTS_SECONDS = 4.0
"""How long a worker that stops tries to hand in what it has; the rest is found by its lease."""
_RUNNING = Gauge("headrace_worker_jobs_running", "Jobs under way.")
_SLOTS = Gauge("headrace_worker_slots", "Jobs that may be under way at a time.")
_FINISHED = Counter("headrace_worker_jobs_total", "Jobs run, by how they ended.", ["type", "outcome"])

# Looking a label up costs as much as running a small job.
_finished = lru_cache(maxsize=1024)(_FINISHED.labels)


@dataclass(slots=True)
class _Running:
    job: pb.Job
    task: asyncio.Task[None]
    chain: Chain | None
    since: float


class Worker:
    """One worker process."""

    def __init__(
        self,
        client: Client,
        runner: Runner,
        *,
        queues: Sequence[str],
        slots: int,
        heartbeat_seconds: float,
        host: str,
        max_jobs: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_jobs`: after so many, `enough` is set; 0 = never."""
        self.worker_id = str(new_id())
        self._client = client
        self._executor = ExecutorClient(client)
        self._runner = runner
        self._queues = list(queues)
        self._slots = slots
        self._heartbeat_seconds = heartbeat_seconds
        self._host = host
        self._clock = clock
        self._running: dict[Held, _Running] = {}
        self._forgotten: set[Held] = set()
        """Handed back as unknown: not to be started by an answer that comes late after all."""
        self._woken: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._slot_free = asyncio.Event()
        self._slot_free.set()
        self._freed_at = self._clock()
        self._claim_slots = asyncio.Semaphore(_REQUESTS_UNDER_WAY)
        self._report_slots = asyncio.Semaphore(_REQUESTS_UNDER_WAY)
        who = pb.ReportRequest(worker_id=self.worker_id, queues=queues)
        self._reports = Reports(self._executor, who, self, lambda hand_in: self._request(hand_in, self._report_slots))
        self._requesting: set[asyncio.Task[None]] = set()
        self._claiming = 0
        """Wake-ups whose claims are under way."""
        self._asked: set[Held] = set()
        """What they ask for, at the epochs of the wake-ups."""
        self._progress = asyncio.Event()
        _RUNNING.set_function(lambda: len(self._running))
        _SLOTS.set(slots)
        self._wakeups = [Wakeups(client, queue, self._receive, self._slots_to_pull) for queue in queues]
        self._pulling: list[asyncio.Task[None]] = []
        self._takes = Takes(self._executor, self.worker_id, queues, self.take_job, self._slots_to_take)
        self._taking: asyncio.Task[None] | None = None
        self._serving: list[asyncio.Task[None]] = []
        self._draining = False
        self._finished, self._max_jobs = 0, max_jobs
        self.enough = asyncio.Event()
        """As many jobs are done as one process shall do."""
        self.heard = asyncio.Event()
        """An executor has answered a heartbeat."""

    async def start(self) -> "list[asyncio.Task[None]]":
        """Make known to an executor that this worker lives, then take work; the tasks that do, until `drain`."""
        self._serving = [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._reports.run()),
            asyncio.create_task(self._claim_woken()),
        ]
        await self.heard.wait()
        self._pulling = [asyncio.create_task(wakeups.run()) for wakeups in self._wakeups]
        self._taking = asyncio.create_task(self._takes.run())
        self._taking.add_done_callback(lambda _: self._progress.set())
        return [*self._serving, *self._pulling, self._taking]

    def reconnected(self) -> None:
        """The connection to NATS is another one: what was asked for on the old one will not come."""
        for wakeups in self._wakeups:
            wakeups.ask_again()

    async def idle(self, seconds: float) -> None:
        """Wait until there has been nothing to do for so long."""
        while True:
            is_busy = self._running or self._woken or self._claiming or len(self._reports) or self._requesting
            quiet = 0.0 if is_busy else self._clock() - self._freed_at
            if quiet >= seconds:
                return
            await asyncio.sleep(seconds - quiet)

    async def drain(self, seconds: float | None, *, hand_back: bool = True) -> None:
        """Take no more work, let what runs go on for `seconds`, hand back the rest, and report everything.

        None lets it end in its own time, for which it has a limit.
        What is not handed back is found by its lease, and counts as a claim without a result.
        """
        self._draining = True
        self._slot_free.set()
        # Before anything is handed back: it would be given to this worker again.
        await self._takes.end()
        await end(*self._pulling)
        while self._woken:
            await self._acknowledge(self._woken.popleft(), b"-NAK")
        tasks = [running.task for running in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for running in list(self._running.values()):
            self._stop(running)
            if hand_back:
                self._hand_back(running.job, running.chain, started=True)
        try:
            async with asyncio.timeout(LAST_REPORTS_SECONDS):
                while len(self._reports) or self._requesting or (self._taking and not self._taking.done()):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            log.warning("reports_not_handed_in", reports=len(self._reports), requests=len(self._requesting))
        await end(*self._serving, *self._requesting, *([self._taking] if self._taking else []))

    @property
    def _free(self) -> int:
        return self._slots - len(self._running) - len(self._woken) - self._claiming

    async def _free_slots(self, at_least: int = 1) -> int:
        """Wait for free slots; their number, or 0 when the worker drains."""
        while self._free < at_least:
            if self._draining:
                return 0
            self._slot_free.clear()
            await self._slot_free.wait()
        return self._free

    async def _slots_to_pull(self) -> int:
        free = await self._free_slots()
        return free - free // 2

    async def _slots_to_take(self, beside: int) -> int:
        """Half of the free slots; the other half is for what others are woken for, too. See Takes."""
        return (self._free - beside if beside else await self._free_slots(2)) // 2

    def _receive(self, message: Msg) -> None:
        self._woken.append(message)
        self._wake.set()

    async def _claim_woken(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._woken:
                batch = [self._woken.popleft() for _ in range(min(len(self._woken), MAX_BATCH))]
                self._claiming += len(batch)
                await self._request(partial(self._claim_batch, batch), self._claim_slots)

    async def _request(self, request: Callable[[], Coroutine[None, None, None]], slots: asyncio.Semaphore) -> None:
        """Run a request in the background, a few at a time."""
        await slots.acquire()
        task = asyncio.create_task(request())
        self._requesting.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._requesting.discard(finished)
            self._progress.set()
            slots.release()
            if not finished.cancelled() and (error := finished.exception()):
                log.error("request_failed", exc_info=error)

        task.add_done_callback(done)

    async def _claim_batch(self, messages: list[Msg]) -> None:
        by_executor: dict[str, list[tuple[Msg, pb.JobRef]]] = {}
        asked: set[Held] = set()
        try:
            for message in messages:
                try:
                    wakeup = pb.Wakeup.FromString(message.data)
                except DecodeError:
                    log.warning("wakeup_malformed", subject=message.subject)
                    await self._acknowledge(message, b"+TERM")
                    continue
                held = (*_name(wakeup.job), wakeup.job.epoch)
                if held in self._asked:
                    continue  # the same once more, because its claim takes long: that one acknowledges it
                self._asked.add(held)
                asked.add(held)
                by_executor.setdefault(wakeup.executor_id, []).append((message, wakeup.job))
            for executor_id, woken in by_executor.items():
                await self._claim(executor_id, woken)
        finally:
            self._asked -= asked
            self._claiming -= len(messages)
            self._freed()

    async def _claim(self, executor_id: str, woken: list[tuple[Msg, pb.JobRef]]) -> None:
        """Claim until every wake-up is answered.

        A claim that seems to have failed may have happened. Only its repetition, under the same id, brings its jobs:
        nobody else would run them as long as this worker lives.
        """
        request = pb.ClaimRequest(worker_id=self.worker_id, jobs=[ref for _, ref in woken], claim_id=str(new_id()))
        tries = 0
        while woken:
            response = await self._executor.claim(request, executor_id, tries=tries)
            again = {_name(ref) for ref in response.retry} if response else {_name(ref) for _, ref in woken}
            for job in response.jobs if response else ():
                self.take_job(job)
            for message, ref in woken:
                if _name(ref) not in again:
                    await self._acknowledge(message, b"+ACK")
            woken = [(message, ref) for message, ref in woken if _name(ref) in again]
            if woken:
                if self._draining and tries > 1:
                    return
                del request.jobs[:]
                request.jobs.extend(ref for _, ref in woken)
                tries, executor_id = tries + 1, ""
                await asyncio.sleep(min(_PAUSE_AFTER_FAILURE * tries, 1.0))

    async def _acknowledge(self, message: Msg, verdict: bytes) -> None:
        try:
            await self._client.publish(message.reply, verdict)
        except NatsError as error:
            # It comes again; the claim is in PostgreSQL, so nothing is done twice.
            log.info("acknowledge_failed", error=repr(error))

    def take_job(self, job: pb.Job) -> None:
        """Run a job. Of two claims at one epoch one is committed at most: one that is goes before an early one."""
        held = held_by(job)
        running = self._running.get(held)
        if held in self._forgotten or job.claim_id in (self._reports.claim_of(held), running and running.job.claim_id):
            return
        if running is not None:
            if job.early and not running.job.early:
                return
            self._stop(running)
        if self._draining:
            self._hand_back(job)
            return
        chain = Chain(job) if job.chain else None
        task = asyncio.create_task(self._run(held, job, chain))
        self._running[held] = _Running(job, task, chain, self._clock())

    async def _run(self, held: Held, job: pb.Job, chain: Chain | None) -> None:
        """Run a job, and then the chain behind it."""
        begun = self._clock()
        while True:
            report = await self._attempt(job)
            running = self._running.get(held)
            if running is None or running.job is not job:
                return
            del self._running[held]
            following = None
            if chain is not None and not self._draining and len(self._running) < self._slots - 1:
                following = chain.next_job(report)
            if following is None:
                self._freed()
                self._reports.add(report, job.executor_id, chain)
                return
            report.began = following.ref.node_key
            self._reports.add(report, job.executor_id, chain)
            held, job = held_by(following), following
            now = self._clock()
            self._running[held] = _Running(job, running.task, chain, now)
            if now - begun > _TURN_SECONDS:
                # Handlers that never wait must not keep others from their turn.
                await asyncio.sleep(0)
                begun = self._clock()

    async def _attempt(self, job: pb.Job) -> pb.Report:
        tokens = _Tokens(self._client, job)
        try:
            report = await self._runner.run(job, tokens.emit)
        except Exception as error:  # noqa: BLE001 - an error in a handler's error must not leave the job behind
            report = failed_report(job, error)
        _finished(job.type, report.WhichOneof("outcome")).inc()
        self._finished += 1
        if self._finished == self._max_jobs:
            self.enough.set()
        return report

    def settle(self, chain: Chain, held: Held, *, goes_on: bool) -> None:
        """See Reporter."""
        running = self._running.get(held)
        if running is not None and running.chain is chain:
            if goes_on:
                running.job.early = False
            else:
                self._stop(running)
        elif goes_on and running is None and self._reports.claim_of(held) is None:
            run_id, node_key, path, epoch = held
            log.info("chain_was_left", run_id=run_id, node_key=node_key)
            self._hand_back(pb.Job(ref=pb.JobRef(run_id=run_id, node_key=node_key, item_path=path), epoch=epoch))

    def free_slots(self, reports: int) -> int:
        """See Reporter."""
        return 0 if self._draining else max(1, (self._slots - len(self._running)) // reports)

    def _stop(self, running: _Running) -> None:
        """Forget a job; its handler is cancelled and its result dropped."""
        self._running.pop(held_by(running.job), None)
        running.task.cancel()
        self._freed()

    def _freed(self) -> None:
        self._freed_at = self._clock()
        self._slot_free.set()

    def _hand_back(self, job: pb.Job, chain: Chain | None = None, *, started: bool = False) -> None:
        report = pb.Report(ref=job.ref, epoch=job.epoch, release=pb.Release(started=started), claim_id=job.claim_id)
        self._reports.add(report, job.executor_id, chain)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            named = dict(self._running)
            held = [pb.HeldJob(ref=running.job.ref, epoch=running.job.epoch) for running in named.values()]
            request = pb.HeartbeatRequest(
                worker_id=self.worker_id,
                host=self._host,
                held=held,
                draining=self._draining,
                slots=self._slots,
                queues=self._queues,
            )
            response = await self._executor.heartbeat(request)
            if response is not None:
                self.heard.set()
                self._takes.executor_id = response.executor_id
                self._compare(named, response)
            # An answer that did not come has taken longer than the pause: the lease cannot wait for both.
            await asyncio.sleep(max(0.05, started + self._heartbeat_seconds - loop.time()))

    def _compare(self, named: dict[Held, _Running], response: pb.HeartbeatResponse) -> None:
        """Stop what is not this worker's any more, and hand back what is and it does not know of."""
        now = self._clock()
        for revoked in response.revoked:
            running = named.pop(held_by(revoked), None)
            if running is None or self._running.get(held_by(revoked)) is not running:
                continue
            if not running.job.early or now - running.since > _COMMIT_SECONDS:
                log.info("job_revoked", run_id=revoked.ref.run_id, node_key=revoked.ref.node_key)
                self._stop(running)
        for running in named.values():
            running.job.early = False
        asked = {held[:3] for held in self._asked}
        for forgotten in response.forgotten:
            held = held_by(forgotten)
            is_known = held in self._running or self._reports.claim_of(held) is not None or held in self._forgotten
            if not is_known and held[:3] not in asked:
                log.warning("job_forgotten", run_id=forgotten.ref.run_id, node_key=forgotten.ref.node_key)
                self._forgotten.add(held)
                self._hand_back(pb.Job(ref=forgotten.ref, epoch=forgotten.epoch))


class _Tokens:
    """Passes pieces of text on to whoever follows the run. Publishing is buffered by the connection."""

    def __init__(self, client: Client, job: pb.Job) -> None:
        self._client = client
        self._job = job
        self._index = 0
        self._publishing: set[asyncio.Task[None]] = set()

    def emit(self, text: str) -> None:
        """See TokenSink."""
        token = pb.NodeToken(
            node_key=self._job.ref.node_key,
            item_path=self._job.ref.item_path,
            attempt=self._job.attempt,
            text=text,
            index=self._index,
        )
        self._index += 1
        task = asyncio.create_task(self._publish(token.SerializeToString()))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish(self, data: bytes) -> None:
        try:
            await self._client.publish(streams.run_subject(self._job.ref.run_id, streams.TOKEN), data)
        except NatsError as error:
            log.info("token_lost", error=repr(error))


def _name(ref: pb.JobRef) -> tuple[str, str, str]:
    return ref.run_id, ref.node_key, ref.item_path
