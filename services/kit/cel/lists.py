"""Functions over lists and maps. None changes its values; all make new ones."""

from typing import Any

from services.kit.cel.arguments import as_list, as_map, as_whole
from services.kit.cel.errors import Failure
from services.kit.cel.evaluation import Frame
from services.kit.cel.values import equal, type_name


def size_of(_frame: Frame, value: Any) -> int:
    if type(value) not in {str, list, dict}:
        raise Failure(lambda: f"`size` needs text, a list or a map, this is {type_name(value)}")
    return len(value)


def reverse(frame: Frame, value: Any) -> Any:
    if type(value) is not str:
        as_list("reverse", value)
    frame.charge(len(value) >> 4)
    frame.make(len(value))
    return value[::-1]


def slice_of(frame: Frame, value: Any, start: Any, end: Any = None) -> list[Any]:
    items, first = as_list("slice", value), as_whole("slice", start)
    last = len(items) if end is None else as_whole("slice", end)
    if first < 0 or last < first:
        raise Failure(lambda: f"`slice` needs 0 ≤ start ≤ end, it got {first} and {last}")
    size = max(0, min(last, len(items)) - first)
    frame.charge(size >> 4)
    frame.make(size)
    return items[first:last]


def first(_frame: Frame, value: Any) -> Any:
    if not as_list("first", value):
        raise Failure("`first` of an empty list; give a value for that with `default(x.first(), …)`", missing=True)
    return value[0]


def last(_frame: Frame, value: Any) -> Any:
    if not as_list("last", value):
        raise Failure("`last` of an empty list; give a value for that with `default(x.last(), …)`", missing=True)
    return value[-1]


def sort(frame: Frame, value: Any) -> list[Any]:
    items = as_list("sort", value)
    kinds = set(map(type, items))
    if not (kinds <= {int, float} or kinds == {str}):
        raise Failure("`sort` needs a list of only numbers or only texts")
    text = sum(map(len, items)) if kinds == {str} else 0
    rounds = len(items).bit_length()
    frame.charge((len(items) + (text >> 8)) * rounds >> 2)
    frame.make(len(items))
    return sorted(items)


def distinct(frame: Frame, value: Any) -> list[Any]:
    items = as_list("distinct", value)
    frame.charge(4 * len(items))
    frame.make(len(items))
    seen: set[tuple[bool, Any]] = set()
    nested: list[Any] = []
    kept: list[Any] = []
    for item in items:
        if type(item) is list or type(item) is dict:
            frame.charge(len(nested))
            if not any(equal(frame, item, other) for other in nested):
                nested.append(item)
                kept.append(item)
        elif (key := (type(item) is bool, item)) not in seen:
            seen.add(key)
            kept.append(item)
    return kept


def flatten(frame: Frame, value: Any) -> list[Any]:
    items = as_list("flatten", value)
    size = sum(len(item) if type(item) is list else 1 for item in items)
    frame.charge(len(items) + (size >> 3))
    frame.make(size)
    return [inner for item in items for inner in (item if type(item) is list else (item,))]


def range_of(frame: Frame, count: Any) -> list[int]:
    size = as_whole("range", count)
    if size < 0:
        raise Failure("`range` needs a number from 0 on")
    frame.charge(size >> 2)
    frame.make(size)
    return list(range(size))


def keys(frame: Frame, value: Any) -> list[str]:
    frame.charge(len(as_map("keys", value)) >> 3)
    frame.make(len(value))
    return list(value)


def values(frame: Frame, value: Any) -> list[Any]:
    frame.charge(len(as_map("values", value)) >> 3)
    frame.make(len(value))
    return list(value.values())


def merge(frame: Frame, left: Any, right: Any) -> dict[str, Any]:
    size = len(as_map("merge", left)) + len(as_map("merge", right))
    frame.charge(size >> 2)
    frame.make(size)
    return {**left, **right}
