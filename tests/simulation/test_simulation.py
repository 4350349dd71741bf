"""The promises of the execution code under faults, a slice of the seeds; `make simulate` runs as many as you like."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import count

import pytest

from tests.simulation.__main__ import explain
from tests.simulation.mutants import MUTANTS, Mutant, catch
from tests.simulation.world import simulate

_SECONDS = 20.0
"""For the slice."""
_LEAST = 100
"""Seeds below which the slice would say nothing: something has become very slow."""


@pytest.mark.timeout(400)
def test_promises_hold_under_faults() -> None:
    deadline = time.monotonic() + _SECONDS
    done = 0
    faults = 0
    for seed in count():
        if time.monotonic() > deadline:
            break
        outcome = simulate(seed)
        assert outcome.violation is None, explain(outcome)
        done, faults = done + 1, faults + sum(outcome.faults.values())
    assert done >= _LEAST
    assert faults > done, "the faults do not strike"


def test_a_seed_replays_exactly_also_in_another_process() -> None:
    seeds = range(12)
    here = [simulate(seed).digest for seed in seeds]
    assert [simulate(seed).digest for seed in seeds] == here
    assert len(set(here)) == len(here)
    program = f"from tests.simulation.world import simulate\nfor seed in {seeds!r}: print(simulate(seed).digest)"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.split() == here


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name.replace(" ", "-") for mutant in MUTANTS])
def test_a_break_is_caught(mutant: Mutant) -> None:
    outcome = catch(mutant)
    assert outcome is not None, f"{mutant.name} survives"
