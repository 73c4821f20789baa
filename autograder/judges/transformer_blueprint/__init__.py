"""Judges of puzzle 1, the Transformer blueprint. The oracle is nanochat's gpt, recipe, counts and flash_attention."""

from autograder.judges.transformer_blueprint.flops import FLOPS_PER_TOKEN
from autograder.judges.transformer_blueprint.layout import WIDTHS, WINDOW_SIZES
from autograder.judges.transformer_blueprint.parameters import PARAM_COUNTS, PARAMETER_SHAPES
from autograder.judges.transformer_blueprint.positions import ATTENTION_MASK, ROTARY
from autograder.judges.transformer_blueprint.weights import BUILD

JUDGES = {
    "widths": WIDTHS,
    "window_sizes": WINDOW_SIZES,
    "rotary": ROTARY,
    "attention_mask": ATTENTION_MASK,
    "parameter_shapes": PARAMETER_SHAPES,
    "param_counts": PARAM_COUNTS,
    "flops_per_token": FLOPS_PER_TOKEN,
    "build": BUILD,
}
