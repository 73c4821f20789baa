"""Which layers FP8 takes, and switching it off: parts fp8_filter and disable_fp8."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from autograder.judges import Judge
from autograder.judges.cases import asked
from autograder.judges.optimization_layer.steps import normal
from nanochat import fp8, gpt
from puzzles.compare import FLOAT32

Case = dict[str, Any]
Report = dict[str, Any]

# fp8_filter


class LowRank(nn.Module):
    """No linear layer, though it has its attributes."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "Linear": nn.Linear,
    "CastingLinear": gpt.Linear,
    "LowRank": LowRank,
    "Embedding": nn.Embedding,
}


def filter_cases(rng: Random) -> list[Case]:
    # what each condition alone refuses comes before what two of them refuse
    telling = ((12, 6), (64, 64), (132, 132), (64, 768), (768, 64), (136, 136), (144, 132), (132, 144), (128, 128))
    fixed = [("Linear", *sizes) for sizes in (*telling, (144, 176), (256, 128), (24, 1))]
    for kind in ("CastingLinear", "LowRank", "Embedding"):
        fixed += [(kind, 768, 3072), (kind, 128, 128), (kind, 768, 100)]
    fixed += [("Linear", i, o) for i in (112, 127, 128, 136, 144, 768) for o in (112, 128, 136, 160, 3072)]
    fixed += [("Linear", 8 * rng.randint(1, 40), 8 * rng.randint(1, 40)) for _ in range(12)]
    names = ("lm_head", "transformer.h.0.mlp.c_fc", "transformer.h.3.attn.ve_gate", "smear_gate")
    return asked("kind in_features out_features fqn", *((*layer, rng.choice(names)) for layer in fixed))


def fp8_filter(kind: str, in_features: int, out_features: int, fqn: str) -> bool:
    with torch.device("meta"):
        return fp8.fp8_module_filter(LAYERS[kind](in_features, out_features), fqn)


def mistaken_filter(
    sizes: Callable[[int, int], bool] = lambda i, o: i % 16 == o % 16 == 0 and min(i, o) >= 128,
    kinds: tuple[str, ...] = ("Linear", "CastingLinear"),
    names: Callable[[str], bool] = lambda fqn: True,
) -> Callable[..., bool]:
    """A filter with other conditions on sizes, kinds or names."""

    def mistake(kind: str, in_features: int, out_features: int, fqn: str) -> bool:
        return kind in kinds and sizes(in_features, out_features) and names(fqn)

    return mistake


FP8_FILTER = Judge(
    filter_cases,
    fp8_filter,
    mistakes={
        "in_features alone decides whether a layer is large; the smaller of the two does": (
            mistaken_filter(lambda i, o: i % 16 == o % 16 == 0 and i >= 128)
        ),
        "one size of 128 is enough for you; the smaller of the two must be at least 128": (
            mistaken_filter(lambda i, o: i % 16 == o % 16 == 0 and max(i, o) >= 128)
        ),
        "the sizes need not be large for you; the smaller must be at least 128": (
            mistaken_filter(lambda i, o: i % 16 == o % 16 == 0)
        ),
        "you ask for sizes divisible by 8; it is 16": (
            mistaken_filter(lambda i, o: i % 8 == o % 8 == 0 and min(i, o) >= 128)
        ),
        "one size divisible by 16 is enough for you; both must be": (
            mistaken_filter(lambda i, o: (i % 16 == 0 or o % 16 == 0) and min(i, o) >= 128)
        ),
        "the sizes need not be divisible by 16 for you; both must be": mistaken_filter(lambda i, o: min(i, o) >= 128),
        "every linear layer is taken; look at its sizes": mistaken_filter(lambda i, o: True),
        "128 is too small for you; it is large enough": (
            mistaken_filter(lambda i, o: i % 16 == o % 16 == 0 and min(i, o) > 128)
        ),
        "you ask for sizes divisible by 128; 16 is enough": (
            mistaken_filter(lambda i, o: i % 128 == o % 128 == 0 and min(i, o) >= 128)
        ),
        "layers of classes derived from nn.Linear are refused; isinstance takes them": mistaken_filter(
            kinds=("Linear",)
        ),
        "whatever has in_features and out_features is taken for a linear layer; ask isinstance": (
            mistaken_filter(kinds=("Linear", "CastingLinear", "LowRank"))
        ),
    },
)

# disable_fp8


def disable_cases(rng: Random) -> list[Case]:
    d = [str(rng.randint(2, 7)) for _ in range(4)]
    plans: list[list] = [
        ["linear 3", "relu"],
        [f"fp8 {d[0]}"],
        [f"fp8- {d[1]}", "relu", f"linear {d[2]}"],
        [
            f"linear {d[0]}",
            [f"fp8 {d[1]}", "relu", [f"fp8- {d[2]}", [f"fp8 {d[3]}"]]],
            f"fp8 {d[0]}",
            f"linear- {d[3]}",
        ],
        [["relu", [f"fp8 {d[2]}"]], "relu", f"fp8- {d[1]}"],
    ]
    return [
        {"plan": plan, "x": normal(rng, rng.randint(1, 4), rng.randint(2, 6)), "ends": ends, "training": training}
        for plan in plans
        for ends, training in (("well", True), ("well", False), ("with an error", True), ("with an interrupt", False))
    ]


def tree(plan: list, width: int) -> tuple[nn.Sequential, int]:
    """The model a plan describes, as in the notebook, of nanochat's Float8Linear; and its output width."""
    layers: list[nn.Module] = []
    for item in plan:
        if isinstance(item, list):
            branch, width = tree(item, width)
            layers.append(branch)
        elif item == "relu":
            layers.append(nn.ReLU())
        else:
            kind, out = item.split()
            layer = nn.Linear(width, int(out), bias=not kind.endswith("-"))
            layers.append(fp8.Float8Linear.from_float(layer) if kind.startswith("fp8") else layer)
            width = int(out)
    return nn.Sequential(*layers), width


def fp8_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, fp8.Float8Linear)]


def disable_fp8(plan: list, x: Tensor, ends: str, training: bool) -> Report:
    """As the graded cell reports: what nanochat's context does to the model of a plan, and how it leaves it."""
    with torch.random.fork_rng(devices=[]):
        model = tree(plan, x.size(-1))[0].train(training)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape).sin() / 2)
    modules, parameters, keys = list(model.modules()), list(model.parameters()), list(model.state_dict())
    kept = [module for module in modules if module not in fp8_layers(model)]
    random_state = torch.get_rng_state()
    report: Report = {"error passed on": False}
    try:
        with fp8.disable_fp8(model) as given, torch.no_grad():
            inside = list(model.modules())
            report |= {
                "FP8 layers inside": len(fp8_layers(model)),
                "output inside": model(x),
                "gives the model": given is model,
                "same parameters": [id(p) for p in model.parameters()] == [id(p) for p in parameters],
                "same mode": {module.training for module in inside} == {training},
                "same keys": list(model.state_dict()) == keys,
                "others left alone": all(module in inside for module in kept),
            }
            if ends != "well":
                raise KeyboardInterrupt if ends == "with an interrupt" else ZeroDivisionError
    except (KeyboardInterrupt, ZeroDivisionError):
        report["error passed on"] = True
    report["all back"] = [id(module) for module in model.modules()] == [id(module) for module in modules]
    report["no random number drawn"] = torch.equal(torch.get_rng_state(), random_state)
    return report


def flat(plan: list) -> list[str]:
    """The layers of a plan without its nesting."""
    return [each for item in plan for each in (flat(item) if isinstance(item, list) else [item])]


def fp8_in(plan: list) -> int:
    return sum(item.startswith("fp8") for item in flat(plan))


def mistaken_report(where: Callable[..., bool], **lines: Any) -> Callable[..., Report]:
    """The right report but for some lines (an underscore in a key is a space), where `where(**case)` holds."""

    def mistake(**case: Any) -> Report:
        changed = {key.replace("_", " "): value for key, value in lines.items()}
        return disable_fp8(**case) | (changed if where(**case) else {})

    return mistake


def has_fp8(plan: list, **_: Any) -> bool:
    return fp8_in(plan) > 0


DISABLE_FP8 = Judge(
    disable_cases,
    disable_fp8,
    tolerance=FLOAT32,
    mistakes={
        "the context does not give the model: `yield model`": mistaken_report(lambda **_: True, gives_the_model=False),
        "the plain layers have copies of the parameters; give them the layer's own, weight and bias": (
            mistaken_report(has_fp8, same_parameters=False)
        ),
        "the plain layers draw random numbers: make them with device='meta'": (
            mistaken_report(has_fp8, no_random_number_drawn=False)
        ),
        "the FP8 layers come back after an error, but not after an interrupt: put that under `finally`": (
            mistaken_report(lambda plan, ends, **_: fp8_in(plan) > 0 and ends == "with an interrupt", all_back=False)
        ),
        "the FP8 layers come back only if the body does not raise: put that under `finally`": (
            mistaken_report(lambda plan, ends, **_: fp8_in(plan) > 0 and ends != "well", all_back=False)
        ),
        "the FP8 layers do not come back": mistaken_report(has_fp8, all_back=False),
        "the plain layers are in training mode although the model is not: `.train(layer.training)`": (
            mistaken_report(lambda plan, training, **_: fp8_in(plan) > 0 and not training, same_mode=False)
        ),
        "what the body raises is swallowed; it must be passed on": (
            mistaken_report(lambda ends, **_: ends != "well", error_passed_on=False)
        ),
        "a layer without bias is given one": (
            mistaken_report(lambda plan, **_: "fp8-" in " ".join(flat(plan)), same_keys=False, same_parameters=False)
        ),
    },
)
