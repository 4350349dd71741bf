"""How templates are read and rendered."""

from __future__ import annotations

from typing import Any

import pytest

from services.kit.expressions import MAX_RESULT_BYTES, ExpressionError, References
from services.kit.templates import TemplateErrors, compile_template, contains_template

VARIABLES: dict[str, Any] = {
    "input": {
        "q": "hi",
        "n": 3,
        "half": 0.5,
        "whole": 2.0,
        "list": [1, "a"],
        "map": {"é": None},
        "nothing": None,
        "yes": True,
    },
    "nodes": {"a": {"output": {"text": "out"}}},
}


def render(template: Any) -> Any:
    return compile_template(template).render(VARIABLES)


def errors(template: Any) -> list[tuple[str, str]]:
    with pytest.raises(TemplateErrors) as caught:
        compile_template(template)
    return [(path, error.reason) for path, error in caught.value.errors]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ input.n }}", 3),
        ("{{input.list}}", [1, "a"]),
        ("{{ input.nothing }}", None),
        ("{{\n input.yes\n}}", True),
        (" {{ input.n }}", " 3"),
        ("a {{ input.q }} b {{ input.n }}{{ input.half }}", "a hi b 30.5"),
        ("<{{ input.nothing }}|{{ input.yes }}|{{ false }}|{{ input.whole }}>", "<|true|false|2.0>"),
        ("{{ input.list }}{{ input.map }}", '[1,"a"]{"é":null}'),
        ('{{ {"a": {"b": 1}} }}', {"a": {"b": 1}}),
        ('{{{"a": {"b": 1}}}}', {"a": {"b": 1}}),
        ('{{ {"a": {"b": 1}}.a.b }}!', "1!"),
        ("{{ '}}' }}", "}}"),
        ('{{ "{{" }}', "{{"),
        ('Write {{ "{{" }} name }} here', "Write {{ name }} here"),
        ("{{ '{{ input.q }}' }}", "{{ input.q }}"),
        ("{{ r'}}\\' + \"'\" }}", "}}\\'"),
        ("{{ '''}}''' }}", "}}"),
        ("{{ [1, 2].map(x, {'k': x}) }}", [{"k": 1}, {"k": 2}]),
        ("{{ input.n // three }}\n}}", 3),
        ("no braces } { }} {", "no braces } { }} {"),
        ("{{ input.q }} }}", "hi }}"),
        ("", ""),
    ],
)
def test_strings(template: str, value: Any) -> None:
    result = render(template)
    assert result == value
    assert type(result) is type(value)


def test_whole_trees_keep_their_shape_and_order() -> None:
    template = {
        "z": 1,
        "q": "{{ input.q }}",
        "list": [None, "{{ input.n }}", {"deep": "x{{ input.n }}"}],
        "a": {"b": [True]},
    }
    assert render(template) == {"z": 1, "q": "hi", "list": [None, 3, {"deep": "x3"}], "a": {"b": [True]}}
    assert list(render(template)) == ["z", "q", "list", "a"]


def test_literal_parts_are_shared_and_the_template_is_not_changed() -> None:
    template = {"q": "{{ input.q }}", "literal": {"a": [1]}}
    compiled = compile_template(template)
    assert compiled.render(VARIABLES)["literal"] is template["literal"]
    assert template["q"] == "{{ input.q }}"
    assert not compiled.is_literal


@pytest.mark.parametrize("value", [None, 1, "text", [], {"a": ["b", {"c": None}]}])
def test_literal_values_render_as_themselves(value: Any) -> None:
    compiled = compile_template(value)
    assert compiled.is_literal
    assert compiled.references == References()
    assert compiled.render({}) is value


def test_references_are_those_of_all_expressions() -> None:
    compiled = compile_template({"a": "{{ nodes.a.output }}", "b": ["x {{ input.q }} {{ nodes.b.output }}"]})
    assert compiled.references == References(frozenset({"nodes", "input"}), frozenset({"a", "b"}), False)


@pytest.mark.parametrize(
    "text",
    ["{{ input.q }}", "{{ secrets.x }}", "{{{{a}}}}", "{{", "}}", '{{ "{{" }}', "${x}", "{% x %}", "\\{{ input.n }}"],
)
def test_inserted_text_is_never_parsed_again(text: str) -> None:
    variables = {"input": {"q": text, "n": 1}, "nodes": {"llm": {"output": {"text": text}}}}
    template = {
        "alone": "{{ input.q }}",
        "joined": "a{{ input.q }}b{{ nodes.llm.output.text }}",
        "made": "{{ '{' + '{ input.n }}' }}",
    }
    rendered = compile_template(template).render(variables)
    assert rendered == {"alone": text, "joined": f"a{text}b{text}", "made": "{{ input.n }}"}


def test_all_errors_are_reported_with_their_paths() -> None:
    template = {
        "url": "https://x/{{ inputt.a }}/{{ input.b + }}",
        "rows": [{"ok": "{{ input.q }}"}, {"my key": "{{ foo(1) }}"}],
        "{{ key }}": 1,
        "open": "{{ input.q",
        "empty": "{{ }}",
    }
    assert errors(template) == [
        ("url", "EXPRESSION_UNKNOWN_NAME"),
        ("url", "EXPRESSION_SYNTAX"),
        ('rows[1]["my key"]', "EXPRESSION_UNKNOWN_NAME"),
        ('["{{ key }}"]', "EXPRESSION_SYNTAX"),
        ("open", "EXPRESSION_SYNTAX"),
        ("empty", "EXPRESSION_SYNTAX"),
    ]


def test_paths_start_where_the_caller_says() -> None:
    with pytest.raises(TemplateErrors) as caught:
        compile_template({"a": ["{{ x }}"]}, path="nodes[2].config")
    assert caught.value.errors[0][0] == "nodes[2].config.a[0]"


def test_a_comment_that_hides_the_end_is_an_error() -> None:
    assert errors("{{ input.q // }}") == [("", "EXPRESSION_SYNTAX")]


def test_errors_are_bounded() -> None:
    assert len(errors(["{{ x }}"] * 1000)) == 100


def test_deep_templates_are_refused() -> None:
    template: Any = "{{ input.q }}"
    for _ in range(5000):
        template = [template]
    assert [reason for _, reason in errors(template)] == ["EXPRESSION_TOO_COMPLEX"]


def test_the_first_failing_expression_ends_rendering() -> None:
    with pytest.raises(ExpressionError) as caught:
        render({"a": "{{ input.q }}", "b": "x {{ input.missing }}"})
    assert caught.value.reason == "EXPRESSION_FAILED"
    assert "`input` has no `missing`" in caught.value.message


def test_all_expressions_of_a_template_share_the_bounds_of_one() -> None:
    compiled = compile_template(["{{ input.l.map(x, x + 1).size() }}"] * 100)
    assert compiled.render({"input": {"l": [1] * 10}}) == [10] * 100
    with pytest.raises(ExpressionError) as work:
        compiled.render({"input": {"l": [1] * 5000}})
    assert work.value.reason == "EXPRESSION_TOO_COMPLEX"
    with pytest.raises(ExpressionError) as size:
        compile_template(["{{ input.t }}"] * 3).render({"input": {"t": "x" * (MAX_RESULT_BYTES // 2)}})
    assert size.value.reason == "EXPRESSION_OUTPUT_TOO_LARGE"


def test_contains_template() -> None:
    assert contains_template("a {{ input.q }}")
    assert not contains_template("a { b } }}")
