"""`make simulate`: many seeds, or one again. ARGS="--seeds N --first S", "--seconds T"."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.world import Outcome, simulate


def main() -> int:
    """Run seeds and print what was found; the status is 1 if anything was."""
    parser = argparse.ArgumentParser(description="Simulate the execution code under faults drawn from seeds.")
    parser.add_argument("--seeds", type=int, default=20_000, help="how many (20000)")
    parser.add_argument("--first", type=int, default=0, help="the first (0)")
    parser.add_argument("--seconds", type=float, help="stop after so long, whatever --seeds says")
    options = parser.parse_args()
    started = time.process_time()
    deadline = time.monotonic() + options.seconds if options.seconds else float("inf")
    faults: Counter[str] = Counter()
    done = steps = runs = failed = 0
    for seed in range(options.first, options.first + options.seeds):
        if time.monotonic() > deadline:
            break
        outcome = simulate(seed)
        done, steps, runs = done + 1, steps + outcome.steps, runs + outcome.runs
        faults += outcome.faults
        if outcome.violation is not None:
            failed += 1
            print(explain(outcome), flush=True)
    took = time.process_time() - started
    print(
        f"{done} seeds from {options.first}, {failed} failed; {took:.1f} CPU s, {done / max(took, 0.001):.1f} seeds/s"
    )
    print(f"per seed: {steps / max(done, 1):.0f} steps, {runs / max(done, 1):.2f} runs, ", end="")
    print(f"{sum(faults.values()) / max(done, 1):.1f} faults")
    print(", ".join(f"{kind} {count}" for kind, count in faults.most_common()))
    return 1 if failed else 0


def explain(outcome: Outcome) -> str:
    """A failed seed: what broke, when, and what came before it."""
    lines = "\n".join(outcome.last)
    return (
        f"seed {outcome.seed} broke at step {outcome.steps}, {outcome.seconds:.3f} s: {outcome.violation}\n{lines}\n"
        f'again: make simulate ARGS="--first {outcome.seed} --seeds 1"   (trace {outcome.digest})\n'
    )


if __name__ == "__main__":
    sys.exit(main())
