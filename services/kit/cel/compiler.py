"""Tree to closures, and what an expression refers to.

A closure per node, so that an evaluation does no dispatch and no look-up of what is known when compiling. Each knows
its weight: the steps it takes at most, without macros' turns and without what depends on the size of values.
"""

from functools import partial
from typing import Any, NamedTuple

from services.kit.cel import syntax
from services.kit.cel.access import name_error, path_run, test_run
from services.kit.cel.errors import ExpressionError, Failure, Place, closest, excerpt, located
from services.kit.cel.evaluation import Frame, Run
from services.kit.cel.functions import FUNCTIONS, OTHER_NAMES
from services.kit.cel.logic import all_of, any_of, choose, fallback
from services.kit.cel.macros import MACROS
from services.kit.cel.operators import call_run, chain_run
from services.kit.cel.patterns import MAX_PATTERN_WEIGHT, check_pattern, search
from services.kit.cel.values import TYPES, negate, not_boolean

MAX_DEPTH = 64
"""Levels of the tree: what evaluation recurses over."""

FIELDS = {"run": frozenset({"id", "workflow_id", "version", "vars"}), "project": frozenset({"id", "vars"})}
"""Fields of the free names whose fields are always the same."""

_SPECIAL = frozenset({"has", "default", "matches"})
CALLABLE = frozenset(FUNCTIONS) | _SPECIAL | frozenset(MACROS)


class Compiled(NamedTuple):
    """A closure and the steps that it takes at most."""

    run: Run
    weight: int


class Compiler:
    """Compiles one expression. Afterwards `names`, `fields`, `nodes`, `all_nodes` and `slots` describe it."""

    def __init__(self, source: str, known: frozenset[str]) -> None:
        self.names: set[str] = set()
        self.fields: set[str] = set()
        self.nodes: set[str] = set()
        self.all_nodes = False
        self.slots = 0
        """How many variables of macros live at once."""
        self._source = source
        self._known = known
        self._scope: dict[str, int] = {}
        """Variables of the macros around the current node, and their slots."""
        self._macros = 0
        self._pattern_weight = 0
        self._depth = 0

    def compile(self, node: syntax.Node) -> Compiled:
        """The closure for a node. Raises ExpressionError."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(
                "EXPRESSION_TOO_COMPLEX",
                f"The expression nests deeper than {MAX_DEPTH} levels. Split it over several `transform` values. "
                f"It starts with `{excerpt(self._source)}`.",
                position=node.start,
            )
        compiled: Compiled = _MAKERS[type(node)](self, node)
        self._depth -= 1
        return compiled

    def _place(self, node: syntax.Node) -> Place:
        return Place(self._source, node.start, node.end)

    def _literal(self, node: syntax.Literal) -> Compiled:
        value = node.value
        return Compiled(lambda _frame: value, 1)

    def _access(self, node: syntax.Node) -> Compiled:
        """A name with all the fields and indexes behind it, in one closure."""
        root, steps = node, []
        while isinstance(root, syntax.Access):
            steps.append(root)
            root = root.operand
        steps.reverse()
        keys = [step.key.value if isinstance(step.key, syntax.Literal) else self.compile(step.key) for step in steps]
        # A path of plain fields is one loop; any other key is read with care for its type.
        weight = 1 + len(keys) + sum(6 + key.weight for key in keys if isinstance(key, Compiled))
        if isinstance(root, syntax.Name):
            slot = self._scope.get(root.name)
            if slot is None and root.name not in self._known and root.name in TYPES and not keys:
                value = TYPES[root.name]
                return Compiled(lambda _frame: value, 1)
            if slot is None:
                self._refer(root, keys)
            start: str | int | Run = root.name if slot is None else slot
        else:
            inner = self.compile(root)
            start, weight = inner.run, weight + inner.weight
        runs = [key.run if isinstance(key, Compiled) else key for key in keys]
        return Compiled(path_run(start, runs, [self._place(root), *map(self._place, steps)]), weight)

    def _refer(self, name: syntax.Name, keys: list[Any]) -> None:
        if name.name not in self._known:
            raise name_error(name, self._source, self._known, self._scope)
        self.names.add(name.name)
        if name.name == "nodes":
            if keys and isinstance(keys[0], str):
                self.nodes.add(keys[0])
            else:
                self.all_nodes = True
        elif name.name in FIELDS:
            self.fields.add(f"{name.name}.{keys[0]}" if keys and isinstance(keys[0], str) else name.name)

    def _call(self, node: syntax.Call) -> Compiled:
        arguments = node.arguments if node.target is None else [node.target, *node.arguments]
        if node.name in MACROS:
            return self._macro(node)
        if node.name == "has":
            return self._has(node)
        if node.name == "default" and len(arguments) == 2:
            value, other = self.compile(arguments[0]), self.compile(arguments[1])
            return Compiled(fallback(value.run, other.run), 2 + value.weight + other.weight)
        if node.name == "matches" and len(arguments) == 2:
            return self._matches(node, arguments)
        function = FUNCTIONS.get(node.name)
        if function is None:
            if node.name in _SPECIAL:
                raise self._wrong_call(node, 2, 2)
            raise self._unknown_function(node)
        if not function.least <= len(arguments) <= function.most:
            raise self._wrong_call(node, function.least, function.most)
        compiled = [self.compile(argument) for argument in arguments]
        weight = function.weight + sum(argument.weight for argument in compiled)
        return Compiled(call_run(function.run, [argument.run for argument in compiled], self._place(node)), weight)

    def _has(self, node: syntax.Call) -> Compiled:
        argument = node.arguments[0] if len(node.arguments) == 1 and node.target is None else None
        if not isinstance(argument, syntax.Access):
            raise self._syntax("`has` takes one field, as in `has(input.name)`", node)
        operand, key = argument.operand, argument.key
        if isinstance(operand, syntax.Name) and operand.name not in self._scope:
            # The field belongs to the reference: `has(nodes.a)` reads node a, not all nodes.
            self._refer(operand, [key.value] if isinstance(key, syntax.Literal) else [None])
            found = Compiled(path_run(operand.name, [], [self._place(operand)]), 1)
        else:
            found = self.compile(operand)
        name = self.compile(key)
        return Compiled(test_run(found.run, name.run), 2 + found.weight + name.weight)

    def _matches(self, node: syntax.Call, arguments: list[syntax.Node]) -> Compiled:
        pattern = arguments[1]
        if not isinstance(pattern, syntax.Literal) or not isinstance(pattern.value, str):
            raise self._syntax('`matches` takes its pattern as literal text, as in `x.matches("^[a-z]+$")`', node)
        self._pattern_weight += check_pattern(pattern.value)
        if self._pattern_weight > MAX_PATTERN_WEIGHT:
            raise ExpressionError("EXPRESSION_TOO_COMPLEX", "The patterns of the expression are too large together.")
        text = self.compile(arguments[0])
        run = call_run(partial(search, pattern=pattern.value), [text.run], self._place(node))
        return Compiled(run, 8 + text.weight)

    def _macro(self, node: syntax.Call) -> Compiled:
        macro = MACROS[node.name]
        if node.target is None or len(node.arguments) not in macro.arguments:
            raise self._syntax(f"`{node.name}` is written `{macro.usage}`", node)
        variable, *bodies = node.arguments
        if not isinstance(variable, syntax.Name):
            raise self._syntax(f"`{node.name}` is written `{macro.usage}`, with a plain name in it", variable)
        target = self.compile(node.target)
        outer, slot = self._scope, self._macros
        self._scope = {**outer, variable.name: slot}
        self._macros += 1
        self.slots = max(self.slots, self._macros)
        compiled = [self.compile(body) for body in bodies]
        self._macros -= 1
        self._scope = outer
        turn = 2 + sum(body.weight for body in compiled)
        run = macro.make(target.run, slot, turn, [body.run for body in compiled], self._place(node.target))
        return Compiled(run, 4 + target.weight)

    def _list_of(self, node: syntax.ListOf) -> Compiled:
        items = [self.compile(item) for item in node.items]
        runs = [item.run for item in items]
        return Compiled(lambda frame: [run(frame) for run in runs], 1 + sum(item.weight for item in items))

    def _map_of(self, node: syntax.MapOf) -> Compiled:
        seen: set[Any] = set()
        for key, _ in node.entries:
            if isinstance(key, syntax.Literal):
                if not isinstance(key.value, str):
                    raise self._syntax('The keys of a map are text, as in {"name": value}', key)
                if key.value in seen:
                    raise self._syntax(f"The key `{excerpt(key.value)}` stands twice in the map", key)
                seen.add(key.value)
        entries = [(self.compile(key), self.compile(value)) for key, value in node.entries]
        runs = [(key.run, value.run) for key, value in entries]
        place = self._place(node)

        def build(frame: Frame) -> dict[str, Any]:
            result: dict[str, Any] = {}
            for key_run, value_run in runs:
                key = key_run(frame)
                if type(key) is not str:
                    raise Failure(f"{place}: the keys of a map are text; convert with `string(x)`")
                if key in result:
                    raise Failure(f"{place}: the key `{excerpt(key)}` comes twice")
                result[key] = value_run(frame)
            return result

        return Compiled(build, 2 + sum(2 + key.weight + value.weight for key, value in entries))

    def _choice(self, node: syntax.Choice) -> Compiled:
        cases = [(self.compile(condition), self.compile(value)) for condition, value in node.cases]
        otherwise = self.compile(node.otherwise)
        places = [self._place(condition) for condition, _ in node.cases]
        run = choose(
            [(condition.run, value.run, place) for (condition, value), place in zip(cases, places, strict=True)],
            otherwise.run,
        )
        return Compiled(run, 1 + otherwise.weight + sum(one.weight + two.weight for one, two in cases))

    def _chain(self, node: syntax.Chain) -> Compiled:
        operators = [operator for operator, _ in node.rest]
        operands = [self.compile(node.first), *(self.compile(operand) for _, operand in node.rest)]
        weight = sum(operand.weight for operand in operands) + 2 * len(operators)
        runs = [operand.run for operand in operands]
        if operators[0] in {"&&", "||"}:
            places = [self._place(node.first), *(self._place(operand) for _, operand in node.rest)]
            join = all_of if operators[0] == "&&" else any_of
            return Compiled(join(list(zip(runs, places, strict=True))), weight)
        return Compiled(chain_run(operators, runs, self._place(node)), weight)

    def _unary(self, node: syntax.Unary) -> Compiled:
        operand, place = self.compile(node.operand), self._place(node.operand)
        inner = operand.run
        odd = node.count % 2 == 1
        if node.operator == "!":

            def invert(frame: Frame) -> bool:
                value = inner(frame)
                if value is True or value is False:
                    return value is not odd
                raise not_boolean(value, place)

            return Compiled(invert, 1 + operand.weight)

        def minus(frame: Frame) -> Any:
            value = inner(frame)
            try:
                return negate(value) if odd else negate(negate(value))
            except Failure as failure:
                raise located(failure, place) from None

        return Compiled(minus, 1 + operand.weight)

    def _syntax(self, problem: str, node: syntax.Node) -> ExpressionError:
        message = f"{problem}. At column {node.start + 1}: {self._place(node)}."
        return ExpressionError("EXPRESSION_SYNTAX", message, position=node.start)

    def _wrong_call(self, node: syntax.Call, least: int, most: int) -> ExpressionError:
        count = len(node.arguments) + (node.target is not None)
        takes = f"{least} value{'s' * (least > 1)}" if least == most else f"{least} to {most} values"
        problem = f"`{node.name}` takes {takes} (the one before the dot counts), not {count}"
        return self._syntax(problem, node)

    def _unknown_function(self, node: syntax.Call) -> ExpressionError:
        meant = OTHER_NAMES.get(node.name) or closest(node.name, sorted(CALLABLE))
        hint = f" Did you mean `{meant}`?" if meant else f" There are: {', '.join(sorted(CALLABLE))}."
        if node.name == "now":
            hint = " A run must give the same when it is repeated; use a time of `run` instead."
        return ExpressionError(
            "EXPRESSION_UNKNOWN_NAME",
            f"There is no function `{excerpt(node.name)}` (column {node.start + 1}).{hint}",
            position=node.start,
        )


_MAKERS: dict[type, Any] = {
    syntax.Literal: Compiler._literal,
    syntax.Name: Compiler._access,
    syntax.Access: Compiler._access,
    syntax.Call: Compiler._call,
    syntax.ListOf: Compiler._list_of,
    syntax.MapOf: Compiler._map_of,
    syntax.Choice: Compiler._choice,
    syntax.Chain: Compiler._chain,
    syntax.Unary: Compiler._unary,
}
