"""Automatic mutants of the reference solutions: small changes that a test suite worth its name notices.

Each mutant changes one spot of the code between BEGIN and END SOLUTION. One that keeps every point is either equivalent
to the original or a hole in the hidden tests; survivors are listed so that a person can tell which.
"""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from autograder.template import solution_cells, solution_lines
from autograder.variants import Variant, source
from puzzles import catalog

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def mutants(puzzle_id: str, course: Path = catalog.ROOT) -> Iterator[Variant]:
    """Every mutant of every reference solution of a puzzle; each should lose its part."""
    reference = solution_cells(source(puzzle_id, course))
    for part in catalog.puzzle(puzzle_id).parts:
        code = reference[part.id].source
        seen = {ast.dump(ast.parse(code))}
        for line, what, mutated in _mutate(code):
            if ast.dump(mutated) not in seen:
                seen.add(ast.dump(mutated))
                text = code.split("\n")[line - 1].strip()
                yield Variant(f"{part.id}: {what} in `{text}`", {part.id: ast.unparse(mutated)}, frozenset([part.id]))


def _mutate(code: str) -> Iterator[tuple[int, str, ast.Module]]:
    """(line, what was changed, the changed module) for each change to one spot of the solution."""
    inside = {number for number, _ in solution_lines(code)}
    tree = ast.parse(code)
    spots = list(_spots(tree, inside))
    for index, node in enumerate(spots):
        for number, (what, _) in enumerate(_changes(node)):
            changed = copy.deepcopy(tree)
            twin = list(_spots(changed, inside))[index]
            replacement = list(_changes(twin))[number][1]
            module = ast.fix_missing_locations(_Replace(twin, replacement).visit(changed))
            yield node.lineno, what, cast(ast.Module, module)


def _spots(node: ast.AST, inside: set[int]) -> Iterator[ast.stmt | ast.expr]:
    """The nodes on these lines, without what is inside a `raise`: nobody grades an error's text."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.expr)) and child.lineno in inside:
            yield child
        if not isinstance(child, ast.Raise):
            yield from _spots(child, inside)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in place of a node, with a few words for it."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
            other = _COMPARISONS[type(op)]
            yield f"{type(op).__name__} to {other.__name__}", ast.Compare(node.left, [other()], node.comparators)
        case ast.BinOp(op=binary) if type(binary) in _OPERATORS:
            operator = _OPERATORS[type(binary)]
            yield f"{type(binary).__name__} to {operator.__name__}", ast.BinOp(node.left, operator(), node.right)
        case ast.AugAssign(op=binary) if type(binary) in _OPERATORS:
            operator = _OPERATORS[type(binary)]
            what = f"{type(binary).__name__}= to {operator.__name__}="
            yield what, ast.AugAssign(node.target, operator(), node.value)
            yield "statement dropped", ast.Pass()
        case ast.BoolOp(op=logical):
            swapped = ast.Or() if isinstance(logical, ast.And) else ast.And()
            yield "and/or swapped", ast.BoolOp(swapped, node.values)
        case ast.UnaryOp():
            yield f"{type(node.op).__name__} dropped", node.operand
        case ast.Constant(value=bool() as flag):
            yield f"{flag} negated", ast.Constant(not flag)
        case ast.Constant(value=int() as whole):
            yield f"{whole} to {whole + 1}", ast.Constant(whole + 1)
        case ast.Constant(value=float() as number):
            yield f"{number:g} to {number * 1.1:g}", ast.Constant(number * 1.1)
        case ast.If():
            yield "condition negated", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.IfExp():
            yield "choices swapped", ast.IfExp(node.test, node.orelse, node.body)
        case ast.Expr() | ast.Assign() | ast.Raise() | ast.Break() | ast.Continue():
            yield "statement dropped", ast.Pass()
        case ast.Call(keywords=[*_, ast.keyword(arg=str() as name)]):
            yield f"argument {name} dropped", ast.Call(node.func, node.args, node.keywords[:-1])


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)
