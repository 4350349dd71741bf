"""Slows down who guesses at secrets that are in no account's keeping.

Each network may be wrong a number of times at once and earns one more per interval, at each gateway by itself. What is
guessed at is out of reach anyhow; this keeps the attempt from being a load.
"""

import math
import time
from collections import OrderedDict

from services.kit.errors import ResourceExhaustedError
from services.kit.networks import network_of

_BURST = 20
_INTERVAL = 2.0
_MOST_NETWORKS = 10_000
"""Beyond, the network that was wrong longest ago is forgotten."""


class Guesses:
    """Wrong guesses by network."""

    def __init__(self) -> None:
        self._busy_until: OrderedDict[str, float] = OrderedDict()

    def admit(self, address: str) -> None:
        """Raise ResourceExhaustedError (TOO_MANY_ATTEMPTS) when an address has been wrong too often."""
        busy_until = self._busy_until.get(network_of(address), 0.0)
        wait = busy_until - time.monotonic() - _BURST * _INTERVAL
        if wait > 0:
            raise ResourceExhaustedError(
                f"Too many attempts. Try again in {math.ceil(wait)} s.", reason="TOO_MANY_ATTEMPTS", retry_after=wait
            )

    def was_wrong(self, address: str) -> None:
        """Count a wrong guess."""
        network = network_of(address)
        self._busy_until[network] = max(self._busy_until.pop(network, 0.0), time.monotonic()) + _INTERVAL
        if len(self._busy_until) > _MOST_NETWORKS:
            self._busy_until.popitem(last=False)
