"""Which rates a login counts against.

Guessing is slowed, nobody is locked out: each rate lets some tries through at once and earns one more per interval.
Unknown accounts have the same rates as known ones, so that a refusal tells nothing. The strictest rate is of account
and address together, so that a stranger who guesses at an account slows mostly himself. Keys are keyed hashes: the
table holds no addresses and no e-mails.
"""

import hmac
import math
from uuid import UUID

from services.auth.domain.model import Throttle
from services.kit.errors import ResourceExhaustedError
from services.kit.networks import network_of


class Throttles:
    """The rates, as keys under a secret."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of_login(self, email: str, client_address: str) -> list[Throttle]:
        """What a login with this e-mail (normalised, known or not) from this address ("" = unknown) counts against."""
        network = network_of(client_address)
        throttles = [
            Throttle(self._name("pair", email, network), interval_seconds=10, burst=10, forgiven_on_success=True),
            Throttle(self._name("account", email), interval_seconds=5, burst=50),
        ]
        if network:
            throttles.append(Throttle(self._name("address", network), interval_seconds=1, burst=100))
        return throttles

    def of_password_check(self, user_id: UUID) -> list[Throttle]:
        """What proving the present password counts against, for a user who is logged in."""
        return [Throttle(self._name("user", str(user_id)), interval_seconds=10, burst=10, forgiven_on_success=True)]

    def _name(self, *parts: str) -> bytes:
        return hmac.digest(self._key, "\x00".join(parts).encode(), "sha256")[:16]


def refuse_if_throttled(wait_seconds: float) -> None:
    """Raise ResourceExhaustedError (TOO_MANY_ATTEMPTS) when there is a time to wait."""
    if wait_seconds > 0:
        raise ResourceExhaustedError(
            f"Too many attempts. Try again in {math.ceil(wait_seconds)} s.",
            reason="TOO_MANY_ATTEMPTS",
            retry_after=wait_seconds,
        )
