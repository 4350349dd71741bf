"""Hostile expressions end early, with a clear reason, and without more work than is allowed.

Work is measured as calls, which a slow machine does not change. What it takes in time is in docs/guides/expressions.md.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from services.kit.expressions import MAX_RESULT_BYTES, MAX_SOURCE_LENGTH, MAX_WORK, ExpressionError, compile_expression

INTS = list(range(20_000))
ROWS = [{"id": str(number), "score": 0.5, "text": "x" * 50, "meta": {"page": number}} for number in range(3000)]
VARIABLES: dict[str, Any] = {
    "input": {
        "ints": INTS,
        "rows": ROWS,
        "text": "a" * 1_000_000,
        "accents": "é" * 500_000,
        "words": "the quick brown fox " * 20_000,
        "short": "a" * 29_999,
        "needle": "a" * 49 + "b" + "a" * 49,
        "texts": [f"k{number:06}" for number in range(20_000)],
        "prefixed": ["p" * 1000 + str(number) for number in range(500)],
        "nested": [[number] for number in range(2000)],
        "big": ["x" * 1_000_000] * 100,
        "twin": "y" * 1_000_000,
        "twin2": "y" * 999_999 + "y",
        "map": {f"k{number}": number for number in range(20_000)},
        "ab": "abaabbbabaabab" * 4681,
    }
}

TOO_COMPLEX = [
    "input.ints.map(a, input.ints.map(b, a * b))",
    "input.ints.map(a, input.ints.map(b, input.ints.map(c, a + b + c)))",
    "input.ints.all(a, input.ints.exists(b, b > a))",
    "input.ints.filter(a, input.ints == [a])" + " + input.ints.filter(a, input.ints == input.ints)",
    "input.ints.map(x, input.ints + input.ints)",
    "input.ints.filter(x, -1 in input.ints)",
    "input.ints.filter(x, 'no' in input.texts)",
    "input.ints.all(x, x.missing)",
    "input.ints.map(x, default(input.missing, 1))",
    "input.ints.map(x, input.twin == input.twin2)",
    "input.ints.map(x, input.twin < input.twin2)",
    "input.ints.map(x, input.short.contains(input.needle))",
    "input.ints.map(x, input.text.contains('b'))",
    "input.ints.map(x, input.words.split(' ').size())",
    "input.ints.map(x, input.words.replace(' ', '').size())",
    "input.ints.map(x, input.accents.lower())",
    "input.ints.map(x, input.prefixed.sort())",
    "input.ints.map(x, input.map.keys())",
    "input.ints.map(x, merge(input.map, input.map))",
    "input.ints.map(x, toJson(input.ints))",
    "input.ints.map(x, parseJson('[' + input.ints.map(y, string(y)).join(',') + ']'))",
    "input.ints.map(x, input.ints.reverse())",
    "input.nested.distinct()",
    "input.ab.matches('[ab]*a[ab]{100}c')",
    "input.ints.map(x, input.ab.substring(0, 300).matches('[ab]*a[ab]{100}c'))",
    "input.ints.map(x, sum(input.ints))",
    "range(100000).map(x, range(100000))",
    "range(9007199254740991)",
    "input.texts.map(x, duration('1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h1h'))",
    "[1].map(a, [a, a])" + ".map(a, [a, a])" * 40 + " == [1].map(a, [a, a])" + ".map(a, [a, a])" * 40,
    "input.ints.all(x, " + " || ".join(["x.no"] * 300) + ")",
    "input.ints.map(x, 1" + " + 1" * 900 + ")",
    "input.text.replace('a', 'bbbbbbbb')",
    "urlEncode(input.text)",
    "toJson([1]" + ".map(a, [a, a])" * 40 + ")",
    "input.ints.map(x, x).map(x, [x, x, x, x, x])",
]

TOO_LARGE = [
    "input.text + input.text",
    "input.text" + " + input.text" * 300,
    "input.rows.map(r, input.text)",
    "input.rows.map(r, input.text + r.id)",
    "input.big.join()",
    "input.ints.map(x, input.text.trim())",
    "input.words.replace('o', input.words)",
    "[input.rows, input.rows].map(r, [r, r]).map(r, [r, r]).map(r, [r, r])",
    "[1]" + ".map(a, [a, a])" * 40,
]

REFUSED_AT_COMPILING = [
    "x" * (MAX_SOURCE_LENGTH + 1),
    "(" * 2000 + "1" + ")" * 2000,
    "[" * 4000,
    "(" * 4000,
    "{" * 4000,
    "-(" * 1300 + "1" + ")" * 1300,
    "!(" * 1300 + "true" + ")" * 1300,
    "size(" * 800 + "1" + ")" * 800,
    "input[" * 600 + "0" + "]" * 600,
    "true ? (" * 400 + "1" + ") : 2" * 400,
    "[1]" + ".map(x, x)" * 300,
    "[1].map(a, " * 300 + "a" + ")" * 300,
    "'a'.matches('" + "(" * 200 + ")" * 200 + "')",
    "'a'.matches('(a{500}){500}')",
    "'a'.matches('\\\\w{1000}')",
    "'a'.matches('" + "a" * 300 + "')",
    "[" + ",".join(f"'a'.matches('{number}[a-z]{{90}}')" for number in range(20)) + "]",
]

LONG_BUT_FINE = [
    "1" + "+1" * 2000,
    "true" + "&&true" * 600,
    "-" * 4000 + "1",
    "!" * 4000 + "true",
    "'" + "a" * 4000 + "'",
    "[" + "1," * 2000 + "]",
    "true?1:" * 500 + "2",
    "(" * 32 + "1" + ")" * 32,
    "'" + "\\u0041" * 600 + "'",
    "{" + ",".join(f"'{number}':1" for number in range(400)) + "}",
]


def counted(source: str) -> tuple[str, int]:
    """The reason for which an evaluation was refused, empty when it was not, and the calls that it made."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    expression = compile_expression(source)
    refused: ExpressionError | None = None
    sys.setprofile(count)
    try:
        expression.evaluate(VARIABLES)
    except ExpressionError as error:
        refused = error
    finally:
        sys.setprofile(None)
    return refused.reason if refused else "", calls


@pytest.mark.parametrize("source", TOO_COMPLEX)
def test_too_much_work_is_refused_before_it_is_done(source: str) -> None:
    reason, calls = counted(source)
    assert reason == "EXPRESSION_TOO_COMPLEX"
    assert calls <= 3 * MAX_WORK


@pytest.mark.parametrize("source", TOO_LARGE)
def test_too_large_results_are_refused_before_they_are_made(source: str) -> None:
    reason, calls = counted(source)
    assert reason == "EXPRESSION_OUTPUT_TOO_LARGE"
    assert calls <= 3 * MAX_WORK


@pytest.mark.parametrize("source", ["input.text.matches('a')", "parseJson(input.words)"])
def test_too_large_inputs_of_functions_are_refused(source: str) -> None:
    assert counted(source)[0] == "EXPRESSION_INPUT_TOO_LARGE"


@pytest.mark.parametrize("source", REFUSED_AT_COMPILING)
def test_too_complex_sources_are_refused(source: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(source)
    assert caught.value.reason in {"EXPRESSION_TOO_COMPLEX", "EXPRESSION_SYNTAX"}
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("source", LONG_BUT_FINE)
def test_long_sources_work(source: str) -> None:
    compile_expression(source).evaluate(VARIABLES)


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("input.rows.filter(r, r.score > 0.4 && r.meta.page % 2 == 0).map(r, r.id)", 1500),
        ("input.rows.map(r, {'id': r.id, 'page': r.meta.page})", 3000),
        ("input.rows.map(r, r.text.contains('needle') || r.text.matches('need|le'))", 3000),
        ("input.words.split(' ')", 80_001),
        ("input.texts.sort()", 20_000),
    ],
)
def test_ordinary_work_on_large_values_is_allowed(source: str, size: int) -> None:
    assert len(compile_expression(source).evaluate(VARIABLES)) == size


def test_whatever_a_node_may_output_can_be_passed_on() -> None:
    output = {"text": "x" * (MAX_RESULT_BYTES - 100), "more": [None] * 10}
    assert compile_expression("nodes.a.output").evaluate({"nodes": {"a": {"output": output}}}) is output


def test_the_budget_is_the_same_every_time() -> None:
    first, second = (
        counted("input.ints.map(a, input.rows.map(b, a))"),
        counted("input.ints.map(a, input.rows.map(b, a))"),
    )
    assert first == second
