"""The edges of a definition: their ends, their ports, cycles, and nodes that no way leads to."""

from collections.abc import Iterator, Mapping, Sequence

from services.kit.errors import Violation
from services.workflows.domain import graph
from services.workflows.domain.catalogue import NodeType, NodeTypes
from services.workflows.domain.definition import INPUT_PORT, Definition, Node
from services.workflows.domain.text import Suggestions, excerpt, json_path

_NAMED_IN_CYCLE = 10


def check_edges(
    definition: Definition,
    keys: Mapping[str, int],
    path: str,
    suggestions: Suggestions,
    issues: list[Violation],
) -> list[list[int]]:
    """Check the ends of edges; returns for each node the nodes that its sound edges enter."""
    successors: list[list[int]] = [[] for _ in definition.nodes]
    seen: dict[tuple[str, str, str, str], int] = {}
    for index, edge in enumerate(definition.edges):
        sound = True
        for end, key in (("source", edge.source), ("target", edge.target)):
            if key not in keys:
                sound = False
                hint = suggestions.did_you_mean(key, keys)
                message = f"The {end} of the edge, `{excerpt(key)}`, is no node.{hint}"
                issues.append(Violation("UNKNOWN_NODE", message, json_path(path, "edges", index, end)))
        first = seen.setdefault(edge.ends, index)
        if first != index:
            message = f"The edge is the same as edges[{first}]. Remove one of them."
            issues.append(Violation("DUPLICATE_EDGE", message, json_path(path, "edges", index), node_key=edge.source))
        elif sound:
            successors[keys[edge.source]].append(keys[edge.target])
    return successors


def check_ports(
    definition: Definition, keys: Mapping[str, int], types: NodeTypes, path: str, issues: list[Violation]
) -> Iterator[tuple[int, Violation]]:
    """Check the ports of edges; yields what is wrong with ports that nodes make themselves."""
    ports: dict[int, frozenset[str] | None] = {}
    used: set[tuple[int, str]] = set()
    for index, edge in enumerate(definition.edges):
        if edge.target_port != INPUT_PORT:
            message = f"There is no input port `{excerpt(edge.target_port)}`; nodes have one, `{INPUT_PORT}`."
            issues.append(
                Violation("UNKNOWN_PORT", message, json_path(path, "edges", index, "target_port"), node_key=edge.target)
            )
        source = keys.get(edge.source)
        if source is None:
            continue
        used.add((source, edge.source_port))
        node = definition.nodes[source]
        if source not in ports:
            ports[source] = _output_ports(node, types.get(node.type))
        known = ports[source]
        if known is not None and edge.source_port not in known:
            words = ", ".join(f"`{excerpt(port)}`" for port in sorted(known)[:20])
            message = (
                f"`{excerpt(node.key)}` has no output port `{excerpt(edge.source_port)}`, so nothing leaves by it. "
                f"There are {words}."
            )
            issues.append(
                Violation("UNKNOWN_PORT", message, json_path(path, "edges", index, "source_port"), node_key=node.key)
            )
    for index, node in enumerate(definition.nodes):
        node_type = types.get(node.type)
        if node_type is None or not node_type.dynamic_ports_field:
            continue
        taken = set(node_type.all_ports)
        for position, port in _dynamic_ports(node, node_type):
            place = json_path(path, "nodes", index, "config", node_type.dynamic_ports_field, position, "port")
            if port in taken:
                message = f"There is a port `{excerpt(port)}` on this node already. Give each its own name."
                yield index, Violation("DUPLICATE_PORT", message, place)
            elif (index, port) not in used:
                message = f"Nothing is connected to the port `{excerpt(port)}`."
                yield index, Violation("DEAD_PORT", message, place, severity="warning")
            taken.add(port)


def _output_ports(node: Node, node_type: NodeType | None) -> frozenset[str] | None:
    """The output ports of a node; None when only a run can tell."""
    if node_type is None:
        return None
    if not node_type.dynamic_ports_field:
        return node_type.all_ports
    if not isinstance(node.config.get(node_type.dynamic_ports_field), list):
        return None
    return node_type.all_ports.union(port for _, port in _dynamic_ports(node, node_type))


def _dynamic_ports(node: Node, node_type: NodeType) -> Iterator[tuple[int, str]]:
    items = node.config.get(node_type.dynamic_ports_field) if node_type.dynamic_ports_field else None
    for position, item in enumerate(items if isinstance(items, list) else ()):
        port = item.get("port") if isinstance(item, dict) else None
        if isinstance(port, str):
            yield position, port


def check_cycles(
    definition: Definition, components: Sequence[Sequence[int]], successors: graph.Successors, path: str
) -> Iterator[tuple[int, Violation]]:
    """Yield the cycles, one of each tangle, and the nodes that are reached through cycles only."""
    cyclic = [component for component in components if graph.is_cyclic(component, successors)]
    if not cyclic:
        return
    edge_between: dict[tuple[str, str], int] = {}
    for index, edge in enumerate(definition.edges):
        edge_between.setdefault((edge.source, edge.target), index)
    for component in cyclic:
        cycle = graph.shortest_cycle(component, successors)
        keys = [definition.nodes[index].key for index in cycle]
        if len(keys) > _NAMED_IN_CYCLE:
            keys[_NAMED_IN_CYCLE - 1 : -1] = ["…"]
        words = " → ".join(f"`{key}`" if key != "…" else key for key in [*keys, keys[0]])
        ends = definition.nodes[cycle[-1]].key, definition.nodes[cycle[0]].key
        message = f"The edges form a cycle: {words}. Remove one of them; a `loop` node repeats steps."
        yield cycle[0], Violation("CYCLE", message, json_path(path, "edges", edge_between[ends]))
    entered = {target for targets in successors for target in targets}
    reached = graph.reachable((index for index in range(len(successors)) if index not in entered), successors)
    in_cycle = {index for component in cyclic for index in component}
    for index, node in enumerate(definition.nodes):
        if not reached[index] and index not in in_cycle:
            message = f"`{node.key}` can never run: only a cycle leads to it."
            yield index, Violation("UNREACHABLE_NODE", message, json_path(path, "nodes", index))
