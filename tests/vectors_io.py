"""The golden vectors in `tests/vectors/`: numbers measured on the original nanochat (see the README there)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

VECTORS = Path(__file__).parent / "vectors"

# The tolerance codes of tests/vectors/README.md as (rtol, atol); E is exact and has no entry.
TOLERANCES = {"D": (1e-12, 0.0), "F": (1e-5, 1e-6), "L": (1e-4, 5e-5), "G": (1e-3, 5e-6), "B": (2e-2, 2e-2)}


@cache
def load(name: str) -> Any:
    """The JSON vector file `name` ("optim" or "optim.json")."""
    return json.loads((VECTORS / name).with_suffix(".json").read_text())


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of the .npz vector file `name`."""
    with np.load((VECTORS / name).with_suffix(".npz"), allow_pickle=False) as archive:
        return dict(archive)


def close(actual: Any, expected: Any, code: str) -> None:
    """Assert that `actual` equals `expected` under tolerance `code` (NaN equals NaN); shapes must agree."""
    a, e = _array(actual), _array(expected)
    assert a.shape == e.shape, f"shape {a.shape}, expected {e.shape}"
    if code == "E":
        np.testing.assert_array_equal(a, e)
    else:
        rtol, atol = TOLERANCES[code]
        np.testing.assert_allclose(a.astype(np.float64), e.astype(np.float64), rtol=rtol, atol=atol)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)
