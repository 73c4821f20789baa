"""Where an answer differs from what was expected, in words short enough to read.

Answers are compared as plain data (`puzzles.wire.plain`): type, then dtype, then shape, then value.
"""

from dataclasses import dataclass
from typing import Any

import torch

from puzzles.wire import Opaque, Raised


@dataclass(frozen=True)
class Tolerance:
    """Values agree when |got - expected| <= atol + rtol·|expected|; NaN agrees with NaN."""

    rtol: float = 0.0
    atol: float = 0.0


EXACT = Tolerance()
# One rounding of a float32 result of order one is 6e-8; a few hundred of them accumulated.
FLOAT32 = Tolerance(rtol=1e-5, atol=1e-6)


def difference(expected: Any, got: Any, tolerance: Tolerance = EXACT, where: str = "") -> str | None:
    """None if `got` answers `expected`, else a sentence naming the first place where they part, both values and,
    for tensors, how many differ and by how much."""
    if isinstance(got, Raised) or isinstance(expected, Raised):
        return _different_outcome(expected, got)
    if isinstance(got, Opaque):
        return f"{_at(where)}expected {_kind(expected)}, got an object of type {got.type_name}"
    if isinstance(expected, torch.Tensor):
        return _different_tensor(expected, got, tolerance, where)
    if isinstance(expected, list):
        return _different_list(expected, got, tolerance, where)
    if isinstance(expected, dict):
        return _different_dict(expected, got, tolerance, where)
    if isinstance(expected, float) and isinstance(got, (int, float)) and not isinstance(got, bool):
        same = expected == got or abs(got - expected) <= tolerance.atol + tolerance.rtol * abs(expected)
        same = same or (expected != expected and got != got)
        return None if same else f"{_at(where)}expected {expected!r}, got {got!r}"
    if type(expected) is not type(got):
        return f"{_at(where)}expected {_kind(expected)} {short(expected)}, got {_kind(got)} {short(got)}"
    return None if expected == got else f"{_at(where)}expected {short(expected)}, got {short(got)}"


def short(value: Any, limit: int = 120) -> str:
    """`value` in at most about `limit` characters."""
    if isinstance(value, torch.Tensor):
        if value.numel() <= 6:
            return f"tensor({value.tolist()}, dtype={_dtype(value)})"
        return f"tensor of shape {tuple(value.shape)}, dtype {_dtype(value)}"
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, Raised):
        return value.type_name
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 20]} … ({len(text)} characters)"


def _different_outcome(expected: Any, got: Any) -> str | None:
    if not isinstance(got, Raised):
        return f"expected {expected.type_name} to be raised, got {short(got)}"
    if isinstance(expected, Raised):
        if expected.type_name in (got.type_name, *got.bases):
            return None
        return f"expected {expected.type_name} to be raised, got {got.type_name}: {got.text}"
    return f"your code raised {got.type_name}: {got.text}" if got.text else f"your code raised {got.type_name}"


def _different_tensor(expected: torch.Tensor, got: Any, tolerance: Tolerance, where: str) -> str | None:
    if not isinstance(got, torch.Tensor):
        return f"{_at(where)}expected a tensor of shape {tuple(expected.shape)}, got {_kind(got)} {short(got)}"
    if got.shape != expected.shape:
        return f"{_at(where)}expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    if got.dtype != expected.dtype:
        return f"{_at(where)}expected dtype {_dtype(expected)}, got {_dtype(got)}"
    want, have = expected.double(), got.double()
    same = (want == have) | (want.isnan() & have.isnan())
    same |= (have - want).abs() <= tolerance.atol + tolerance.rtol * want.abs()
    wrong = ~same
    count = int(wrong.sum())
    if count == 0:
        return None
    first = tuple(int(i) for i in wrong.nonzero()[0])
    largest = (have - want).abs()[wrong].max().item()
    size = "" if expected.dtype == torch.bool else f" (largest error {largest:.3g})"
    return (
        f"{_at(where)}{count} of {expected.numel()} values differ{size}; first at {list(first)}: "
        f"expected {_scalar(expected[first])}, got {_scalar(got[first])}"
    )


def _different_list(expected: list, got: Any, tolerance: Tolerance, where: str) -> str | None:
    if not isinstance(got, list):
        return f"{_at(where)}expected a list {short(expected)}, got {_kind(got)} {short(got)}"
    if len(expected) != len(got):
        return f"{_at(where)}expected {len(expected)} items {short(expected)}, got {len(got)}: {short(got)}"
    for i, (e, g) in enumerate(zip(expected, got, strict=True)):
        if found := difference(e, g, tolerance, f"{where}[{i}]"):
            return found
    return None


def _different_dict(expected: dict, got: Any, tolerance: Tolerance, where: str) -> str | None:
    if not isinstance(got, dict):
        return f"{_at(where)}expected a dict, got {_kind(got)} {short(got)}"
    if missing := [key for key in expected if key not in got]:
        return f"{_at(where)}missing key {missing[0]!r}"
    if extra := [key for key in got if key not in expected]:
        return f"{_at(where)}unexpected key {extra[0]!r}"
    for key, value in expected.items():
        if found := difference(value, got[key], tolerance, f"{where}[{key!r}]"):
            return found
    return None


def _at(where: str) -> str:
    return f"at {where}: " if where else ""


def _kind(value: Any) -> str:
    if value is None:
        return "the value"
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{article} {type(value).__name__.lower()}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _scalar(tensor: torch.Tensor) -> str:
    value = tensor.item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
