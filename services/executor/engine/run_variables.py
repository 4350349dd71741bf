"""Variables of a run: its own and those of its project, both as they were when it was accepted."""

from dataclasses import dataclass
from typing import Any

import orjson


class JsonText:
    """A JSON object as text, parsed when it is first asked for. May be shared between runs."""

    __slots__ = ("_value", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._value: dict[str, Any] | None = None

    @property
    def value(self) -> dict[str, Any]:
        """The parsed object. Not to be changed."""
        if self._value is None:
            self._value = orjson.loads(self.text)
        return self._value


NONE = JsonText(b"{}")
"""No variables."""


@dataclass(frozen=True, slots=True)
class RunVariables:
    """What expressions read as `run.vars` and `project.vars`; the same as long as the run lives."""

    run: JsonText = NONE
    project: JsonText = NONE

    @classmethod
    def of(cls, run: bytes | None, project: bytes | None) -> "RunVariables":
        """From what is stored; None = none."""
        if run is None and project is None:
            return NO_VARIABLES
        return cls(NONE if run is None else JsonText(run), NONE if project is None else JsonText(project))

    def size_bytes(self) -> int:
        """Length of both texts."""
        return len(self.run.text) + len(self.project.text)


NO_VARIABLES = RunVariables()
