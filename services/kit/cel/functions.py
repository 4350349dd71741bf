"""The table of functions. `x.f(y)` and `f(x, y)` are the same call.

Each function charges for the size of its values before it works, so that none is a way round the budget.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from services.kit.cel.conversions import parse_json, to_bool, to_double, to_int, to_json, to_string
from services.kit.cel.lists import (
    distinct,
    first,
    flatten,
    keys,
    last,
    merge,
    range_of,
    reverse,
    size_of,
    slice_of,
    sort,
    values,
)
from services.kit.cel.numbers import absolute, extreme, rounded, sum_of, to_whole
from services.kit.cel.text import (
    contains,
    ends_with,
    index_of,
    join,
    lower,
    replace,
    split,
    starts_with,
    substring,
    trim,
    upper,
    url_encode,
)
from services.kit.cel.times import PARTS, duration, timestamp
from services.kit.cel.values import type_of


class Function(NamedTuple):
    """`run` takes the frame and between `least` and `most` values. `weight` is its cost on small values, in steps."""

    run: Callable[..., Any]
    least: int
    most: int
    weight: int = 8


FUNCTIONS: dict[str, Function] = {
    "size": Function(size_of, 1, 1),
    "contains": Function(contains, 2, 2),
    "startsWith": Function(starts_with, 2, 2),
    "endsWith": Function(ends_with, 2, 2),
    "indexOf": Function(index_of, 2, 2),
    "lower": Function(lower, 1, 1),
    "upper": Function(upper, 1, 1),
    "trim": Function(trim, 1, 1),
    "substring": Function(substring, 2, 3),
    "replace": Function(replace, 3, 3),
    "split": Function(split, 2, 2),
    "join": Function(join, 1, 2),
    "reverse": Function(reverse, 1, 1),
    "slice": Function(slice_of, 2, 3),
    "first": Function(first, 1, 1),
    "last": Function(last, 1, 1),
    "sort": Function(sort, 1, 1, 12),
    "distinct": Function(distinct, 1, 1, 12),
    "flatten": Function(flatten, 1, 1, 12),
    "range": Function(range_of, 1, 1),
    "keys": Function(keys, 1, 1),
    "values": Function(values, 1, 1),
    "merge": Function(merge, 2, 2),
    "min": Function(extreme("min", min), 1, 64, 12),
    "max": Function(extreme("max", max), 1, 64, 12),
    "sum": Function(sum_of, 1, 1, 12),
    "abs": Function(absolute, 1, 1),
    "round": Function(rounded, 1, 2, 12),
    "ceil": Function(to_whole("ceil", math.ceil), 1, 1, 10),
    "floor": Function(to_whole("floor", math.floor), 1, 1, 10),
    "int": Function(to_int, 1, 1, 12),
    "double": Function(to_double, 1, 1, 14),
    "string": Function(to_string, 1, 1, 12),
    "bool": Function(to_bool, 1, 1),
    "type": Function(lambda _frame, value: type_of(value), 1, 1),
    "dyn": Function(lambda _frame, value: value, 1, 1),
    "timestamp": Function(timestamp, 1, 1, 16),
    "duration": Function(duration, 1, 1, 16),
    "toJson": Function(to_json, 1, 1, 24),
    "parseJson": Function(parse_json, 1, 1, 16),
    "urlEncode": Function(url_encode, 1, 1, 16),
    **{name: Function(run, 1, 2, 24) for name, run in PARTS.items()},
}

OTHER_NAMES = {
    "len": "size",
    "length": "size",
    "count": "size",
    "toLowerCase": "lower",
    "lowerAscii": "lower",
    "toUpperCase": "upper",
    "upperAscii": "upper",
    "strip": "trim",
    "includes": "contains",
    "replaceAll": "replace",
    "some": "exists",
    "any": "exists",
    "every": "all",
    "toString": "string",
    "str": "string",
    "toNumber": "double",
    "float": "double",
    "number": "double",
    "toInt": "int",
    "tojson": "toJson",
    "json": "toJson",
    "stringify": "toJson",
    "fromJson": "parseJson",
    "encodeURIComponent": "urlEncode",
    "urlencode": "urlEncode",
    "unique": "distinct",
    "concat": "join",
    "coalesce": "default",
    "ifEmpty": "default",
    "typeof": "type",
}
"""What people coming from elsewhere write, and what it is called here."""
