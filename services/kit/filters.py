"""Filters over records and rows, as the REST API writes them.

    {"and": [{"field": "lang", "op": "eq", "value": "de"}, {"not": {"field": "year", "op": "lt", "value": 2020}}]}

This module parses; each store turns the tree into its own SQL with every value bound.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.kit.errors import InvalidArgumentError, Violation

MAX_DEPTH = 16
MAX_CONDITIONS = 200
MAX_IN_VALUES = 1000


class Operator(StrEnum):
    """How a field is compared. `exists` takes true or false, `in` a list, the others one value."""

    EQ = "eq"
    NE = "ne"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    IN = "in"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. `field` may hold dots for nested objects where the store has such."""

    field: str
    operator: Operator
    value: Any


@dataclass(frozen=True, slots=True)
class And:
    """All of `items`; true when empty."""

    items: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of `items`; false when empty."""

    items: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of `item`."""

    item: "Filter"


_OPERATORS = frozenset(operator.value for operator in Operator)

Filter = Condition | And | Or | Not


def parse_filter(value: Any) -> Filter:
    """The tree of a filter. Raises InvalidArgumentError with reason INVALID_FILTER and all violations."""
    parser = _Parser()
    tree = parser.parse(value, "filter", 1)
    if parser.violations:
        raise InvalidArgumentError(
            "The filter is not valid: " + parser.violations[0].message,
            reason="INVALID_FILTER",
            violations=tuple(parser.violations),
        )
    return tree


class _Parser:
    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.conditions = 0

    def parse(self, value: Any, path: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            return self._wrong(path, f"Filters nest at most {MAX_DEPTH} deep.")
        if not isinstance(value, dict):
            return self._wrong(path, 'A filter is an object such as {"field": "lang", "op": "eq", "value": "de"}.')
        keys = value.keys()
        if keys in ({"and"}, {"or"}):
            word = next(iter(keys))
            if not isinstance(value[word], list):
                return self._wrong(f"{path}.{word}", f"`{word}` takes a list of filters.")
            items = tuple(
                self.parse(item, f"{path}.{word}[{index}]", depth + 1) for index, item in enumerate(value[word])
            )
            return And(items) if word == "and" else Or(items)
        if keys == {"not"}:
            return Not(self.parse(value["not"], f"{path}.not", depth + 1))
        if "field" in keys and keys <= {"field", "op", "value"}:
            return self._condition(value, path)
        return self._wrong(path, "Use exactly one of `and`, `or`, `not`, or `field` with `op` and `value`.")

    def _condition(self, value: dict[str, Any], path: str) -> Filter:
        self.conditions += 1
        if self.conditions == MAX_CONDITIONS + 1:
            return self._wrong(path, f"At most {MAX_CONDITIONS} conditions.")
        field, name, operand = value["field"], value.get("op", "eq"), value.get("value")
        if not isinstance(field, str) or not 1 <= len(field) <= 256:
            return self._wrong(f"{path}.field", "`field` is the name of a field, 1 to 256 characters.")
        if not isinstance(name, str) or name not in _OPERATORS:
            return self._wrong(f"{path}.op", "`op` is one of " + ", ".join(Operator) + ".")
        operator = Operator(name)
        if operator is Operator.IN and (not isinstance(operand, list) or len(operand) > MAX_IN_VALUES):
            return self._wrong(f"{path}.value", f"`in` takes a list of at most {MAX_IN_VALUES} values.")
        if operator is Operator.EXISTS and not isinstance(operand, bool | None):
            return self._wrong(f"{path}.value", "`exists` takes true or false.")
        scalars = operand if isinstance(operand, list) and operator is Operator.IN else [operand]
        if any(isinstance(item, dict | list) for item in scalars):
            return self._wrong(f"{path}.value", "Fields are compared with text, numbers, true, false or null.")
        if operator in {Operator.GT, Operator.GTE, Operator.LT, Operator.LTE} and isinstance(operand, bool | None):
            return self._wrong(f"{path}.value", f"`{name}` compares numbers or text.")
        return Condition(field, operator, True if operator is Operator.EXISTS and operand is None else operand)

    def _wrong(self, path: str, message: str) -> Filter:
        self.violations.append(Violation("INVALID_FILTER", message, path))
        return And(())
