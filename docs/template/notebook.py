# %% [markdown]
# # Puzzle 9: The Batch Size
#
# **From the tokens a run will read, derive the batch an optimizer step should see, and how a machine gets through it.**
#
# ⭐ · about 20 minutes · 100 points in 2 parts · builds on nothing · runs on any CPU
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.09_batch_size` | runs your notebook and shows the visible checks |
# | `python -m puzzles.09_batch_size --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.09_batch_size --hint grad_accum_steps` | gives hints for a part |
# | `python -m puzzles.09_batch_size --peek grad_accum_steps` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# A batch that is too small wastes steps on noise, one that is too large wastes tokens on certainty; both train, and
# neither says so. A depth-32 model that steps over 524,288 tokens, which is right at depth 12, takes 38,400 steps where
# 9,600 would do.
#
# After this puzzle you can
# 1. state the batch size that nanochat gives a run of any length;
# 2. take the same optimizer step on one GPU and on eight.
#
# Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask more of the same
# with other numbers. The parts do not depend on each other.

# %% given="imports"
import math

from puzzles.checks import Checks, expect
from puzzles.plots import BLUE, GREY, attempt, picture

check = Checks("09_batch_size")

# %% [markdown]
# ## Part 1 · How many tokens a step (60 points, 10 minutes)
#
# The longer a run, the larger its best batch: it grows as the run's tokens to the power of 0.383
# ([Power Lines, arXiv 2505.13738](https://arxiv.org/abs/2505.13738)). nanochat has measured one point of that curve, at
# depth 12: there 2^19 = 524,288 tokens a step are best. So for a run of `target_tokens`, where the depth-12 run has
# `reference_tokens`,
#
# $$ B = 2^{19} \cdot \left(\frac{\text{target}}{\text{reference}}\right)^{0.383} $$
#
# and the nearest **power of two** to that, because rows, GPUs and accumulation steps come in powers of two. Nearest is
# meant by ratio: the exponent is rounded. 1.42 times a power of two is nearer to the double than to the power itself,
# since 2 / 1.42 is less than 1.42.
#
# Depth 32 reads 20.1 billion tokens where depth 12 reads 1.32 billion: B is 1,488,100, 2^20.505, which makes 2^21.
#
# **Contract.** Returns an int.


# %% hole="optimal_batch_size"
def optimal_batch_size(target_tokens: float, reference_tokens: float) -> int:
    """Tokens per optimizer step for a run of `target_tokens`: 2**19 * (target / reference) ** 0.383, as the power of
    two whose exponent is nearest."""
    ### BEGIN SOLUTION
    batch_size = 2**19 * (target_tokens / reference_tokens) ** 0.383
    return 2 ** round(math.log2(batch_size))
    ### END SOLUTION


# %% given="check-optimal_batch_size"
with check("optimal_batch_size"):
    expect(optimal_batch_size, (1.32e9, 1.32e9), 2**19, "depth 12 is the reference: 2**19 tokens")
    expect(optimal_batch_size, (8.76e9, 1.32e9), 2**20, "depth 24: 2**20.05 makes 2**20; the exponent is 0.383")
    expect(optimal_batch_size, (5.22e9, 1.32e9), 2**20, "depth 20: 2**19.76 is rounded up")
    expect(optimal_batch_size, (2.82e9, 1.32e9), 2**19, "depth 16: 2**19.42 is rounded down")
    expect(optimal_batch_size, (20.13e9, 1.32e9), 2**21, "depth 32: 2**20.505 is nearer to 2**21 by its exponent")
    expect(optimal_batch_size, (0.138e9, 1.32e9), 2**18, "depth 4: fewer tokens, a smaller batch")

# %% graded="optimal_batch_size"
# 60 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("optimal_batch_size")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("09_batch_size", "optimal_batch_size", optimal_batch_size)
### END HIDDEN TESTS

# %% given="plot-optimal_batch_size" tags=["plot"]
with picture(
    "Batch size by tokens", alt="Your batch size climbs in doublings, around the straight line of the power law."
) as p:
    ratios = [2 ** (step / 8) for step in range(-32, 41)]
    sizes = [optimal_batch_size(ratio * 1.32e9, 1.32e9) for ratio in ratios]
    p.axes[0].plot(ratios, [2**19 * ratio**0.383 for ratio in ratios], "--", color=GREY, label="2^19 * ratio^0.383")
    p.axes[0].plot(ratios, sizes, ".", color=BLUE, label="yours")
    p.axes[0].set(xscale="log", yscale="log", xlabel="tokens, as a multiple of depth 12's", ylabel="tokens a step")
    p.axes[0].legend()
    p.caption = f"From {min(sizes):,} to {max(sizes):,} tokens a step, {len(set(sizes))} different sizes."

# %% [markdown]
# ## Part 2 · How many passes a step (40 points, 10 minutes)
#
# Half a million tokens do not fit into a GPU at once. It works through them in **passes** of `device_batch_size` rows
# of `sequence_len` tokens, adds up the gradients, and steps when all are in; `world_size` ranks do so at the same time,
# each with rows of its own. 524,288 tokens in passes of 32 rows of 2048 tokens: one GPU needs 8 passes, eight GPUs
# need 1. A rest is refused rather than left out: the step would be another one than was asked for.
#
# **Contract.** Returns an int. Raises `ValueError` if the total is no whole number of passes.


# %% hole="grad_accum_steps"
def grad_accum_steps(total_batch_size: int, device_batch_size: int, sequence_len: int, world_size: int) -> int:
    """Forward-backward passes per optimizer step of total_batch_size tokens, each device_batch_size rows of
    sequence_len tokens on every one of world_size ranks. Raises ValueError if that leaves a rest."""
    ### BEGIN SOLUTION
    tokens_per_pass = device_batch_size * sequence_len * world_size
    if total_batch_size % tokens_per_pass:
        raise ValueError(f"{total_batch_size} tokens are no multiple of {tokens_per_pass} tokens per pass")
    return total_batch_size // tokens_per_pass
    ### END SOLUTION


# %% given="check-grad_accum_steps"
with check("grad_accum_steps"):
    expect(grad_accum_steps, (2**19, 32, 2048, 1), 8, "one pass of one GPU is 65,536 tokens")
    expect(grad_accum_steps, (2**19, 32, 2048, 8), 1, "eight ranks work at the same time")
    expect(grad_accum_steps, (3072, 3, 512, 1), 2, "whatever goes in evenly will do: no power of two is needed")
    expect(grad_accum_steps, (2**19, 48, 2048, 1), ValueError, "98,304 tokens do not go into 524,288 evenly")
    expect(grad_accum_steps, (2**16, 32, 2048, 8), ValueError, "less than one pass is a rest as well")

# %% graded="grad_accum_steps"
# 40 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("grad_accum_steps")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("09_batch_size", "grad_accum_steps", grad_accum_steps)
### END HIDDEN TESTS

# %% [markdown]
# ## What you have built
#
# Your two functions in nanochat's own plan of a run, at four depths.

# %% given="what-you-have-built" tags=["oracle"]
from nanochat.recipe import plan_training

with attempt("Your recipe beside nanochat's"):
    for depth in (4, 12, 20, 32):
        plan = plan_training(depth)
        size = optimal_batch_size(plan.target_tokens, plan.reference_tokens)
        passes = grad_accum_steps(size, 32, 2048, 1)
        print(f"depth {depth}: {size:,} tokens a step, nanochat {plan.total_batch_size:,}; {passes} passes on one GPU")

# %% [markdown]
# ## In your own words
#
# A colleague's GPU runs out of memory at 32 rows. What may be changed without changing the run, and what may not?

# %% [markdown] written="out_of_memory"
# ### BEGIN SOLUTION
# **Mark scheme**: one point for each half.
#
# `device_batch_size` may be halved: twice as many passes, the same step, a little slower. The total batch size, the
# sequence length and the learning rates belong to the run: changing one of them makes it another run.
# ### END SOLUTION
