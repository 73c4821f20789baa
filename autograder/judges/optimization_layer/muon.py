"""Muon before and after the orthogonalisation: parts muon_direction and muon_update."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.optimization_layer.steps import STEP, normal
from nanochat import optim

Case = dict[str, Any]
Report = dict[str, Tensor]

# muon_direction


def direction_cases(rng: Random) -> list[Case]:
    def case(grad: Tensor, momentum: float, scale: float = 1.0) -> Case:
        return {"grad": grad, "momentum_buffer": normal(rng, *grad.shape, scale=scale), "momentum": momentum}

    uneven = torch.logspace(-3, 2, 6)[:, None]
    tiny_row = normal(rng, 1, 4, 6)
    tiny_row[0, 2] *= 1e-8
    zero_row = normal(rng, 2, 5, 3)
    zero_row[1, 3:] = 0
    sizes = [(rng.randint(1, 4), rng.randint(1, 12), rng.randint(1, 12)) for _ in range(4)]
    return [
        case(normal(rng, 1, 1, 3), 0.9),
        case(normal(rng, 1, 3, 2), 0.9),
        case(normal(rng, 1, 2, 3), 0.0),
        case(normal(rng, 2, 4, 5), 0.95),
        case(normal(rng, 3, 6, 4) * uneven, 0.85),
        case(torch.stack([normal(rng, 3, 5), normal(rng, 3, 5, scale=50.0)]), 0.6),
        case(zero_row, 0.95, scale=0.0),
        case(tiny_row, 0.5, scale=0.0),
        case(torch.zeros(1, 3, 4), 0.95, scale=0.0),
        *(case(normal(rng, *size), round(rng.uniform(0.1, 0.99), 3)) for size in sizes),
    ]


def reported_direction(grad: Tensor, momentum_buffer: Tensor, direction: Tensor) -> Report:
    """As the graded cell reports: the direction and what the two tensors hold afterwards."""
    return {"direction": direction, "grad": grad, "momentum_buffer": momentum_buffer}


def ahead_of(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """The new buffer and nanochat's look-ahead gradient."""
    buffer = momentum_buffer.clone()
    ahead = optim.nesterov_momentum(grad, buffer, momentum)  # type: ignore[arg-type]
    return buffer, ahead


def muon_direction(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> Report:
    buffer, ahead = ahead_of(grad, momentum_buffer, momentum)
    return reported_direction(grad, buffer, optim.equilibrate_rows(ahead))


def equilibrated_by(equilibrate: Callable[[Tensor], Tensor]) -> Callable[..., Report]:
    """The right momentum, another equilibration."""

    def mistake(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> Report:
        buffer, ahead = ahead_of(grad, momentum_buffer, momentum)
        return reported_direction(grad, buffer, equilibrate(ahead))

    return mistake


def rows_scaled_to(target: Callable[[Tensor], Tensor | float], smallest: float = 1e-6) -> Callable[[Tensor], Tensor]:
    """An equilibration which gives every row the norm target(x)."""
    return lambda x: x * (target(x) / x.norm(dim=-1, keepdim=True).clamp(min=smallest))


def momentum_by(mix: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]) -> Callable[..., Report]:
    """The right equilibration; `mix(grad, buffer, momentum)` gives the new buffer and what is equilibrated."""

    def mistake(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> Report:
        buffer, ahead = mix(grad, momentum_buffer, momentum)
        return reported_direction(grad, buffer, optim.equilibrate_rows(ahead))

    return mistake


def without_nesterov(grad: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    new, _ = ahead_of(grad, buffer, momentum)
    return new, new


def accumulated(grad: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    new = momentum * buffer + grad
    return new, momentum * new + grad


def accumulated_and_mixed(grad: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    new = momentum * buffer + grad
    return new, momentum * new + (1 - momentum) * grad


def look_ahead_summed(grad: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    new, _ = ahead_of(grad, buffer, momentum)
    return new, grad + momentum * new


def look_ahead_swapped(grad: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    new, _ = ahead_of(grad, buffer, momentum)
    return new, new.lerp(grad, momentum)


def looking_from_the_old_buffer(grad: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    new, _ = ahead_of(grad, buffer, momentum)
    return new, new  # mixing the gradient with the old buffer is the new buffer


def equilibrated_first(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> Report:
    buffer, ahead = ahead_of(optim.equilibrate_rows(grad), momentum_buffer, momentum)
    return reported_direction(grad, buffer, ahead)


MUON_DIRECTION = Judge(
    direction_cases,
    muon_direction,
    tolerance=STEP,
    mistakes={
        "Nesterov is missing: mix the gradient with the new buffer once more": momentum_by(without_nesterov),
        "the buffer takes the whole gradient: it takes (1 - momentum) of it": momentum_by(accumulated),
        "the buffer takes the whole gradient; only the look-ahead is right: it takes (1 - momentum) of it": (
            momentum_by(accumulated_and_mixed)
        ),
        "the look-ahead adds the whole gradient: it is momentum * buffer + (1 - momentum) * gradient": (
            momentum_by(look_ahead_summed)
        ),
        "the shares of the look-ahead are swapped: the new buffer has the share `momentum`": (
            momentum_by(look_ahead_swapped)
        ),
        "the shares of the buffer are swapped: it keeps `momentum` of itself": (
            lambda momentum, **case: swapped_buffer(momentum=momentum, **case)
        ),
        "the buffer is not changed; it is updated in place": (
            lambda momentum_buffer, **case: (
                muon_direction(momentum_buffer=momentum_buffer, **case) | {"momentum_buffer": momentum_buffer}
            )
        ),
        "rows are not equilibrated: each gets the norm ||N|| / sqrt(m)": equilibrated_by(lambda x: x),
        "columns are equilibrated; it is the rows that get one norm": (
            equilibrated_by(lambda x: optim.equilibrate_rows(x.mT).mT)
        ),
        "rows get the norm 1; it is ||N|| / sqrt(m), so that the norm of the whole stays": (
            equilibrated_by(rows_scaled_to(lambda x: 1.0))
        ),
        "rows get the norm of the whole matrix; divide it by sqrt(m)": (
            equilibrated_by(rows_scaled_to(optim.frobenius_norm))
        ),
        "rows get the norm ||N|| / m; it is divided by the root of m": (
            equilibrated_by(rows_scaled_to(lambda x: optim.frobenius_norm(x) / x.size(-2)))
        ),
        "rows get the mean of the row norms; it is ||N|| / sqrt(m)": (
            equilibrated_by(rows_scaled_to(lambda x: x.norm(dim=-1, keepdim=True).mean(dim=-2, keepdim=True)))
        ),
        "the gradient is equilibrated before the momentum; first the momentum, then the rows": equilibrated_first,
        "the norm is that of the whole stack; each matrix has its own": (
            equilibrated_by(rows_scaled_to(lambda x: x.norm() / (x.size(0) * x.size(-2)) ** 0.5))
        ),
        "a row of zeros is divided by zero: take its norm to be at least 1e-6": (
            equilibrated_by(rows_scaled_to(lambda x: optim.frobenius_norm(x) / x.size(-2) ** 0.5, smallest=0.0))
        ),
        "1e-6 is added to the row norms; a norm below it counts as 1e-6, others stay": (
            equilibrated_by(
                lambda x: x * (optim.frobenius_norm(x) / x.size(-2) ** 0.5 / (x.norm(dim=-1, keepdim=True) + 1e-6))
            )
        ),
    },
)


def swapped_buffer(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> Report:
    new = momentum * grad + (1 - momentum) * momentum_buffer
    return reported_direction(grad, new, optim.equilibrate_rows(grad.lerp(new, momentum)))


# muon_update


def update_cases(rng: Random) -> list[Case]:
    def case(direction: Tensor, weight_decay: float | None = None, second: float = 1.0, **rest: Any) -> Case:
        k, m, n = direction.shape
        shape = (k, m, 1) if m >= n else (k, 1, n)
        return {
            "p": normal(rng, k, m, n),
            "direction": direction,
            "second_momentum_buffer": second * normal(rng, *shape).square(),
            "lr": round(rng.uniform(0.1, 1.0), 3),
            "weight_decay": round(rng.uniform(0.1, 0.8), 3) if weight_decay is None else weight_decay,
            "beta2": round(rng.uniform(0.3, 0.9), 3),
        } | rest

    def tall() -> Tensor:
        return normal(rng, 2, 6, 3) * torch.linspace(0.2, 2, 6)[:, None]

    def wide() -> Tensor:
        return normal(rng, 2, 3, 7) * torch.linspace(0.2, 2, 7)

    tiny_row, tiny = normal(rng, 1, 4, 2), normal(rng, 1, 2, 2, scale=1e-8)
    tiny_row[0, 1] *= 2e-6
    zeros = case(torch.zeros(1, 3, 2))
    zeros["p"][0, 0, 0] = 0
    sizes = [(rng.randint(1, 3), rng.randint(1, 10), rng.randint(1, 10)) for _ in range(4)]
    return [
        case(normal(rng, 1, 2, 2), weight_decay=0.0),
        case(normal(rng, 1, 3, 3)),
        case(wide(), weight_decay=0.0),
        case(tall(), weight_decay=0.0),
        case(tall()),
        case(wide()),
        case(torch.stack([normal(rng, 4, 5), normal(rng, 4, 5, scale=30.0)])),
        case(tall(), second=0.0),
        case(wide(), second=0.0),
        case(normal(rng, 1, 8, 1)),
        case(normal(rng, 1, 1, 5)),
        zeros,
        zeros | {"second_momentum_buffer": torch.zeros(1, 3, 1)},
        case(tiny_row, second=0.0, lr=1.0, beta2=0.9),
        case(tiny, weight_decay=0.0, lr=1.0, second=0.01),
        *(case(normal(rng, *size)) for size in sizes),
    ]


def reported_update(p: Tensor, direction: Tensor, second_momentum_buffer: Tensor) -> Report:
    """As the graded cell reports: what the three tensors hold afterwards."""
    return {"p": p, "direction": direction, "second_momentum_buffer": second_momentum_buffer}


def rate_by_shape(m: int, n: int) -> float:
    """nanochat's factor of the learning rate, which it applies where it calls the step."""
    return max(1.0, m / n) ** 0.5


def muon_update(
    p: Tensor,
    direction: Tensor,
    second_momentum_buffer: Tensor,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalize: Callable[[Tensor], Tensor] = optim.renormalize,
    reduce: Callable[..., Tensor] = optim.reduce_variance,
    rate: Callable[[int, int], float] = rate_by_shape,
    apply: Callable[..., None] = optim.cautious_update,
) -> Report:
    """nanochat's functions in the order of its step; any of the four stages can be replaced, to make a mistake."""
    m, n = p.shape[-2:]
    p, buffer = p.clone(), second_momentum_buffer.clone()
    x = reduce(renormalize(direction), buffer, beta2, -1 if m >= n else -2)
    apply(p, x, lr * rate(m, n), weight_decay)
    return reported_update(p, direction, buffer)


def mistaken(**stage: Any) -> Callable[..., Report]:
    """The step with one stage replaced."""
    return lambda **case: muon_update(**case, **stage)


def decayed_where(mask: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    """An update that decays where mask(update * p) holds."""

    def apply(p: Tensor, update: Tensor, lr: float, wd: float) -> None:
        p.sub_(lr * update + lr * wd * p * mask(update * p))

    return apply


def decay_without_lr(p: Tensor, update: Tensor, lr: float, wd: float) -> None:
    p.sub_(lr * update + wd * p * (update * p >= 0))


def decay_first(p: Tensor, update: Tensor, lr: float, wd: float) -> None:
    p.mul_(1 - lr * wd * (update * p >= 0)).sub_(lr * update)


def decay_after(p: Tensor, update: Tensor, lr: float, wd: float) -> None:
    p.sub_(lr * update)
    p.sub_(lr * wd * p * (update * p >= 0))


def ascend(p: Tensor, update: Tensor, lr: float, wd: float) -> None:
    p.add_(lr * update - lr * wd * p * (update * p >= 0))


def scaled_to(target: Callable[[int, int], float]) -> Callable[[Tensor], Tensor]:
    """Renormalised to target(m, n) instead of the root of the smaller."""
    return lambda x: x * (target(*x.shape[-2:]) / optim.frobenius_norm(x).clamp_min(1e-6))


def whole_stack(x: Tensor) -> Tensor:
    return x * ((x.size(0) * min(x.shape[-2:])) ** 0.5 / x.norm().clamp_min(1e-6))


def reduced_by(scale: Callable[[Tensor, Tensor, Tensor], Tensor], keeps_norm: bool = True) -> Callable[..., Tensor]:
    """Variance reduction that multiplies by scale(old V, new V, mean square)."""

    def reduce(x: Tensor, buffer: Tensor, beta2: float, red_dim: int) -> Tensor:
        old, mean_square = buffer.clone(), x.square().mean(dim=red_dim, keepdim=True)
        optim.reduce_variance(x, buffer, beta2, red_dim)  # type: ignore[arg-type]
        y = x * scale(old, buffer, mean_square)
        return y * (optim.frobenius_norm(x) / optim.frobenius_norm(y).clamp_min(1e-10) if keeps_norm else 1)

    return reduce


def inverse_root(v: Tensor) -> Tensor:
    return v.clamp_min(1e-10).rsqrt()


def reduced_on_another_buffer(mean_square: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Variance reduction whose V takes another statistic of x."""

    def reduce(x: Tensor, buffer: Tensor, beta2: float, red_dim: int) -> Tensor:
        buffer.lerp_(mean_square(x, red_dim), 1 - beta2)
        y = x * inverse_root(buffer)
        return y * (optim.frobenius_norm(x) / optim.frobenius_norm(y).clamp_min(1e-10))

    return reduce


def swapped_beta(x: Tensor, buffer: Tensor, beta2: float, red_dim: int) -> Tensor:
    return optim.reduce_variance(x, buffer, 1 - beta2, red_dim)  # type: ignore[arg-type]


MUON_UPDATE = Judge(
    update_cases,
    muon_update,
    tolerance=STEP,
    mistakes={
        "a zero update does not decay; it agrees with every weight (>= 0)": (
            mistaken(apply=decayed_where(lambda product: product > 0))
        ),
        "p is not changed; it is updated in place": (lambda p, **case: muon_update(p=p, **case) | {"p": p}),
        "the update is added; it is subtracted": mistaken(apply=ascend),
        "the direction is not renormalised: scale it to the norm sqrt(min(m, n)) first": mistaken(
            renormalize=lambda x: x
        ),
        "V is not changed; it is updated in place": (
            lambda second_momentum_buffer, **case: (
                muon_update(second_momentum_buffer=second_momentum_buffer, **case)
                | {"second_momentum_buffer": second_momentum_buffer}
            )
        ),
        "beta2 and 1 - beta2 are swapped: V keeps beta2 of itself": mistaken(reduce=swapped_beta),
        "V takes the sum of the squares; it takes their mean": (
            mistaken(reduce=reduced_on_another_buffer(lambda x, dim: x.square().sum(dim=dim, keepdim=True)))
        ),
        "V takes the mean of the absolute values; it takes that of the squares": (
            mistaken(reduce=reduced_on_another_buffer(lambda x, dim: x.abs().mean(dim=dim, keepdim=True)))
        ),
        "rows are divided by the old V; update V first": (
            mistaken(reduce=reduced_by(lambda old, new, now: inverse_root(old)))
        ),
        "rows are divided by the root of this step's mean square; divide by that of V, which remembers": (
            mistaken(reduce=reduced_by(lambda old, new, now: inverse_root(now)))
        ),
        "rows are divided by V; divide by its root": mistaken(reduce=reduced_by(lambda old, new, now: 1 / new)),
        "rows are multiplied by the root of V; divide by it": (
            mistaken(reduce=reduced_by(lambda old, new, now: new.sqrt()))
        ),
        "variance is not reduced: divide by the root of V": (
            mistaken(reduce=reduced_by(lambda old, new, now: torch.ones_like(new)))
        ),
        "the length is not kept: after the division scale back to the norm there was before": (
            mistaken(reduce=reduced_by(lambda old, new, now: inverse_root(new), keeps_norm=False))
        ),
        "there is no decay": lambda **case: muon_update(**case | {"weight_decay": 0.0}),
        "everything decays; decay only where update and weight have the same sign": (
            mistaken(apply=decayed_where(torch.ones_like))
        ),
        "decay is where signs differ; it is where the update shrinks the weight": (
            mistaken(apply=decayed_where(lambda product: product <= 0))
        ),
        "the decay is not multiplied by the learning rate": mistaken(apply=decay_without_lr),
        "the decay is taken of the updated weight; both are computed from the weight as given": mistaken(
            apply=decay_after
        ),
        "a tall matrix has no larger rate: times sqrt(max(1, m / n))": mistaken(rate=lambda m, n: 1.0),
        "the rate of a tall matrix is multiplied by m / n; take the root": mistaken(rate=lambda m, n: max(1.0, m / n)),
        "wide matrices get the larger rate; it is the tall ones": mistaken(rate=lambda m, n: max(1.0, n / m) ** 0.5),
        "wide matrices get a smaller rate; the factor is at least 1": mistaken(rate=lambda m, n: (m / n) ** 0.5),
        "the decay has the plain rate; lr with the factor for the shape counts for both": (
            lambda weight_decay, p, **case: muon_update(
                p=p, weight_decay=weight_decay / rate_by_shape(*p.shape[-2:]), **case
            )
        ),
        "the norm is set to sqrt(max(m, n)); an orthogonal matrix has sqrt(min(m, n))": (
            mistaken(renormalize=scaled_to(lambda m, n: max(m, n) ** 0.5))
        ),
        "the norm is set to 1; an orthogonal matrix has sqrt(min(m, n))": (
            mistaken(renormalize=scaled_to(lambda m, n: 1.0))
        ),
        "the norm is that of the whole stack; each matrix has its own": mistaken(renormalize=whole_stack),
    },
)
