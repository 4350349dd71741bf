"""Reading fields and items, and the sentences for what is not there."""

from itertools import islice
from typing import Any

from services.kit.cel.errors import ExpressionError, Failure, Place, closest, excerpt
from services.kit.cel.evaluation import Frame, Run
from services.kit.cel.syntax import Name
from services.kit.cel.values import type_name

ABSORBED = 24
"""Steps charged where a failure is absorbed: raising, placing and catching it takes about 2.5 µs."""


def path_run(start: str | int | Run, keys: list[Any], places: list[Place]) -> Run:
    """Read `keys` one after the other from a context name, a macro's slot or any value.

    A key is a literal or a closure. `places` are the start and each step, for messages.
    """
    begin = _begin(start, places[0])
    if not keys:
        return begin

    def walk(frame: Frame, value: Any) -> Any:
        for index, key in enumerate(keys):
            try:
                value = read(value, key(frame) if callable(key) else key)
            except _NotThere as problem:
                raise _not_there(problem, value, places[index], places[index + 1]) from None
        return value

    if not all(type(key) is str for key in keys):
        return lambda frame: walk(frame, begin(frame))
    if len(keys) == 1 and isinstance(start, int):
        # `x.field` in a macro: the hottest path of all.
        slot, only = start, keys[0]

        def field(frame: Frame) -> Any:
            try:
                return frame.slots[slot][only]
            except (KeyError, TypeError):
                return walk(frame, frame.slots[slot])

        return field

    def fields(frame: Frame) -> Any:
        value = found = begin(frame)
        try:
            for key in keys:
                value = value[key]
        except (KeyError, TypeError):
            return walk(frame, found)
        return value

    return fields


def _begin(start: str | int | Run, place: Place) -> Run:
    if isinstance(start, str):
        name = start

        def from_context(frame: Frame) -> Any:
            try:
                return frame.variables[name]
            except KeyError:
                hint = "; it exists only in the body of a map or loop" if name in {"item", "index", "state"} else ""
                raise Failure(lambda: f"{place} is not there{hint}", missing=True) from None

        return from_context
    if isinstance(start, int):
        slot = start
        return lambda frame: frame.slots[slot]
    return start


class _NotThere(Exception):
    """A key that cannot be read. The reader of a path knows the words for it."""

    def __init__(self, key: Any) -> None:
        super().__init__()
        self.key = key


def read(value: Any, key: Any) -> Any:
    """`value[key]`: a field of a map by text, an item of a list by a whole number from 0 on."""
    kind = type(value)
    if kind is dict and type(key) is str and key in value:
        return value[key]
    if kind is list:
        if type(key) is float and key.is_integer():
            key = int(key)
        if type(key) is int and 0 <= key < len(value):
            return value[key]
    raise _NotThere(key)


def _not_there(problem: _NotThere, value: Any, container: Place, place: Place) -> Failure:
    key = problem.key
    missing = (
        value is None
        or (type(value) is dict and type(key) is str)
        or (type(value) is list and type(key) in {int, float})
    )
    return Failure(lambda: _sentence(value, key, container, place), missing=missing)


def _sentence(value: Any, key: Any, container: Place, place: Place) -> str:
    if value is None:
        return f"{place}: {container} is null"
    if type(value) is dict and type(key) is str:
        close = closest(key, value)
        if close:
            hint = f"did you mean `{excerpt(close)}`?"
        elif value:
            shown = ", ".join(f"`{excerpt(name)}`" for name in islice(value, 8) if type(name) is str)
            hint = f"it has {shown}" + (f" and {len(value) - 8} more" if len(value) > 8 else "")
        else:
            hint = "it is an empty map"
        return f"{place}: {container} has no `{excerpt(key)}`; {hint}"
    if type(value) is dict:
        return f"{place}: the fields of a map are named by text, not by {type_name(key)}"
    if type(value) is list and type(key) in {int, float}:
        return f"{place}: {container} has {len(value)} items, counted from 0; there is no such item"
    if type(value) is list:
        return f"{place}: {container} is a list; pick an item with a number, or use `.map(x, x.field)`"
    return f"{place}: {container} is {type_name(value)} and has no fields or items"


def test_run(operand: Run, key: Run) -> Run:
    """`has(operand.key)`: whether it is there; false as well when the way to it is not."""

    def has(frame: Frame) -> bool:
        try:
            value = operand(frame)
        except Failure as failure:
            if not failure.missing:
                raise
            frame.charge(ABSORBED)
            return False
        name = key(frame)
        if type(value) is dict:
            return type(name) is str and name in value
        if type(value) is list:
            return type(name) is int and 0 <= name < len(value)
        return False

    return has


def name_error(name: Name, source: str, known: frozenset[str], scope: dict[str, int]) -> ExpressionError:
    """The error for a free name that does not exist."""
    allowed = sorted(known)
    close = closest(name.name, [*allowed, *scope])
    if source[name.start - 1 : name.start] == "-":
        hint = ' A key with a minus sign is read as `nodes["my-key"]`.'
    elif close:
        hint = f" Did you mean `{close}`?"
    elif source[name.end : name.end + 1] == ".":
        hint = f" The output of a node is read as `nodes.{excerpt(name.name)}.output`."
    else:
        hint = " Text stands in quotes."
    return ExpressionError(
        "EXPRESSION_UNKNOWN_NAME",
        f"`{excerpt(name.name)}` is not known (column {name.start + 1}). Known are: {', '.join(allowed)}.{hint}",
        position=name.start,
    )
