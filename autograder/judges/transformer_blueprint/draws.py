"""Random weights that cannot be compared number by number: could they be draws from the same distributions?

Both sides are state dicts as plain data. A right answer fails less than once in 10^8 tensors.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from puzzles.compare import FLOAT32, difference

STANDARD_ERRORS = 6
MIDWAY = 2.4  # between the kurtosis of a uniform distribution, 1.8, and of a normal one, 3
ENOUGH_TO_TELL = 1500  # numbers it takes to tell the two by it; fewer are taken for uniform


def unlike(expected: Mapping[str, Tensor], got: Mapping[str, Any]) -> str | None:
    """None if `got` could be another draw of `expected`, else what is wrong with its first tensor that is not.

    Vectors and zeros must be equal. Other tensors must be uniform or normal as the expected ones, with the same mean,
    standard deviation and, if uniform, range. Layers are drawn alike: their tensors are pooled into one sample.
    """
    pools: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in expected.items():
        pools[_role(name)].append(tensor.flatten())
    samples = {role: _Sample(torch.cat(tensors).double()) for role, tensors in pools.items()}
    for name, tensor in expected.items():
        have = got.get(name)
        if not isinstance(have, Tensor) or have.shape != tensor.shape or have.dtype != tensor.dtype:
            return difference({name: tensor}, {name: have} if name in got else {})
        if not have.isfinite().all():
            missing = int((~have.isfinite()).sum())
            return f"{name}: {missing} of {have.numel()} numbers were never filled, or are not finite"
        sample = samples[_role(name)]
        if tensor.dim() == 1:
            found = difference(tensor, have, FLOAT32)
        elif sample.high == sample.low == 0:
            found = "expected all zeros" if have.any() else None
        else:
            found = _unlike(sample, _Sample(have.double()))
        if found:
            return f"{name}: {found}"
    if extra := next((name for name in got if name not in expected), None):
        return f"unexpected parameter {extra!r}"
    return _repeated(got)


class _Sample:
    """What numbers drawn at random look like."""

    def __init__(self, numbers: Tensor) -> None:
        centred = numbers - numbers.mean()
        variance = float(centred.square().mean())
        self.n = numbers.numel()
        self.mean, self.std = float(numbers.mean()), variance**0.5
        self.low, self.high = float(numbers.min()), float(numbers.max())
        kurtosis = float(centred.square().square().mean()) / variance**2 if variance else 0.0
        self.uniform = self.n < ENOUGH_TO_TELL or kurtosis < MIDWAY

    def __str__(self) -> str:
        return "uniform" if self.uniform else "normal"


def _unlike(sample: _Sample, got: _Sample) -> str | None:
    error = STANDARD_ERRORS * (1 / got.n + 1 / sample.n) ** 0.5
    # a sample's standard deviation has the relative standard error sqrt((kurtosis - 1) / 4n)
    std_error = error * ((1.8 if sample.uniform else 3.0) - 1) ** 0.5 / 2
    if abs(got.mean - sample.mean) > error * sample.std or abs(got.std / sample.std - 1) > std_error:
        mean = 0.0 if abs(sample.mean) < error * sample.std else sample.mean
        wanted = f"a {sample} distribution with mean near {mean:.2g} and standard deviation near {sample.std:.2g}"
        return f"expected {wanted}, got mean {got.mean:.2g} and standard deviation {got.std:.2g}"
    # the range of n draws falls short of a uniform distribution's by more than 20/n of it once in 10^8
    slack = 20 / sample.n * (sample.high - sample.low)
    if sample.uniform and (got.low < sample.low - slack or got.high > sample.high + slack):
        bounds = f"about {sample.low:.3g} and {sample.high:.3g}"
        return f"expected a uniform distribution between {bounds}, got numbers from {got.low:.3g} to {got.high:.3g}"
    if got.n >= ENOUGH_TO_TELL and got.uniform != sample.uniform:
        return f"expected a {sample} distribution, got one that looks {got}"
    return None


def _repeated(got: Mapping[str, Any]) -> str | None:
    """Two layers with the same random numbers."""
    first: dict[tuple[str, float], str] = {}
    for name, tensor in got.items():
        if tensor.dim() > 1 and tensor.any():
            twin = first.setdefault((_role(name), tensor.double().sum().item()), name)
            if twin != name:
                return f"{name} holds the very numbers of {twin}: draw afresh for every parameter"
    return None


def _role(name: str) -> str:
    """A parameter's name without the number of its layer."""
    return re.sub(r"\d+", "*", name)
