"""Which replica gets a call, and which is left alone."""

import asyncio
import contextlib

from services.llm.domain.routing import Breaker, Replica, Replicas


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fail(replica: Replica, times: int = 1) -> None:
    for _ in range(times):
        with replica.call():
            replica.breaker.failed()


def test_the_least_busy_replica_is_picked():
    replicas = Replicas(["a", "b", "c"])
    with contextlib.ExitStack() as stack:
        picked = []
        for _ in range(6):
            replica = replicas.pick()
            stack.enter_context(replica.call())
            picked.append(replica.url)
        assert sorted(picked) == ["a", "a", "b", "b", "c", "c"]
    assert [replica.outstanding for replica in replicas.all] == [0, 0, 0]


def test_idle_replicas_take_turns():
    replicas = Replicas(["a", "b"])
    assert {replicas.pick().url for _ in range(2)} == {"a", "b"}


def test_a_tried_replica_is_not_picked_again():
    replicas = Replicas(["a", "b"])
    assert replicas.pick(tried=[replicas.all[0]]).url == "b"
    assert replicas.pick(tried=replicas.all) is None


def test_five_failures_in_a_row_open_the_breaker_and_a_success_between_does_not_count():
    clock = Clock()
    replicas = Replicas(["a"], clock)
    (replica,) = replicas.all
    fail(replica, 4)
    replica.breaker.succeeded()
    fail(replica, 4)
    assert replicas.pick() is replica
    fail(replica)
    assert replicas.pick() is None
    assert replicas.opens_in == 1.0


def test_after_the_pause_one_call_may_try_and_its_success_closes():
    clock = Clock()
    replicas = Replicas(["a"], clock)
    (replica,) = replicas.all
    fail(replica, 5)
    clock.now += 1.0
    assert replicas.pick() is replica
    with replica.call():
        assert replicas.pick() is None
        replica.breaker.succeeded()
    assert replicas.pick() is replica


def test_each_failed_try_doubles_the_pause_up_to_half_a_minute():
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.started()
        breaker.failed()
    pauses = []
    for _ in range(7):
        pauses.append(breaker.opens_in)
        clock.now += breaker.opens_in
        breaker.started()
        breaker.failed()
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_failures_of_calls_begun_before_it_opened_do_not_lengthen_the_pause():
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(16):
        breaker.started()
    for _ in range(16):
        breaker.failed()
    assert breaker.opens_in == 1.0


def test_a_cancelled_try_leaves_the_place_to_the_next():
    clock = Clock()
    replicas = Replicas(["a"], clock)
    (replica,) = replicas.all
    fail(replica, 5)
    clock.now += 1.0
    with contextlib.suppress(asyncio.CancelledError), replica.call():
        raise asyncio.CancelledError
    assert replicas.pick() is replica
