"""Peek: nanochat's own source of what a part asks for, with file and line numbers."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
        target = module
        for step in filter(None, attribute.split(".")):
            target = getattr(target, step)
        lines, first = inspect.getsourcelines(inspect.unwrap(target) if callable(target) else target)
        file = Path(inspect.getsourcefile(target) or "").resolve()
        if file.is_relative_to(catalog.ROOT):
            file = file.relative_to(catalog.ROOT)
        yield Excerpt(name, file, max(first, 1), "".join(lines))
