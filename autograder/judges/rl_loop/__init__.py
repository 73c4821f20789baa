"""Judges of puzzle 5, the RL loop. The oracle is nanochat.rl.

Rollouts and steps run on toys that do what those in the notebook do, so that all that happens is plain data: what the
engine and the task are asked, a log of every forward and backward pass, the gradients an optimizer finds.
"""

from autograder.judges.rl_loop.losses import ADVANTAGES, KL_PENALTY, POLICY_GRADIENT_LOSS
from autograder.judges.rl_loop.pass_k import PASS_AT_K
from autograder.judges.rl_loop.rollouts import COLLATE_ROLLOUTS, ROLLOUT
from autograder.judges.rl_loop.step import TRAIN_STEP

JUDGES = {
    "compute_advantages": ADVANTAGES,
    "rollout": ROLLOUT,
    "collate_rollouts": COLLATE_ROLLOUTS,
    "policy_gradient_loss": POLICY_GRADIENT_LOSS,
    "kl_penalty": KL_PENALTY,
    "train_step": TRAIN_STEP,
    "pass_at_k": PASS_AT_K,
}
