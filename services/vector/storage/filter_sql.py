"""Filters as SQL over the metadata of records, every value bound.

A field's dots lead into nested objects (and numbers into lists). Comparisons are typed: a number is compared with
numbers, text with text by code point; a field that is missing or of another type makes a comparison false, so `ne`, the
opposite of `eq`, true. JSON null equals null only; `exists` is true for it.
"""

from decimal import Decimal
from typing import Any

import orjson

from services.kit.filters import And, Condition, Filter, Not, Operator, Or

_SQL = {Operator.GT: ">", Operator.GTE: ">=", Operator.LT: "<", Operator.LTE: "<="}


def filter_sql(only: Filter | None, parameters: list[Any]) -> str:
    """A boolean expression, never NULL, over the column `metadata`; its values are appended to `parameters`."""
    if only is None:
        return "true"
    if isinstance(only, And):
        return "(" + " AND ".join(["true", *(filter_sql(item, parameters) for item in only.items)]) + ")"
    if isinstance(only, Or):
        return "(" + " OR ".join(["false", *(filter_sql(item, parameters) for item in only.items)]) + ")"
    if isinstance(only, Not):
        return f"NOT {filter_sql(only.item, parameters)}"
    return _condition(only, parameters)


def _condition(condition: Condition, parameters: list[Any]) -> str:
    field = f"(metadata #> {_bind(condition.field.split('.'), parameters)}::text[])"
    operand = condition.value
    if condition.operator is Operator.EXISTS:
        return f"({field} IS {'NOT ' if operand else ''}NULL)"
    if condition.operator is Operator.IN:
        values = f"SELECT jsonb_array_elements({_bind(orjson.dumps(operand), parameters)}::jsonb)"
        return f"coalesce({field} IN ({values}), false)"
    if condition.operator in _SQL:
        return _ordered(field, _SQL[condition.operator], operand, parameters)
    equal = f"coalesce({field} = {_bind(orjson.dumps(operand), parameters)}::jsonb, false)"
    return equal if condition.operator is Operator.EQ else f"NOT {equal}"


def _ordered(field: str, comparison: str, operand: str | float, parameters: list[Any]) -> str:
    """CASE, because AND does not promise that the cast is left out for what is no number."""
    if isinstance(operand, str):
        value = f'({field} #>> \'{{}}\') COLLATE "C" {comparison} {_bind(operand, parameters)}::text COLLATE "C"'
        kind = "string"
    else:
        # By way of text: the shortest that reads back as this float is what JSON writers write.
        value = f"{field}::numeric {comparison} {_bind(Decimal(repr(operand)), parameters)}::numeric"
        kind = "number"
    return f"(CASE jsonb_typeof({field}) WHEN '{kind}' THEN {value} ELSE false END)"


def _bind(value: Any, parameters: list[Any]) -> str:
    parameters.append(value)
    return f"${len(parameters)}"
