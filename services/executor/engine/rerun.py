"""Going again over a run that has ended: which of its results are used again, and what would happen a second time.

    again     the node the person names, what never ended or failed for good, what has changed in the definition, what
              reads an input or variables that were edited; and everything that comes after one of these
    as it was everything else: its recorded result is taken, and nothing runs

A container is taken as it was when everything in it is; else it runs, and its scopes are judged node by node, so that
one item of a map can go again while its siblings keep their results.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.executor.engine.containers import ATTEMPT, effect_path
from services.executor.engine.graph import OUT, Graph, Node
from services.executor.engine.state import NodeRow, NodeStatus

Place = tuple[str, str]
"""Item path, without attempts, and key of a node execution."""

HARMLESS = frozenset({"pure", "read"})
"""Effect classes that may be repeated without asking."""


@dataclass(frozen=True, slots=True)
class Again:
    """What a person asks for."""

    start: Place | None = None
    """Where to go again from; None = from what did not succeed."""
    overrides: Mapping[Place, bytes] = field(default_factory=dict)
    """Outputs, as JSON, to go on with in place of running these nodes."""
    input_changed: bool = False
    vars_changed: bool = False
    """Those of the run; those of the project stay as they were."""

    def as_json(self) -> dict[str, Any]:
        """The stored form, overrides by place."""
        return {
            "start": self.start,
            "overrides": [[*place, output.decode()] for place, output in self.overrides.items()],
            "input_changed": self.input_changed,
            "vars_changed": self.vars_changed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Again":
        """From the stored form."""
        return cls(
            start=tuple(value["start"]) if value["start"] else None,
            overrides={(path, key): output.encode() for path, key, output in value["overrides"]},
            input_changed=value["input_changed"],
            vars_changed=value.get("vars_changed", False),  # absent from what was stored before there were any
        )


@dataclass(frozen=True, slots=True)
class Before:
    """The run as it was: its graph, those of its sub-workflows by link name, and its rows by path and key."""

    graph: Graph
    links: Mapping[str, Graph]
    rows: Mapping[str, Mapping[str, NodeRow]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What comes of it."""

    recorded: Mapping[Place, NodeRow]
    """Results to be used again, overrides among them."""
    repeated: tuple[Place, ...]
    """Node executions with an effect that has happened or may have, and that would run again."""


def plan(before: Before, graph: Graph, links: Mapping[str, Graph], again: Again) -> Plan:
    """Judge every node execution of the earlier run under the definition that is to run now."""
    rows = _newest_attempts(before.rows)
    judge = _Judge(before, rows, links, again)
    judge.scope("", graph, before.graph)
    effects = dict(_effects("", before.graph, before.links, judge.children))
    repeated = tuple(
        (path, key)
        for path, found in rows.items()
        for key, row in found.items()
        if (path, key) not in judge.recorded and row.epoch > 0 and effects[path, key] not in HARMLESS
    )
    return Plan(judge.recorded, repeated)


def _newest_attempts(rows: Mapping[str, Mapping[str, NodeRow]]) -> dict[str, Mapping[str, NodeRow]]:
    """Rows by path without attempts; of several attempts at a container the newest counts."""
    in_order = sorted(rows.items(), key=lambda item: [int(number) for number in ATTEMPT.findall(item[0])])
    return {effect_path(path): found for path, found in in_order}


class _Judge:
    def __init__(
        self, before: Before, rows: Mapping[str, Mapping[str, NodeRow]], links: Mapping[str, Graph], again: Again
    ) -> None:
        self._before = before
        self._rows = rows
        self._links = links
        self._again = again
        self.recorded: dict[Place, NodeRow] = {}
        self.children = _children(rows)

    def scope(self, path: str, graph: Graph, old: Graph) -> bool:
        """Judge the nodes of a scope whose surroundings are as they were; True when all of it is."""
        again: set[int] = set()
        for position, sources in _in_order(graph):
            node = graph.nodes[position]
            place = (path, node.key)
            given = self._again.overrides.get(place)
            if given is not None:
                self.recorded[place] = NodeRow(status=NodeStatus.SUCCEEDED, output=given, port=OUT)
                again.add(position)
            elif not (again.isdisjoint(sources) and self._may_take(place, node, old) and self._take(place, node, old)):
                again.add(position)
        return not again

    def _may_take(self, place: Place, node: Node, old: Graph) -> bool:
        """The node would do the same as before, and nobody asked for it to do it again."""
        if place == self._again.start or node.key not in old.index:
            return False
        if self._again.input_changed and "input" in node.references.names:
            return False
        if self._again.vars_changed and node.references.reads("run", "vars"):
            return False
        before = old.nodes[old.index[node.key]]
        return before.type == node.type and _own_config(before) == _own_config(node)

    def _take(self, place: Place, node: Node, old: Graph) -> bool:
        """Use what is recorded of a node again; False when it has to run, be it for what is inside it."""
        row = self._rows.get(place[0], {}).get(node.key)
        inside = self._contents_are_kept(place, node, old.nodes[old.index[node.key]])
        if row is None or not inside or not _is_decided(row):
            return False
        if row.status is not NodeStatus.SKIPPED:
            self.recorded[place] = row
        return True

    def _contents_are_kept(self, place: Place, node: Node, old: Node) -> bool:
        inner, inner_old = _inside(node, self._links), _inside(old, self._before.links)
        if inner is None or inner_old is None:
            return True
        kept = True
        for path in self.children.get(place, ()):
            kept = self.scope(path, inner, inner_old) and kept
            if not kept and node.type == "loop":
                return False  # what follows in a loop goes on from what this iteration gives
        return kept


def _inside(node: Node, links: Mapping[str, Graph]) -> Graph | None:
    """The graph that a container runs."""
    if node.type == "sub_workflow":
        return links.get(node.link)
    return node.body


def _own_config(node: Node) -> dict[str, Any]:
    """The config less the body, whose nodes are judged one by one."""
    left_out = node.kind.body_fields if node.kind else ()
    return {name: value for name, value in node.config_value.items() if name not in left_out}


def _is_decided(row: NodeRow) -> bool:
    """The node came to something that the run could go on with."""
    return row.status in (NodeStatus.SUCCEEDED, NodeStatus.SKIPPED) or (
        row.status is NodeStatus.FAILED and bool(row.port)
    )


def _children(rows: Mapping[str, Mapping[str, NodeRow]]) -> dict[Place, list[str]]:
    """Paths of scopes by the place of their container, in the order of their numbers."""
    found: dict[Place, list[tuple[int, str]]] = {}
    for path in rows:
        if path:
            outer, _, last = path.rpartition("/")
            key, _, number = last.rstrip("]").partition("[")
            found.setdefault((outer, key), []).append((int(number or 0), path))
    return {place: [path for _, path in sorted(paths)] for place, paths in found.items()}


def _effects(
    path: str, graph: Graph, links: Mapping[str, Graph], children: Mapping[Place, list[str]]
) -> Iterator[tuple[Place, str]]:
    """The effect class of every node of every scope that there was."""
    for node in graph.nodes:
        place = (path, node.key)
        yield place, node.effect
        inner = _inside(node, links)
        if inner is not None:
            for child in children.get(place, ()):
                yield from _effects(child, inner, links, children)


def _in_order(graph: Graph) -> list[tuple[int, frozenset[int]]]:
    """Positions, each after those that lead to it, with these."""
    waiting, sources = list(graph.incoming), [set[int]() for _ in graph.nodes]
    order = list(graph.entries)
    for position in order:  # grows while it is walked
        for edge in graph.outgoing[position]:
            sources[edge.target].add(position)
            waiting[edge.target] -= 1
            if waiting[edge.target] == 0:
                order.append(edge.target)
    return [(position, frozenset(sources[position])) for position in order]
