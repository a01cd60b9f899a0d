"""Small faults in a Python source: operators, comparisons, constants, calls, statements.

A fault is told by the number of a node in `ast.walk` and a change of that node in place, so that
every line keeps its number. Left alone are docstrings, annotations, decorators, `__all__`,
f-strings, what a `raise` says, and `strict=`, which only guards.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Change = Callable[[ast.AST], ast.AST | None]
"""What stands in the place of a node; None takes a statement away."""

_OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv, ast.Add),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult, ast.Div),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
_NAMES = {
    one: other
    for pair in (
        ("min", "max"),
        ("any", "all"),
        ("amin", "amax"),
        ("minimum", "maximum"),
        ("floor", "ceil"),
        ("zeros", "ones"),
        ("zeros_like", "ones_like"),
        ("gcd", "lcm"),
    )
    for one, other in (pair, pair[::-1])
}
_IDLE_CALLS = ("sorted", "reversed", "abs", "set", "frozenset", "bool")
_IDLE_METHODS = (
    *("double", "contiguous", "abs", "clamp", "flip", "transpose", "detach", "clone", "to"),
    *("flatten", "squeeze", "unsqueeze", "rsqrt", "items"),
)
_KEPT_ORDER = ("isinstance", "getattr", "setattr", "range", "zip", "replace", "min", "max")


@dataclass(frozen=True)
class Site:
    """One fault: where it stands, what it does, and which function's body holds it, if any."""

    node: int
    variant: int
    line: int
    end_line: int
    statement: tuple[int, int]
    function: tuple[str, int] | None
    function_lines: range
    told: str
    change: Change


def sites(source: str) -> Iterator[Site]:
    """Every fault of a source, in the order of its nodes."""
    tree = ast.parse(source)
    places = _Places(tree)
    for number, node in enumerate(ast.walk(tree)):
        if node not in places.open:
            continue
        for variant, (told, change) in enumerate(_changes(node)):
            yield Site(
                node=number,
                variant=variant,
                line=node.lineno,  # type: ignore[attr-defined]
                end_line=node.end_lineno,  # type: ignore[attr-defined]
                statement=places.statement[node],
                function=places.function[node],
                function_lines=places.lines.get(places.function[node], range(0)),
                told=f"{_shown(node)} -> {told}",
                change=change,
            )


def faulty(source: str, site: Site) -> ast.Module:
    """The syntax tree of the source with one fault."""
    tree = ast.parse(source)
    node = next(node for number, node in enumerate(ast.walk(tree)) if number == site.node)
    found = _Replacer(node, site.change).visit(tree)
    return ast.fix_missing_locations(found)


class _Replacer(ast.NodeTransformer):
    def __init__(self, target: ast.AST, change: Change) -> None:
        self.target, self.change = target, change

    def visit(self, node: ast.AST) -> Any:
        if node is not self.target:
            return self.generic_visit(node)
        made = self.change(node)
        if made is None:
            made = ast.Pass() if isinstance(node, ast.stmt) else ast.Constant(None)
        return ast.copy_location(made, node)


class _Places:
    """For each node that may be changed: its statement's lines and the outermost function."""

    def __init__(self, tree: ast.Module) -> None:
        self.open: set[ast.AST] = set()
        self.statement: dict[ast.AST, tuple[int, int]] = {}
        self.function: dict[ast.AST, tuple[str, int] | None] = {}
        self.lines: dict[tuple[str, int] | None, range] = {}
        for statement in tree.body:
            self._enter(statement, tree, (0, 0), None, "")

    def _enter(
        self,
        node: ast.AST,
        parent: ast.AST,
        statement: tuple[int, int],
        function: tuple[str, int] | None,
        scope: str,
    ) -> None:
        if _is_closed(node, parent):
            return
        if isinstance(node, ast.stmt):
            statement = (node.lineno, _head_end(node))
        self.statement[node], self.function[node] = statement, function
        if hasattr(node, "lineno"):
            self.open.add(node)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own = f"{scope}{node.name}"
            inside = function
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                inside = function or (own, first)
                if function is None:
                    self.lines[inside] = range(first, (node.end_lineno or first) + 1)
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    if default is not None:
                        self._enter(default, node, statement, function, scope)
                own += ".<locals>"
            for child in node.body:
                self._enter(child, node, statement, inside, f"{own}.")
            return
        for child in ast.iter_child_nodes(node):
            self._enter(child, node, statement, function, scope)


def _is_closed(node: ast.AST, parent: ast.AST) -> bool:
    """Whether a node and all in it are left alone."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert | ast.arguments):
        return not (isinstance(node, ast.arguments) and isinstance(parent, ast.Lambda))
    if isinstance(parent, ast.AnnAssign) and node is parent.annotation:
        return True
    if isinstance(parent, ast.Raise):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Assign):
        names = [one.id for one in node.targets if isinstance(one, ast.Name)]
        if "__all__" in names or _is_type(node.value):
            return True
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _is_type(value: ast.AST) -> bool:
    """Whether an assigned value is a type alias or a TypeVar."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "TypeVar"
    return (
        isinstance(value, ast.Subscript)
        and isinstance(value.value, ast.Name)
        and (value.value.id[0].isupper() or value.value.id in ("tuple", "list", "dict"))
    )


def _head_end(node: ast.stmt) -> int:
    """The last line of a statement, its body left out."""
    body = getattr(node, "body", None)
    if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try) and body:
        return max(node.lineno, body[0].lineno - 1)
    return node.end_lineno or node.lineno


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node).replace("\n", " ")
    return text if len(text) < 90 else text[:87] + "..."


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    for kind, changes in _KINDS.items():
        if isinstance(node, kind):
            yield from changes(node)
    if isinstance(node, ast.stmt):
        yield from _statements(node)


def _operations(node: ast.BinOp | ast.AugAssign) -> Iterator[tuple[str, Change]]:
    yield from _swapped_operator(node.op)
    if isinstance(node.op, ast.MatMult):
        yield "operands swapped", _swap_operands


def _comparisons(node: ast.Compare) -> Iterator[tuple[str, Change]]:
    for index, op in enumerate(node.ops):
        for other in _OPERATORS[type(op)]:
            yield _compared(index, other)


def _choices(node: ast.BoolOp) -> Iterator[tuple[str, Change]]:
    yield from _swapped_operator(node.op)
    for index, value in enumerate(node.values):
        yield f"without {_shown(value)}", _without_value(index)


def _signs(node: ast.UnaryOp) -> Iterator[tuple[str, Change]]:
    if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield "its operand", lambda one: one.operand  # type: ignore[attr-defined]


def _conditions(node: ast.If | ast.IfExp | ast.While) -> Iterator[tuple[str, Change]]:
    if not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield f"not ({_shown(node.test)})", _negated


def _filters(
    node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp,
) -> Iterator[tuple[str, Change]]:
    for index, part in enumerate(node.generators):
        for which, test in enumerate(part.ifs):
            yield f"without if {_shown(test)}", _without_filter(index, which)


def _swapped_operator(op: ast.AST) -> Iterator[tuple[str, Change]]:
    for other in _OPERATORS.get(type(op), ()):

        def change(one: Any, other: type[ast.AST] = other) -> ast.AST:
            one.op = other()
            return one

        yield other.__name__, change


def _swap_operands(one: Any) -> ast.AST:
    one.left, one.right = one.right, one.left
    return one


def _compared(index: int, other: type[ast.AST]) -> tuple[str, Change]:
    def change(one: Any) -> ast.AST:
        one.ops[index] = other()
        return one

    return other.__name__, change


def _without_value(index: int) -> Change:
    def change(one: Any) -> ast.AST:
        del one.values[index]
        return one.values[0] if len(one.values) == 1 else one

    return change


def _without_filter(index: int, which: int) -> Change:
    def change(one: Any) -> ast.AST:
        del one.generators[index].ifs[which]
        return one

    return change


def _negated(one: Any) -> ast.AST:
    one.test = ast.copy_location(ast.UnaryOp(ast.Not(), one.test), one.test)
    return one


def _constants(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        others: tuple[Any, ...] = (not value,)
    elif isinstance(value, int):
        others = (value + 1, value - 1) if value > 0 else (value + 1,)
    elif isinstance(value, float):
        others = (value * 2 or 1.0,)
    else:
        others = ()
    for other in others:
        yield str(other), lambda one, other=other: ast.Constant(other)  # type: ignore[misc]


def _calls(node: ast.Call) -> Iterator[tuple[str, Change]]:
    name = ""
    if isinstance(node.func, ast.Name):
        name = node.func.id
        if name in _NAMES:
            yield _NAMES[name], _renamed("id", _NAMES[name])
        if name in _IDLE_CALLS and len(node.args) == 1:
            yield "its argument", lambda one: one.args[0]  # type: ignore[attr-defined]
    elif isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in _NAMES:
            yield _NAMES[name], _renamed("attr", _NAMES[name])
        if name in _IDLE_METHODS:
            yield f"without .{name}()", lambda one: one.func.value  # type: ignore[attr-defined]
    simple = ast.Name | ast.Attribute | ast.Subscript
    if (
        len(node.args) >= 2
        and name not in _KEPT_ORDER
        and all(isinstance(one, simple) for one in node.args[:2])
    ):
        yield "first two arguments swapped", _swapped_arguments
    for index, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict", "dtype", "device"):
            yield f"without {keyword.arg}=", _without_keyword(index)


def _renamed(field: str, name: str) -> Change:
    def change(one: Any) -> ast.AST:
        setattr(one.func, field, name)
        return one

    return change


def _swapped_arguments(one: Any) -> ast.AST:
    one.args[:2] = one.args[1::-1]
    return one


def _without_keyword(index: int) -> Change:
    def change(one: Any) -> ast.AST:
        del one.keywords[index]
        return one

    return change


def _slices(node: ast.Slice) -> Iterator[tuple[str, Change]]:
    for field in ("lower", "upper"):
        bound = getattr(node, field)
        if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):

            def change(one: Any, field: str = field) -> ast.AST:
                bound = getattr(one, field)
                setattr(one, field, ast.BinOp(bound, ast.Add(), ast.Constant(1)))
                return one

            yield f"{field} + 1", change


def _statements(node: ast.stmt) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.Return):
        if node.value is not None and not _is_none(node.value):
            yield "return None", lambda one: ast.Return(ast.Constant(None))
    elif _may_be_dropped(node):
        yield "pass", lambda one: None


def _may_be_dropped(node: ast.stmt) -> bool:
    """Whether what follows a statement can run without it."""
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        again = isinstance(target, ast.Name) and any(
            isinstance(one, ast.Name) and one.id == target.id for one in ast.walk(node.value)
        )
        return again or isinstance(target, ast.Attribute | ast.Subscript)
    if isinstance(node, ast.If):
        return not node.orelse
    return isinstance(node, ast.Break | ast.Continue | ast.Raise | ast.Expr | ast.AugAssign)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


_KINDS: dict[Any, Callable[[Any], Iterator[tuple[str, Change]]]] = {
    ast.BinOp | ast.AugAssign: _operations,
    ast.Compare: _comparisons,
    ast.BoolOp: _choices,
    ast.UnaryOp: _signs,
    ast.Constant: _constants,
    ast.Call: _calls,
    ast.Slice: _slices,
    ast.If | ast.IfExp | ast.While: _conditions,
    ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp: _filters,
}
