"""What evaluating a node in the engine can come to."""

from dataclasses import dataclass

from services.executor.engine.graph import OUT
from services.executor.engine.state import Failure


@dataclass(frozen=True, slots=True)
class Done:
    """The node has its output."""

    output: bytes
    port: str = OUT


@dataclass(frozen=True, slots=True)
class Wait:
    """The node goes on after `seconds`, or at the RFC 3339 time `until`; with neither, when someone answers."""

    seconds: float | None = None
    until: str | None = None
    asked: bytes | None = None
    """JSON: the config that whoever answers is shown; None where nobody is asked."""


Outcome = Done | Wait | Failure
