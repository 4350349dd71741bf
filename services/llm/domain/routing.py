"""Which replica of an inference server gets the next call: the least busy of those that work."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

_FAILURES_TO_OPEN = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

Clock = Callable[[], float]


class Breaker:
    """Keeps calls away from what fails.

    Opens after five failures in a row. After a pause (1 s, doubling to 30 s) one call may try; it closes or re-opens.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause = _FIRST_PAUSE
        self._open_until: float | None = None
        self._is_trying = False

    @property
    def is_open(self) -> bool:
        """No call may pass now."""
        if self._open_until is None:
            return False
        return self._is_trying or self._clock() < self._open_until

    @property
    def opens_in(self) -> float:
        """Seconds until a call may try; 0 when one may pass now."""
        return max((self._open_until or 0.0) - self._clock(), 0.0) if self._open_until is not None else 0.0

    def started(self) -> None:
        """A call passes."""
        self._is_trying = self._open_until is not None

    def succeeded(self) -> None:
        """It was answered."""
        self._failures, self._pause, self._open_until, self._is_trying = 0, _FIRST_PAUSE, None, False

    def failed(self) -> None:
        """It was not answered as it should."""
        self._failures += 1
        if self._is_trying:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        elif self._open_until is not None:
            return  # Started before it opened: no news.
        if self._is_trying or self._failures >= _FAILURES_TO_OPEN:
            self._open_until = self._clock() + self._pause
        self._is_trying = False

    def abandoned(self) -> None:
        """It ended without telling anything, by cancellation for instance."""
        self._is_trying = False


class Replica:
    """One address of an inference server."""

    def __init__(self, url: str, clock: Clock = time.monotonic) -> None:
        self.url = url
        self.outstanding = 0
        self.breaker = Breaker(clock)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call as outstanding. What it taught is told to `breaker` by the caller, or it counts as nothing."""
        self.outstanding += 1
        self.breaker.started()
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.breaker.abandoned()
            raise
        finally:
            self.outstanding -= 1


class Replicas:
    """The replicas of one server. `pick` spreads equal load in turn."""

    def __init__(self, urls: Sequence[str], clock: Clock = time.monotonic) -> None:
        self.all = tuple(Replica(url, clock) for url in urls)
        self._turn = 0

    def pick(self, *, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica with the fewest outstanding calls among those not tried and not failing; None = none is left."""
        self._turn += 1
        count = len(self.all)
        rotated = [self.all[(self._turn + index) % count] for index in range(count)]
        able = [replica for replica in rotated if replica not in tried and not replica.breaker.is_open]
        return min(able, key=lambda replica: replica.outstanding, default=None)

    @property
    def opens_in(self) -> float:
        """Seconds until the first replica may be tried again."""
        return min(replica.breaker.opens_in for replica in self.all)
