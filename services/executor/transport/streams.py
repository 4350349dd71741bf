"""What exists on NATS: all subjects, the stream of wake-ups and its consumers. Declared by executors, bound by workers.

headrace.jobs.<queue>.<executor id>          wake-ups of an executor, on the stream HEADRACE_JOBS
headrace.executor.<verb>                     request-reply to any executor: claim, take, report, heartbeat
headrace.executor.<executor id>.<…>          request-reply to the executor that holds a run in memory
headrace.runs.<run id>.<moved|token>         notices for who follows a run
headrace.runs.<run id>.followed              an executor's word to the others that it follows a run
"""

from datetime import datetime
from uuid import UUID

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

STREAM = "HEADRACE_JOBS"
CLAIM, TAKE, REPORT, HEARTBEAT = "claim", "take", "report", "heartbeat"
MOVED, TOKEN, FOLLOWED = "moved", "token", "followed"
ACK_WAIT_SECONDS = 1.2
"""A wake-up that a worker has and does not claim for so long goes to another: shorter than a lease, because the node
behind it is in nobody's hands. A claim that takes longer is repeated by the other in vain."""
EXECUTORS = "executors"
"""Queue group: one of the executors answers."""

# In memory: a wake-up may be lost at any time, so a disk would only make it slower.
_STREAM_CONFIG = StreamConfig(
    name=STREAM,
    description="Wake-ups for workers; the truth is in PostgreSQL.",
    subjects=["headrace.jobs.*.*"],
    retention=RetentionPolicy.WORK_QUEUE,
    storage=StorageType.MEMORY,
    discard=DiscardPolicy.OLD,
    max_bytes=256 * 1024 * 1024,
    duplicate_window=1.0,
)


def jobs_subject(queue: str, executor_id: str = "*") -> str:
    """Where an executor wakes workers of a queue; `*` for all executors.

    Each has a subject of its own, so that it can be told how many of its wake-ups are there.
    """
    return f"headrace.jobs.{queue}.{executor_id}"


def consumer_name(queue: str) -> str:
    """The durable consumer that the workers of a queue share."""
    return f"workers-{queue}"


def executor_subject(verb: str, executor_id: str = "") -> str:
    """Where executors are asked: one of them, or any."""
    return f"headrace.executor.{executor_id}.{verb}" if executor_id else f"headrace.executor.{verb}"


def run_subject(run_id: UUID | str, kind: str) -> str:
    """Where a run's notices go; `*` for all kinds."""
    return f"headrace.runs.{run_id}.{kind}"


async def declare_stream(jetstream: JetStreamContext) -> tuple[bool, datetime | None]:
    """Make the stream if it is missing: whether it was, and wake-ups with it; and since when it is there.

    What exists is left as it is, so that executors of different versions do not rewrite each other's declarations.
    """
    try:
        return False, (await jetstream.stream_info(STREAM)).created
    except NotFoundError:
        return True, (await jetstream.add_stream(_STREAM_CONFIG)).created


async def declare_consumers(jetstream: JetStreamContext, queues: list[str]) -> None:
    """Make the consumers that are missing; the stream keeps its messages meanwhile."""
    for queue in queues:
        try:
            await jetstream.consumer_info(STREAM, consumer_name(queue))
        except NotFoundError:
            await jetstream.add_consumer(
                STREAM,
                ConsumerConfig(
                    durable_name=consumer_name(queue),
                    filter_subject=jobs_subject(queue),
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=ACK_WAIT_SECONDS,
                    max_deliver=-1,
                    max_ack_pending=20_000,
                ),
            )
