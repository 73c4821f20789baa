"""FP8 training with one dynamic scale per tensor: linear layers whose three matrix products run in 8-bit floats.

Weights stay in full precision and every product quantises its operands afresh, so checkpoints don't know about FP8.
Formats: arXiv 2209.05433.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nanochat import common
from nanochat.common import InputError

INPUT_DTYPE = torch.float8_e4m3fn  # inputs and weights: precision
GRAD_DTYPE = torch.float8_e5m2  # gradients: range


def _to_fp8(x: Tensor, fp8_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` scaled so that its largest magnitude is that of `fp8_dtype`, and the 0-d float32 factor that undoes it.

    The scale is computed in float64; values are clamped so that its rounding can't push one beyond the format.
    """
    fp8_max = torch.finfo(fp8_dtype).max
    amax = x.abs().max().double()
    scale = (fp8_max / amax.clamp(min=1e-12)).float()
    quantised = (x.float() * scale).clamp(-fp8_max, fp8_max).to(fp8_dtype)
    return quantised, scale.reciprocal()


def _column_major(x: Tensor) -> Tensor:
    """The same matrix, stored column by column: the only layout `torch._scaled_mm` takes as second operand."""
    return x.t().contiguous().t()


class _Float8Matmul(torch.autograd.Function):
    """x @ weightᵀ for x (M, K) and weight (N, K), forward and backward in FP8; results have the dtype of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_inv = _to_fp8(x, INPUT_DTYPE)
        w8, w_inv = _to_fp8(weight, INPUT_DTYPE)
        ctx.save_for_backward(x8, x_inv, w8, w_inv)
        # Fast accumulation rounds the running sums: bearable in activations, not in gradients.
        return torch._scaled_mm(x8, w8.t(), scale_a=x_inv, scale_b=w_inv, out_dtype=x.dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_inv, w8, w_inv = ctx.saved_tensors
        dy8, dy_inv = _to_fp8(dy, GRAD_DTYPE)
        dx = torch._scaled_mm(dy8, _column_major(w8), scale_a=dy_inv, scale_b=w_inv, out_dtype=dy.dtype)
        dw = torch._scaled_mm(
            dy8.t().contiguous(), _column_major(x8), scale_a=dy_inv, scale_b=x_inv, out_dtype=dy.dtype
        )
        return dx, dw


LinearT = TypeVar("LinearT", bound=nn.Linear)


def _share_parameters(linear: nn.Linear, cls: type[LinearT]) -> LinearT:
    """A layer of class `cls` whose parameters are those of `linear`, the same objects."""
    layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer.train(linear.training)


class Float8Linear(nn.Linear):
    """A linear layer whose products run in FP8; `plain_class` is the class of the layer that it replaces.

    Input (..., in_features) of any float dtype, output (..., out_features) in the compute dtype. CUDA wants both
    dimensions, and for the backward pass the number of input rows, divisible by 16.
    """

    plain_class: type[nn.Linear] = nn.Linear

    @classmethod
    def from_float(cls, linear: nn.Linear) -> "Float8Linear":
        """The FP8 layer that shares weight and bias with `linear`."""
        layer = _share_parameters(linear, cls)
        layer.plain_class = type(linear)
        return layer

    def to_float(self) -> nn.Linear:
        """The plain layer, of the class that `from_float` was given, that shares weight and bias with this one."""
        return _share_parameters(self, self.plain_class)

    def forward(self, input: Tensor) -> Tensor:
        x = input.to(common.COMPUTE_DTYPE)
        y = _Float8Matmul.apply(x.reshape(-1, self.in_features), self.weight)
        y = y.view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


@dataclass(frozen=True)
class Float8LinearConfig:
    """How to scale; one scale per tensor is the only recipe there is."""

    recipe_name: str = "tensorwise"

    @classmethod
    def from_recipe_name(cls, recipe_name: str) -> "Float8LinearConfig":
        """The configuration of that name; InputError for any but "tensorwise"."""
        if recipe_name != "tensorwise":
            raise InputError(f"FP8 recipe must be 'tensorwise', got {recipe_name!r}")
        return cls(recipe_name)


def fp8_module_filter(module: nn.Module, fqn: str) -> bool:
    """Whether FP8 can run (both dimensions divisible by 16) and pays (the smaller at least 128) for the layer `fqn`."""
    if not isinstance(module, nn.Linear):
        return False
    dims = (module.in_features, module.out_features)
    return all(dim % 16 == 0 for dim in dims) and min(dims) >= 128


def _linear_children(model: nn.Module) -> list[tuple[nn.Module, str, str, nn.Linear]]:
    """Every nn.Linear below `model`, as (parent, name in the parent, full name, layer)."""
    return [
        (parent, name, f"{prefix}.{name}" if prefix else name, child)
        for prefix, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def convert_to_float8_training(
    module: nn.Module,
    *,
    config: Float8LinearConfig | None = None,
    module_filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> nn.Module:
    """Swap every nn.Linear below `module` that passes `module_filter_fn(layer, full name)` for a `Float8Linear`.

    In place; returns `module`. Parameters stay the same objects under the same state-dict keys.
    """
    for parent, name, fqn, linear in _linear_children(module):
        if not isinstance(linear, Float8Linear) and (module_filter_fn is None or module_filter_fn(linear, fqn)):
            setattr(parent, name, Float8Linear.from_float(linear))
    return module


def enable_fp8(model: nn.Module, device: torch.device | str, recipe_name: str = "tensorwise") -> bool:
    """Convert the layers of `model` that `fp8_module_filter` picks, if `device` can multiply in FP8; True if it can.

    Elsewhere a warning is given and the model stays as it is. InputError for an unknown recipe.
    """
    config = Float8LinearConfig.from_recipe_name(recipe_name)
    on_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    if not on_cuda or torch.cuda.get_device_capability(device) < (8, 9):
        warnings.warn("FP8 needs a CUDA GPU of compute capability 8.9 or more: going on without it", stacklevel=2)
        return False
    convert_to_float8_training(model, config=config, module_filter_fn=fp8_module_filter)
    return True


@contextmanager
def disable_fp8(model: nn.Module) -> Iterator[nn.Module]:
    """In the context `model` runs without FP8 (for evaluation): plain layers that share the weights stand in.

    The FP8 layers are back afterwards, also when the body raises. A model without FP8 layers is left alone.
    """
    fp8_layers = [(parent, name, m) for parent, name, _, m in _linear_children(model) if isinstance(m, Float8Linear)]
    try:
        for parent, name, layer in fp8_layers:
            setattr(parent, name, layer.to_float())
        yield model
    finally:
        for parent, name, layer in fp8_layers:
            setattr(parent, name, layer)
