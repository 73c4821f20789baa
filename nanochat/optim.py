"""Muon for the matrices of the blocks, AdamW for everything else, in one optimizer for one process or many.

The arithmetic comes first, as functions on tensors; `MuonAdamW` decides which share of which tensor a process updates.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat import common
from nanochat.common import InputError, round_up

# AdamW gradients with fewer elements are all-reduced and updated on every rank: splitting them saves next to nothing.
MIN_NUMEL_TO_SHARD = 1024

# Stacking small matrices saves calls. On a CPU it costs more than it saves once a step's tensors overflow the cache.
MAX_NUMEL_STACKED_ON_CPU = 2**16

# Coefficients (a, b, c) of each Polar Express iteration, arXiv 2505.16932.
polar_express_coeffs: list[tuple[float, float, float]] = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]

# The one triple that classic Muon repeats (https://kellerjordan.github.io/posts/muon/).
NEWTON_SCHULZ_COEFFS = (3.4445, -4.7750, 2.0315)


P = ParamSpec("P")
Tensors = list[Tensor] | tuple[Tensor, ...]


def compiled_on_cuda(step: Callable[Concatenate[Tensor, P], None]) -> Callable[Concatenate[Tensor, P], None]:
    """`step`, run through torch.compile when its first argument is on CUDA; compiled at the first such call."""
    compiled = cache(lambda: torch.compile(step, dynamic=False))

    @wraps(step)
    def run(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> None:
        (compiled() if tensor.is_cuda else step)(tensor, *args, **kwargs)

    return run


@compiled_on_cuda
def adamw_step_fused(
    p: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    wd: Tensor,
) -> None:
    """One AdamW step (decoupled weight decay, arXiv 1711.05101), in place on `p`, `exp_avg` and `exp_avg_sq`.

    The four tensors have one shape; the arithmetic is float32 whatever their dtype. `step` counts from 1.
    Hyperparameters are 0-d float32 CPU tensors: a schedule that changes them doesn't make compiled code recompile.
    """
    g = grad.float()
    m = exp_avg.float().lerp(g, 1 - beta1)
    v = exp_avg_sq.float().lerp(g.square(), 1 - beta2)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p.copy_(p.float() * (1 - lr * wd) - lr * m_hat / (v_hat.sqrt() + eps))
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)


def frobenius_norm(x: Tensor) -> Tensor:
    """Frobenius norm of each matrix of `x` (..., m, n), in float32, as (..., 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float32)


def nesterov_momentum(grad: Tensor, momentum_buffer: Tensor, momentum: Tensor) -> Tensor:
    """Fold `grad` into `momentum_buffer` (in place) and return the look-ahead gradient, the mix of the two."""
    momentum_buffer.lerp_(grad, 1 - momentum)
    return grad.lerp(momentum_buffer, momentum)


def equilibrate_rows(x: Tensor) -> Tensor:
    """Give every row of each matrix of `x` (..., m, n) the same norm, ||x|| / sqrt(m); a zero row stays zero."""
    row_norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    target_norm = frobenius_norm(x) / x.size(-2) ** 0.5
    return x * (target_norm / row_norm.clamp_min(1e-6)).to(x.dtype)


def quintic_iterations(x: Tensor, coeffs: Iterable[tuple[float, float, float]]) -> Tensor:
    """Apply aX + b(XXᵀ)X + c(XXᵀ)²X for each (a, b, c): every singular value s of `x` becomes as + bs³ + cs⁵, in turn.

    `x` is (..., m, n) with singular values in 0..1; singular vectors don't change.
    """
    tall = x.size(-2) > x.size(-1)
    if tall:  # the Gram matrix XXᵀ of the transposed matrix is the smaller one
        x = x.mT
    for a, b, c in coeffs:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def polar_express(x: Tensor, ns_steps: int = 5) -> Tensor:
    """Orthogonalise each matrix of `x` (..., m, n): singular values go to about 1, singular vectors stay.

    Every iteration has its own coefficients, the best for the range that the one before leaves (arXiv 2505.16932).
    The 1 % margin in the norm keeps rounding from pushing a singular value over 1, where the first polynomial diverges.
    """
    if not 0 <= ns_steps <= len(polar_express_coeffs):
        raise InputError(f"polar_express: ns_steps must be in 0..{len(polar_express_coeffs)}, got {ns_steps}")
    x = x / (1.01 * frobenius_norm(x) + 1e-6).to(x.dtype)
    return quintic_iterations(x, polar_express_coeffs[:ns_steps])


def newton_schulz(x: Tensor, ns_steps: int = 5) -> Tensor:
    """Classic Muon's orthogonalisation of each matrix of `x` (..., m, n), for comparison with `polar_express`.

    The same coefficients at every step leave the singular values in about 0.7..1.2.
    """
    x = x / (frobenius_norm(x) + 1e-7).to(x.dtype)
    return quintic_iterations(x, [NEWTON_SCHULZ_COEFFS] * ns_steps)


def renormalize(x: Tensor) -> Tensor:
    """Scale each matrix of `x` (..., m, n) to the Frobenius norm sqrt(min(m, n)) of an orthogonal one."""
    return x * (min(x.shape[-2:]) ** 0.5 / frobenius_norm(x).clamp_min(1e-6)).to(x.dtype)


def reduce_variance(x: Tensor, second_momentum_buffer: Tensor, beta2: Tensor, red_dim: int) -> Tensor:
    """NorMuon (arXiv 2510.05491): divide each row (red_dim -1) or column (-2) of `x` (..., m, n) by its running RMS.

    The running mean square in `second_momentum_buffer`, (..., m, 1) or (..., 1, n), is updated in place.
    The Frobenius norm of each matrix stays what it was.
    """
    mean_square = x.float().square().mean(dim=red_dim, keepdim=True)
    second_momentum_buffer.lerp_(mean_square.to(second_momentum_buffer.dtype), 1 - beta2)
    scale = second_momentum_buffer.float().clamp_min(1e-10).rsqrt()
    # Both norms follow, up to one common factor, from the mean squares alone: no second pass over the matrices.
    norm_before = mean_square.sum(dim=(-2, -1), keepdim=True).sqrt()
    norm_after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    return x * (scale * norm_before / norm_after.clamp_min(1e-10)).to(x.dtype)


def cautious_update(p: Tensor, update: Tensor, lr: Tensor, wd: Tensor) -> None:
    """p ← p − lr·update − lr·wd·p·[update·p ≥ 0], in place: decay only what the update shrinks too (arXiv 2510.12402).

    A zero update counts as agreement, so a matrix with zero gradient still decays.
    """
    agrees = (update * p) >= 0
    p.sub_(lr * update + lr * wd * p * agrees)


@compiled_on_cuda
def muon_step_fused(
    stacked_grads: Tensor,
    stacked_params: Tensor,
    momentum_buffer: Tensor,
    second_momentum_buffer: Tensor,
    momentum: Tensor,
    lr: Tensor,
    wd: Tensor,
    beta2: Tensor,
    ns_steps: int,
    red_dim: int,
) -> None:
    """One Muon step (https://kellerjordan.github.io/posts/muon/) over a stack of matrices (K, m, n), in place.

    Parameters and both buffers change: `momentum_buffer` is (K, m, n), `second_momentum_buffer` (K, m, 1) with
    red_dim -1 or (K, 1, n) with red_dim -2. `lr` is used as given: the factor sqrt(max(1, m/n)) is the caller's.
    Orthogonalisation runs in bfloat16 if that is the compute dtype. Hyperparameters as for `adamw_step_fused`.
    """
    g = nesterov_momentum(stacked_grads, momentum_buffer, momentum)
    if common.COMPUTE_DTYPE is torch.bfloat16:
        g = g.bfloat16()
    g = polar_express(equilibrate_rows(g), ns_steps).to(stacked_params.dtype)
    g = reduce_variance(renormalize(g), second_momentum_buffer, beta2, red_dim)
    cautious_update(stacked_params, g, lr, wd)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def _buffer(state: dict[str, Any], key: str, p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The state tensor `key`, zeros at first; InputError where loaded state was cut for another number of ranks."""
    if key not in state:
        state[key] = p.new_zeros(shape)
    if state[key].shape != shape:
        raise InputError(
            f"optimizer state {key} has shape {tuple(state[key].shape)} where this rank needs {tuple(shape)}: "
            "resume with the number of ranks that saved it"
        )
    return state[key]


def _apply_adamw(group: dict[str, Any], state: dict[str, Any], params: Tensors, grads: Tensors) -> None:
    """AdamW on the one tensor of `params` with the hyperparameters of its group."""
    (p,), (grad,) = params, grads
    exp_avg = _buffer(state, "exp_avg", p, p.shape)
    exp_avg_sq = _buffer(state, "exp_avg_sq", p, p.shape)
    state["step"] = state.get("step", 0) + 1
    beta1, beta2 = group["betas"]
    hyperparameters = [
        _scalar(x) for x in (state["step"], group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
    ]
    adamw_step_fused(p, grad, exp_avg, exp_avg_sq, *hyperparameters)


def _apply_muon(group: dict[str, Any], state: dict[str, Any], params: Tensors, grads: Tensors) -> None:
    """Muon on the matrices `params`, of one shape (m, n), with the hyperparameters of their group."""
    k, (m, n) = len(params), params[0].shape
    second_shape, red_dim = ((k, m, 1), -1) if m >= n else ((k, 1, n), -2)
    momentum_buffer = _buffer(state, "momentum_buffer", params[0], (k, m, n))
    second_momentum_buffer = _buffer(state, "second_momentum_buffer", params[0], second_shape)
    lr = group["lr"] * max(1.0, m / n) ** 0.5
    momentum, lr, wd, beta2 = (_scalar(x) for x in (group["momentum"], lr, group["weight_decay"], group["beta2"]))
    at_once = max(1, MAX_NUMEL_STACKED_ON_CPU // (m * n)) if params[0].device.type == "cpu" else k
    for first in range(0, k, at_once):
        some = slice(first, first + at_once)
        stack = _stack(params[some])
        buffers = momentum_buffer[some], second_momentum_buffer[some]
        muon_step_fused(_stack(grads[some]), stack, *buffers, momentum, lr, wd, beta2, group["ns_steps"], red_dim)
        if len(stack) > 1:
            torch._foreach_copy_(params[some], stack.unbind())


def _stack(matrices: Tensors) -> Tensor:
    """(K, m, n): a view of a single matrix, a copy of several."""
    return matrices[0][None] if len(matrices) == 1 else torch.stack(matrices)


def _gradient(p: Tensor) -> Tensor:
    if p.grad is None:
        raise InputError(
            f"a parameter of shape {tuple(p.shape)} has no gradient: before step(), "
            "run backward() through every parameter given to the optimizer"
        )
    return p.grad


class Muon(torch.optim.Optimizer):
    """Muon over any matrices, one at a time, in one process: the step of `MuonAdamW` without stacks or sharding.

    Raises InputError for a parameter that isn't 2-D and, in `step`, for one without gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        ns_steps: int = 5,
        beta2: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "ns_steps": ns_steps, "beta2": beta2, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise InputError(f"Muon updates matrices: give a parameter of shape {tuple(p.shape)} to AdamW")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its `.grad`."""
        for group in self.param_groups:
            for p in group["params"]:
                _apply_muon(group, self.state[p], [p], [_gradient(p)])


class MuonAdamW(torch.optim.Optimizer):
    """AdamW and Muon groups in one optimizer, sharded over the ranks of torch.distributed where there are several.

    A group has `kind` and `params`; kind 'adamw': lr, betas, eps, weight_decay; kind 'muon': lr, momentum, ns_steps,
    beta2, weight_decay, and matrices of one shape, which are stacked where that is faster.

    With several ranks (ZeRO-2, arXiv 1910.02054) parameters are the same on all, gradients are not. Each parameter or
    stack is cut along dim 0 into equal shares, zero-padded if need be: a rank receives the averaged gradient of its
    share, keeps optimizer state for that share only and updates it, then the shares are gathered. AdamW gradients of
    fewer than `MIN_NUMEL_TO_SHARD` elements are all-reduced and updated everywhere instead.

    State of an AdamW parameter: step (int), exp_avg, exp_avg_sq; of a Muon group, on its first parameter:
    momentum_buffer, second_momentum_buffer. Raises InputError for a malformed group and, in `step`, for a parameter
    without gradient or for state saved with another number of ranks.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        super().__init__(param_groups, defaults={})
        for i, group in enumerate(self.param_groups):
            _check_group(group, f"parameter group {i}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its `.grad`; with several ranks all of them must call it."""
        updates = []
        for group in self.param_groups:
            grads = [_gradient(p) for p in group["params"]]
            if group["kind"] == "muon":
                updates.append(self._update(group, group["params"], grads))
            else:
                updates += [self._update(group, [p], [grad]) for p, grad in zip(group["params"], grads, strict=True)]
        # An update pauses wherever it would wait for the other ranks. Advancing all of them in rounds puts every
        # reduction under way before the first is awaited, and gathers each result while the next is computed.
        for _round in ("reduce", "compute and gather", "write back"):
            for update in updates:
                next(update, None)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Iterator[None]:
        """Update one AdamW parameter or the matrices of a Muon group, pausing after each start of communication."""
        rank, world_size = _rank_and_world_size()
        is_muon = group["kind"] == "muon"
        apply = _apply_muon if is_muon else _apply_adamw
        state = self.state[params[0]]
        if world_size == 1:
            apply(group, state, params, grads)
            return

        grad = torch.stack(grads) if is_muon else grads[0]
        is_sharded = is_muon or grad.numel() >= MIN_NUMEL_TO_SHARD
        if is_sharded:
            grad = _pad_rows(grad, world_size)
            my_grad = torch.empty_like(grad.chunk(world_size)[rank])
            work = _collective("reduce_scatter_single", "reduce_scatter_tensor")(my_grad, grad, async_op=True)
        else:
            my_grad = grad.clone(memory_format=torch.contiguous_format)
            work = dist.all_reduce(my_grad, async_op=True)
        yield
        work.wait()
        my_grad /= world_size
        del grad  # the stack of a whole group need not outlive its reduction

        value = my_value = torch.stack(params) if is_muon else params[0]
        if is_sharded:
            value = _pad_rows(value, world_size)
            my_value = value.chunk(world_size)[rank]
        my_params, my_grads = (my_value.unbind(), my_grad.unbind()) if is_muon else ([my_value], [my_grad])
        apply(group, state, my_params, my_grads)

        if is_sharded:
            work = _collective("all_gather_single", "all_gather_into_tensor")(value, my_value, async_op=True)
            yield
            work.wait()
        if is_muon:
            torch._foreach_copy_(params, list(value[: len(params)].unbind()))
        elif value is not params[0]:
            params[0].copy_(value[: len(params[0])])


REQUIRED_KEYS = {
    "adamw": {"lr", "betas", "eps", "weight_decay"},
    "muon": {"lr", "momentum", "ns_steps", "beta2", "weight_decay"},
}


def _check_group(group: dict[str, Any], name: str) -> None:
    """Raise InputError unless `group` is one that `MuonAdamW` can step."""
    kind = group.get("kind")
    if kind not in REQUIRED_KEYS:
        raise InputError(f"{name}: kind must be 'adamw' or 'muon', got {kind!r}")
    if missing := REQUIRED_KEYS[kind] - group.keys():
        raise InputError(f"{name} of kind {kind!r} lacks {', '.join(sorted(missing))}")
    shapes = {tuple(p.shape) for p in group["params"]}
    if kind == "muon" and (len(shapes) != 1 or any(len(shape) != 2 for shape in shapes)):
        raise InputError(f"{name} of kind 'muon' must hold matrices of one shape, got shapes {sorted(shapes)}")


def _rank_and_world_size() -> tuple[int, int]:
    if common.is_ddp_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _collective(name: str, name_before_torch_2_13: str) -> Callable[..., Any]:
    return getattr(dist, name, None) or getattr(dist, name_before_torch_2_13)


def _pad_rows(x: Tensor, multiple: int) -> Tensor:
    """`x` with zero rows appended until `multiple` divides their number; contiguous, as communication needs it."""
    missing = round_up(len(x), multiple) - len(x)
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x.contiguous()
