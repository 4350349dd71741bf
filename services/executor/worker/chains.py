"""Chains: what a worker goes on with by itself, and in which order it hands in what comes of it.

A job's report makes the claim of the next one in its chain. So the next one's report never comes to an executor before:
it goes in the same request, behind the other, or after that one's answer. What an executor does not claim comes to
nothing, and so does what the worker has gone on with from there.
"""

from collections import deque
from dataclasses import dataclass, field

import orjson
from headrace.executor.v1 import worker_pb2 as pb


class Chain:
    """A job and what follows it."""

    def __init__(self, first: pb.Job) -> None:
        self._left = deque(first.chain)
        self._common = common = pb.Job()
        """What all jobs of it share."""
        common.CopyFrom(first)
        for own in ("chain", "config", "variables", "queued"):
            common.ClearField(own)
        common.epoch = common.attempt = 1
        common.early = True
        self._outputs: dict[str, bytes] = {}
        self.is_under_way = False
        """A request with some of its reports is."""
        self.is_void = False
        """An executor has not claimed what the worker went on with."""
        self.waiting: list[Outgoing] = []
        """Its reports that come after the answer to those under way."""

    def next_job(self, report: pb.Report) -> pb.Job | None:
        """The job behind the one that has ended so; None if there is none or its outcome leads elsewhere."""
        if not self._left or self.is_void or report.WhichOneof("outcome") != "success" or report.success.port:
            return None
        self._outputs[report.ref.node_key] = report.success.output.utf8
        chained, job = self._left.popleft(), pb.Job()
        job.CopyFrom(self._common)
        job.ref.node_key = chained.node_key
        job.type = chained.type
        job.config.utf8 = chained.config.utf8
        job.variables.utf8 = self._filled(chained.variables.utf8)
        job.timeout.CopyFrom(chained.timeout)
        job.idempotency_key = chained.idempotency_key
        job.claim_id = chained.claim_id
        return job

    def _filled(self, variables: bytes) -> bytes:
        """With what the jobs before have come to."""
        found = orjson.loads(variables)
        nodes = found.get("nodes", {})
        known = [key for key in nodes if key in self._outputs]
        for key in known:
            nodes[key] |= {"status": "succeeded", "output": orjson.Fragment(self._outputs[key])}
        return orjson.dumps(found) if known else variables


Held = tuple[str, str, str, int]
"""A claim: run, node key, item path, epoch."""


def held_by(claimed: pb.Job | pb.Report | pb.HeldJob) -> Held:
    """What a message is about."""
    ref = claimed.ref
    return ref.run_id, ref.node_key, ref.item_path, claimed.epoch


@dataclass(slots=True)
class Outgoing:
    """A report on its way."""

    held: Held
    report: pb.Report
    executor_id: str
    """Whom to tell; empty = any."""
    chain: Chain | None = None


@dataclass(slots=True)
class Batch:
    """Reports that are handed in together, by executor."""

    by_executor: dict[str, list[Outgoing]] = field(default_factory=dict)
    count: int = 0
    size: int = 0
    _executors: dict[Chain, str] = field(default_factory=dict)

    def add(self, outgoing: Outgoing) -> None:
        """Take a report in, or let it wait for the answer to those before it in its chain."""
        chain, executor_id = outgoing.chain, outgoing.executor_id
        if chain is not None:
            if chain.is_under_way and chain not in self._executors:
                chain.waiting.append(outgoing)
                return
            chain.is_under_way = True
            executor_id = self._executors.setdefault(chain, executor_id)
        self.by_executor.setdefault(executor_id, []).append(outgoing)
        self.count += 1
        self.size += outgoing.report.ByteSize()
