"""One step of AdamW, and orthogonalisation: parts adamw_step and orthogonalize."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from nanochat import optim
from puzzles.compare import Tolerance, difference

Case = dict[str, Any]
Report = dict[str, Any]
# A float32 result a handful of roundings long, some of them of hyperparameters (1 - 0.995 loses three digits).
STEP = Tolerance(rtol=2e-5, atol=2e-6)


def normal(rng: Random, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of normally distributed numbers, determined by `rng`."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


# adamw_step


def adamw_cases(rng: Random) -> list[Case]:
    def case(shape: tuple[int, ...], step: int, eps: float, dtype: torch.dtype = torch.float32, **rest: Any) -> Case:
        scale = rest.pop("scale", 1.0)
        drawn = {
            "p": normal(rng, *shape, dtype=dtype),
            "grad": normal(rng, *shape, scale=scale, dtype=dtype),
            "exp_avg": normal(rng, *shape, scale=scale / 2, dtype=dtype),
            "exp_avg_sq": normal(rng, *shape, scale=scale, dtype=dtype).square(),
        }
        rates = {
            "lr": round(rng.uniform(0.02, 0.5), 3),
            "beta1": rng.choice((0.8, 0.9, 0.96)),
            "beta2": rng.choice((0.95, 0.96, 0.995)),
            "weight_decay": round(rng.uniform(0.05, 0.5), 3),
        }
        return drawn | {"step": step, "eps": eps} | rates | rest

    def first(case: Case) -> Case:
        return case | {key: torch.zeros_like(case["p"]) for key in ("exp_avg", "exp_avg_sq")}

    zero = first(case((2, 3), 1, 1e-10))
    return [
        first(case((1,), 1, 1e-10, weight_decay=0.0)),
        first(case((5,), 1, 1e-10)),
        case((3, 4), 2, 1e-10, weight_decay=0.0),
        case((4, 3), 2, 1e-10),
        case((6,), 7, 0.3),
        # gradients so small that eps decides
        case((3, 5), 3, 1e-6, scale=1e-6, weight_decay=0.0),
        zero | {"grad": torch.zeros(2, 3)},
        case((2, 3, 4), 10_000, 1e-10),
        case((40, 33), 3, 1e-10, torch.bfloat16),
        first(case((1000,), 1, 1e-10, torch.bfloat16)),
        *(case((rng.randint(1, 9), rng.randint(1, 9)), rng.randint(1, 50), rng.choice((1e-10, 0.1))) for _ in range(6)),
    ]


def adamw_step(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, **rest: Any) -> Report:
    """What nanochat's step leaves in the four tensors. It gets plain numbers, more exact than its float32 tensors."""
    report = {name: tensor.clone() for name, tensor in (("p", p), ("grad", grad))}
    report |= {name: tensor.clone() for name, tensor in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq))}
    rates = [rest[key] for key in ("step", "lr", "beta1", "beta2", "eps", "weight_decay")]
    optim.adamw_step_fused(*report.values(), *rates)
    return report


def examine_adamw(expected: Any, got: Any) -> str | None:
    """A bfloat16 result is float32's, rounded once: hardly ever anything else, and never more than the next number."""
    dtype = expected["p"].dtype
    if dtype == torch.float32:
        return difference(expected, got, STEP)
    if found := difference(expected, got, Tolerance(rtol=2 * torch.finfo(dtype).eps, atol=STEP.atol)):
        return found
    for name, tensor in expected.items():
        share = (got[name] != tensor).double().mean().item()
        if share > 0.02:  # float32 results that differ in the last digit round differently once in some thousand
            return (
                f"{share:.0%} of the numbers in {name} are off by a rounding: compute in float32, round once at the end"
            )
    return None


def with_update(new_p: Callable[..., Tensor]) -> Callable[..., Report]:
    """The right step, but p becomes `new_p(p, m_hat, v_hat, lr, eps, weight_decay)`."""

    def mistake(**case: Any) -> Report:
        right = adamw_step(**case)
        m_hat = right["exp_avg"].float() / (1 - case["beta1"] ** case["step"])
        v_hat = right["exp_avg_sq"].float() / (1 - case["beta2"] ** case["step"])
        p = new_p(case["p"].float(), m_hat, v_hat, *(case[key] for key in ("lr", "eps", "weight_decay")))
        return right | {"p": p.to(case["p"].dtype)}

    return mistake


def left_as_given(*names: str) -> Callable[..., Report]:
    """The right step, but these tensors are not changed."""
    return lambda **case: adamw_step(**case) | {name: case[name] for name in names}


def adam_with_l2(p: Tensor, grad: Tensor, weight_decay: float, **case: Any) -> Report:
    return adamw_step(p=p, grad=grad + weight_decay * p, weight_decay=0.0, **case) | {"grad": grad}


def with_rates(change: Callable[..., Case]) -> Callable[..., Report]:
    """The step of nanochat with other rates: those of the case, updated by `change(**case)`."""
    return lambda **case: adamw_step(**case | change(**case))


ADAMW_STEP = Judge(
    adamw_cases,
    adamw_step,
    tolerance=STEP,
    examine=examine_adamw,
    mistakes={
        "p is not changed; copy the result into it, p.copy_(...)": left_as_given("p"),
        "exp_avg and exp_avg_sq are not changed: they are updated in place, too": left_as_given(
            "exp_avg", "exp_avg_sq"
        ),
        "the bias is corrected as for the step before; `step` counts from 1 and is used as it is": (
            with_rates(lambda step, **_: {"step": step - 1})
        ),
        "the bias is corrected as for the next step; `step` is used as it is": (
            with_rates(lambda step, **_: {"step": step + 1})
        ),
        "the bias is not corrected: divide m by 1 - beta1^step and v by 1 - beta2^step": (
            with_rates(lambda **_: {"step": 10**9})
        ),
        "beta1 and beta2 are swapped": with_rates(lambda beta1, beta2, **_: {"beta1": beta2, "beta2": beta1}),
        "beta1 and 1 - beta1 are swapped, and so for beta2: the new gradient gets the small share": (
            lambda beta1, beta2, **case: with_swapped_shares(beta1=beta1, beta2=beta2, **case)
        ),
        "eps is inside the root; it is added to the root": (
            with_update(lambda p, m, v, lr, eps, wd: p * (1 - lr * wd) - lr * m / (v + eps).sqrt())
        ),
        "the update is added; it is subtracted": (
            with_update(lambda p, m, v, lr, eps, wd: p * (1 - lr * wd) + lr * m / (v.sqrt() + eps))
        ),
        "there is no root: m is divided by the root of v": (
            with_update(lambda p, m, v, lr, eps, wd: p * (1 - lr * wd) - lr * m / (v + eps))
        ),
        "the decay comes after the update and shrinks it, too; decay p first": (
            with_update(lambda p, m, v, lr, eps, wd: (p - lr * m / (v.sqrt() + eps)) * (1 - lr * wd))
        ),
        "the decay is added to the gradient (Adam with L2); AdamW keeps them apart": adam_with_l2,
        "the decay is not multiplied by lr: p(1 - lr * weight_decay)": (
            with_update(lambda p, m, v, lr, eps, wd: p * (1 - wd) - lr * m / (v.sqrt() + eps))
        ),
        "there is no weight decay": with_rates(lambda **_: {"weight_decay": 0.0}),
    },
)


def with_swapped_shares(p: Tensor, beta1: float, beta2: float, step: int, **case: Any) -> Report:
    """m and v take the large share of the gradient; the bias is corrected by the betas as they are."""
    swapped = adamw_step(p=p, beta1=1 - beta1, beta2=1 - beta2, step=step, **case)
    m_hat, v_hat = swapped["exp_avg"] / (1 - beta1**step), swapped["exp_avg_sq"] / (1 - beta2**step)
    update = case["lr"] * m_hat / (v_hat.sqrt() + case["eps"])
    return swapped | {"p": p * (1 - case["lr"] * case["weight_decay"]) - update}


# orthogonalize

NEWTON_SCHULZ = [optim.NEWTON_SCHULZ_COEFFS] * 5
POLAR_EXPRESS = optim.polar_express_coeffs
CLASSIC, EXPRESS = (1.0, 1e-7), (1.01, 1e-6)


def orthogonalize_cases(rng: Random) -> list[Case]:
    def case(x: Tensor, coefficients: list, margin_and_eps: tuple[float, float]) -> Case:
        return {"x": x, "coefficients": coefficients, "margin": margin_and_eps[0], "eps": margin_and_eps[1]}

    def triples(count: int) -> list[tuple[float, float, float]]:
        return [(rng.uniform(0.5, 1.5), rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.3)) for _ in range(count)]

    deficient = normal(rng, 12, 3) @ normal(rng, 3, 10)
    deficient[4] = 0
    sides = [(rng.randint(1, 20), rng.randint(1, 20)) for _ in range(3)]
    return [
        case(torch.tensor([[2.0]]), NEWTON_SCHULZ[:1], CLASSIC),
        case(normal(rng, 2, 3), [], (1.5, 0.0)),
        case(normal(rng, 3, 3), triples(1), (1.0, 1.0)),
        case(normal(rng, 2, 5), triples(2), CLASSIC),
        case(normal(rng, 40, 5), triples(1), CLASSIC),
        case(normal(rng, 3, 8, 5), triples(2), EXPRESS),
        case(
            torch.stack([normal(rng, 5, 8), torch.zeros(5, 8), normal(rng, 5, 8, scale=1e-3)]), NEWTON_SCHULZ, CLASSIC
        ),
        case(normal(rng, 4, 2, 6, 12), POLAR_EXPRESS, EXPRESS),
        case(normal(rng, 48, 12), NEWTON_SCHULZ, CLASSIC),
        case(normal(rng, 2, 30, 6), NEWTON_SCHULZ[:2], CLASSIC),
        case(normal(rng, 2, 1, 6, 30), NEWTON_SCHULZ[:2], CLASSIC),
        case(normal(rng, 16, 24, scale=100.0), POLAR_EXPRESS[:3], EXPRESS),
        case(normal(rng, 1, 7), POLAR_EXPRESS, EXPRESS),
        case(normal(rng, 7, 1, scale=1e-6), POLAR_EXPRESS, EXPRESS),
        case(deficient, POLAR_EXPRESS, EXPRESS),
        case(normal(rng, 20, 20), NEWTON_SCHULZ, CLASSIC),
        case(normal(rng, 24, 8).bfloat16(), triples(2), EXPRESS),
        case(normal(rng, 2, 5, 9).bfloat16(), triples(1), CLASSIC),
        *(case(normal(rng, m, n), triples(2), (rng.uniform(1, 2), 1e-3)) for m, n in sides),
    ]


def orthogonalize(x: Tensor, coefficients: list, margin: float, eps: float) -> Report:
    divisor = margin * optim.frobenius_norm(x) + eps
    return reported(optim.quintic_iterations(x / divisor.to(x.dtype), coefficients))


def reported(result: Tensor, cheap: bool = True) -> Report:
    """As the graded cell reports a result."""
    return {"result": result, "cheap": cheap, "x is unchanged": True}


def examine_orthogonalize(expected: Any, got: Any) -> str | None:
    """float32 may be off by its rounding, which a recipe amplifies up to 500 times; bfloat16, in which the cases have
    no recipe but tamer triples, by a few roundings of its own."""
    atol = 0.03 if expected["result"].dtype == torch.bfloat16 else 2e-4
    return difference(expected, got, Tolerance(rtol=1e-4, atol=atol))


def divided_by(norm: Callable[[Tensor], Tensor]) -> Callable[..., Report]:
    """The right iterations, on matrices divided by margin * norm(x) + eps."""

    def mistake(x: Tensor, coefficients: list, margin: float, eps: float) -> Report:
        return reported(optim.quintic_iterations(x / (margin * norm(x) + eps), coefficients))

    return mistake


def with_coefficients(change: Callable[[list], list]) -> Callable[..., Report]:
    """The right iterations, with other coefficients."""
    return lambda coefficients, **case: orthogonalize(coefficients=change(coefficients), **case)


def not_turned_over(x: Tensor, coefficients: list, **case: Any) -> Report:
    too_dear = bool(coefficients) and x.size(-2) > 2 * x.size(-1)
    return reported(orthogonalize(x=x, coefficients=coefficients, **case)["result"], cheap=not too_dear)


def not_turned_back(x: Tensor, **case: Any) -> Report:
    result = orthogonalize(x=x, **case)["result"]
    return reported(result.mT if x.size(-2) > x.size(-1) else result)


ORTHOGONALIZE = Judge(
    orthogonalize_cases,
    orthogonalize,
    tolerance=Tolerance(rtol=1e-4, atol=2e-4),
    examine=examine_orthogonalize,
    mistakes={
        "the matrix is not divided by its norm: all singular values must be within 0..1 before the first iteration": (
            lambda x, coefficients, **_: reported(optim.quintic_iterations(x, coefficients))
        ),
        "the matrix is divided by its largest singular value; the recipe takes the Frobenius norm": (
            divided_by(lambda x: torch.linalg.matrix_norm(x, ord=2, keepdim=True))
        ),
        "each row is divided by its own norm; it is one norm for the whole matrix": (
            divided_by(lambda x: x.norm(dim=-1, keepdim=True))
        ),
        "margin is ignored: divide by margin * norm + eps": (lambda **case: orthogonalize(**case | {"margin": 1.0})),
        "eps is ignored: divide by margin * norm + eps, also when the norm is zero": (
            lambda **case: orthogonalize(**case | {"eps": 0.0})
        ),
        "b and c are swapped: b multiplies the third power, c the fifth": (
            with_coefficients(lambda triples: [(a, c, b) for a, b, c in triples])
        ),
        "c is left out: the fifth power is missing": (
            with_coefficients(lambda triples: [(a, b, 0.0) for a, b, _ in triples])
        ),
        "only the first iteration is made; there is one for each triple": with_coefficients(
            lambda triples: triples[:1]
        ),
        "the last triple is left out; there is an iteration for each": with_coefficients(lambda triples: triples[:-1]),
        "every iteration uses the first triple; each has its own": (
            with_coefficients(lambda triples: triples[:1] * len(triples))
        ),
        "every iteration uses the last triple; each has its own": (
            with_coefficients(lambda triples: triples[-1:] * len(triples))
        ),
        "the triples are applied from last to first": with_coefficients(lambda triples: triples[::-1]),
        "the result of a tall matrix is not turned back; it has the shape of x": not_turned_back,
        "the Gram matrix of a tall matrix is the larger one: turn it over, so that it is the smaller": not_turned_over,
        "the norm is that of the whole stack; each matrix has its own": (divided_by(lambda x: x.norm())),
        "x is changed in place; return a new tensor": lambda **case: orthogonalize(**case) | {"x is unchanged": False},
        "the result is float32; it has the dtype of x": (lambda x, **case: orthogonalize(x=x.float(), **case)),
    },
)
