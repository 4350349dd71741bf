"""Turns between projects, and the order inside one: counted, on the flows alone."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.domain.flows import Ready, RoundRobin
from services.executor.domain.model import NodeRef
from services.executor.domain.rates import Bucket


def ready(project: str, place: int, priority: int = 0) -> Ready:
    return Ready(NodeRef(UUID(int=place), "a"), 0, project, "noop", "q", priority, float(place))


def fill(flows: RoundRobin, project: str, count: int, weight: int = 1) -> None:
    flow = flows.flow(project)
    flow.weight = weight
    for place in range(count):
        flows.add(flow, ready(project, place), "")


def take(flows: RoundRobin) -> Ready | None:
    flow = flows.turn()
    if flow is None:
        return None
    found = flow.take(lambda _: True)
    assert found is not None
    flows.served(flow)
    return found


def drain(flows: RoundRobin, count: int) -> list[Ready]:
    return [found for _ in range(count) if (found := take(flows)) is not None]


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 5))
def test_in_whole_rounds_each_project_has_as_many_turns_as_its_weight(weights: list[int], rounds: int) -> None:
    flows = RoundRobin()
    for name, weight in enumerate(weights):
        fill(flows, str(name), weight * rounds + 1, weight)
    served = Counter(found.project_id for found in drain(flows, sum(weights) * rounds))
    assert served == {str(name): weight * rounds for name, weight in enumerate(weights)}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 3)), max_size=60))
def test_nothing_is_lost_and_inside_a_project_the_urgent_and_the_old_go_first(wanted: list[tuple[str, int]]) -> None:
    flows = RoundRobin()
    for place, (project, priority) in enumerate(wanted):
        flows.add(flows.flow(project), ready(project, place, priority), "")
    served = drain(flows, len(wanted) + 1)
    assert len(served) == len(wanted)
    assert (flows.size, list(flows)) == (0, [])
    for project in "abc":
        own = [found for found in served if found.project_id == project]
        assert own == sorted(own, key=lambda found: (-found.priority, found.since))


def test_who_comes_late_waits_for_one_turn_of_each_and_not_for_their_backlog() -> None:
    flows = RoundRobin()
    fill(flows, "many", 1000, weight=3)
    drain(flows, 100)
    fill(flows, "few", 1)
    assert "few" in [found.project_id for found in drain(flows, 4)]


def test_a_blocked_flow_takes_no_turn_until_it_is_let_go() -> None:
    flows = RoundRobin()
    fill(flows, "a", 5)
    fill(flows, "b", 5)
    flows.block(flows.flow("a"))
    assert {found.project_id for found in drain(flows, 9)} == {"b"}
    flows.unblock(flows.flow("a"))
    assert len(drain(flows, 9)) == 5


def test_a_line_that_may_not_go_on_does_not_hold_up_the_others() -> None:
    flows = RoundRobin()
    flow = flows.flow("a")
    flows.add(flow, ready("a", 1), "slow")
    flows.add(flow, ready("a", 2), "")
    found = flow.take(lambda line: line != "slow")
    assert found is not None
    assert found.since == 2.0
    assert flow.take(lambda line: line != "slow") is None


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    bucket = Bucket(rate=2.0, burst=3, now=0.0)
    given_at: list[float] = []
    now = 0.0
    while len(given_at) < 7:
        now += bucket.wait(now)
        bucket.take()
        given_at.append(now)
    assert given_at == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0])
