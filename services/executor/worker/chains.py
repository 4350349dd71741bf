"""Chains: what a worker goes on with by itself."""

from collections import deque

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
        self.is_void = False
        """An executor has not claimed what the worker went on with."""

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
