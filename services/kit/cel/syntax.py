"""The tree that the parser makes. `start` and `end` are offsets in the source."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Node:
    """Base of all: where it stands in the source."""

    start: int
    end: int


@dataclass(slots=True)
class Literal(Node):
    """null, true, false, a number or text."""

    value: Any


@dataclass(slots=True)
class Name(Node):
    """A context name, a macro's variable, or a type such as `int`."""

    name: str


@dataclass(slots=True)
class Access(Node):
    """`operand.field` (a text literal as key, `dotted`) or `operand[key]`."""

    operand: Node
    key: Node
    dotted: bool


@dataclass(slots=True)
class Call(Node):
    """`name(arguments…)`, or `target.name(arguments…)`."""

    name: str
    target: Node | None
    arguments: list[Node]


@dataclass(slots=True)
class ListOf(Node):
    """`[items…]`."""

    items: list[Node]


@dataclass(slots=True)
class MapOf(Node):
    """`{key: value, …}`."""

    entries: list[tuple[Node, Node]]


@dataclass(slots=True)
class Choice(Node):
    """`a ? b : c ? d : e`, flat: pairs (a, b), (c, d), otherwise e."""

    cases: list[tuple[Node, Node]]
    otherwise: Node


@dataclass(slots=True)
class Chain(Node):
    """Operands joined by operators of one precedence, from left to right; flat, so that a long sum is not deep."""

    first: Node
    rest: list[tuple[str, Node]]


@dataclass(slots=True)
class Unary(Node):
    """`!` or `-`, `count` times."""

    operator: str
    count: int
    operand: Node
