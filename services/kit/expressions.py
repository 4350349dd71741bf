"""Expressions: CEL over JSON values, compiled once and evaluated within fixed bounds.

    compile_expression('size(nodes.search.output.results) > 0').evaluate({"nodes": {...}})

Pure: no I/O, no clock, no randomness; the same source and values always give the same result or the same error. The
language is described in docs/guides/expressions.md, its bounds are the constants of `services.kit.cel`.

Why not the `cel` library, which runs CEL in Rust: it has no budget, each turn of its macros copies the list made so
far with everything in it, and each evaluation converts its variables. In one run, `l.filter(x, x.score > 0.4)` over
300 search results of 600 bytes takes it 156 ms, over 1,000 2.3 s (here 1.1 and 3.4 ms); merely handing it 1 MiB takes
24 ms; `input.q` takes 7.7 µs (here 2.0). Bounds that kept it under 50 ms would refuse lists of 150 items. The tests
hold this module to its results wherever both speak CEL (tests/property/test_expressions_property.py).
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from services.kit.cel.compiler import FIELDS, Compiler
from services.kit.cel.errors import ExpressionError, Failure, Refusal, excerpt, sentence_of
from services.kit.cel.evaluation import MAX_WORK, Frame, Run
from services.kit.cel.parser import MAX_SOURCE_LENGTH, parse
from services.kit.cel.results import MAX_RESULT_BYTES, MAX_RESULT_VALUES, Allowance

__all__ = [
    "CONTEXT_NAMES",
    "FIELDS",
    "MAX_RESULT_BYTES",
    "MAX_RESULT_VALUES",
    "MAX_SOURCE_LENGTH",
    "MAX_WORK",
    "Expression",
    "ExpressionError",
    "References",
    "compile_expression",
]

CONTEXT_NAMES = frozenset({"input", "nodes", "item", "index", "run", "project", "state"})
"""The free names of every expression. Which of them have a value depends on the place."""

_CACHE_ENTRIES = 4096
_CACHE_SOURCE = 256 * 1024
"""Characters of all cached sources together; compiled they take 100 bytes a character, at most 300: 80 MB."""


@dataclass(frozen=True, slots=True)
class References:
    """What an expression reads of its variables."""

    names: frozenset[str] = frozenset()
    """Free top-level names; variables of macros are not free."""
    nodes: frozenset[str] = frozenset()
    """Keys of nodes read as `nodes.key` or `nodes["key"]`, also within `has`."""
    all_nodes: bool = False
    """`nodes` is used in a way that does not name one node: `nodes[input.x]`, `size(nodes)`."""
    fields: frozenset[str] = frozenset()
    """Of the names in FIELDS: `run.vars`, or `run` where it is used in a way that does not name one field."""

    def reads(self, name: str, field: str) -> bool:
        """Whether a field of a name in FIELDS is read."""
        return f"{name}.{field}" in self.fields or name in self.fields

    @classmethod
    def union(cls, found: Iterable["References"]) -> "References":
        """What all of them read, in time linear in their sizes."""
        names: set[str] = set()
        nodes: set[str] = set()
        fields: set[str] = set()
        all_nodes = False
        for one in found:
            names |= one.names
            nodes |= one.nodes
            fields |= one.fields
            all_nodes = all_nodes or one.all_nodes
        return cls(frozenset(names), frozenset(nodes), all_nodes, frozenset(fields))


class Expression:
    """A compiled expression. Immutable, and safe to share between threads."""

    __slots__ = ("_run", "_slots", "_weight", "references", "source")

    def __init__(self, source: str, references: References, run: Run, slots: int, weight: int) -> None:
        self.source = source
        self.references = references
        self._run = run
        self._slots = slots
        self._weight = weight

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        """The value of the expression as JSON: None, bool, int, float, str, list or dict.

        `variables` holds plain JSON values (exactly these built-in types) by top-level name; only names that the
        expression reads are looked up, so a mapping may load them on demand. Nothing is copied: the result may share
        parts with the variables, and neither may be changed afterwards. Timestamps become RFC 3339 text and durations
        seconds.

        Raises ExpressionError, whatever the values are: EXPRESSION_FAILED (something is missing or of the wrong kind),
        EXPRESSION_TOO_COMPLEX (more than MAX_WORK steps), EXPRESSION_INPUT_TOO_LARGE, EXPRESSION_OUTPUT_TOO_LARGE.
        """
        return self.evaluate_within(Frame(variables), Allowance())

    def evaluate_within(self, frame: Frame, allowance: Allowance) -> Any:
        """`evaluate` within a budget that several expressions share."""
        try:
            frame.charge(self._weight)
            if self._slots:
                frame.slots = [None] * self._slots
            return allowance.take(self._run(frame))
        except Failure as failure:
            raise self._error("EXPRESSION_FAILED", sentence_of(failure.sentence())) from None
        except Refusal as refusal:
            raise self._error(refusal.reason, refusal.sentence) from None
        except RecursionError:
            raise self._error("EXPRESSION_TOO_COMPLEX", "The expression or its values nest too deep.") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Only values that are not plain JSON lead here; an evaluation must not take its caller down for them.
            raise self._error("EXPRESSION_FAILED", "It cannot be evaluated: a value is not plain JSON.") from error

    def _error(self, reason: str, sentence: str) -> ExpressionError:
        source = excerpt(self.source)
        inside = "" if sentence.startswith(f"`{source}`") else f" In the expression `{source}`."
        return ExpressionError(reason, sentence + inside)


class _Cache:
    """Least recently used first, bounded by count and by the length of what it holds."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, frozenset[str]], Expression] = OrderedDict()
        self._length = 0
        self._lock = Lock()

    def get(self, key: tuple[str, frozenset[str]]) -> Expression | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: tuple[str, frozenset[str]], expression: Expression) -> None:
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = expression
            self._length += len(expression.source)
            while len(self._entries) > _CACHE_ENTRIES or self._length > _CACHE_SOURCE:
                _, dropped = self._entries.popitem(last=False)
                self._length -= len(dropped.source)


_cache = _Cache()


def compile_expression(source: str, *, names: frozenset[str] = CONTEXT_NAMES) -> Expression:
    """Compile an expression; equal sources give the same object while it is cached.

    `names` are the free names that exist where it stands, such as CONTEXT_NAMES | {"error", "attempt"} for the
    condition of a retry.

    Raises ExpressionError: EXPRESSION_SYNTAX, EXPRESSION_UNKNOWN_NAME (also for functions), EXPRESSION_TOO_COMPLEX.
    """
    key = (source, names)
    expression = _cache.get(key)
    if expression is None:
        compiler = Compiler(source, names)
        try:
            run, weight = compiler.compile(parse(source))
        except RecursionError:  # The bounds on nesting leave room for a caller 600 calls deep.
            raise ExpressionError("EXPRESSION_TOO_COMPLEX", "The expression nests too deep.") from None
        references = References(
            frozenset(compiler.names), frozenset(compiler.nodes), compiler.all_nodes, frozenset(compiler.fields)
        )
        expression = Expression(source, references, run, compiler.slots, weight)
        _cache.put(key, expression)
    return expression
