"""Templates: JSON values whose strings may hold `{{ expression }}`.

    compile_template({"n": 1, "q": "{{ input.q }}"}).render({"input": {"q": "hi"}})  ==  {"n": 1, "q": "hi"}

Templates come from definitions only. Values are inserted after parsing and never parsed again, so `{{ … }}` in the text
of a webhook or a model stays text. A literal `{{` is written `{{ "{{" }}`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from services.kit.cel.conversions import to_json
from services.kit.cel.errors import ExpressionError, Failure, Refusal, sentence_of
from services.kit.cel.evaluation import Frame
from services.kit.cel.results import Allowance
from services.kit.cel.tokens import find_end, syntax_error
from services.kit.expressions import CONTEXT_NAMES, Expression, References, compile_expression
from services.kit.strict_json import MAX_DEPTH

__all__ = ["Template", "TemplateErrors", "compile_template", "contains_template"]

MAX_ERRORS = 100
"""Errors that one template reports; a definition full of them is not made better by more."""

_NO_REFERENCES = References()
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_Render = Callable[[Frame, Allowance], Any]


class TemplateErrors(Exception):
    """Everything that is wrong with a template: pairs of a JSON path, such as `rows[0].text`, and the error there."""

    def __init__(self, errors: list[tuple[str, ExpressionError]]) -> None:
        super().__init__("; ".join(f"{path or 'the value'}: {error.message}" for path, error in errors))
        self.errors = errors


class Template:
    """A compiled template. Immutable, and safe to share between threads."""

    __slots__ = ("_render", "is_literal", "references")

    def __init__(self, render: _Render, references: References, *, is_literal: bool) -> None:
        self._render = render
        self.references = references
        """What all its expressions read together."""
        self.is_literal = is_literal
        """Without expressions: rendering gives back the very value that was compiled."""

    def render(self, variables: Mapping[str, Any]) -> Any:
        """The value with every expression replaced by its result. `variables` as for `Expression.evaluate`.

        Parts without expressions are not copied but shared with the compiled value, and results may share parts with
        the variables: what is rendered must not be changed. All expressions share the bounds of one (steps, size of
        the result), so rendering is bounded however many there are.

        Raises ExpressionError for the first expression that fails.
        """
        return self._render(Frame(variables), Allowance())


def contains_template(text: str) -> bool:
    """Whether a string is more than literal text."""
    return "{{" in text


def compile_template(value: Any, *, names: frozenset[str] = CONTEXT_NAMES, path: str = "") -> Template:
    """Compile a JSON value. `names` as for `compile_expression`; `path` is put before the paths of errors.

    A string that is exactly one expression, with nothing around it, takes the result with its type. Otherwise the parts
    are joined: text as it is, null as nothing, true and false as words, numbers, lists and maps as JSON. Keys are never
    templates.

    Raises TemplateErrors with all errors at once, at most MAX_ERRORS.
    """
    compiler = _Compiler(names)
    render = compiler.compile(value, path, 1)
    if compiler.errors:
        raise TemplateErrors(compiler.errors)
    if render is None:
        return Template(lambda _frame, _allowance: value, _NO_REFERENCES, is_literal=True)
    return Template(render, compiler.references, is_literal=False)


class _Compiler:
    def __init__(self, names: frozenset[str]) -> None:
        self.errors: list[tuple[str, ExpressionError]] = []
        self._found: list[References] = []
        self._names = names

    @property
    def references(self) -> References:
        """What all expressions read."""
        return References.union(self._found)

    def compile(self, value: Any, path: str, depth: int) -> _Render | None:
        """How to render a value; None when it is literal."""
        if depth > MAX_DEPTH:
            problem = f"The value nests deeper than {MAX_DEPTH} levels."
            self._wrong(path, ExpressionError("EXPRESSION_TOO_COMPLEX", problem))
            return None
        if isinstance(value, str):
            return self._text(value, path) if "{{" in value else None
        if isinstance(value, dict):
            return self._map(value, path, depth)
        if isinstance(value, list):
            return self._list(value, path, depth)
        return None

    def _map(self, value: dict[str, Any], path: str, depth: int) -> _Render | None:
        parts: list[tuple[str, _Render]] = []
        for key, child in value.items():
            place = _below(path, key)
            if "{{" in key:
                problem = "A key cannot be a template; build the map in an expression: `{{ {input.key: 1} }}`."
                self._wrong(place, ExpressionError("EXPRESSION_SYNTAX", problem))
            render = self.compile(child, place, depth + 1)
            if render is not None:
                parts.append((key, render))
        if not parts:
            return None

        def render_map(frame: Frame, allowance: Allowance) -> dict[str, Any]:
            # A copy keeps the order of keys; only the values that are templates are replaced.
            result = value.copy()
            for key, render in parts:
                result[key] = render(frame, allowance)
            return result

        return render_map

    def _list(self, value: list[Any], path: str, depth: int) -> _Render | None:
        parts: list[tuple[int, _Render]] = []
        for index, child in enumerate(value):
            render = self.compile(child, f"{path}[{index}]", depth + 1)
            if render is not None:
                parts.append((index, render))
        if not parts:
            return None

        def render_list(frame: Frame, allowance: Allowance) -> list[Any]:
            result = value.copy()
            for index, render in parts:
                result[index] = render(frame, allowance)
            return result

        return render_list

    def _text(self, text: str, path: str) -> _Render | None:
        parts = self._parts(text, path)
        if len(parts) == 1 and isinstance(parts[0], Expression):
            return parts[0].evaluate_within

        def render_text(frame: Frame, allowance: Allowance) -> str:
            pieces = [part if isinstance(part, str) else _piece(part, frame, allowance) for part in parts]
            return "".join(pieces)

        return render_text

    def _parts(self, text: str, path: str) -> list[str | Expression]:
        parts: list[str | Expression] = []
        position = 0
        while (start := text.find("{{", position)) >= 0:
            if start > position:
                parts.append(text[position:start])
            try:
                end = find_end(text, start + 2)
                if end < 0:
                    raise syntax_error(
                        'The `{{` has no `}}` that closes it. Braces that are meant as text are written `{{ "{{" }}`.',
                        text,
                        start,
                    )
            except ExpressionError as error:
                # Where this expression ends is unknown, so the rest of the text cannot be read.
                self._wrong(path, error)
                return parts
            self._expression(text[start + 2 : end].strip(" \t\r\n\f"), path, parts)
            position = end + 2
        if position < len(text):
            parts.append(text[position:])
        return parts

    def _expression(self, source: str, path: str, parts: list[str | Expression]) -> None:
        try:
            expression = compile_expression(source, names=self._names)
        except ExpressionError as error:
            self._wrong(path, error)
            return
        self._found.append(expression.references)
        parts.append(expression)

    def _wrong(self, path: str, error: ExpressionError) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append((path, error))


def _piece(expression: Expression, frame: Frame, allowance: Allowance) -> str:
    """The result of an expression as a part of a text."""
    value = expression.evaluate_within(frame, allowance)
    if type(value) is str:
        return value
    if value is None:
        return ""
    if type(value) is bool:
        return "true" if value else "false"
    try:
        # Counted again, as text: escaping makes it longer.
        return str(allowance.take(to_json(frame, value)))
    except Failure as failure:
        raise ExpressionError("EXPRESSION_FAILED", sentence_of(failure.sentence())) from None
    except Refusal as refusal:
        raise ExpressionError(refusal.reason, refusal.sentence) from None


def _below(path: str, key: str) -> str:
    if not _PLAIN_KEY.fullmatch(key):
        escaped = key.replace("\\", "\\\\").replace('"', '\\"')
        return f'{path}["{escaped}"]'
    return f"{path}.{key}" if path else key
