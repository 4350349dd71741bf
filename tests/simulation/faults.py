"""Which faults a seed has, how often, and until when."""

from __future__ import annotations

from random import Random

from tests.simulation.trace import Trace

# Chances of a fault wherever it could strike; each seed draws its own mixture, many kinds being left out altogether, so
# that every few seeds one kind comes without the others that would hide what it does.
_CHANCES = {
    "crash": (0.0002, 0.001, 0.003),
    "pause": (0.0002, 0.001, 0.002),
    "drain": (0.0003, 0.001),
    "message_lost": (0.01, 0.05, 0.2),
    "message_twice": (0.01, 0.1, 0.3),
    "message_late": (0.01, 0.05, 0.2),
    "wakeup_lost": (0.05, 0.3, 0.8),
    "wakeups_reordered": (0.2, 0.8),
    "statement_refused": (0.005, 0.03, 0.1),
    "answer_lost": (0.01, 0.05, 0.2),
    "statement_slow": (0.01, 0.05),
    "workflows_unavailable": (0.1, 0.5),
}
# Faults that come at a time and last for a while: mean seconds between them.
_PERIODS = {"nats_restart": (2.0, 5.0), "nats_wipe": (1.0, 4.0), "nats_cut": (1.0, 4.0), "postgres_restart": (2.0, 5.0)}


class Faults:
    """The mixture of one seed. Nothing strikes once `active` is off."""

    def __init__(self, rng: Random, trace: Trace) -> None:
        self.active = True
        self.until = rng.uniform(1.0, 8.0)
        self.chances = {kind: rng.choice(some) for kind, some in _CHANCES.items() if rng.random() < 0.5}
        self.periods = {kind: rng.choice(some) for kind, some in _PERIODS.items() if rng.random() < 0.25}
        self._rng = rng
        self._trace = trace

    def strikes(self, kind: str, line: str = "") -> bool:
        """Draw whether a fault happens here and now; it is then written down."""
        chance = self.chances.get(kind)
        if chance is None or not self.active or self._rng.random() >= chance:
            return False
        self._trace.fault(kind, line)
        return True
