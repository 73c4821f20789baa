"""Fresh weights. The oracle is nanochat.recipe.build_model, and what it draws at random is compared as draws."""

from random import Random
from typing import Any

import torch

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from autograder.judges.transformer_blueprint.draws import unlike
from autograder.judges.transformer_blueprint.parameters import Shapes, model_of, parameter_shapes, random_size, shuffled
from nanochat import recipe
from puzzles.compare import difference
from puzzles.wire import Opaque


def build_cases(rng: Random) -> list[Case]:
    cases = []
    for size in [
        (1, 32, 2, 2, 64),
        (2, 64, 4, 2, 97),
        (5, 64, 16, 8, 130),
        random_size(rng, most_layers=4, most_heads=2),
    ]:
        shapes = shuffled(parameter_shapes(*size), rng)
        cases += asked("seed shapes n_layer n_embd device", (rng.randrange(2**31), shapes, size[0], size[1], "cpu"))
    return cases


def build(seed: int, shapes: Shapes, n_layer: int, n_embd: int, device: Any) -> dict[str, Any]:
    """As the graded cell reports a build: where its parameters were made, whether they are on `device`, its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build_model(model_of(shapes).config, "cpu")
    return {"born_on": "meta", "on_device": True, "state": {k: v.float() for k, v in model.state_dict().items()}}


def examine_build(expected: Any, got: Any) -> str | None:
    """Weights need not be nanochat's; they must be such as it might have drawn."""
    if not isinstance(got, dict) or got.keys() != expected.keys() or not isinstance(got["state"], dict):
        return difference(expected, got)
    if got["born_on"] != "meta":
        return (
            f"the parameters were made on {got['born_on']}, where each is written once for nothing: construct on meta"
        )
    if unfilled := next((name for name, tensor in got["state"].items() if isinstance(tensor, Opaque)), None):
        return f"{unfilled} has no memory: it is still on meta. Call to_empty(device=...) before you fill it"
    if got["on_device"] is not True:
        return "not all parameters are on the device asked for"
    return unlike(expected["state"], got["state"])


BUILD = Judge(build_cases, build, examine=examine_build)
