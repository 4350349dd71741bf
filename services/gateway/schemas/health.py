"""Bodies of the health endpoints."""

from typing import Literal

from services.gateway.schemas.common import Output


class Health(Output):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Dependency(Output):
    """A service that the gateway needs."""

    ready: bool


class Readiness(Output):
    """Whether all dependencies answer."""

    status: Literal["ready", "not_ready"]
    dependencies: dict[str, Dependency]


class JwkSet(Output):
    """Public keys (RFC 7517)."""

    keys: list[dict[str, str]]
