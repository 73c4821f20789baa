"""What judges share: rows of cases, errors as learners raise them, and modules to set toys into."""

import functools
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

Case = dict[str, Any]


def asked(keys: str, *rows: tuple) -> list[Case]:
    """Cases from rows of arguments in the order of `keys`."""
    return [dict(zip(keys.split(), row, strict=True)) for row in rows]


def plain_value_error(oracle: Callable) -> Callable:
    """nanochat's InputError is a ValueError with a name of its own; a learner raises the plain one."""

    @functools.wraps(oracle)
    def wrapped(**case: Any) -> Any:
        try:
            return oracle(**case)
        except ValueError as error:
            raise ValueError(str(error)) from error

    return wrapped


def private_copy(module: ModuleType) -> Any:
    """A module of the same code which nobody else has."""
    spec = importlib.util.find_spec(module.__name__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy
