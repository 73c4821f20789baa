"""Peek: nanochat's own source of what a part asks for, with file and line numbers."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from puzzles import catalog
from puzzles.catalog import Part


@dataclass(frozen=True)
class Excerpt:
    """Consecutive lines of a source file; `first` is the number of the first, counted from 1."""

    name: str
    file: Path
    first: int
    code: str


def excerpts(part: Part) -> Iterator[Excerpt]:
    """The source of everything a part's `peek` names ("module:attribute", or "module" for a whole file)."""
    for name in part.peek:
        module_name, _, attribute = name.partition(":")
        module = importlib.import_module(module_name)
        target: Any = module
        for step in filter(None, attribute.split(".")):
            target = getattr(target, step)
        if inspect.ismodule(target) or callable(target):
            target = inspect.unwrap(target)  # a decorator may come from a file of its own
            lines, first = inspect.getsourcelines(target)
        else:
            lines, first = _assignment(module, attribute)
            target = module
        file = Path(inspect.getsourcefile(target) or "").resolve()
        if file.is_relative_to(catalog.ROOT):
            file = file.relative_to(catalog.ROOT)
        yield Excerpt(name, file, max(first, 1), "".join(lines))


def _assignment(module: ModuleType, name: str) -> tuple[list[str], int]:
    """The lines that give a module's constant its value, and the number of the first."""
    lines, _ = inspect.getsourcelines(module)
    for statement in ast.parse("".join(lines)).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return lines[statement.lineno - 1 : statement.end_lineno], statement.lineno
    raise ValueError(f"{module.__name__} does not assign {name} at its top level")
