"""Mutants: the package with one small fault in it, as a slip of the hand would leave it.

A comparison turned, a plus for a minus, a number one off, a condition negated, a call or an error left out, nothing
returned. A mutant is known by its module, function, line of code and change, so that it stays itself when lines above
it move. Words, annotations, decorators and assertions (`strict=True` of a zip is one) are left alone.
"""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_LEFT_ALONE = {"annotation", "returns", "decorator_list", "bases", "format_spec"}


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        module: Such as `rank.best`.
        where: Qualified name of the function or class it is in; empty at the top of the module.
        code: The line of code it begins on.
        change: What becomes of what.
        nth: Which of those that are alike in all of the above.
        lines: First and last line of the statement; those of its head, where it has a body.
    """

    module: str
    where: str
    code: str
    change: str
    nth: int
    lines: tuple[int, int]

    @property
    def name(self) -> str:
        """What it is known by."""
        place = f"{self.module}:{self.where}" if self.where else self.module
        return f"{place} | {self.code} | {self.change}" + (f" | {self.nth}" if self.nth else "")


class _Site(NamedTuple):
    owner: ast.AST
    field: str
    place: int | None
    new: ast.AST
    mutant: Mutant


def find_mutants(source: str, module: str) -> list[Mutant]:
    """All mutants of a module, from the first line to the last."""
    return [site.mutant for site in _sites(source, ast.parse(source), module)]


def mutate(source: str, mutant: Mutant) -> ast.Module:
    """The module with that one fault.

    Raises:
        LookupError: If the module has no such place any more.
    """
    tree = ast.parse(source)
    for site in _sites(source, tree, mutant.module):
        if site.mutant == mutant:
            _put(site)
            return ast.fix_missing_locations(tree)
    raise LookupError(f"{mutant.module} has no mutant {mutant.name}")


def sample(mutants: Sequence[Mutant], n: int, seed: int) -> list[Mutant]:
    """Some of the mutants, drawn by their names: a change of the code elsewhere leaves the others in the sample."""
    return sorted(mutants, key=lambda one: hashlib.sha256(f"{seed} {one.name}".encode()).digest())[:n]


def module_of(file: Path, root: Path) -> str:
    """`rank.best` for hyperalign/rank/best.py."""
    return ".".join(file.relative_to(root / "hyperalign").with_suffix("").parts)


def _put(site: _Site) -> None:
    if site.place is None:
        setattr(site.owner, site.field, site.new)
    else:
        getattr(site.owner, site.field)[site.place] = site.new


def _sites(source: str, tree: ast.Module, module: str) -> Iterator[_Site]:
    """Each place that can be changed, with what comes there; `tree` is read and left as it is."""
    text, seen = source.splitlines(), dict[tuple[str, str, str], int]()
    for owner, field, place, node, where, statement in _walk(tree, "", tree):
        for change, new in _changes(node):
            code = text[statement.lineno - 1].strip()
            nth = seen.get((where, code, change), 0)
            seen[where, code, change] = nth + 1
            lines = statement.lineno, _last_line(statement)
            ast.copy_location(new, node)
            yield _Site(owner, field, place, new, Mutant(module, where, code, change, nth, lines))


def _walk(node: ast.AST, where: str, statement: ast.AST) -> Iterator[tuple[Any, str, int | None, Any, str, Any]]:
    """Every node below, with its owner, its place there, the function it is in and the statement it is of."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        where = f"{where}.{node.name}" if where else node.name
    for field, value in ast.iter_fields(node):
        if field in _LEFT_ALONE:
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _is_left_alone(child):
                continue
            of = child if isinstance(child, ast.stmt) else statement
            if not isinstance(of, ast.Module):
                yield node, field, place, child, where, of
            yield from _walk(child, where, of)


def _is_left_alone(node: ast.AST) -> bool:
    """Whether it asserts, says what is offered, or what is imported for the type checker alone."""
    if isinstance(node, ast.Assert) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return True
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"


def _last_line(statement: Any) -> int:
    """The last line of a statement, or of its head where it has a body."""
    body = getattr(statement, "body", None)
    return max(statement.lineno, body[0].lineno - 1) if isinstance(body, list) else int(statement.end_lineno)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:  # noqa: C901 - one case for each kind of slip
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            for k, op in enumerate(ops):
                new = _COMPARED[type(op)]()
                yield f"{_sign(op)} becomes {_sign(new)}", ast.Compare(left, [*ops[:k], new, *ops[k + 1 :]], others)
        case ast.BinOp(left=left, op=op, right=right) if not (_is_text(left) or _is_text(right)):
            counted = _COUNTED[type(op)]()
            yield f"{_sign(op)} becomes {_sign(counted)}", ast.BinOp(left, counted, right)
        case ast.AugAssign(target=target, op=op, value=value) if not _is_text(value):
            counted = _COUNTED[type(op)]()
            yield f"{_sign(op)}= becomes {_sign(counted)}=", ast.AugAssign(target, counted, value)
        case ast.BoolOp(op=ast.And(), values=values):
            yield "and becomes or", ast.BoolOp(ast.Or(), values)
        case ast.BoolOp(op=ast.Or(), values=values):
            yield "or becomes and", ast.BoolOp(ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub() as sign, operand=operand):
            yield f"{'not' if isinstance(sign, ast.Not) else 'minus'} left out", operand
        case ast.Constant(value=bool(value)):
            yield f"{value} becomes {not value}", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield f"{value} becomes {value + 1}", ast.Constant(value + 1)
            yield f"{value} becomes {value - 1}", ast.Constant(value - 1)
        case ast.Constant(value=float(value)):
            yield f"{value} becomes {2 * value or 1.0}", ast.Constant(2 * value or 1.0)
        case ast.If(test=test, body=body, orelse=orelse):
            yield "if negated", ast.If(_negated(test), body, orelse)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield "if negated", ast.IfExp(_negated(test), body, orelse)
        case ast.comprehension(target=target, iter=source, ifs=[test, *more], is_async=kind):
            yield "filter negated", ast.comprehension(target, source, [_negated(test), *more], kind)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "returns nothing", ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield "call left out", ast.Pass()
        case ast.Raise():
            yield "error left out", ast.Pass()
        case ast.Break():
            yield "break becomes continue", ast.Continue()
        case ast.Continue():
            yield "continue becomes break", ast.Break()


def _negated(test: ast.expr) -> ast.expr:
    return ast.copy_location(ast.UnaryOp(ast.Not(), test), test)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _sign(op: ast.AST) -> str:
    """How an operator is written."""
    left, right = ast.Name("a"), ast.Name("b")
    whole = ast.Compare(left, [op], [right]) if isinstance(op, ast.cmpop) else ast.BinOp(left, op, right)  # type: ignore[arg-type]
    return ast.unparse(whole).split(" ", 1)[1].rsplit(" ", 1)[0]
