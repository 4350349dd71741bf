"""Rates of node types in projects: token buckets, of which each executor has its share."""

from collections.abc import Mapping

from services.executor.domain.limits import NO_LIMITS, ProjectLimits


class Bucket:
    """A token bucket: `rate` a second on average, `burst` at once. Time is the caller's."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self.share = rate, burst
        """What it was made for."""
        self._tokens = float(burst)
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds until there is a token; 0 = now."""
        rate, burst = self.share
        self._tokens = min(float(burst), self._tokens + (now - self._at) * rate)
        self._at = now
        return max(0.0, (1.0 - self._tokens) / rate)

    def take(self) -> None:
        """Use a token."""
        self._tokens -= 1.0


class Rates:
    """The buckets of one executor."""

    def __init__(self) -> None:
        self._limits: Mapping[str, ProjectLimits] = {}
        self._executors = 1
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def configure(self, limits: Mapping[str, ProjectLimits], executors: int) -> None:
        """Take over limits and the number of executors. Buckets whose rate stays keep their tokens."""
        self._limits, self._executors = limits, executors
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if self._share(*key) == bucket.share}

    def delay(self, project_id: str, node_type: str, now: float) -> float:
        """Seconds until a node of the type may start."""
        bucket = self._bucket(project_id, node_type, now)
        return bucket.wait(now) if bucket else 0.0

    def use(self, project_id: str, node_type: str, now: float) -> None:
        """A node of the type starts."""
        bucket = self._bucket(project_id, node_type, now)
        if bucket is not None:
            bucket.take()

    def _bucket(self, project_id: str, node_type: str, now: float) -> Bucket | None:
        key = (project_id, node_type)
        if key not in self._buckets:
            share = self._share(*key)
            if share is None:
                return None
            self._buckets[key] = Bucket(*share, now)
        return self._buckets[key]

    def _share(self, project_id: str, node_type: str) -> tuple[float, int] | None:
        limits = self._limits.get(project_id, NO_LIMITS).node_types.get(node_type)
        if limits is None or limits.rate is None:
            return None
        return limits.rate / self._executors, max(1, limits.burst // self._executors)
