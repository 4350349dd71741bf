"""Text to tokens, and the place where an expression inside a template ends."""

import re
from typing import NamedTuple

from services.kit.cel.errors import ExpressionError, excerpt

# Every alternative starts differently or is tried longest first, and none can match the same text in two ways: the
# scan is linear.
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n\f]+|//[^\n]*)
  | (?P<bytes>[bB][rR]?(?=["']))
  | (?P<raw>[rR](?:\"\"\".*?\"\"\"|'''.*?'''|"[^"\n\r]*"|'[^'\n\r]*'))
  | (?P<string>\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''|"(?:[^"\\\n\r]|\\.)*"|'(?:[^'\\\n\r]|\\.)*')
  | (?P<unsigned>(?:0x[0-9a-fA-F]+|[0-9]+)[uU])
  | (?P<float>[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|\.[0-9]+(?:[eE][+-]?[0-9]+)?)
  | (?P<int>0x[0-9a-fA-F]+|[0-9]+)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<operator>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"""\\(?:([abfnrtv"'\\?`])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.?))""",
    re.DOTALL,
)
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_HINTS = {
    "=": "Two values are compared with `==`.",
    "&": "`and` is written `&&`.",
    "|": "`or` is written `||`; there are no pipes: write `f(x)` or `x.f()`.",
    "`": 'A field with unusual characters is read as `x["the-field"]`.',
    "$": "Names are written without `$`.",
    "^": "Powers are not part of the language.",
    '"': "The text that starts here has no closing quote on its line.",
    "'": "The text that starts here has no closing quote on its line.",
}

_REFUSED = {
    "bytes": "Bytes are not part of the language: JSON has none. Leave out the `b`.",
    "unsigned": "Unsigned numbers are not part of the language. Leave out the `u`.",
}
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_SIMPLE = re.compile(r"[^{}\"'/]*")


class Token(NamedTuple):
    """`kind` is raw, string, float, int, name, operator or end. `start` and `end` are offsets in the source."""

    kind: str
    text: str
    start: int
    end: int


def tokenize(source: str) -> list[Token]:
    """All tokens of an expression, closed by one of kind `end`. Raises ExpressionError (EXPRESSION_SYNTAX)."""
    tokens: list[Token] = []
    position, length = 0, len(source)
    while position < length:
        match = _TOKEN.match(source, position)
        if match is None or match.lastgroup in _REFUSED:
            raise _refused(match, source, position)
        position = match.end()
        if match.lastgroup != "space":
            tokens.append(Token(match.lastgroup or "", match.group(), match.start(), position))
    tokens.append(Token("end", "", length, length))
    return tokens


def find_end(text: str, start: int) -> int:
    """Offset of the `}}` that closes the expression starting at `start`; -1 when it never closes.

    Braces of map literals and anything inside quotes do not count. Raises ExpressionError for text that is no token.
    """
    end = text.find("}}", start)
    if end < 0 or _SIMPLE.fullmatch(text, start, end):
        return end
    depth, position, length = 0, start, len(text)
    while position < length:
        if depth == 0 and text.startswith("}}", position):
            return position
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup in _REFUSED:
            raise _refused(match, text, position)
        position = match.end()
        if match.lastgroup == "operator":
            if match.group() in _OPENING:
                depth += 1
            elif match.group() in _CLOSING and depth > 0:
                depth -= 1
    return -1


def _refused(match: re.Match[str] | None, source: str, position: int) -> ExpressionError:
    if match is None:
        character = source[position]
        problem = f"`{excerpt(character)}` is not understood here. {_HINTS.get(character, '')}".rstrip()
    else:
        problem = _REFUSED[match.lastgroup or ""]
    return syntax_error(problem, source, position)


def syntax_error(problem: str, source: str, position: int) -> ExpressionError:
    """The error for text that is not an expression, with the place where it goes wrong."""
    if "\n" in source[:position]:
        line = source.count("\n", 0, position) + 1
        place = f"line {line}, column {position - source.rfind(chr(10), 0, position)}"
    else:
        place = f"column {position + 1}"
    around = excerpt(source, max(0, position - 30), position + 30)
    return ExpressionError("EXPRESSION_SYNTAX", f"{problem} At {place}, near `{around}`.", position=position)


def text_of(token: Token, source: str) -> str:
    """The text that a string token stands for."""
    body = token.text[1:] if token.kind == "raw" else token.text
    width = 3 if body.startswith(('"""', "'''")) else 1
    body = body[width:-width]
    if token.kind == "raw" or "\\" not in body:
        return body

    def replace(match: re.Match[str]) -> str:
        simple, byte, short, long, octal, unknown = match.groups()
        if simple is not None:
            return _SIMPLE_ESCAPES.get(simple, simple)
        if unknown is not None:
            raise syntax_error(
                f"`\\{excerpt(unknown)}` is no escape; a backslash itself is `\\\\`.", source, token.start
            )
        code = int(octal, 8) if octal is not None else int(byte or short or long, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise syntax_error(f"`{match.group()}` is no Unicode character.", source, token.start)
        return chr(code)

    return _ESCAPE.sub(replace, body)
