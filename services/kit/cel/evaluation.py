"""One evaluation: its variables and its budget.

Why every evaluation ends: the language has no recursion and no loops but the macros, so a program without macros does
at most as many operations as it has nodes. What is left is charged here, before it is done: each turn of a macro by
the nodes of its body, each operation on text, lists and maps by their size. `work` is deterministic, unlike a clock:
the same expression on the same values always ends the same way.
"""

from collections.abc import Callable, Mapping
from typing import Any

from services.kit.cel.errors import Refusal

MAX_WORK = 100_000
"""Steps of one evaluation; a step is an operation on small values, at most ~0.25 µs on 2 cores of an EPYC (see
docs/guides/expressions.md for the measured worst cases)."""

MAX_MADE = 4 * 1024 * 1024
"""Characters of text and items of lists that one evaluation may make, results of sub-expressions included."""


_NO_SLOTS: list[Any] = []


class Frame:
    """What the closures of a program share while they run. `slots` hold the variables of macros."""

    __slots__ = ("made", "searches", "slots", "variables", "work")

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.variables = variables
        self.slots: list[Any] = _NO_SLOTS
        self.searches: dict[str, Any] | None = None
        """Patterns that this evaluation has already fetched."""
        self.work = MAX_WORK
        self.made = MAX_MADE

    def charge(self, steps: int) -> None:
        """Spend steps. Raises Refusal when none are left."""
        self.work -= steps
        if self.work < 0:
            raise out_of_work()

    def make(self, size: int) -> None:
        """Spend memory for `size` new characters or items, and the steps to copy them. Raises Refusal."""
        self.made -= size
        self.work -= size >> 8
        if self.made < 0:
            raise Refusal(
                "EXPRESSION_OUTPUT_TOO_LARGE",
                f"It makes more than {MAX_MADE:,} characters or list items on the way. Shorten the texts before they "
                "are joined, for example with `substring`.",
            )
        if self.work < 0:
            raise out_of_work()


Run = Callable[[Frame], Any]
"""A compiled (sub-)expression. Raises Failure and Refusal only."""


def out_of_work() -> Refusal:
    """The refusal of an evaluation that has spent its steps."""
    return Refusal(
        "EXPRESSION_TOO_COMPLEX",
        f"It needs more than {MAX_WORK:,} steps with these values. Usually a list is too long for a macro (map, "
        "filter, all, exists), or one macro stands in another: filter first, or use a `map` node, which takes lists "
        "of any length.",
    )
