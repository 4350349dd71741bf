"""What a worker goes on with by itself."""

from __future__ import annotations

import orjson
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import run_pb2
from headrace.executor.v1 import worker_pb2 as pb

from services.executor.worker.chains import Chain, held_by


def a_job(*chain: tuple[str, bytes]) -> pb.Job:
    return pb.Job(
        ref=pb.JobRef(run_id="r", node_key="a", item_path="each[1]"),
        epoch=7,
        attempt=2,
        grant="grant",
        claim_id="take 1",
        variables=value_pb2.Json(utf8=b"{}"),
        chain=[
            pb.ChainedJob(
                node_key=key, type="noop", variables=value_pb2.Json(utf8=variables), claim_id=f"take 1>{step}"
            )
            for step, (key, variables) in enumerate(chain, 1)
        ],
    )


def a_success(job: pb.Job, output: bytes = b"1", port: str = "") -> pb.Report:
    success = pb.Success(output=value_pb2.Json(utf8=output), port=port)
    return pb.Report(ref=job.ref, epoch=job.epoch, claim_id=job.claim_id, success=success)


def test_the_next_job_is_a_first_attempt_under_a_claim_of_its_own_with_what_the_one_before_it_gave() -> None:
    variables = b'{"nodes":{"a":{"status":"running","error":{"reason":"X"}},"z":{"status":"succeeded","output":9}}}'
    job = a_job(("b", variables))
    following = Chain(job).next_job(a_success(job, b'{"n":1}'))
    assert following is not None
    assert held_by(following) == ("r", "b", "each[1]", 1)
    assert (following.attempt, following.claim_id, following.grant) == (1, "take 1>1", "grant")
    assert following.early
    assert not following.chain
    assert orjson.loads(following.variables.utf8)["nodes"] == {
        "a": {"status": "succeeded", "error": {"reason": "X"}, "output": {"n": 1}},
        "z": {"status": "succeeded", "output": 9},
    }


def test_a_chain_goes_on_only_behind_a_success_by_its_port() -> None:
    job = a_job(("b", b"{}"))
    assert Chain(job).next_job(a_success(job, port="other")) is None
    failed = pb.Report(ref=job.ref, failure=pb.AttemptFailure(failure=run_pb2.Failure(reason="X")))
    assert Chain(job).next_job(failed) is None
    chain = Chain(job)
    following = chain.next_job(a_success(job))
    assert following is not None
    assert chain.next_job(a_success(following)) is None
