"""The calculator the model may use: plain arithmetic, and counting letters in a string."""

import ast
from typing import Any

ARITHMETIC_CHARACTERS = frozenset("0123456789*+-/.() ")
STRING_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'\"()._ ")
BANNED_WORDS = (
    *("__", "import", "exec", "eval", "compile", "open", "file", "input"),
    *("globals", "locals", "vars", "dir", "getattr", "setattr", "delattr", "hasattr"),
)

# No loops, no subscripts, no lambdas: whatever passes ends in time and memory bounded by a small power of its length.
# For the same reason the methods that can blow a string up (join, center, zfill, expandtabs...) are not listed.
ALLOWED_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Tuple, ast.Attribute, ast.Call),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.IfExp, ast.operator, ast.unaryop, ast.boolop),
)
STRING_METHODS = ("lower", "upper", "title", "capitalize", "swapcase", "casefold", "strip", "lstrip", "rstrip", "split")
ALLOWED_ATTRIBUTES = frozenset(("count", "real", *STRING_METHODS))


def use_calculator(expr: str) -> Any:
    """The value of `expr`, or None if it is refused or fails.

    Commas are dropped first ("1,000+1"), inside strings too. Accepted are arithmetic with + - * / // and parentheses
    (no powers), and expressions around `'text'.count('t')` without any of `BANNED_WORDS`.

    The original evaluates what passes the character filter and gives up after three seconds. Here what could run
    long (a comprehension, a join) is refused by its syntax tree, so there is nothing to time out, and the
    calculator works in any thread.
    """
    expr = expr.replace(",", "").strip(" ")
    if not (is_arithmetic(expr) or is_counting(expr)):
        return None
    try:
        tree = ast.parse(expr, mode="eval")
        if not all(map(is_harmless, ast.walk(tree))):
            return None
        value = eval(compile(tree, "<calculator>", "eval"), {"__builtins__": {}})
        str(value)  # an integer of more than 4300 digits has a value but cannot be printed
    except Exception:  # the model writes what it likes: every failure means "no result"
        return None
    return value


def is_arithmetic(expr: str) -> bool:
    return ARITHMETIC_CHARACTERS.issuperset(expr) and "**" not in expr


def is_counting(expr: str) -> bool:
    lowered = expr.lower()
    return (
        STRING_CHARACTERS.issuperset(expr) and ".count(" in expr and not any(word in lowered for word in BANNED_WORDS)
    )


def is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ALLOWED_ATTRIBUTES
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute)
    return isinstance(node, ALLOWED_NODES)
