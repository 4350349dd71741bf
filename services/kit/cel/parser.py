"""Tokens to tree. Linear in the source; recursion only where the source nests, and that is bounded."""

import re

from services.kit.cel.errors import ExpressionError, excerpt
from services.kit.cel.syntax import Access, Call, Chain, Choice, ListOf, Literal, MapOf, Name, Node, Unary
from services.kit.cel.tokens import Token, syntax_error, text_of, tokenize

MAX_SOURCE_LENGTH = 4096
"""Characters of one expression."""

MAX_NESTING = 32
"""Levels of brackets of all kinds: (), [], {}, calls."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_PRECEDENCE = {
    "||": 1,
    "&&": 2,
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "!=", "in"), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/", "%"), 5),
}
_CONSTANTS = {"true": True, "false": False, "null": None}
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_WORD_HINTS = {"and": "&&", "or": "||", "not": "!", "is": "=="}


def parse(source: str) -> Node:
    """The tree of an expression. Raises ExpressionError (EXPRESSION_SYNTAX, EXPRESSION_TOO_COMPLEX)."""
    if len(source) > MAX_SOURCE_LENGTH:
        raise ExpressionError(
            "EXPRESSION_TOO_COMPLEX",
            f"The expression has {len(source)} characters, the limit is {MAX_SOURCE_LENGTH}. Split it over several "
            f"`transform` values. It starts with `{excerpt(source)}`.",
        )
    return _path(source) if _PATH.fullmatch(source) else _Parser(source).parse()


def _path(source: str) -> Node:
    """The tree of `name.field.field`, which most expressions are; three times as fast as the parser."""
    first, *fields = source.split(".")
    if first in _CONSTANTS or first == "in":
        return _Parser(source).parse()
    end = len(first)
    node: Node = Name(0, end, first)
    for field in fields:
        start, end = end + 1, end + 1 + len(field)
        node = Access(0, end, node, Literal(start, end, field), dotted=True)
    return node


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = tokenize(source)
        self._next = 0
        self._nesting = 0
        self._token = self._tokens[0]

    def parse(self) -> Node:
        if self._token.kind == "end":
            raise syntax_error("The expression is empty.", self._source, 0)
        node = self._expression()
        if self._token.kind != "end":
            raise self._unexpected("The expression could have ended before this.")
        return node

    def _expression(self) -> Node:
        first = self._binary(1)
        if not self._is("?"):
            return first
        cases: list[tuple[Node, Node]] = []
        condition = first
        while self._is("?"):
            self._advance()
            value = self._binary(1)
            self._expect(":", "`? … : …` needs both its values.")
            cases.append((condition, value))
            condition = self._binary(1)
        return Choice(first.start, condition.end, cases, condition)

    def _binary(self, minimum: int) -> Node:
        left = self._unary()
        while True:
            level = self._precedence()
            if level < minimum:
                return left
            rest: list[tuple[str, Node]] = []
            while self._precedence() == level:
                operator = self._advance().text
                rest.append((operator, self._binary(level + 1)))
            left = Chain(left.start, rest[-1][1].end, left, rest)

    def _precedence(self) -> int:
        token = self._token
        return _PRECEDENCE.get(token.text, 0) if token.kind in {"operator", "name"} else 0

    def _unary(self) -> Node:
        token = self._token
        if token.kind != "operator" or token.text not in {"!", "-"}:
            return self._postfix(self._primary())
        count = 0
        while self._is(token.text):
            last = self._advance()
            count += 1
        # The sign belongs to the number: -9223372036854775808 has no positive counterpart.
        if token.text == "-" and self._token.kind in {"int", "float"}:
            count -= 1
            operand = self._postfix(self._number(last))
        else:
            operand = self._postfix(self._primary())
        return Unary(token.start, operand.end, token.text, count, operand) if count else operand

    def _postfix(self, node: Node) -> Node:
        while True:
            if self._is("."):
                self._advance()
                field = self._advance()
                if field.kind != "name":
                    raise self._unexpected("A field's name belongs after the dot.", field)
                if self._is("("):
                    arguments, end = self._sequence("(", ")")
                    node = Call(node.start, end, field.text, node, arguments)
                else:
                    key = Literal(field.start, field.end, field.text)
                    node = Access(node.start, field.end, node, key, dotted=True)
            elif self._is("["):
                keys, end = self._sequence("[", "]")
                if len(keys) != 1:
                    raise syntax_error("`[ ]` takes one key or index.", self._source, end - 1)
                node = Access(node.start, end, node, keys[0], dotted=False)
            else:
                return node

    def _primary(self) -> Node:
        token = self._token
        if token.kind in {"int", "float"}:
            return self._number(None)
        if token.kind in {"string", "raw"}:
            self._advance()
            return Literal(token.start, token.end, text_of(token, self._source))
        if token.kind == "name":
            return self._name()
        if self._is("("):
            inner, end = self._sequence("(", ")")
            if len(inner) != 1:
                raise syntax_error("Brackets hold one expression.", self._source, end - 1)
            return inner[0]
        if self._is("["):
            items, end = self._sequence("[", "]", trailing_comma=True)
            return ListOf(token.start, end, items)
        if self._is("{"):
            return self._map()
        if token.kind == "end":
            raise syntax_error("The expression ends where a value is needed.", self._source, token.start)
        raise self._unexpected("A value is needed here.")

    def _name(self) -> Node:
        token = self._advance()
        if token.text in _CONSTANTS:
            return Literal(token.start, token.end, _CONSTANTS[token.text])
        if token.text == "in":
            raise self._unexpected("`in` stands between a value and a list or map.", token)
        if self._is("("):
            arguments, end = self._sequence("(", ")")
            return Call(token.start, end, token.text, None, arguments)
        return Name(token.start, token.end, token.text)

    def _number(self, sign: Token | None) -> Node:
        token = self._advance()
        start = token.start if sign is None else sign.start
        value: int | float
        if token.kind == "float":
            value = float(token.text)
            if value == float("inf"):
                raise syntax_error("The number is too large.", self._source, token.start)
        else:
            # Long runs of digits are refused before int() sees them: it takes quadratic time.
            value = int(token.text, 16 if token.text.startswith("0x") else 10) if len(token.text) <= 32 else INT_MAX + 2
        value = value if sign is None else -value
        if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
            raise syntax_error("Whole numbers have at most 64 bits.", self._source, token.start)
        return Literal(start, token.end, value)

    def _map(self) -> Node:
        start = self._open("{").start
        entries: list[tuple[Node, Node]] = []
        while not self._is("}"):
            key = self._expression()
            self._expect(":", 'A map is written {"name": value, …}.')
            entries.append((key, self._expression()))
            if not self._is(","):
                break
            self._advance()
        return MapOf(start, self._close("}"), entries)

    def _sequence(self, opening: str, closing: str, *, trailing_comma: bool = False) -> tuple[list[Node], int]:
        self._open(opening)
        items: list[Node] = []
        while not self._is(closing):
            items.append(self._expression())
            if not self._is(","):
                break
            comma = self._advance()
            if self._is(closing) and not trailing_comma:
                raise self._unexpected("Something is missing after the comma.", comma)
        return items, self._close(closing)

    def _open(self, bracket: str) -> Token:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise ExpressionError(
                "EXPRESSION_TOO_COMPLEX",
                f"Brackets nest deeper than {MAX_NESTING} levels. Split the expression over several `transform` "
                f"values. It starts with `{excerpt(self._source)}`.",
                position=self._token.start,
            )
        return self._expect(bracket, "")

    def _close(self, bracket: str) -> int:
        self._nesting -= 1
        return self._expect(bracket, f"`{bracket}` or a comma is missing.").end

    def _is(self, operator: str) -> bool:
        return self._token.text == operator and self._token.kind == "operator"

    def _advance(self) -> Token:
        token = self._token
        if token.kind != "end":
            self._next += 1
            self._token = self._tokens[self._next]
        return token

    def _expect(self, operator: str, hint: str) -> Token:
        if not self._is(operator):
            raise self._unexpected(hint)
        return self._advance()

    def _unexpected(self, hint: str, token: Token | None = None) -> ExpressionError:
        token = token or self._token
        if token.kind == "end":
            return syntax_error(f"The expression ends too early. {hint}".rstrip(), self._source, token.start)
        if token.kind == "name" and token.text in _WORD_HINTS:
            hint = f"`{token.text}` is written `{_WORD_HINTS[token.text]}`."
        problem = f"`{excerpt(token.text)}` is not expected here. {hint}".rstrip()
        return syntax_error(problem, self._source, token.start)
