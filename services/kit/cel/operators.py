"""Closures for the binary operators and for calls. Each fails with the place where it stands."""

import operator as python
from collections.abc import Callable
from typing import Any

from services.kit.cel.errors import Failure, Place, located
from services.kit.cel.evaluation import Frame, Run
from services.kit.cel.values import arithmetic, compare, contained, equal

_COMPARISONS = {"<": python.lt, "<=": python.le, ">": python.gt, ">=": python.ge}
_Operation = Callable[[Frame, Any, Any], Any]


def operation_of(operator: str) -> _Operation:
    """What a binary operator does with two values."""
    if operator == "==":
        return equal
    if operator == "!=":
        return lambda frame, left, right: not equal(frame, left, right)
    if operator == "in":
        return contained
    if operator in _COMPARISONS:
        return lambda frame, left, right: compare(frame, operator, left, right)
    return lambda frame, left, right: arithmetic(frame, operator, left, right)


def chain_run(operators: list[str], operands: list[Run], place: Place) -> Run:
    """Operands joined by operators of one precedence, from left to right."""
    if len(operators) == 1:
        if operators[0] in _COMPARISONS:
            return _comparison(operators[0], operands[0], operands[1], place)
        return _binary(operation_of(operators[0]), operands[0], operands[1], place)
    first, *others = operands
    pairs = [(operation_of(operator), run) for operator, run in zip(operators, others, strict=True)]

    def chain(frame: Frame) -> Any:
        result = first(frame)
        for operate, run in pairs:
            value = run(frame)
            try:
                result = operate(frame, result, value)
            except Failure as failure:
                raise located(failure, place) from None
        return result

    return chain


def _binary(operate: _Operation, first: Run, second: Run, place: Place) -> Run:
    def binary(frame: Frame) -> Any:
        left, right = first(frame), second(frame)
        try:
            return operate(frame, left, right)
        except Failure as failure:
            raise located(failure, place) from None

    return binary


def _comparison(operator: str, first: Run, second: Run, place: Place) -> Run:
    """Numbers, which are most of what is compared, without a detour."""
    test = _COMPARISONS[operator]

    def comparison(frame: Frame) -> Any:
        left, right = first(frame), second(frame)
        kind, other = type(left), type(right)
        if (kind is int or kind is float) and (other is int or other is float):
            return test(left, right)
        try:
            return compare(frame, operator, left, right)
        except Failure as failure:
            raise located(failure, place) from None

    return comparison


def call_run(run: Callable[..., Any], arguments: list[Run], place: Place) -> Run:
    """A call of a function with what its arguments evaluate to."""
    if len(arguments) == 1:
        only = arguments[0]

        def call_one(frame: Frame) -> Any:
            value = only(frame)
            try:
                return run(frame, value)
            except Failure as failure:
                raise located(failure, place) from None

        return call_one

    def call(frame: Frame) -> Any:
        values = [argument(frame) for argument in arguments]
        try:
            return run(frame, *values)
        except Failure as failure:
            raise located(failure, place) from None

    return call
