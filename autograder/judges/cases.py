"""What judges share: rows of cases, and errors as learners raise them."""

import functools
from collections.abc import Callable
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
