"""Negative controls: each way of breaking the promises is seen by the check."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.chaos.histories import History
from tests.chaos.load import INDEXED

RUN = "0190"


def a_good_history() -> History:
    """One run of two nodes, one of them asked for twice."""
    events = ["run.started", "node.succeeded", "node.succeeded", "run.succeeded"]
    keys = [None, "a", "b", None]
    return History(
        accepted={RUN: ["a", "b"]},
        attempts=[
            {"key": "k1", "attempt": 1, "effect": True, "body": {"run": RUN, "node": "a"}},
            {"key": "k1", "attempt": 2, "effect": False, "body": {"run": RUN, "node": "a"}},
            {"key": "k2", "attempt": 1, "effect": True, "body": {"run": RUN, "node": "b"}},
        ],
        runs={RUN: (4, 4)},
        events={
            RUN: [
                {"sequence": number, "type": type, "node_key": key}
                for number, (type, key) in enumerate(zip(events, keys, strict=True), start=1)
            ]
        },
    )


def test_a_good_history_has_no_violation() -> None:
    assert a_good_history().violations() == []


def _lose_the_run(history: History) -> None:
    history.runs.clear()


def _leave_the_run_running(history: History) -> None:
    history.runs[RUN] = (2, 4)


def _lose_an_effect(history: History) -> None:
    del history.attempts[2]


def _key_with_the_attempt_in_it(history: History) -> None:
    history.attempts[1] |= {"key": "k1-2", "attempt": 1, "effect": True}


def _effect_of_an_unknown_node(history: History) -> None:
    history.attempts[2]["body"]["node"] = "c"


def _run_started_twice(history: History) -> None:
    history.runs["0191"] = (4, 0)


def _node_left_open(history: History) -> None:
    history.open_nodes.append((RUN, "a", 3))


def _result_recorded_twice(history: History) -> None:
    history.events[RUN][2]["node_key"] = "a"


def _event_lost(history: History) -> None:
    del history.events[RUN][1]


def _record_lost(history: History) -> None:
    history.accepted["0192"] = [INDEXED]


def _record_of_no_run(history: History) -> None:
    history.records.add("0193")


def _large_value_cut_short(history: History) -> None:
    history.attempts[0]["body"]["size"] = "16384"


def _result_of_a_zombie(history: History) -> None:
    history.events[RUN][2] |= {"type": "node.started", "node_key": "a"}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_lose_the_run, "lost"),
        (_leave_the_run_running, "lost"),
        (_lose_an_effect, "missing"),
        (_key_with_the_attempt_in_it, "doubled"),
        (_effect_of_an_unknown_node, "extra"),
        (_run_started_twice, "extra"),
        (_node_left_open, "open"),
        (_result_recorded_twice, "events"),
        (_event_lost, "events"),
        (_record_lost, "missing: no record"),
        (_record_of_no_run, "extra: record"),
        (_large_value_cut_short, "size"),
        (_result_of_a_zombie, "zombie"),
    ],
)
def test_damage_is_seen(damage: Callable[[History], None], expected: str) -> None:
    history = copy.deepcopy(a_good_history())
    damage(history)
    assert any(violation.startswith(expected) for violation in history.violations())
