"""What expressions mean, what they refer to, and what people are told."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from services.kit.expressions import CONTEXT_NAMES, ExpressionError, References, compile_expression

VARIABLES: dict[str, Any] = {
    "input": {
        "name": "Ada",
        "price": 9.99,
        "count": 3,
        "tags": ["a", "b", "a"],
        "nothing": None,
        "my-key": 1,
        "rows": [{"id": "1", "score": 0.2}, {"id": "2", "score": 0.9}],
        "user": {"email": "ada@example.org"},
        "created": "2026-05-04T10:00:00+02:00",
    },
    "nodes": {
        "search": {"status": "succeeded", "output": {"results": [{"text": "x"}]}},
        "my-node": {"status": "succeeded", "output": 7},
        "skipped": {"status": "skipped"},
    },
}


def evaluate(source: str) -> Any:
    return compile_expression(source).evaluate(VARIABLES)


def failure(source: str) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        evaluate(source)
    return caught.value


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("input.name", "Ada"),
        ('input["my-key"]', 1),
        ('nodes["my-node"].output + 1', 8),
        ("nodes.search.output.results[0].text", "x"),
        ("input.rows[1.0].id", "2"),
        ("1 + 2 * 3 - -4", 11),
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("-7 % 3", -1),
        ("1 - 2 - 3", -4),
        ("input.count * input.price", 29.97),
        ("1 == 1.0", True),
        ("true == 1", False),
        ("[1, [2]] == [1.0, [2]]", True),
        ('{"a": 1} == {"a": 1.0}', True),
        ("1 < 2.5 && 'a' < 'b'", True),
        ("!!true", True),
        ("--5", 5),
        ("-9223372036854775808", -(2**63)),
        ("0x1F + 1e2", 131.0),
        ("'a' + \"b\" + '''c''' + r'\\d' + '\\u00e9\\n'", "abc\\dé\n"),
        ("true ? 1 : false ? 2 : 3", 1),
        ("false ? 1 : false ? 2 : 3", 3),
        ("1 in [1.0, 2]", True),
        ("'name' in input", True),
        ("[1, 2,]", [1, 2]),
        ('{"a": {"b": [1]},}', {"a": {"b": [1]}}),
        ("1 + // a comment\n 1", 2),
        ("has(input.name) && !has(input.nope)", True),
        ("has(nodes.skipped.output)", False),
        ("has(input.nope.deeper)", False),
        ('has(input["my-key"])', True),
        ("default(input.nope.deeper, 'x')", "x"),
        ("default(input.nothing, 'x')", "x"),
        ("default(input.nothing.field, 'x')", "x"),
        ("default(nodes.skipped.output, nodes.search.output).results.size()", 1),
        ("input.rows.filter(r, r.score > 0.5).map(r, r.id)", ["2"]),
        ("input.rows.map(r, r.score > 0.5, r.id)", ["2"]),
        ("input.rows.all(r, has(r.id)) && input.rows.exists(r, r.id == '1')", True),
        ("input.rows.exists_one(r, r.score > 0.5)", True),
        ("input.rows.map(r, input.rows.map(q, r.id + q.id))", [["11", "12"], ["21", "22"]]),
        ("[1, 2].map(x, [10, 20].map(x, x + 1).size() + x)", [3, 4]),
        ("[[1, 2], [3]].map(x, x.map(x, [x].map(y, x * y)))", [[[1], [4]], [[9]]]),
        ("input.user.map(key, key)", ["email"]),
        ("input.rows.map(item, item.id)", ["1", "2"]),
    ],
)
def test_expressions_mean_what_cel_says(source: str, value: Any) -> None:
    result = evaluate(source)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("size('é') + size([1]) + input.user.size()", 3),
        ("' aBc '.trim().lower() + 'x'.upper()", "abcX"),
        ("'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo')", True),
        ("'hello'.indexOf('l')", 2),
        ("'hello'.substring(1, 3) + 'hello'.substring(3, 99)", "ello"),
        ("'a-b-c'.replace('-', '+')", "a+b+c"),
        ("'a,b'.split(',') + 'ab'.split('')", ["a", "b", "a", "b"]),
        ("['a', 'b'].join('-') + ['a'].join()", "a-ba"),
        ("'abc'.reverse() + string([1, 2].reverse()[0])", "cba2"),
        ("input.user.email.matches('^[a-z]+@[a-z.]+$')", True),
        ("'straße'.matches('(?i)STRASSE|STRAßE')", True),
        ("[1, 2, 3].slice(1, 9)", [2, 3]),
        ("[1, 2].first() + [1, 2].last()", 3),
        ("default([].first(), 0)", 0),
        ("[3, 1.5, 2].sort()", [1.5, 2, 3]),
        ("['b', 'a'].sort()", ["a", "b"]),
        ("[1, true, 1.0, 'a', 'a', [1], [1], null, null].distinct()", [1, True, "a", [1], None]),
        ("[[1], 2, [[3]]].flatten()", [1, 2, [3]]),
        ("range(3).map(i, i * i)", [0, 1, 4]),
        ("keys(input.user) + values(input.user)", ["email", "ada@example.org"]),
        ("merge({'a': 1, 'b': 1}, {'b': 2})", {"a": 1, "b": 2}),
        ("[min(3, 1, 2), max([1, 2]), sum([1, 2]), abs(-1)]", [1, 2, 3, 1]),
        ("sum([0.1, 0.2, 0.3])", 0.6),
        ("[round(2.5), round(-2.5), ceil(1.2), floor(-1.2), round(7)]", [3, -3, 2, -2, 7]),
        ("round(2.345, 1)", 2.3),
        ("[int('42'), int(3.9), int(-3.9)]", [42, 3, -3]),
        ("double('1.5') + double(1)", 2.5),
        ("[string(1), string(1.0), string(0.5), string(true), string('a')]", ["1", "1", "0.5", "true", "a"]),
        ("bool('true') && !bool('0')", True),
        ("type(1) == int && type('') == string && type(null) == null_type && type([]) != map", True),
        ("type(1.0)", "double"),
        ('toJson({"a": [1, null, 1.5, "é"]})', '{"a":[1,null,1.5,"é"]}'),
        ("parseJson('{\"a\": [1, 2.0]}').a", [1, 2.0]),
        ("urlEncode('a b/c?é&') + urlEncode(1)", "a%20b%2Fc%3F%C3%A9%261"),
        ("timestamp(input.created)", "2026-05-04T10:00:00+02:00"),
        ("timestamp('2026-05-04T10:00:00Z') + duration('1h30m')", "2026-05-04T11:30:00Z"),
        ("timestamp(input.created) == timestamp('2026-05-04T08:00:00Z')", True),
        ("timestamp('2026-05-04T10:00:00Z') - timestamp('2026-05-04T09:59:58.5Z')", 1.5),
        ("[duration('90s'), duration('-1.5h'), duration('250ms')]", [90, -5400, 0.25]),
        ("string(duration('1h')) + string(timestamp(0))", "3600s1970-01-01T00:00:00Z"),
        ("int(timestamp(input.created))", 1777881600),
        ("timestamp(input.created).getHours() + timestamp(input.created).getHours('+02:00') * 100", 1008),
        (
            "[timestamp('2026-05-04T10:00:00Z')].map(t, [getFullYear(t), getMonth(t), getDate(t), getDayOfWeek(t)])[0]",
            [2026, 4, 4, 1],
        ),
        ("duration('90m').getHours() * 100 + duration('90m').getMinutes()", 190),
    ],
)
def test_functions(source: str, value: Any) -> None:
    result = evaluate(source)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("false && 1 / 0 > 0", False),
        ("1 / 0 > 0 && false", False),
        ("1 / 0 > 0 || true", True),
        ("[0, 1].exists(x, 1 / x > 0)", True),
        ("[0, 1].all(x, 1 / x > 5)", False),
    ],
)
def test_what_is_decided_does_not_fail(source: str, value: bool) -> None:
    assert evaluate(source) is value


@pytest.mark.parametrize(
    "source", ["true && 1 / 0 > 0", "false || 1 / 0 > 0", "[0, 1].all(x, 1 / x > 0)", "[0].exists(x, 1 / x > 0)"]
)
def test_what_is_not_decided_fails(source: str) -> None:
    assert failure(source).reason == "EXPRESSION_FAILED"


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        ("", "EXPRESSION_SYNTAX", "empty"),
        ("input.a +", "EXPRESSION_SYNTAX", "ends"),
        ("input.a = 1", "EXPRESSION_SYNTAX", "`==`"),
        ("input.a and true", "EXPRESSION_SYNTAX", "`&&`"),
        ("${input.a}", "EXPRESSION_SYNTAX", "without `$`"),
        ("'abc", "EXPRESSION_SYNTAX", "closing quote"),
        ("(1", "EXPRESSION_SYNTAX", "`)`"),
        ("input.a\n  + )", "EXPRESSION_SYNTAX", "line 2, column 5"),
        ("b'a'", "EXPRESSION_SYNTAX", "Bytes"),
        ("1u", "EXPRESSION_SYNTAX", "Unsigned"),
        ("'\\ud800'", "EXPRESSION_SYNTAX", "no Unicode character"),
        ("99999999999999999999", "EXPRESSION_SYNTAX", "64 bits"),
        ("{1: 2}", "EXPRESSION_SYNTAX", "keys of a map are text"),
        ("{'a': 1, 'a': 2}", "EXPRESSION_SYNTAX", "twice"),
        ("size()", "EXPRESSION_SYNTAX", "1 value"),
        ("[1].map(x)", "EXPRESSION_SYNTAX", "list.map(x, value)"),
        ("[1].map(input.x, 1)", "EXPRESSION_SYNTAX", "plain name"),
        ("has(input)", "EXPRESSION_SYNTAX", "has(input.name)"),
        ("'a'.matches(input.pattern)", "EXPRESSION_SYNTAX", "literal"),
        ("'a'.matches('(')", "EXPRESSION_SYNTAX", "unclosed group"),
        ("'a'.matches('(?=a)')", "EXPRESSION_SYNTAX", "look-around"),
        ("inputs.a", "EXPRESSION_UNKNOWN_NAME", "Did you mean `input`?"),
        ("search.output", "EXPRESSION_UNKNOWN_NAME", "`nodes.search.output`"),
        ("nodes.my-node.output", "EXPRESSION_UNKNOWN_NAME", '`nodes["my-key"]`'),
        ("secrets.key", "EXPRESSION_UNKNOWN_NAME", "index, input, item, nodes, project, run, state"),
        ("[1].map(x, x) + [x]", "EXPRESSION_UNKNOWN_NAME", "`x`"),
        ("'A'.toLowerCase()", "EXPRESSION_UNKNOWN_NAME", "Did you mean `lower`?"),
        ("__import__('os')", "EXPRESSION_UNKNOWN_NAME", "no function"),
        ("input.constructor()", "EXPRESSION_UNKNOWN_NAME", "no function"),
        ("now()", "EXPRESSION_UNKNOWN_NAME", "repeated"),
        ("input.nam", "EXPRESSION_FAILED", "`input` has no `nam`; did you mean `name`?"),
        ("input.user.age", "EXPRESSION_FAILED", "it has `email`"),
        ("input.nothing.x", "EXPRESSION_FAILED", "`input.nothing` is null"),
        ("input.tags[3]", "EXPRESSION_FAILED", "has 3 items"),
        ("input.tags[-1]", "EXPRESSION_FAILED", "counted from 0"),
        ("input.tags.name", "EXPRESSION_FAILED", "is a list"),
        ("input.name.__class__", "EXPRESSION_FAILED", "has no fields"),
        ("input.name[0]", "EXPRESSION_FAILED", "has no fields"),
        ("item.id", "EXPRESSION_FAILED", "only in the body of a map"),
        ("'a' + 1", "EXPRESSION_FAILED", "`string(x)`"),
        ("input.nothing + 1", "EXPRESSION_FAILED", "`default(x, 0)`"),
        ("'a' < 1", "EXPRESSION_FAILED", "cannot be compared"),
        ("true < 1", "EXPRESSION_FAILED", "cannot be compared"),
        ("'a' in 'abc'", "EXPRESSION_FAILED", "contains"),
        ("input.count ? 1 : 2", "EXPRESSION_FAILED", "true or false"),
        ("input.count && true", "EXPRESSION_FAILED", "true or false"),
        ("input.tags.filter(x, x)", "EXPRESSION_FAILED", "The condition of `filter`"),
        ("input.name.map(x, x)", "EXPRESSION_FAILED", "macros run over a list"),
        ("1 / 0", "EXPRESSION_FAILED", "division by zero"),
        ("1.0 / 0.0", "EXPRESSION_FAILED", "division by zero"),
        ("5 % 0", "EXPRESSION_FAILED", "division by zero"),
        ("5.5 % 2", "EXPRESSION_FAILED", "whole numbers"),
        ("9223372036854775807 + 1", "EXPRESSION_FAILED", "64 bits"),
        ("-9223372036854775808 / -1", "EXPRESSION_FAILED", "64 bits"),
        ("-(-9223372036854775808)", "EXPRESSION_FAILED", "64 bits"),
        ("int(1e300)", "EXPRESSION_FAILED", "64 bits"),
        ("1e308 * 10.0", "EXPRESSION_FAILED", "infinite"),
        ("int('x')", "EXPRESSION_FAILED", "no whole number"),
        ("double('nan')", "EXPRESSION_FAILED", "no number"),
        ("string([1])", "EXPRESSION_FAILED", "toJson"),
        ("{input.name: 1, 'Ada': 2}", "EXPRESSION_FAILED", "twice"),
        ("timestamp('yesterday')", "EXPRESSION_FAILED", "2026-05-04T10:00:00Z"),
        ("timestamp('2026-02-30T10:00:00Z')", "EXPRESSION_FAILED", "no timestamp"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1h')", "EXPRESSION_FAILED", "years 1 to 9999"),
        ("timestamp(input.created).getHours('Europe/Berlin')", "EXPRESSION_FAILED", "offset"),
        ("duration('5')", "EXPRESSION_FAILED", "1h30m"),
        ("parseJson('{')", "EXPRESSION_FAILED", "not JSON"),
        ("'\\x00'", "EXPRESSION_FAILED", "NUL"),
        ("[1, 'a'].sort()", "EXPRESSION_FAILED", "only numbers"),
    ],
)
def test_people_are_told_what_is_wrong_and_what_to_do(source: str, reason: str, words: str) -> None:
    error = failure(source)
    assert error.reason == reason
    assert words in error.message
    assert error.__cause__ is None


def test_errors_do_not_repeat_values() -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression("int(input.pin)").evaluate({"input": {"pin": "s3cret"}})
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("source", "names", "nodes", "all_nodes"),
    [
        ("1 + 1", set(), set(), False),
        ("input.a + index", {"input", "index"}, set(), False),
        ('nodes.a.output + nodes["b-c"].output', {"nodes"}, {"a", "b-c"}, False),
        ("has(nodes.a.output) && has(nodes.b)", {"nodes"}, {"a", "b"}, False),
        ("nodes.a.output[nodes.b.output].c", {"nodes"}, {"a", "b"}, False),
        ("default(nodes.a.output, 1)", {"nodes"}, {"a"}, False),
        ("nodes[input.x]", {"nodes", "input"}, set(), True),
        ("size(nodes)", {"nodes"}, set(), True),
        ("nodes.map(k, nodes[k])", {"nodes"}, set(), True),
        ("has(nodes[input.x])", {"nodes", "input"}, set(), True),
        ("input.l.map(nodes, nodes.a)", {"input"}, set(), False),
        ("input.l.map(x, nodes.a.output.filter(y, y == x))", {"input", "nodes"}, {"a"}, False),
        ("nodes.a.map(nodes, nodes.b) == nodes.c", {"nodes"}, {"a", "c"}, False),
    ],
)
def test_references(source: str, names: set[str], nodes: set[str], all_nodes: bool) -> None:
    assert compile_expression(source).references == References(frozenset(names), frozenset(nodes), all_nodes)


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("run.vars.mode == project.vars['region']", {"run.vars", "project.vars"}),
        ("has(run.vars.a) && has(run.id)", {"run.vars", "run.id"}),
        ("run[input.x]", {"run"}),
        ("toJson(project)", {"project"}),
        ("input.vars", set()),
    ],
)
def test_fields_that_are_read_of_the_run_and_the_project(source: str, fields: set[str]) -> None:
    found = compile_expression(source).references
    assert found.fields == fields
    assert found.reads("run", "vars") == bool(fields & {"run", "run.vars"})


def test_only_names_that_are_read_are_looked_up() -> None:
    class Recording(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            looked_up.append(name)
            return super().__getitem__(name)

    looked_up: list[str] = []
    assert compile_expression("input.name").evaluate(Recording(VARIABLES)) == "Ada"
    assert looked_up == ["input"]


def test_results_are_shared_not_copied() -> None:
    assert evaluate("input.rows") is VARIABLES["input"]["rows"]


def test_equal_sources_are_compiled_once() -> None:
    assert compile_expression("input.name + 'x'") is compile_expression("input.name + 'x'")


def test_further_names_can_be_allowed() -> None:
    names = CONTEXT_NAMES | {"error", "attempt"}
    assert compile_expression("attempt < 3 && error.reason == 'X'", names=names).evaluate(
        {"attempt": 1, "error": {"reason": "X"}}
    )
    with pytest.raises(ExpressionError, match="`attempt` is not known"):
        compile_expression("attempt < 3 && error.reason == 'X'")


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        float("nan"),
        float("inf"),
        "\ud800",
        {1: 2},
        {"\ud800": 1},
        [b"bytes"],
        {"a": {1, 2}},
        datetime.fromisoformat("2026-01-01"),
        "\x00",
    ],
)
def test_values_that_are_no_json_do_not_get_through(value: Any) -> None:
    for variables in ({"input": value}, {"input": [value]}, {"input": {"a": [value]}}):
        with pytest.raises(ExpressionError) as caught:
            compile_expression("input").evaluate(variables)
        assert caught.value.reason == "EXPRESSION_FAILED"
        assert caught.value.__cause__ is None
        caught.value.message.encode()


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, -(2**63), 1.5, "é😀", None, True, [], {}, {"": [[[{}]]]}])
def test_json_gets_through_unchanged(value: Any) -> None:
    assert compile_expression("input").evaluate({"input": value}) == value
    assert compile_expression("[input, input][1]").evaluate({"input": value}) == value
