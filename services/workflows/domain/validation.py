"""Validation: everything that is wrong with a definition, at once. Pure, iterative, about linear in nodes + edges.

A definition in a body (`map`, `loop`) is checked as its own level: its edges are its own, but its expressions may also
read the ancestors of the node that holds it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from services.kit.errors import Violation
from services.workflows.domain import graph
from services.workflows.domain.catalogue import NodeType, NodeTypes
from services.workflows.domain.definition import (
    KEY,
    KEY_RULE,
    MAX_BODY_NESTING,
    MAX_BYTES,
    MAX_EDGES,
    MAX_NAME_LENGTH,
    MAX_NODES,
    Definition,
    Node,
)
from services.workflows.domain.definition_json import dump_definition, read_definition
from services.workflows.domain.text import Suggestions, excerpt, json_path
from services.workflows.domain.validation_config import config_problems
from services.workflows.domain.validation_edges import check_cycles, check_edges, check_ports
from services.workflows.domain.validation_expressions import Read, check_expressions
from services.workflows.domain.validation_ranges import definition_ranges, node_ranges

MAX_ISSUES = 1000
"""Issues that one validation reports."""
MAX_EXPRESSIONS = 50_000
"""Expressions in templates of one definition: parsing one takes some 40 µs."""

_UNSTORABLE = frozenset(
    {
        "INVALID_KEY",
        "DUPLICATE_KEY",
        "TOO_MANY_NODES",
        "TOO_MANY_EDGES",
        "TOO_MANY_EXPRESSIONS",
        "DEFINITION_TOO_LARGE",
        "NAME_TOO_LONG",
    }
)


def is_valid(issues: list[Violation]) -> bool:
    """Whether a definition with these issues can be published and run."""
    return all(issue.severity != "error" for issue in issues)


def storage_problems(definition: Definition) -> list[Violation]:
    """What keeps a draft from being stored: keys that name no single node, and limits. Needs no catalogue."""
    problems = list(_limits(definition))
    if not problems:
        level = _Level(definition, "", "", frozenset(), Suggestions())
        level.index_nodes()
        problems = [issue for issue in level.in_order() if issue.code in _UNSTORABLE]
    return problems[:MAX_ISSUES]


def validate(definition: Definition, types: NodeTypes) -> list[Violation]:
    """All issues of a definition, at most MAX_ISSUES: those of the whole, then by node, then by edge.

    Issues of a body stand at the node that holds it; their `node_key` is the way to the node, such as `each.fetch`.
    """
    problems = list(_limits(definition))
    if problems:
        return problems
    top = _Level(definition, "", "", frozenset(), Suggestions())
    levels = _unfold(top, types)
    # Bodies first: what they read outside themselves is then checked at the node that holds them.
    for level in reversed(levels):
        level.check(types)
    for level in reversed(levels):
        if level.holder is not None:
            level.hand_over(*level.holder)
    issues = top.in_order()
    if len(issues) > MAX_ISSUES:
        rest = len(issues) - MAX_ISSUES + 1
        more = Violation("TOO_MANY_ISSUES", f"There are {rest} more issues. Mend these first.", "")
        issues = [*issues[: MAX_ISSUES - 1], more]
    return issues


def _limits(definition: Definition) -> Iterator[Violation]:
    if len(definition.nodes) > MAX_NODES:
        message = f"{len(definition.nodes):,} nodes are over the limit of {MAX_NODES:,}."
        yield Violation("TOO_MANY_NODES", message, "nodes")
    if len(definition.edges) > MAX_EDGES:
        message = f"{len(definition.edges):,} edges are over the limit of {MAX_EDGES:,}."
        yield Violation("TOO_MANY_EDGES", message, "edges")
    text = dump_definition(definition)
    if len(text) > MAX_BYTES:
        message = f"The definition has {len(text):,} bytes of JSON; the limit is {MAX_BYTES:,}."
        yield Violation("DEFINITION_TOO_LARGE", message, "")
    if (count := text.count(b"{{")) > MAX_EXPRESSIONS:
        message = f"{count:,} expressions are over the limit of {MAX_EXPRESSIONS:,}."
        yield Violation("TOO_MANY_EXPRESSIONS", message, "nodes")


def _unfold(top: "_Level", types: NodeTypes) -> "list[_Level]":
    """The level and those of all bodies below it, each after the one that holds it."""
    levels = [top]
    nodes, edges = len(top.definition.nodes), len(top.definition.edges)
    for level in levels:  # grows while it is walked
        for index, node in enumerate(level.definition.nodes):
            node_type = types.get(node.type)
            if node_type is None:
                continue
            for name in node_type.bodies:
                if not isinstance(node.config.get(name), dict):
                    continue  # the schema says so
                body = level.body(index, name, node_type) if level.depth < MAX_BODY_NESTING else None
                if body is None:
                    message = f"Bodies are nested deeper than {MAX_BODY_NESTING} levels. Use a `sub_workflow` node."
                    level.at_node(index, "TOO_DEEP", message, "config", name)
                    continue
                nodes += len(body.definition.nodes)
                edges += len(body.definition.edges)
                if nodes > MAX_NODES or edges > MAX_EDGES:
                    message = f"With the nodes in bodies there are over {MAX_NODES:,} nodes or {MAX_EDGES:,} edges."
                    level.at_node(index, "TOO_MANY_NODES", message, "config", name)
                    return levels
                levels.append(body)
    return levels


@dataclass(slots=True)
class _Level:
    """One definition being checked: the whole, or a body."""

    definition: Definition
    path: str
    key_path: str
    """Keys of the nodes that hold it, each with a dot."""
    names: frozenset[str]
    """Names that exist in its expressions beyond the usual ones."""
    suggestions: Suggestions
    holder: "tuple[_Level, int] | None" = None
    """For a body, the level and node that hold it."""
    depth: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    """Number of the first node with a key."""
    reads: "list[list[tuple[_Level, int, Read]]]" = field(default_factory=list)
    """For each node, what it and its bodies read, with the level and node where the expression stands."""
    whole: list[Violation] = field(default_factory=list)
    by_node: list[list[Violation]] = field(default_factory=list)
    by_edge: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_node = [[] for _ in self.definition.nodes]
        self.reads = [[] for _ in self.definition.nodes]

    def body(self, index: int, name: str, node_type: NodeType) -> "_Level":
        """The level of a body in the config of a node."""
        node = self.definition.nodes[index]
        path = json_path(self.path, "nodes", index, "config", name)
        problems: list[Violation] = []
        definition = read_definition(node.config[name], path, problems)
        level = _Level(
            definition,
            path,
            f"{self.key_path}{node.key}.",
            self.names | node_type.bodies[name],
            self.suggestions,
            (self, index),
            self.depth + 1,
        )
        level.whole.extend(problems)
        return level

    def node_path(self, index: int) -> str:
        return f"{self.path}.nodes[{index}]" if self.path else f"nodes[{index}]"

    def at_node(self, index: int, code: str, message: str, *steps: str) -> None:
        """Note an issue of a node; `steps` lead from the node to the place."""
        key = self.key_path + self.definition.nodes[index].key
        self.by_node[index].append(Violation(code, message, json_path(self.node_path(index), *steps), node_key=key))

    def at_place(self, index: int, problem: Violation) -> None:
        """Note a problem of a node whose path is known."""
        key = self.key_path + self.definition.nodes[index].key
        self.by_node[index].append(replace(problem, node_key=key))

    def in_order(self) -> list[Violation]:
        """All issues: of the whole, by node, by edge."""
        return [*self.whole, *(issue for issues in self.by_node for issue in issues), *self.by_edge]

    def hand_over(self, level: "_Level", index: int) -> None:
        """Give the issues of this body to the node that holds it."""
        key = self.key_path[:-1]
        for issue in self.in_order():
            level.by_node[index].append(issue if issue.node_key else replace(issue, node_key=key))

    def check(self, types: NodeTypes) -> None:
        """Check this level, the bodies in it being checked already."""
        if not self.definition.nodes:
            message = "The definition has no nodes. Add one."
            self.whole.append(Violation("EMPTY_DEFINITION", message, json_path(self.path, "nodes")))
        self.whole.extend(definition_ranges(self.definition, self.path))
        self.index_nodes()
        for index, node in enumerate(self.definition.nodes):
            self._check_node(index, node, types)
        successors = check_edges(self.definition, self.keys, self.path, self.suggestions, self.by_edge)
        for index, problem in check_ports(self.definition, self.keys, types, self.path, self.by_edge):
            self.at_place(index, problem)
        components = graph.components_in_order(successors)
        for cycle_or_not in check_cycles(self.definition, components, successors, self.path):
            self.at_place(*cycle_or_not)
        self._check_reads(components, successors)

    def index_nodes(self) -> None:
        """Number the nodes by key; keys that cannot be used are issues."""
        for index, node in enumerate(self.definition.nodes):
            if not KEY.fullmatch(node.key):
                message = f"`{excerpt(node.key)}` cannot be a key. {KEY_RULE}"
                self.at_node(index, "INVALID_KEY", message, "key")
            if len(node.name) > MAX_NAME_LENGTH:
                message = f"The name has {len(node.name)} characters; the limit is {MAX_NAME_LENGTH}."
                self.at_node(index, "NAME_TOO_LONG", message, "name")
            first = self.keys.setdefault(node.key, index)
            if first != index:
                message = f"The key `{excerpt(node.key)}` is already that of nodes[{first}]. Keys are unique."
                self.at_node(index, "DUPLICATE_KEY", message, "key")

    def _check_node(self, index: int, node: Node, types: NodeTypes) -> None:
        path = self.node_path(index)
        node_type = types.get(node.type)
        if node_type is None:
            hint = self.suggestions.did_you_mean(node.type, sorted(types))
            message = f"There is no node type `{excerpt(node.type)}`.{hint}"
            self.at_node(index, "UNKNOWN_NODE_TYPE", message, "type")
        else:
            for problem in config_problems(node.config, node_type, f"{path}.config", self.suggestions):
                self.at_place(index, problem)
        for problem in node_ranges(node, path):
            self.at_place(index, problem)
        found = check_expressions(node, node_type, path, self.names)
        for problem in found.problems:
            self.at_place(index, problem)
        self.reads[index].extend((self, index, read) for read in found.reads)

    def _check_reads(self, components: list[list[int]], successors: graph.Successors) -> None:
        """Every node that is read must be an ancestor of the node that reads it, here or further out."""
        wanted = [[self.keys[read.key] for _, _, read in reads if read.key in self.keys] for reads in self.reads]
        missing = graph.not_ancestors(components, successors, wanted)
        for index, reads in enumerate(self.reads):
            for level, reader, read in reads:
                other = self.keys.get(read.key)
                if other is not None:
                    if (index, other) in missing:
                        message = self._why_not_ancestor(index, read.key)
                        level.at_place(reader, Violation("NOT_AN_ANCESTOR", message, read.place.path()))
                elif self.holder is not None:
                    outer, holding = self.holder
                    outer.reads[holding].append((level, reader, read))
                else:
                    hint = self.suggestions.did_you_mean(read.key, self.keys)
                    message = f"There is no node `{excerpt(read.key)}`.{hint}"
                    level.at_place(reader, Violation("UNKNOWN_NODE_REFERENCE", message, read.place.path()))

    def _why_not_ancestor(self, index: int, key: str) -> str:
        own = self.definition.nodes[index].key
        if key == own:
            return f"`{key}` cannot read its own output."
        return (
            f"`{key}` does not run before `{own}`, so its output cannot be read here. Connect `{key}` with edges that "
            f"lead to `{own}`."
        )
