"""Judges of puzzle 8, the mini GPT. The oracle is nanochat.gpt, run whole: see `dissected`."""

from autograder.judges.mini_gpt.attention import ATTEND, ATTENTION_MAP
from autograder.judges.mini_gpt.ends import LOGITS_AND_LOSS, SMEAR
from autograder.judges.mini_gpt.layers import NORM_AND_MLP, ROTARY_QK_NORM, VALUE_RESIDUAL
from autograder.judges.mini_gpt.stream import HIDDEN_STATES

JUDGES = {
    "norm_and_mlp": NORM_AND_MLP,
    "rotary_qk_norm": ROTARY_QK_NORM,
    "value_residual": VALUE_RESIDUAL,
    "attention_map": ATTENTION_MAP,
    "attend": ATTEND,
    "smear": SMEAR,
    "logits_and_loss": LOGITS_AND_LOSS,
    "hidden_states": HIDDEN_STATES,
}
