"""Expressions and templates under random input.

Where the `cel` library (CEL in Rust) has a result, this evaluator has the same: the library is the oracle here, and is
used nowhere else.
"""

from __future__ import annotations

import math
import sys
from types import FrameType
from typing import Any

import cel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kit.expressions import MAX_WORK, ExpressionError, compile_expression
from services.kit.templates import TemplateErrors, compile_template

REASONS = {
    "EXPRESSION_SYNTAX",
    "EXPRESSION_UNKNOWN_NAME",
    "EXPRESSION_TOO_COMPLEX",
    "EXPRESSION_INPUT_TOO_LARGE",
    "EXPRESSION_OUTPUT_TOO_LARGE",
    "EXPRESSION_FAILED",
}
VARIABLES: dict[str, Any] = {
    "input": {
        "a": 1,
        "b": 2.5,
        "s": "abc",
        "list": [1, 2, 3],
        "map": {"x": 1, "y": [1, {"z": "q"}]},
        "null": None,
        "yes": True,
        "empty": [],
        "rows": [{"id": "1", "v": 1}, {"id": "2", "v": 5}],
    },
    "item": {"id": "7"},
    "index": 3,
}
# One to a line would be five pages; the separator stands in none of them.
LEAVES = r"""
    0 ; 1 ; -3 ; 7 ; 2.5 ; -1.5 ; 9223372036854775807 ; true ; false ; null ; '' ; 'a' ; "bc" ; '\n\u0041' ;
    r'\d' ; [] ; [1, 2] ; ['a', 'b'] ; [1, 'a', null] ; [[1], [2]] ; {} ; {'x': 1} ; x ; y ; index ; item.id ;
    input.a ; input.b ; input.s ; input.list ; input.map ; input.null ; input.yes ; input.empty ; input.rows ;
    input.map.y[1].z ; input.rows[0].v ; input.list[5] ; input.missing ; has(input.a) ; has(input.missing)
"""
CALLS = r"""
    size(v) ; v.map(x, x) ; v.filter(x, x == w) ; v + w ; v - w ; v * w ; v / w ; v % w ; v == w ; v < w ;
    v in w ; -v ; !v ; v[w] ; v.a ; has(v.a) ; default(v.a.b, w) ; v.contains(w) ; v.startsWith(w) ;
    v.indexOf(w) ; v.lower() ; v.upper() ; v.trim() ; v.substring(w) ; v.substring(0, w) ; v.replace(w, v) ;
    v.split(w) ; v.join(w) ; v.reverse() ; v.slice(w) ; v.first() ; v.last() ; v.sort() ; v.distinct() ;
    v.flatten() ; keys(v) ; values(v) ; merge(v, w) ; min(v) ; max(v, w) ; sum(v) ; abs(v) ; round(v) ;
    round(v, w) ; ceil(v) ; floor(v) ; int(v) ; double(v) ; string(v) ; bool(v) ; type(v) ; timestamp(v) ;
    duration(v) ; timestamp(v) + duration(w) ; timestamp(v).getHours(w) ; toJson(v) ; parseJson(v) ;
    parseJson(toJson(v)) == v ; urlEncode(v) ; v.matches('^[a-z]+$') ; range(v).size() ; {'k': v} ; {v: w} ;
    v ? w : v ; v && w ; [v, w].sort() ; [v, w].distinct()
"""
TOKENS = r"""
    input ; .a ; .list ; item ; index ; x ; ( ; ) ; [ ; ] ; { ; } ; , ; : ; ? ; 1 ; 2.5 ; 's' ; " ; ' ; ''' ;
    \ ; + ; - ; * ; / ; % ; == ; < ; && ; || ; ! ; in ; true ; null ; size( ; .map(x, ; .filter(x, ; .join( ;
    // ; {{ ; }} ; 0x ; 1e9 ; b' ; r' ; $ ; ` ; é ; timestamp('2026-05-04T10:00:00Z') ; duration('1h') ;
    default( ; has( ; toJson( ; parseJson( ; .matches('[a-z]+') ; .substring(1) ; .sort() ; .distinct() ;
    .reverse() ; min( ; round( ; string( ; {{ input.a }} ; text
"""
BODIES = r"""
    a ; b ; a == b ; b > 3 ; [a, b] ; a + b ; string(b) ; input.l ; input.l + input.l ; input.l == input.l ;
    b in input.l ; input.t.contains('zz') ; b.c ; default(b.c, 1) ; toJson(input.l) ; input.l.sort() ;
    input.l.distinct() ; input.t + input.t ; input.t.split('a') ; input.t.matches('[ab]*a[ab]{20}c') ;
    input.t.replace('a', 'bb') ; range(b) ; sum(input.l) ; {'k': b}
"""


def examples(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )


def one_of(*sources: str) -> st.SearchStrategy[str]:
    return st.sampled_from(sources)


def one_in(sources: str) -> st.SearchStrategy[str]:
    return one_of(*(source.strip() for source in sources.split(" ;")))


def joined(template: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Sources made by putting parts in the place of each `_`."""
    pieces = template.split("_")
    return st.tuples(*parts).map(
        lambda found: pieces[0] + "".join(part + rest for part, rest in zip(found, pieces[1:], strict=True))
    )


def sources(depth: int) -> st.SearchStrategy[str]:
    """Well-formed expressions of any type, with mistakes of kind and missing fields among them."""
    if depth == 0:
        return one_in(LEAVES)
    part = sources(depth - 1)
    operator = one_of("+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "in", "&&", "||")
    name = one_of("x", "y")
    return st.one_of(
        one_in(LEAVES),
        joined("(_ _ _)", part, operator, part),
        joined("(_ _ _ _ _)", part, operator, part, operator, part),
        joined("(_ ? _ : _)", part, part, part),
        joined("!(_)", part),
        joined("-(int(_))", part),  # the library negates true as well
        joined("[_, _]", part, part),
        joined("{'x': _, 'y': _}", part, part),
        joined("_[_]", part, part),
        joined("_.x", part),
        joined("has(_.x)", part),
        joined("size(_)", part),
        joined("int(_)", part),
        joined("double(_)", part),
        joined("(_)._(_)", part, one_of("contains", "startsWith", "endsWith"), part),
        joined("(_)._(_, _)", part, one_of("map", "filter", "all", "exists", "existsOne"), name, part),
        joined("(_).map(_, _, _)", part, name, part, part),
    )


def is_json(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(is_json, value.values()))
    return value is None or isinstance(value, bool | int | str)


def same(left: Any, right: Any) -> bool:
    """Equal, with the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    return bool(left == right)


def checked(error: ExpressionError) -> str:
    """The reason of an error that is as it should be: documented, short, printable, no bug caught by the last net."""
    assert error.reason in REASONS
    assert error.__cause__ is None, repr(error.__cause__)
    assert 0 < len(error.message) < 1000
    error.message.encode()
    return error.reason


def outcome(source: str, variables: dict[str, Any]) -> tuple[bool, Any]:
    """(True, the result) or (False, the reason). Anything but ExpressionError fails the test."""
    try:
        value = compile_expression(source).evaluate(variables)
    except ExpressionError as error:
        return False, checked(error)
    assert is_json(value)
    return True, value


@examples(200)
@given(sources(3))
def test_results_are_those_of_cel(source: str) -> None:
    succeeded, value = outcome(source, VARIABLES)
    try:
        expected = cel.compile(source).execute(VARIABLES)
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError):
        return  # What CEL refuses may have a meaning here, as 1 + 1.0 has.
    if value == "EXPRESSION_UNKNOWN_NAME" or not is_json(expected):
        return  # Here names are checked even where they are not reached, and results are JSON.
    assert succeeded or "/" in source, (expected, value)  # 1.0 / 0.0 fails here; there it is infinite
    if succeeded:
        assert same(value, expected), (expected, value)


@examples(200)
@given(
    st.one_of(
        st.lists(one_in(TOKENS), max_size=30).map("".join),
        st.lists(one_in(TOKENS), max_size=30).map(" ".join),
        st.text(max_size=60),
    )
)
def test_any_text_is_an_expression_or_an_expression_error(source: str) -> None:
    outcome(source, VARIABLES)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abxy", max_size=2), inner, max_size=4),
    max_leaves=12,
)


@examples(250)
@given(one_in(CALLS), json_like, json_like)
def test_no_value_makes_a_function_fail_otherwise(source: str, v: Any, w: Any) -> None:
    outcome(f"[input.v].map(v, [input.w].map(w, {source}))", {"input": {"v": v, "w": w}})


storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=10)
storable_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | storable_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(storable_text, inner, max_size=5),
)


@examples(100)
@given(storable_json)
def test_data_passes_through_templates_unchanged(value: Any) -> None:
    template = compile_template({"alone": "{{ input.v }}", "listed": ["{{ [input.v] }}", 1]})
    assert same(template.render({"input": {"v": value}}), {"alone": value, "listed": [[value], 1]})


@examples(200)
@given(st.text("{} \"'ainput.v|\\\n", max_size=40))
def test_text_that_looks_like_a_template_stays_text(text: str) -> None:
    template = compile_template(["{{ input.v }}", "<{{ input.v }}|{{ input.v + '' }}>"])
    assert template.render({"input": {"v": text}}) == [text, f"<{text}|{text}>"]


@examples(200)
@given(st.lists(one_in(TOKENS), max_size=15).map("".join))
def test_any_text_is_a_template_or_template_errors(text: str) -> None:
    try:
        compile_template({"t": text}).render(VARIABLES)
    except TemplateErrors as errors:
        found = errors.errors
    except ExpressionError as error:
        found = [("t", error)]
    else:
        return
    assert {path for path, _ in found} == {"t"}
    for _, error in found:
        checked(error)


@examples(40)
@given(st.lists(one_of("map", "filter", "all", "exists", "exists_one"), max_size=4), one_in(BODIES), one_in(BODIES))
@pytest.mark.timeout(50)
def test_the_work_of_any_nest_of_macros_is_bounded(macros: list[str], inner: str, outer: str) -> None:
    source = inner
    for depth, name in enumerate(macros):
        source = f"input.l.{name}({'ab'[depth % 2]}, {source})"
    expression = compile_expression(f"[1].map(a, [1].map(b, [{source}, {outer}]))")
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        expression.evaluate({"input": {"l": list(range(3000)), "t": "ab" * 5000}})
    except ExpressionError as error:
        checked(error)
    finally:
        sys.setprofile(None)
    assert calls <= 3 * MAX_WORK
