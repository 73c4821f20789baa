"""Judges of puzzle 2, the optimization layer. The oracle is nanochat's param_groups, optim, schedules and fp8."""

from autograder.judges.optimization_layer.fp8 import DISABLE_FP8, FP8_FILTER
from autograder.judges.optimization_layer.groups import PARAM_FAMILIES, PARAM_GROUPS
from autograder.judges.optimization_layer.muon import MUON_DIRECTION, MUON_UPDATE
from autograder.judges.optimization_layer.schedules import SCHEDULES
from autograder.judges.optimization_layer.steps import ADAMW_STEP, ORTHOGONALIZE

JUDGES = {
    "param_families": PARAM_FAMILIES,
    "param_groups": PARAM_GROUPS,
    "adamw_step": ADAMW_STEP,
    "orthogonalize": ORTHOGONALIZE,
    "muon_direction": MUON_DIRECTION,
    "muon_update": MUON_UPDATE,
    "schedules": SCHEDULES,
    "fp8_filter": FP8_FILTER,
    "disable_fp8": DISABLE_FP8,
}
