"""`&&`, `||`, `? :` and `default`: what decides, and what absorbs a failure.

CEL's `&&` and `||` do not depend on the order of their sides: `false && broken` and `broken && false` are both false.
"""

from services.kit.cel.access import ABSORBED
from services.kit.cel.errors import Failure, Place
from services.kit.cel.evaluation import Frame, Run
from services.kit.cel.values import not_boolean


def all_of(sides: list[tuple[Run, Place]]) -> Run:
    """`a && b && …`; each side comes with its place."""
    return _decided_by(sides, deciding=False)


def any_of(sides: list[tuple[Run, Place]]) -> Run:
    """`a || b || …`."""
    return _decided_by(sides, deciding=True)


def _decided_by(sides: list[tuple[Run, Place]], *, deciding: bool) -> Run:
    deciding_not = not deciding

    def decide(frame: Frame) -> object:
        failed: Failure | None = None
        for run, place in sides:
            try:
                value = run(frame)
                if value is deciding:
                    return deciding
                if value is deciding_not:
                    continue
                raise not_boolean(value, place)
            except Failure as failure:
                frame.charge(ABSORBED)
                failed = failed or failure
        if failed is not None:
            raise failed
        return deciding_not

    return decide


def choose(cases: list[tuple[Run, Run, Place]], otherwise: Run) -> Run:
    """`a ? b : c ? d : e`: (condition, value, place of the condition) in order, then the last value."""

    def choice(frame: Frame) -> object:
        for condition, value, place in cases:
            decision = condition(frame)
            if decision is True:
                return value(frame)
            if decision is not False:
                raise not_boolean(decision, place)
        return otherwise(frame)

    return choice


def fallback(value: Run, other: Run) -> Run:
    """`default(value, other)`: the other when the value is null or something on the way to it is missing."""

    def default(frame: Frame) -> object:
        try:
            found = value(frame)
        except Failure as failure:
            if not failure.missing:
                raise
            frame.charge(ABSORBED)
            return other(frame)
        return other(frame) if found is None else found

    return default
