"""The macros: the only repetition in the language. Each turn is charged before it runs."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from services.kit.cel.access import ABSORBED
from services.kit.cel.errors import Failure, Place
from services.kit.cel.evaluation import Frame, Run, out_of_work
from services.kit.cel.values import not_boolean, type_name


class Macro(NamedTuple):
    """`make(target, slot, turn, bodies, where)` gives the closure; `turn` is the charge of one turn."""

    usage: str
    arguments: frozenset[int]
    make: Callable[[Run, int, int, list[Run], Place], Run]


def _items(value: Any, where: Place) -> Iterable[Any]:
    if type(value) is list or type(value) is dict:
        return value  # of a map: its keys
    raise Failure(lambda: f"{where} is {type_name(value)}; macros run over a list or the keys of a map")


def _quantifier(deciding: bool) -> Callable[[Run, int, int, list[Run], Place], Run]:
    """`all` ends at the first false, `exists` at the first true; a failing turn counts only if none decides."""

    def make(target: Run, slot: int, turn: int, bodies: list[Run], where: Place) -> Run:
        body = bodies[0]
        deciding_not = not deciding
        subject = "The condition of `exists`" if deciding else "The condition of `all`"

        def run(frame: Frame) -> object:
            failed: Failure | None = None
            for item in _items(target(frame), where):
                frame.work -= turn
                if frame.work < 0:
                    raise out_of_work()
                frame.slots[slot] = item
                try:
                    value = body(frame)
                    if value is deciding:
                        return deciding
                    if value is not deciding_not:
                        raise not_boolean(value, subject)
                except Failure as failure:
                    frame.charge(ABSORBED)
                    failed = failed or failure
            if failed is not None:
                raise failed
            return deciding_not

        return run

    return make


def _exists_one(target: Run, slot: int, turn: int, bodies: list[Run], where: Place) -> Run:
    body = bodies[0]

    def run(frame: Frame) -> bool:
        found = 0
        for item in _items(target(frame), where):
            frame.work -= turn
            if frame.work < 0:
                raise out_of_work()
            frame.slots[slot] = item
            value = body(frame)
            if value is True:
                found += 1
            elif value is not False:
                raise not_boolean(value, "The condition of `exists_one`")
        return found == 1

    return run


def _filter(target: Run, slot: int, turn: int, bodies: list[Run], where: Place) -> Run:
    body = bodies[0]

    def run(frame: Frame) -> list[Any]:
        slots, kept = frame.slots, []
        for item in _items(target(frame), where):
            frame.work -= turn
            if frame.work < 0:
                raise out_of_work()
            slots[slot] = item
            value = body(frame)
            if value is True:
                kept.append(item)
            elif value is not False:
                raise not_boolean(value, "The condition of `filter`")
        return kept

    return run


def _map(target: Run, slot: int, turn: int, bodies: list[Run], where: Place) -> Run:
    condition = bodies[0] if len(bodies) == 2 else None
    body = bodies[-1]

    def run(frame: Frame) -> list[Any]:
        slots, made = frame.slots, []
        for item in _items(target(frame), where):
            frame.work -= turn
            if frame.work < 0:
                raise out_of_work()
            slots[slot] = item
            value = True if condition is None else condition(frame)
            if value is True:
                made.append(body(frame))
            elif value is not False:
                raise not_boolean(value, "The condition of `map`")
        return made

    return run


MACROS: dict[str, Macro] = {
    "all": Macro("list.all(x, condition)", frozenset({2}), _quantifier(False)),
    "exists": Macro("list.exists(x, condition)", frozenset({2}), _quantifier(True)),
    "exists_one": Macro("list.exists_one(x, condition)", frozenset({2}), _exists_one),
    "existsOne": Macro("list.existsOne(x, condition)", frozenset({2}), _exists_one),
    "filter": Macro("list.filter(x, condition)", frozenset({2}), _filter),
    "map": Macro("list.map(x, value)", frozenset({2, 3}), _map),
}
