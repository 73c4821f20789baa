# %% [markdown]
# # Puzzle 5: The RL Loop
#
# **Let a model answer, judge what it said, and make the better answers likelier: rollouts, advantages, a loss over
# tokens, and a run in which the reward goes up.**
#
# ⭐⭐⭐⭐⭐ · about 180 minutes · 100 points in 7 parts · builds on nothing · runs on any CPU, uses a GPU
# if there is one
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.05_rl_loop` | runs your notebook and shows the visible checks |
# | `python -m puzzles.05_rl_loop --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.05_rl_loop --hint rollout` | gives hints for a part |
# | `python -m puzzles.05_rl_loop --peek rollout` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# Fine-tuning shows a model answers and says: like this. Reinforcement learning shows it a question and says how good
# *its own* answer was. Nobody has to write answers; something has to be able to tell good from bad. The loop is short,
# and most of its mistakes leave a run that works, a little worse:
#
# - **One NaN is the end.** A model that gets 95 % of its answers right answers a question right 16 times of 16 in 44 %
#   of the cases. All rewards are then equal, their standard deviation is 0, and 0/0 is NaN. After one optimizer step
#   every weight is NaN.
# - **Copies teach nothing.** 16 answers are sampled in two passes of 8. With one seed for both, the second 8 are the
#   first 8 again. You pay for 16 and learn from 8, and nothing looks wrong.
# - **The tool's words.** In the toy model's answer `{998*356}[355288]That makes 355288.`, the calculator has written 8 of
#   30 tokens. The model never chose them. If they carry gradient, a good answer makes it write results itself, and soon
#   it no longer asks.
# - **Padding.** Three answers of 20 tokens beside one of 240 make a batch of 4 · 240 places, of which 300 are tokens. A
#   mean over places is 3.2 times too small, and how much too small changes with every batch.
#
# After this puzzle you can
# 1. say what an advantage is, what dividing by the standard deviation changes, and where it breaks;
# 2. sample answers such that a run can be repeated from its log, and say of every token whether it may carry gradient;
# 3. write the loss of REINFORCE, GRPO and DAPO, and tell them apart by what a token weighs;
# 4. keep a policy near a reference with an estimator of the KL that is unbiased and never negative;
# 5. take an optimizer step over more answers than fit in memory;
# 6. measure pass@k without fooling yourself, and watch it rise on a real model in half a minute.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other numbers. The parts do not depend on each other: stuck on one, go on with the next. Letters
# used throughout: `K` answers to one question, `B` rows of a batch, `T` positions, `V` tokens in the vocabulary.

# %% given="imports"
import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from puzzles.checks import Checks, expect
from puzzles.compare import FLOAT32
from puzzles.plots import BLACK, BLUE, COLOURS, GREEN, GREY, MARKERS, ORANGE, SKY, attempt, picture

check = Checks("05_rl_loop")

# %% [markdown]
# ## Part 1 · How much better than the others? (10 points, 10 minutes)
#
# An answer $y$ to a question is a sequence of tokens that the policy $\pi_\theta$ has drawn one by one. We want the
# expected reward to rise. Its gradient is, whatever the reward function is (it need not even have a gradient),
#
# $$\nabla_\theta \, \mathbb{E}_y[r(y)] = \mathbb{E}_y\Big[r(y) \sum_t \nabla_\theta \log \pi_\theta(y_t \mid y_{<t})\Big]$$
#
# So: sample, and push the log-probability of each sampled token by the reward. This is REINFORCE. It is right on
# average and very noisy: if all rewards are positive, every answer is pushed up, the bad ones only a little less. The
# remedy is a **baseline**. For any number $b$ that does not depend on the answer, $r - b$ in place of $r$ leaves the
# expectation as it was, because $\mathbb{E}[\nabla \log \pi] = 0$. A good $b$ is what this question earns on average.
# Other methods train a second network to predict it. GRPO answers the same question $K$ times and takes the mean:
#
# $$A_i = r_i - \tfrac{1}{K} \textstyle\sum_j r_j \qquad\text{or, full,}\qquad
#   A_i = \frac{r_i - \text{mean}(r)}{\text{std}(r) + \varepsilon}$$
#
# nanochat uses the first. The second is the GRPO paper's (arXiv 2402.03300). Four answers, one is right:
#
# | rewards | 1 | 0 | 0 | 0 |
# |---|---|---|---|---|
# | simple | 0.75 | −0.25 | −0.25 | −0.25 |
# | full (std = 0.4330) | 1.7320 | −0.5774 | −0.5774 | −0.5774 |
#
# **What the division does.** A question that is nearly always right or nearly always wrong has a small deviation, so it
# is blown up: all questions weigh alike, also those from which hardly anything can be learnt (arXiv 2503.20783 argues
# against it). At the very end of that road, all rewards are equal. Then there is nothing to learn, and every advantage
# is **exactly zero**. In float32 that does not come by itself: the mean of eight times 0.7 is not quite 0.7, and what
# is left, 0.00000006, divided by as little plus $\varepsilon$, becomes 0.056.
#
# **Contract.** `rewards` is `(K,)`, float32, `K >= 1`, and is left as it is. Returns `(K,)`, float32. The standard
# deviation is the one over `K`, not `K - 1`, and `eps` is added to it.


# %% hole="compute_advantages"
def compute_advantages(rewards: torch.Tensor, normalize: bool = False, eps: float = 1e-6) -> torch.Tensor:
    """How much better each of K answers is than their mean: (K,) from rewards (K,).

    With `normalize`, divided by their standard deviation (over K) plus `eps`; exactly zero if all rewards are equal.
    """
    ### BEGIN SOLUTION
    centred = rewards - rewards.mean()
    if not normalize:
        return centred
    if rewards.max() == rewards.min():
        return torch.zeros_like(rewards)
    return centred / (rewards.std(correction=0) + eps)
    ### END SOLUTION


# %% given="check-compute_advantages"
def judged(rewards: torch.Tensor, normalize: bool = False, eps: float = 1e-6) -> dict:
    """Your advantages, and whether the rewards are still what they were."""
    before = rewards.clone()
    return {
        "advantages": compute_advantages(rewards, normalize, eps),
        "rewards unchanged": torch.equal(rewards, before),
    }


def floats(*numbers: float) -> torch.Tensor:
    """A float32 tensor of these numbers."""
    return torch.tensor(numbers, dtype=torch.float32)


with check("compute_advantages"):
    one = floats(1, 0, 0, 0)
    expect(compute_advantages, (one,), floats(0.75, -0.25, -0.25, -0.25), "reward minus the mean", FLOAT32)
    expect(compute_advantages, (floats(2, 5),), floats(-1.5, 1.5), "without `normalize` nothing is divided", FLOAT32)
    full = "divided by the standard deviation over K (0.4330 here; over K - 1 it would be 0.5) plus eps"
    expect(compute_advantages, (one, True), floats(1.7320468, -0.5773489, -0.5773489, -0.5773489), full, FLOAT32)
    expect(compute_advantages, (floats(2, 5), True), floats(-0.9999993, 0.9999993), full, FLOAT32)
    outside = "eps is added to the standard deviation, outside of the root"
    expect(compute_advantages, (floats(0, 2), True, 1.0), floats(-0.5, 0.5), outside, FLOAT32)
    equal = "equal rewards teach nothing: exactly zero, not NaN and not rounding errors blown up"
    for number, K in ((0.0, 4), (1.0, 1), (0.7, 8)):
        expect(compute_advantages, (floats(*[number] * K), True), torch.zeros(K), equal)
    expect(
        judged,
        (floats(1, 0, 0, 0), False),
        {"advantages": floats(0.75, -0.25, -0.25, -0.25), "rewards unchanged": True},
        "the rewards are changed in place; whoever called still needs them for the log",
        FLOAT32,
    )

# %% graded="compute_advantages"
# 10 points. The hidden tests are more of the same, with other rewards; `--verify` runs them.
check.visible("compute_advantages")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("05_rl_loop", "compute_advantages", judged)
### END HIDDEN TESTS

# %% given="plot-compute_advantages" tags=["plot"]
with picture(
    "What one answer weighs, by how many of 16 are right",
    alt="Two panels. Left: simple advantages are straight lines. Right: full ones shoot up to 3.9 at the ends.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    counts = list(range(1, 16))
    for axis, normalize, title in zip(p.axes, (False, True), ("simple", "full"), strict=True):
        groups = [compute_advantages(floats(*[1] * right, *[0] * (16 - right)), normalize) for right in counts]
        axis.plot(counts, [group[0] for group in groups], color=BLUE, marker="o", label="a right answer")
        axis.plot(counts, [group[-1] for group in groups], "--", color=ORANGE, marker="s", label="a wrong answer")
        axis.axhline(0, color=GREY, linewidth=0.7)
        axis.set(title=title, xlabel="right answers of 16", ylabel="advantage", ylim=(-4.2, 4.2))
        axis.legend(fontsize=7)
    p.caption = f"1 right of 16, full: {groups[0][0]:.3f}; 8 of 16: {groups[7][0]:.3f}."

# %% [markdown]
# With one right answer of 16, the full advantage of it is 3.9, four times that of an even question. The simple one is
# 0.94: never more than 1, and the sum of squares over a group, which is what a question weighs, is largest where half
# of the answers are right. (Neither is *exactly* REINFORCE: the mean contains the answer itself, so a simple advantage
# is $(K-1)/K$ of what the mean of the *others* would give. The direction is the same.)
#
# ## Part 2 · Rollouts (20 points, 25 minutes)
#
# A rollout is `K` answers to one question from the model **as it is now** (on-policy), and a reward for each. The
# prompt comes from the tokenizer, the answers from the engine, the reward from the task:
#
# - `tokenizer.render_for_completion(conversation)` gives the prompt, a list of token ids.
# - `engine.generate_batch(prompt, num_samples=, max_tokens=, temperature=, top_k=, seed=)` gives `(sequences, masks)`,
#   a list for each of `num_samples` rows. A sequence begins with the prompt. A mask is 1 where the model has sampled
#   the token itself and 0 elsewhere: on the prompt, and on what the calculator has been made to say.
# - `task.reward(conversation, answer)` judges a text: **all** that follows the prompt, decoded in one go. What the
#   calculator said is part of the answer, though not of the gradient.
#
# **Passes.** 16 answers may not fit on the device at once. `device_batch_size` at a time do, so the engine is called
# `K / device_batch_size` times, and the answers are joined in order.
#
# **Seeds.** Every call needs a seed of its own. It must differ between the passes of a question, between questions and
# between steps: the same question comes again in the next epoch, and it should not get the same random numbers. And it
# must be the same when the run is repeated or resumed, so it cannot come from a clock or a global generator. nanochat
# takes the last 31 bits of Python's hash of three numbers (integers hash alike everywhere; text does not):
#
# ```
# seed = hash((step, example_idx, sampling_step)) & 0x7FFFFFFF      sampling_step counts the passes: 0, 1, 2, ...
#
# step 0, example 5, 4 answers, 2 at a time:
#     pass 0   seed  464452905    two rows
#     pass 1   seed 2131991035    two rows
# ```
#
# Here the engine, the task and the tokenizer are toys (next cell), so that you can see what they were asked. A token is
# the number of a letter. The toy engine samples letters, forces digits, and draws all of it from the seed alone. The
# toy reward is the share of the answer's characters that are wanted.
#
# **Contract.** Returns `(sequences, masks, rewards)`, lists with `num_samples` entries each, in the order of the
# passes; rewards are floats. The engine gets exactly the six arguments above. Raises `ValueError` if `num_samples` is
# less than 1 or no multiple of `device_batch_size`, before anything is sampled.


# %% given="toys"
class ToyTokenizer:
    """A token is the number of a character."""

    def render_for_completion(self, conversation: dict) -> list[int]:
        return self.encode(conversation["question"])

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class ToyEngine:
    """Answers with letters it samples and digits it is forced to say, from the seed alone. Notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def generate_batch(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> tuple[list[list[int]], list[list[int]]]:
        asked = f"max_tokens {max_tokens} temperature {temperature} top_k {top_k} seed {seed}"
        self.calls.append(f"{num_samples} x {''.join(map(chr, tokens))} {asked}")
        rng = random.Random(seed)
        sequences, masks = [], []
        for _ in range(num_samples):
            sequence, mask = list(tokens), [0] * len(tokens)
            for _ in range(rng.randint(1, max_tokens or 8)):
                forced = rng.random() < 0.25
                sequence.append(ord(rng.choice("0123456789" if forced else "abcd")))
                mask.append(int(not forced))
            sequences.append(sequence)
            masks.append(mask)
        return sequences, masks


class ToyTask:
    """Rewards the share of characters that are wanted. Notes what it is asked to judge."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def reward(self, conversation: dict, answer: str) -> float:
        self.answers.append(answer)
        return sum(character in conversation["wanted"] for character in answer) / max(1, len(answer))


# %% hole="rollout"
def rollout(
    engine: Any,
    tokenizer: Any,
    task: Any,
    conversation: Any,
    num_samples: int,
    device_batch_size: int,
    step: int,
    example_idx: int,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = 50,
) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Answer a question `num_samples` times, `device_batch_size` at once, each time with a seed of its own.

    Returns (sequences, masks, rewards), an entry an answer; sequences and masks are the engine's.
    Raises ValueError if num_samples is less than 1 or no multiple of device_batch_size.
    """
    ### BEGIN SOLUTION
    if num_samples < 1 or num_samples % device_batch_size:
        raise ValueError(f"{num_samples} answers cannot be made {device_batch_size} at a time")
    prompt = tokenizer.render_for_completion(conversation)
    sequences, masks = [], []
    for sampling_step in range(num_samples // device_batch_size):
        more_sequences, more_masks = engine.generate_batch(
            prompt,
            num_samples=device_batch_size,
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=hash((step, example_idx, sampling_step)) & 0x7FFFFFFF,
        )
        sequences += more_sequences
        masks += more_masks
    answers = [tokenizer.decode(sequence[len(prompt) :]) for sequence in sequences]
    rewards = [task.reward(conversation, answer) for answer in answers]
    return sequences, masks, rewards
    ### END SOLUTION


# %% given="check-rollout"
def roll_out(
    question: str,
    wanted: str,
    num_samples: int,
    device_batch_size: int,
    step: int,
    example_idx: int,
    max_new_tokens: int = 6,
    temperature: float = 1.0,
    top_k: int | None = 50,
) -> dict:
    """Your rollout on the toys: what it returns (sequences as text), and what engine and task were asked."""
    engine, task, tokenizer = ToyEngine(), ToyTask(), ToyTokenizer()
    conversation = {"question": question, "wanted": wanted}
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
    sequences, masks, rewards = rollout(
        engine, tokenizer, task, conversation, num_samples, device_batch_size, step, example_idx, **sampling
    )
    return {
        "sequences": [tokenizer.decode(row) for row in sequences],
        "masks": ["".join(map(str, row)) for row in masks],
        "rewards": rewards,
        "calls": engine.calls,
        "judged": task.answers,
    }


def seeds_of(num_samples: int, device_batch_size: int, step: int, example_idx: int) -> list[int]:
    """The seeds your rollout gives to the engine, in order."""
    calls = roll_out("q", "a", num_samples, device_batch_size, step, example_idx)["calls"]
    return [int(call.rpartition(" ")[2]) for call in calls]


def arguments_of(*arguments: Any) -> list[str]:
    """What the engine is asked by your rollout, but for the seeds."""
    return [call.rpartition(" seed")[0] for call in roll_out(*arguments)["calls"]]


with check("rollout"):
    asked = "max_tokens 9 temperature 0.5 top_k 7"
    expect(
        arguments_of,
        ("hm?", "a", 4, 2, 0, 5, 9, 0.5, 7),
        [f"2 x hm? {asked}"] * 2,
        "4 answers, 2 at a time, are 2 calls; the engine gets max_tokens, temperature and top_k as they are given",
    )
    expect(arguments_of, ("hm?", "a", 3, 3, 0, 5, 9, 0.5, None), [f"3 x hm? {asked[:-1]}None"], "all fit in one pass")
    expect(seeds_of, (4, 2, 0, 5), [464452905, 2131991035], "each pass has a seed of its own; see the formula")
    expect(seeds_of, (2, 2, 3, 5), [240621063], "the step is part of the seed: in the next epoch all is drawn anew")
    expect(seeds_of, (1, 1, 5, 3), [38721149], "step 5 of example 3 is not step 3 of example 5")
    expect(
        roll_out,
        ("ab?", "b49", 4, 2, 0, 5),
        {
            "sequences": ["ab?bbab", "ab?daadd", "ab?8ac", "ab?4ad95"],
            "masks": ["0001111", "00011111", "000011", "00001100"],
            "rewards": [0.75, 0.0, 0.0, 0.4],
            "calls": [f"2 x ab? max_tokens 6 temperature 1.0 top_k 50 seed {s}" for s in (464452905, 2131991035)],
            "judged": ["bbab", "daadd", "8ac", "4ad95"],
        },
        "answers of all passes in order; the task judges all that follows the prompt, forced tokens too",
    )
    for num_samples in (3, 0, 1):
        expect(roll_out, ("ab?", "a", num_samples, 2, 0, 5), ValueError, f"{num_samples} answers, 2 at a time")

# %% graded="rollout"
# 20 points. The hidden tests are more of the same, with other questions and numbers; `--verify` runs them.
check.visible("rollout")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("05_rl_loop", "rollout", roll_out)
### END HIDDEN TESTS

# %% given="plot-rollout" tags=["plot"]
LOOKS = {
    "input": ("white", ""),
    "sampled": (SKY, ""),
    "made likelier": (SKY, ""),
    "made less likely": (ORANGE, "\\\\"),
    "no gradient": ("#dddddd", ".."),
    "forced": ("#dddddd", ".."),
}


def draw_tokens(axis: Axes, names: list[list[str]], looks: list[list[str]], rows: list[str]) -> None:
    """A line for every row, a box for every token in the colour and hatch of its look."""
    for at, (tokens, kinds) in enumerate(zip(names, looks, strict=True)):
        for column, (name, kind) in enumerate(zip(tokens, kinds, strict=False)):
            colour, hatch = LOOKS[kind]
            axis.barh(at, 0.92, left=column, color=colour, hatch=hatch, edgecolor=GREY, linewidth=0.5)
            style = {"parse_math": False, "fontsize": 7, "rotation": 90 if len(name) > 3 else 0}
            style |= {"ha": "center", "va": "center", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}}
            axis.text(column + 0.46, at, name, **style)
    axis.set(xlabel="token", xlim=(0, max(map(len, names), default=1)), yticks=range(len(names)))
    axis.set_yticklabels(rows, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.invert_yaxis()
    seen = [kind for kind in LOOKS if any(kind in row for row in looks)]
    patches = [Patch(facecolor=LOOKS[kind][0], hatch=LOOKS[kind][1], edgecolor=GREY, label=kind) for kind in seen]
    axis.figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)


with picture(
    "8 answers in four passes: no two passes may be alike",
    alt="Eight rows of letters, two for each pass. Hatched boxes are forced digits. Rows differ from pass to pass.",
    size=(9.0, 3.4),
) as p:
    told = roll_out("?", "ab", 8, 2, 0, 0, max_new_tokens=14)
    looks = [["sampled" if own == "1" else "forced" for own in mask[1:]] for mask in told["masks"]]
    names = [f"pass {row // 2}, reward {reward:.2f}" for row, reward in enumerate(told["rewards"])]
    draw_tokens(p.axes[0], [list(row[1:]) for row in told["sequences"]], looks, names)
    p.axes[0].set_xlabel("token of the answer")
    p.caption = f"{len(set(told['sequences']))} different answers of 8; {len(set(told['calls']))} different calls of 4."

# %% [markdown]
# ## Part 3 · Who may carry gradient: inputs and targets (15 points, 20 minutes)
#
# The answers have different lengths. To go through the model together they become a rectangle, padded on the **right**
# (attention looks to the left only, so padding there changes nothing before it). Then they are shifted: at each
# position the input is a token and the target is the next one, which the model had to predict there.
#
# Not every target counts. Those that do not are **−1**, nanochat's `ignore_index`, and give neither loss nor gradient:
#
# - the prompt, which somebody else has written,
# - what a tool was made to say,
# - the padding.
#
# All three have mask 0, or no mask at all. The mask belongs to the token *as a target*, so it moves with it. Prompt
# `7 8`, pad id 99, the 4 is forced:
#
# ```
# sequences    7 8 5 4 3     7 8 6             masks    0 0 1 0 1     0 0 1
#
# inputs       7  8  5  4                      targets  -1  5 -1  3
#              7  8  6 99                               -1  6 -1 -1
# ```
#
# Look at the second row, position 1: the input is 8, of the prompt, but the target is 6, which was sampled. It counts.
# And at its position 2: the input is the sampled 6, and its target is padding. It does not.
#
# **Contract.** Returns `(inputs, targets)`, each `(K, longest - 1)`, int64, on `device`. The longest sequence has at
# least two tokens. The lists are left as they are. Only the mask decides: a token that was sampled counts also if its
# id happens to be `pad_id`, or 0.


# %% hole="collate_rollouts"
def collate_rollouts(
    sequences: list[list[int]], masks: list[list[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad K sequences on the right and shift them: (inputs, targets), each (K, longest - 1) int64.

    A target is -1 where its mask is 0, and on the padding.
    """
    ### BEGIN SOLUTION
    longest = max(map(len, sequences))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in sequences], device=device)
    mask = torch.tensor([row + [0] * (longest - len(row)) for row in masks], device=device)
    targets = torch.where(mask[:, 1:] == 1, ids[:, 1:], -1)
    return ids[:, :-1], targets
    ### END SOLUTION


# %% given="check-collate_rollouts"
def collate(sequences: list, masks: list, pad_id: int, device: Any = "cpu") -> dict:
    """Your tensors, and whether they are where they should be and the lists are still what they were."""
    before = copy.deepcopy([sequences, masks])
    inputs, targets = collate_rollouts(sequences, masks, pad_id, device)
    return {
        "inputs": inputs,
        "targets": targets,
        "on the device": [each.device.type == torch.device(device).type for each in (inputs, targets)],
        "lists unchanged": [sequences, masks] == before,
    }


def collated(inputs: list, targets: list) -> dict:
    """What `collate` should say."""
    tensors = {"inputs": torch.tensor(inputs), "targets": torch.tensor(targets)}
    return tensors | {"on the device": [True, True], "lists unchanged": True}


with check("collate_rollouts"):
    expect(
        collate,
        ([[7, 8, 5, 6]], [[0, 0, 1, 1]], 99),
        collated([[7, 8, 5]], [[-1, 5, 6]]),
        "the target is the next token, and its own mask says whether it counts; ignored is -1; all is int64",
    )
    expect(
        collate,
        ([[7, 8, 5, 4, 3], [7, 8, 6]], [[0, 0, 1, 0, 1], [0, 0, 1]], 99),
        collated([[7, 8, 5, 4], [7, 8, 6, 99]], [[-1, 5, -1, 3], [-1, 6, -1, -1]]),
        "padded on the right to the longest; no gradient on the prompt, on forced tokens and on padding",
    )
    expect(
        collate,
        ([[7, 0, 99], [7, 1, 2]], [[0, 1, 1], [0, 0, 1]], 99),
        collated([[7, 0], [7, 1]], [[0, 99], [-1, 2]]),
        "only the mask decides: a sampled token counts also if its id is that of the padding, or 0",
    )
    expect(collate, ([[7, 8], [7]], [[0, 1], [0]], 5), collated([[7], [7]], [[8], [-1]]), "an answer may be empty")

# %% graded="collate_rollouts"
# 15 points. The hidden tests are more of the same, with other sequences; `--verify` runs them.
check.visible("collate_rollouts")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("05_rl_loop", "collate_rollouts", collate)
### END HIDDEN TESTS

# %% given="plot-collate_rollouts" tags=["plot"]
with picture(
    "Inputs, and below each what it has to predict",
    alt="Two panels of boxes, inputs above targets. Targets that count are plain blue, ignored ones hatched grey.",
    rows=2,
    size=(9.0, 3.8),
) as p:
    sequences = ["ab?bbab", "ab?daadd", "ab?8ac", "ab?4ad95"]
    masks = ["0001111", "00011111", "000011", "00001100"]
    ids, own = [[ord(c) for c in row] for row in sequences], [[int(c) for c in row] for row in masks]
    inputs, targets = collate_rollouts(ids, own, ord("_"))
    names = [[chr(max(i, 0)) for i in row] for row in inputs.tolist()]
    draw_tokens(p.axes[0], names, [["input"] * len(row) for row in names], [f"input {k}" for k in range(4)])
    p.figure.legends.clear()
    p.axes[0].set_xlabel("")
    signs = [[chr(i) if i >= 0 else "-1" for i in row] for row in targets.tolist()]
    looks = [["sampled" if i >= 0 else "no gradient" for i in row] for row in targets.tolist()]
    draw_tokens(p.axes[1], signs, looks, [f"target {k}" for k in range(4)])
    p.axes[1].set_xlabel("position")
    counted = int((targets >= 0).sum())
    p.caption = f"{counted} of {targets.numel()} targets count; the masks have {sum(map(sum, own))} ones."

# %% [markdown]
# ## Part 4 · The loss (15 points, 20 minutes)
#
# Autograd wants a number to differentiate. Its gradient should be that of part 1 with the advantage for the reward, so:
#
# $$L = -\frac{1}{N} \sum_{i} \sum_{t} A_i \, \log \pi_\theta(y_{i,t} \mid y_{i,<t})$$
#
# The inner sum is over the targets of answer $i$ that count (those $\ge 0$), and $N$ is the number of all of them in
# the batch, over all rows. The minus is there because optimizers go down. The value of $L$ means nothing (near zero, up
# and down): do not watch it, watch the reward. Only its gradient counts.
#
# **What a token weighs** is where methods differ, and they differ in the divisor alone:
#
# | divisor | name | what it does |
# |---|---|---|
# | all counted tokens of the batch, once | token level, as in nanochat and DAPO (arXiv 2503.14476) | every token weighs the same |
# | each answer's own tokens, then `B` | sequence level, as in GRPO's paper | every *answer* weighs the same: a token in a long one less |
#
# With the second, a wrong answer is punished less the longer it is, and models learn to ramble.
#
# Two rows with advantages 1 and −1; an X is a target of −1, and whatever stands at it must not matter:
#
# ```
# log-probabilities   -1.0  -2.0   X       1 · (-1 - 2) = -3
#                     -0.5   X     X      -1 · (-0.5)   = 0.5        L = -(-3 + 0.5) / 3 = 0.8333
#
# gradient of L       -1/3  -1/3   0      down the gradient is up the log-probability: row 0 becomes likelier,
#                      1/3   0     0      row 1 less likely
# ```
#
# **Contract.** `logprobs` is `(B, T)` float32, `targets` `(B, T)` int64, `advantages` `(B,)` float32. Returns a scalar
# float32 tensor, through which gradient flows into `logprobs`. None flows into `advantages`, even if they require it: a
# judgement is not something to be learnt here. If no target counts at all, the loss is 0, not NaN.


# %% hole="policy_gradient_loss"
def policy_gradient_loss(logprobs: torch.Tensor, targets: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Minus the mean, over the targets that count, of log-probability times the advantage of its row: a scalar.

    logprobs and targets (B, T), advantages (B,). Targets below 0 do not count.
    """
    ### BEGIN SOLUTION
    counted = targets >= 0
    weighted = logprobs * advantages.detach().unsqueeze(-1)
    return -weighted.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)
    ### END SOLUTION


# %% given="check-policy_gradient_loss"
def loss_and_gradient(logprobs: torch.Tensor, targets: torch.Tensor, advantages: torch.Tensor) -> dict:
    """Your loss, and its gradients with respect to log-probabilities and advantages."""
    logprobs, advantages = (each.clone().requires_grad_() for each in (logprobs, advantages))
    loss = policy_gradient_loss(logprobs, targets, advantages)
    loss.backward()
    return {"loss": loss, "gradient": logprobs.grad, "gradient of the advantages": advantages.grad}


def loss_of_yours(*arguments: torch.Tensor) -> torch.Tensor:
    """Your loss."""
    return loss_and_gradient(*arguments)["loss"]


def expected_loss(loss: float, gradient: list) -> dict:
    """What `loss_and_gradient` should say."""
    return {"loss": torch.tensor(loss), "gradient": torch.tensor(gradient), "gradient of the advantages": None}


with check("policy_gradient_loss"):
    two = (torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -7.0, -8.0]]), torch.tensor([[4, 0, -1], [3, -1, -1]]))
    expect(
        loss_of_yours,
        (*two, floats(1, -1)),
        torch.tensor(2.5 / 3),
        "minus the sum over what counts (token 0 does, -1 does not), divided by how many tokens count in all rows",
        FLOAT32,
    )
    third = 1 / 3
    expect(
        loss_and_gradient,
        (*two, floats(1, -1)),
        expected_loss(2.5 / 3, [[-third, -third, 0.0], [third, 0.0, 0.0]]),
        "every token weighs the same; the advantages get no gradient: detach them",
        FLOAT32,
    )
    square = (floats(-1, -2, -3, -4).view(2, 2), torch.tensor([[1, 2], [3, 4]]), floats(2, 0.5))
    expect(
        loss_and_gradient,
        square,
        expected_loss(9.5 / 4, [[-0.5, -0.5], [-0.125, -0.125]]),
        "an advantage belongs to a row, not to a column, and is taken as it is",
        FLOAT32,
    )
    nothing = (floats(-1, -2).view(1, 2), torch.tensor([[-1, -1]]), floats(3))
    expect(
        loss_and_gradient, nothing, expected_loss(0.0, [[0.0, 0.0]]), "nothing counts: 0, neither NaN nor the padding"
    )

# %% graded="policy_gradient_loss"
# 15 points. The hidden tests are more of the same, with other shapes and numbers; `--verify` runs them.
check.visible("policy_gradient_loss")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("05_rl_loop", "policy_gradient_loss", loss_and_gradient)
### END HIDDEN TESTS

# %% given="plot-policy_gradient_loss" tags=["plot"]
with picture(
    "Three answers of 2, 6 and 16 tokens, advantage 1 each",
    alt="Two bar charts. Yours: equal weights of tokens, answers by length. Sequence level: the other way round.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    lengths = [2, 6, 16]
    targets = torch.where(torch.arange(16) < torch.tensor(lengths).unsqueeze(1), 1, -1)
    yours = -loss_and_gradient(torch.full((3, 16), -1.0), targets, torch.ones(3))["gradient"]
    sequence = (targets >= 0) / torch.tensor(lengths).unsqueeze(1) / 3
    for axis, title, column in ((p.axes[0], "of its first token", 0), (p.axes[1], "of the whole answer", None)):
        for shift, weights, colour, hatch, label in (
            (-0.2, yours, BLUE, "", "yours"),
            (0.2, sequence, "white", "//", "sequence level"),
        ):
            heights = weights[:, column] if column == 0 else weights.sum(dim=1)
            axis.bar(torch.arange(3) + shift, heights, 0.38, color=colour, hatch=hatch, edgecolor=GREY, label=label)
        axis.set(title=f"Weight {title}", xlabel="tokens of the answer", ylabel="weight in the gradient")
        axis.set_xticks(range(3), labels=map(str, lengths))
        axis.legend(fontsize=7)
    p.caption = "Weight of one token by answer: " + ", ".join(f"{row[0]:.4f}" for row in yours) + "."

# %% [markdown]
# ## Part 5 · Not too far: the KL penalty (10 points, 20 minutes)
#
# A policy that only chases the reward may leave behind everything it was taught. A remedy is a penalty on its distance
# from a **reference**, a frozen copy from before: $\mathrm{KL}(\pi \,\|\, \pi_\text{ref}) = \mathbb{E}_{y \sim \pi}
# [\log \pi(y) - \log \pi_\text{ref}(y)]$. (nanochat leaves it out, GRPO's paper has it, as have most who train on
# human preferences.) The sum over all tokens of the vocabulary at every position is expensive. But we have samples from
# $\pi$ already, the tokens of the rollout. Three estimators on a sampled token, with
# $\rho = \pi_\text{ref}(y) / \pi(y)$:
#
# | | estimator | on average | per token |
# |---|---|---|---|
# | k1 | $-\log \rho$ | the KL | often negative, large variance |
# | k2 | $\tfrac12 (\log \rho)^2$ | *not* the KL | never negative |
# | k3 | $\rho - 1 - \log \rho$ | the KL | never negative, small variance |
#
# k3 (John Schulman's) is k1 plus $\rho - 1$, which is zero on average: $\sum_y \pi \cdot \pi_\text{ref} / \pi - 1 = 0$.
# A vocabulary of two, $\pi = (0.5, 0.5)$, $\pi_\text{ref} = (0.25, 0.75)$:
#
# | token | $\rho$ | k1 | k3 |
# |---|---|---|---|
# | 0 | 0.5 | 0.6931 | 0.5 − 1 + 0.6931 = 0.1931 |
# | 1 | 1.5 | −0.4055 | 1.5 − 1 − 0.4055 = 0.0945 |
# | mean under $\pi$ | | **0.1438** | **0.1438** |
#
# **Contract.** All three are `(B, T)`; log-probabilities float32, `targets` int64. Returns a scalar: the mean of k3
# over the targets that count (those $\ge 0$), over all rows at once; what stands at the others must not matter. 0 if
# none counts. Gradient flows into `logprobs`, none into `reference_logprobs`, even if they require it.


# %% hole="kl_penalty"
def kl_penalty(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference) by Schulman's k3 on the sampled tokens: a scalar, the mean over targets that count.

    All are (B, T). Targets below 0 do not count. No gradient flows into the reference.
    """
    ### BEGIN SOLUTION
    counted = targets >= 0
    log_ratio = reference_logprobs.detach() - logprobs
    k3 = log_ratio.exp() - 1 - log_ratio
    return k3.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)
    ### END SOLUTION


# %% given="check-kl_penalty"
def kl_and_gradient(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, targets: torch.Tensor) -> dict:
    """Your penalty, and its gradients with respect to the log-probabilities of policy and reference."""
    logprobs, reference_logprobs = (each.clone().requires_grad_() for each in (logprobs, reference_logprobs))
    kl = kl_penalty(logprobs, reference_logprobs, targets)
    kl.backward()
    return {"kl": kl, "gradient": logprobs.grad, "gradient of the reference": reference_logprobs.grad}


def kl_of_yours(*arguments: torch.Tensor) -> torch.Tensor:
    """Your penalty."""
    return kl_and_gradient(*arguments)["kl"].detach()


def expected_kl(kl: float, gradient: list) -> dict:
    """What `kl_and_gradient` should say."""
    return {"kl": torch.tensor(kl), "gradient": torch.tensor(gradient), "gradient of the reference": None}


with check("kl_penalty"):
    half, reference = floats(0.5, 0.5).log().view(1, 2), floats(0.25, 0.75).log().view(1, 2)
    first = (half, reference, torch.tensor([[0, -1]]))
    expect(kl_of_yours, first, torch.tensor(0.1931472), "k3 with ρ = reference / policy; token 0 counts", FLOAT32)
    both = (half, reference, torch.tensor([[0, 1]]))
    expect(kl_of_yours, both, torch.tensor(0.1438410), "the mean of k3 over what counts", FLOAT32)
    expect(
        kl_and_gradient,
        both,
        expected_kl(0.1438410, [[0.25, -0.25]]),
        "gradient into the policy's log-probabilities, none into the reference's",
        FLOAT32,
    )
    rows = (half.repeat(2, 1), reference.repeat(2, 1), torch.tensor([[0, 1], [5, -1]]))
    expect(kl_of_yours, rows, torch.tensor(0.1602764), "one mean over the counted tokens of all rows", FLOAT32)
    none = (half, reference, torch.tensor([[-1, -1]]))
    expect(kl_and_gradient, none, expected_kl(0.0, [[0.0, 0.0]]), "nothing counts: 0")

# %% graded="kl_penalty"
# 10 points. The hidden tests are more of the same, with other shapes and numbers; `--verify` runs them.
check.visible("kl_penalty")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("05_rl_loop", "kl_penalty", kl_and_gradient)
### END HIDDEN TESTS

# %% given="plot-kl_penalty" tags=["plot"]
with picture(
    "Three estimators of one divergence",
    alt="Left: yours is zero at ratio 1 and positive elsewhere, k1 crosses zero. Right: histograms, yours is narrower.",
    columns=2,
    size=(9.5, 3.3),
) as p:
    log_ratio = torch.linspace(-2, 2, 81)
    each = [kl_of_yours(torch.zeros(1, 1), x.view(1, 1), torch.zeros(1, 1).long()).item() for x in log_ratio]
    p.axes[0].plot(log_ratio, each, color=BLUE, label="yours", linewidth=2)
    p.axes[0].plot(log_ratio, -log_ratio, "--", color=ORANGE, label="k1")
    p.axes[0].plot(log_ratio, log_ratio**2 / 2, ":", color=GREEN, label="k2", linewidth=2)
    p.axes[0].axhline(0, color=GREY, linewidth=0.7)
    p.axes[0].set(title="On one token", xlabel="log ρ = log reference − log policy", ylabel="estimate (nats)")
    p.axes[0].legend(fontsize=7)
    rng = torch.Generator().manual_seed(3)
    policy = torch.randn(40, generator=rng).log_softmax(-1)
    near = (policy + 0.5 * torch.randn(40, generator=rng)).log_softmax(-1)
    true = (policy.exp() * (policy - near)).sum().item()
    drawn = torch.multinomial(policy.exp(), 600 * 32, replacement=True, generator=rng).view(600, 1, 32)
    yours = torch.stack([kl_of_yours(policy[y], near[y], torch.zeros_like(y)) for y in drawn])
    k1 = (policy[drawn] - near[drawn]).mean(dim=(1, 2))
    bins = torch.linspace(-0.3, 0.6, 46).tolist()
    p.axes[1].hist(k1, bins, color=ORANGE, alpha=0.6, hatch="//", label="k1")
    p.axes[1].hist(yours, bins, color=BLUE, alpha=0.7, label="yours")
    p.axes[1].axvline(true, color=BLACK, linestyle="--", label="the KL")
    p.axes[1].set(title="600 batches of 32 tokens", xlabel="estimate (nats)", ylabel="batches")
    p.axes[1].legend(fontsize=7)
    p.caption = (
        f"KL {true:.4f}; mean ± deviation of yours {yours.mean():.4f} ± {yours.std():.4f}, "
        f"of k1 {k1.mean():.4f} ± {k1.std():.4f}."
    )

# %% [markdown]
# A fine point for those who put it into a loss: k3's *value* is an unbiased estimate of KL(π ‖ ref), but its
# *gradient* on a token is $(1 - \rho) \nabla \log \pi$, and the mean of that is the gradient of KL(ref ‖ π), the other
# direction. Near the reference the two hardly differ, and far from it nobody wants to be.
#
# ## Part 6 · The step (20 points, 30 minutes)
#
# One optimizer step looks at several questions, each with its `K` answers. Answers go through the model
# `device_batch_size` rows at a time, because what a forward pass leaves behind for its backward pass is what fills the
# memory. So each pass is forward, loss, **backward**, and only then comes the next one. Gradients add up in the
# parameters. When all are through, the optimizer steps **once**, and the gradients of this step must not count in the
# next.
#
# For the sum of gradients to be a mean, each pass's loss is divided by the number of all passes: those of its question
# times the number of questions. (A mean of means: a pass with few tokens weighs as much as one with many. That is what
# nanochat does.)
#
# **Log-probabilities.** nanochat's model gives `model(inputs, targets, loss_reduction="none")`: the cross-entropy of
# every position, that is *minus* the log-probability of its target, in one flat tensor of `rows · T` numbers, 0 where
# the target is ignored.
#
# **With a reference**, a frozen model of the same kind, the loss of a pass is
# `loss_of(logprobs, targets, advantages) + kl_coef * kl_of(logprobs, reference_logprobs, targets)`, all before the
# division. The reference sees the same rows, gets no gradient and stays as it is; it costs no memory for a backward
# pass if it runs under `torch.no_grad()`. Without one (`None`), `kl_of` and `kl_coef` are not used.
#
# So that this part stands alone, loss and penalty are arguments. In the check they are toys; yours come in at the end.
# One question of 4 answers and one of 2, two rows at a time:
#
# ```
# forward (2, 5)   backward        question 0, 2 passes: loss / (2 · 2)
# forward (2, 5)   backward
# forward (2, 3)   backward        question 1, 1 pass:   loss / (1 · 2)
# step
# ```
#
# **Contract.** `questions` is a list of `(inputs, targets, advantages)`: `(K, T)`, `(K, T)`, `(K,)`; `K` and `T` differ
# between questions. Returns the losses of the passes in order, as divided, as floats. Raises `ValueError` if the
# answers of a question cannot be split evenly into passes.


# %% given="toy-model"
class ToyModel(torch.nn.Module):
    """Says by a table which token follows which. Takes what nanochat's GPT takes, and notes its passes in a log."""

    def __init__(self, table: torch.Tensor, log: list[str]) -> None:
        super().__init__()
        self.table, self.log = torch.nn.Parameter(table.clone()), log

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None, loss_reduction: str = "mean"
    ) -> torch.Tensor:
        self.log.append(f"forward {tuple(idx.shape)}")
        result = self.table[idx]
        if targets is not None:
            result = F.cross_entropy(result.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=loss_reduction)
        if result.requires_grad:
            result.register_hook(lambda _: self.log.append("backward"))
        return result


class ToyOptimizer(torch.optim.SGD):
    """Plain gradient descent which notes its steps and the gradients it finds."""

    def __init__(self, model: ToyModel, lr: float = 0.5) -> None:
        super().__init__(model.parameters(), lr)
        self.model, self.gradients = model, list[torch.Tensor]()

    def step(self, closure: Any = None) -> None:
        self.model.log.append("step")
        self.gradients.append(self.model.table.grad.clone())
        super().step()


def toy_loss(logprobs: torch.Tensor, targets: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Stands in for a policy-gradient loss."""
    return ((logprobs - advantages.unsqueeze(-1)) ** 2 * (targets + 2)).mean()


def toy_kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Stands in for a penalty."""
    return ((logprobs - 3 * reference_logprobs) ** 2 * (targets + 2)).mean()


# %% hole="train_step"
def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    questions: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    device_batch_size: int,
    loss_of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    reference: torch.nn.Module | None = None,
    kl_of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    kl_coef: float = 0.0,
) -> list[float]:
    """One optimizer step on the answers to all `questions`, `device_batch_size` rows a pass; the loss of each pass.

    questions: (inputs (K, T), targets (K, T), advantages (K,)). A pass's loss is divided by the passes of its question
    and by the number of questions. With a reference, `kl_coef * kl_of(...)` is part of it.
    Raises ValueError if a question's answers cannot be split evenly.
    """
    ### BEGIN SOLUTION
    losses = []
    for inputs, targets, advantages in questions:
        if len(inputs) % device_batch_size:
            raise ValueError(f"{len(inputs)} answers cannot be split into passes of {device_batch_size}")
        passes = len(inputs) // device_batch_size
        for x, y, a in zip(*(each.split(device_batch_size) for each in (inputs, targets, advantages)), strict=True):
            logprobs = -model(x, y, loss_reduction="none").view_as(x)
            loss = loss_of(logprobs, y, a)
            if reference is not None:
                with torch.no_grad():
                    reference_logprobs = -reference(x, y, loss_reduction="none").view_as(x)
                loss = loss + kl_coef * kl_of(logprobs, reference_logprobs, y)
            loss = loss / (passes * len(questions))
            loss.backward()
            losses.append(loss.item())
    optimizer.step()
    optimizer.zero_grad()
    return losses
    ### END SOLUTION


# %% given="check-train_step"
def take_steps(
    table: torch.Tensor,
    questions: list,
    device_batch_size: int,
    steps: int = 1,
    reference_table: torch.Tensor | None = None,
    kl_coef: float = 0.0,
) -> dict:
    """Your step, several times on the same questions: its losses, the log, the gradients the optimizer has found, the
    table at the end, and whether the reference is as it was."""
    log: list[str] = []
    model = ToyModel(table, log)
    optimizer = ToyOptimizer(model)
    reference = None if reference_table is None else ToyModel(reference_table, [])
    here = [tuple(each.to(table.device) for each in question) for question in questions]
    more = () if reference is None else (reference, toy_kl, kl_coef)
    losses = [train_step(model, optimizer, here, device_batch_size, toy_loss, *more) for _ in range(steps)]
    untouched = reference is None or (
        reference.table.grad is None and torch.equal(reference.table.detach(), reference_table)
    )
    return {
        "log": log,
        "losses": losses,
        "gradients": optimizer.gradients,
        "table": model.table.detach(),
        "reference untouched": untouched,
    }


TABLE = torch.linspace(-1, 1, 16).view(4, 4).sin()
FROZEN = TABLE.flip(0)
EXAMPLES = {
    "four answers": (
        torch.tensor([[0, 1, 2], [1, 2, 3], [3, 3, 0], [2, 0, 1]]),
        torch.tensor([[-1, 2, 3], [-1, 3, -1], [3, 0, 0], [-1, 1, 2]]),
        floats(0.5, -0.5, 1.5, -1.5),
    ),
    "two answers": (torch.tensor([[1, 0], [2, 2]]), torch.tensor([[-1, 0], [2, 1]]), floats(1, -1)),
}


def step_on(names: list[str], *more: Any) -> dict:
    """Your steps on the questions of these names."""
    return take_steps(TABLE, [EXAMPLES[name] for name in names], *more)


def log_of(names: list[str], rows: int, steps: int) -> list[str]:
    """What your steps do, in order."""
    return step_on(names, rows, steps)["log"]


def losses_of(names: list[str], rows: int) -> list[float]:
    """The losses that your step returns."""
    return step_on(names, rows)["losses"][0]


def gradient(names: list[str], rows: int, steps: int = 1, kl_coef: float | None = None) -> torch.Tensor:
    """The gradient that the optimizer finds at the last of your steps; with a kl_coef there is a reference."""
    return step_on(names, rows, steps, *(() if kl_coef is None else (FROZEN, kl_coef)))["gradients"][-1]


def whole(names: list[str], table: torch.Tensor = TABLE, kl_coef: float | None = None) -> tuple[list[float], Any]:
    """What it should be if every question goes through in one piece: losses and gradient."""
    model, losses = ToyModel(table, []), []
    for x, y, a in (EXAMPLES[name] for name in names):
        logprobs = -model(x, y, "none").view_as(x)
        loss = toy_loss(logprobs, y, a)
        if kl_coef is not None:
            loss = loss + kl_coef * toy_kl(logprobs, -ToyModel(FROZEN, [])(x, y, "none").view_as(x).detach(), y)
        (loss / len(names)).backward()
        losses.append(loss.item() / len(names))
    return losses, model.table.grad


with check("train_step"):
    four, two = EXAMPLES
    expect(
        log_of,
        ([four, two], 2, 2),
        ["forward (2, 3)", "backward", "forward (2, 3)", "backward", "forward (2, 2)", "backward", "step"] * 2,
        "two rows a pass, each pass forward then backward, and one optimizer step when all are through",
    )
    plain = "minus the model's losses are the log-probabilities; each pass has its own rows, targets and advantages"
    for rows in (4, 2, 1):
        expect(gradient, ([four], rows), whole([four])[1], plain, FLOAT32)
    divided = "the loss of a pass is divided by the passes of its question and by the number of questions"
    expect(gradient, ([four, two], 2), whole([four, two])[1], divided, FLOAT32)
    expect(losses_of, ([four, two, two], 4), ValueError, "two answers cannot be made into passes of 4")
    expect(losses_of, ([two, two], 2), whole([two, two])[0], f"{divided}, and returned like that", FLOAT32)
    moved = TABLE - 0.5 * whole([two])[1]
    left = "at the second step the gradients of the first still count: they must be cleared in between"
    expect(gradient, ([two], 2, 2), whole([two], moved)[1], left, FLOAT32)
    added = "kl_coef times the penalty is added before the division; the reference sees the same rows"
    expect(gradient, ([four, two], 2, 1, 0.3), whole([four, two], kl_coef=0.3)[1], added, FLOAT32)
    expect(
        lambda: step_on([two], 1, 1, FROZEN, 0.3)["reference untouched"],
        (),
        True,
        "the reference gets gradient: run it under torch.no_grad()",
    )

# %% graded="train_step"
# 20 points. The hidden tests are more of the same, with other tables and questions; `--verify` runs them.
check.visible("train_step")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("05_rl_loop", "train_step", take_steps)
### END HIDDEN TESTS

# %% given="plot-train_step" tags=["plot"]
with picture(
    "8 answers of equal length, in 1, 2, 4 or 8 passes",
    alt="Left: rows held in memory grow with the batch size. Right: the gradient's size is the same for all four.",
    columns=2,
    size=(9.0, 3.0),
) as p:
    rng = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 6, (8, 7), generator=rng)
    question = (ids[:, :-1], ids[:, 1:], torch.randn(8, generator=rng))
    held, norms, sizes = [], [], [1, 2, 4, 8]
    for rows in sizes:
        told = take_steps(torch.randn(6, 6, generator=torch.Generator().manual_seed(6)), [question], rows)
        now = most = 0
        for line in told["log"]:
            if line.startswith("forward"):
                now += int(line.split("(")[1].split(",")[0])
                most = max(most, now)
            elif line == "backward":
                now = 0
        held.append(most)
        norms.append(told["gradients"][0].norm().item())
    p.axes[0].bar(range(4), held, color=ORANGE, hatch="//", edgecolor=GREY)
    p.axes[0].set(title="Rows waiting for a backward pass", xlabel="device_batch_size", ylabel="rows", ylim=(0, 9))
    p.axes[1].bar(range(4), norms, color=BLUE, edgecolor=GREY)
    p.axes[1].set(title="Size of the step's gradient", xlabel="device_batch_size", ylabel="norm")
    for axis in p.axes:
        axis.set_xticks(range(4), labels=map(str, sizes))
    p.caption = f"Rows held: {held}; norm of the gradient: " + ", ".join(f"{norm:.4f}" for norm in norms) + "."

# %% [markdown]
# ## Part 7 · pass@k (10 points, 15 minutes)
#
# **pass@k** is the share of questions for which at least one of `k` answers is right. pass@1 is accuracy. pass@8 says
# what the model *could* get: it is the stock that reinforcement learning works from, since an answer that never shows
# up cannot be rewarded.
#
# From `K` answers to each question there are two ways to estimate it for every `k` from 1 to `K`:
#
# - **the first k** answers: is one of them right? This is what nanochat logs. It is unbiased and throws most of the
#   data away: pass@1 uses one answer of `K`.
# - **over all subsets**: of all ways to choose `k` of the `K` answers, which share contains a right one? With $c$ right
#   answers (arXiv 2107.03374),
#
# $$\text{pass@}k = 1 - \binom{K-c}{k} \Big/ \binom{K}{k}$$
#
# It has the same mean and far less noise. Do not confuse it with $1 - (1 - c/K)^k$, which draws *with* replacement and
# is too low. The factorials of 64 do not fit a float32; the quotient of the two binomials is a product of `k` factors
# between 0 and 1: of all answers one is drawn, it is wrong; of the rest one is drawn, it is wrong; ...
#
# Four answers, the third is right:
#
# | k | 1 | 2 | 3 | 4 |
# |---|---|---|---|---|
# | the first k | 0 | 0 | 1 | 1 |
# | over all subsets | 0.25 | 0.5 | 0.75 | 1 |
# | $1 - (1 - c/K)^k$ (not asked for) | 0.25 | 0.4375 | 0.5781 | 0.6836 |
#
# **Contract.** `outcomes` is `(N, K)` bool: whether answer `k` to question `n` is right; `N` and `K` are at least 1, `K`
# up to 100. Returns `(K,)` float32, the mean over the questions, for k = 1, 2, ..., K.


# %% hole="pass_at_k"
def pass_at_k(outcomes: torch.Tensor, over_subsets: bool = False) -> torch.Tensor:
    """Share of questions with a right answer among k, for k = 1..K: (K,) float32 from outcomes (N, K) bool.

    Among the first k, or, with `over_subsets`, the mean over all choices of k answers.
    """
    ### BEGIN SOLUTION
    if not over_subsets:
        return (outcomes.cumsum(dim=1) > 0).float().mean(dim=0)
    K = outcomes.size(1)
    taken = torch.arange(K, device=outcomes.device)
    wrong_left = (~outcomes).sum(dim=1, keepdim=True) - taken
    next_is_wrong = wrong_left.clamp(min=0) / (K - taken)
    return 1 - next_is_wrong.cumprod(dim=1).mean(dim=0)
    ### END SOLUTION


# %% given="check-pass_at_k"
def outcomes_of(*rows: str) -> torch.Tensor:
    """Outcomes from text, a row a question: a 1 for a right answer."""
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def by_counting(outcomes: torch.Tensor) -> torch.Tensor:
    """pass@k over all subsets, by making all of them."""
    K = outcomes.size(1)
    shares = []
    for k in range(1, K + 1):
        solved = [outcomes[:, list(chosen)].any(dim=1).float().mean() for chosen in combinations(range(K), k)]
        shares.append(torch.stack(solved).mean())
    return torch.stack(shares)


with check("pass_at_k"):
    third, many = outcomes_of("0010"), outcomes_of("00100", "10000", "00000", "01111")
    expect(pass_at_k, (third,), floats(0, 0, 1, 1), "is one of the first k right?", FLOAT32)
    expect(pass_at_k, (many,), floats(0.25, 0.5, 0.75, 0.75, 0.75), "the mean over the questions", FLOAT32)
    subsets = "of all choices of k answers, the share with a right one: 1 - C(K - c, k) / C(K, k)"
    expect(pass_at_k, (third, True), floats(0.25, 0.5, 0.75, 1), subsets, FLOAT32)
    expect(pass_at_k, (many, True), by_counting(many), f"{subsets}, for each question, then the mean", FLOAT32)
    for all_alike, share in ((outcomes_of("111"), 1.0), (outcomes_of("000", "000"), 0.0), (outcomes_of("1"), 1.0)):
        expect(pass_at_k, (all_alike, True), torch.full((all_alike.size(1),), share), "all or none are right", FLOAT32)

# %% graded="pass_at_k"
# 10 points. The hidden tests are more of the same, with other outcomes; `--verify` runs them.
check.visible("pass_at_k")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("05_rl_loop", "pass_at_k", pass_at_k)
### END HIDDEN TESTS

# %% given="plot-pass_at_k" tags=["plot"]
with picture(
    "pass@k of 20 questions, measured 200 times with 16 answers each",
    alt="Two panels, a band around the true curve in each: wide for the first k, narrow over all subsets.",
    columns=2,
    size=(9.5, 3.3),
) as p:
    rng = torch.Generator().manual_seed(9)
    chance = torch.rand(20, 1, generator=rng) ** 3
    ks = torch.arange(1, 17)
    true = (1 - (1 - chance) ** ks).mean(dim=0)
    runs = [torch.rand(20, 16, generator=rng) < chance for _ in range(200)]
    spread = {}
    for axis, over_subsets, title in zip(p.axes, (False, True), ("the first k", "over all subsets"), strict=True):
        curves = torch.stack([pass_at_k(run, over_subsets) for run in runs])
        low, middle, high = curves.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
        axis.fill_between(ks, low, high, color=SKY, alpha=0.6, label="90 % of measurements")
        axis.plot(ks, middle, color=BLUE, marker="o", markersize=4, label="their median")
        axis.plot(ks, true, "--", color=BLACK, label="true")
        axis.set(title=title, xlabel="k", ylabel="pass@k", ylim=(0, 1))
        axis.legend(fontsize=7, loc="lower right")
        spread[title] = (curves[:, 0].std().item(), (curves - true).mean().item())
    p.caption = "; ".join(
        f"{title}: deviation of pass@1 {deviation:.3f}, mean error {error:+.3f}"
        for title, (deviation, error) in spread.items()
    )

# %% [markdown]
# ## All of it in one piece
#
# This cell puts your seven parts together. There is nothing to fill in. Every step goes to the next
# `examples_per_step` questions of the task, round and round.


# %% given="trainer"
@dataclass(frozen=True)
class Rollouts:
    """The answers to one question and what is made of them; sequences begin with the prompt."""

    prompt: list[int]
    sequences: list[list[int]]
    inputs: torch.Tensor  # (K, T) int64
    targets: torch.Tensor  # (K, T) int64, -1 where no gradient may flow
    rewards: torch.Tensor  # (K,) float32
    advantages: torch.Tensor  # (K,) float32


class RLTrainer:
    """Reinforcement learning of a model on a task: rollouts, a step, an evaluation. Made of your parts."""

    def __init__(
        self,
        model: Any,
        engine: Any,
        task: Any,
        optimizer: torch.optim.Optimizer,
        num_samples: int = 16,
        device_batch_size: int = 16,
        examples_per_step: int = 4,
        max_new_tokens: int = 40,
        temperature: float = 1.0,
        top_k: int | None = 50,
        normalize: bool = False,
        reference: Any = None,
        kl_coef: float = 0.0,
    ) -> None:
        self.model, self.engine, self.task, self.optimizer = model, engine, task, optimizer
        self.num_samples, self.device_batch_size = num_samples, device_batch_size
        self.examples_per_step = examples_per_step
        self.sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
        self.normalize, self.reference, self.kl_coef = normalize, reference, kl_coef

    def roll_out(self, task: Any, example_idx: int, step: int, num_samples: int) -> Rollouts:
        """Answer question `example_idx` of a task, and judge."""
        tokenizer, device = self.engine.tokenizer, self.model.get_device()
        rows = min(self.device_batch_size, num_samples)
        sequences, masks, rewards = rollout(
            self.engine, tokenizer, task, task[example_idx], num_samples, rows, step, example_idx, **self.sampling
        )
        pad_id = tokenizer.encode_special("<|assistant_end|>")
        inputs, targets = collate_rollouts(sequences, masks, pad_id, device)
        judged = torch.tensor(rewards, device=device)
        advantages = compute_advantages(judged, self.normalize)
        prompt = tokenizer.render_for_completion(task[example_idx])
        return Rollouts(prompt, sequences, inputs, targets, judged, advantages)

    def step(self, step: int) -> list[Rollouts]:
        """Roll out the questions whose turn it is, take an optimizer step, and return what was rolled out."""
        first = step * self.examples_per_step
        indices = [(first + i) % len(self.task) for i in range(self.examples_per_step)]
        rolled = [self.roll_out(self.task, index, step, self.num_samples) for index in indices]
        questions = [(each.inputs, each.targets, each.advantages) for each in rolled]
        train_step(
            self.model,
            self.optimizer,
            questions,
            self.device_batch_size,
            policy_gradient_loss,
            self.reference,
            kl_penalty,
            self.kl_coef,
        )
        return rolled

    def evaluate(self, task: Any, num_examples: int, num_samples: int) -> torch.Tensor:
        """pass@k on the first questions of a task, over all subsets of `num_samples` answers to each."""
        rolled = [self.roll_out(task, index, 0, num_samples) for index in range(num_examples)]
        return pass_at_k(torch.stack([each.rewards > 0.5 for each in rolled]), over_subsets=True)


# %% [markdown]
# ## On real data: a model learns to read a story
#
# nanochat ships a small model that was fine-tuned on sums put plainly: "What is 512 minus 87?". It calls the calculator
# for those. What it has hardly been shown is a story with a sum in it: "Ada has 512 nuts and gives away 87. How many
# nuts are left?". It can do all that is needed, and in about two answers of three it does. That is where reinforcement
# learning starts.
#
# First one question, before any training, and what your parts make of it. Between `{ }` the model asks the calculator,
# between `[ ]` it is answered (these signs stand for `<|python_start|>` and so on). Grey boxes teach nothing.

# %% given="plot-which-tokens" tags=["plot"]
from nanochat import toyworld
from nanochat.engine import Engine
from nanochat.toyworld.tasks import ToyArithmetic

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIGNS = {"<|python_start|>": "{", "<|python_end|>": "}", "<|output_start|>": "[", "<|output_end|>": "]"}

with picture(
    "One question, five answers: which tokens carry gradient?",
    alt="Five rows of boxes. Sampled tokens are blue in right answers, orange in wrong ones; forced tokens are grey.",
    size=(11.0, 3.6),
) as p:
    model, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    task = ToyArithmetic("train", "stories")
    trainer = RLTrainer(model, Engine(model, tokenizer), task, torch.optim.SGD(model.parameters(), 0.0))
    for index in range(24):  # a question on which the answers part
        rolled = trainer.roll_out(task, index, 0, 5)
        if rolled.rewards.min() < rolled.rewards.max():
            break
    start, names, looks = len(rolled.prompt), [], []
    for sequence, row, advantage in zip(rolled.sequences, rolled.targets.tolist(), rolled.advantages, strict=True):
        pieces = [tokenizer.decode([token]) for token in sequence[start:]]
        names.append([SIGNS.get(piece, piece) for piece in pieces])
        direction = "made likelier" if advantage > 0 else "made less likely" if advantage < 0 else "no gradient"
        looks.append([direction if target >= 0 else "no gradient" for target in row[start - 1 :]])
    draw_tokens(p.axes[0], names, looks, [f"advantage {advantage:+.2f}" for advantage in rolled.advantages])
    p.axes[0].set_title(task[index]["messages"][0]["content"], fontsize=9)
    p.axes[0].set_xlabel("token of the answer")
    shown = sum(map(len, names))
    counted = sum(kind != "no gradient" for row, kinds in zip(names, looks, strict=True) for kind in kinds[: len(row)])
    p.caption = f"{counted} of {shown} tokens of the answers carry gradient; rewards {rolled.rewards.tolist()}."

# %% [markdown]
# One thing that is *not* there: the token that ends an answer. The engine stops before it, so no `<|assistant_end|>` is
# ever a target. nanochat does the same; the last question of this puzzle comes back to it.
#
# Now the run: 24 steps of 8 questions with 8 answers each, about half a minute on two cores. The optimizer is
# nanochat's own, at the learning rates of its pretraining times 0.3. Every 12 steps, 24 *test* questions are asked (other
# numbers than in training).

# %% given="training" tags=["oracle"]
STEPS, QUESTIONS, ANSWERS = 24, 8, 8
rewards: list[torch.Tensor] = []  # a step: (questions, answers)
advantages: list[torch.Tensor] = []
passes: dict[int, torch.Tensor] = {}  # step -> pass@k

with attempt("The run"):
    model, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    optimizer = model.setup_optimizer()
    for group in optimizer.param_groups:
        group["lr"] *= 0.3
    trainer = RLTrainer(
        model,
        Engine(model, tokenizer),
        ToyArithmetic("train", "stories"),
        optimizer,
        num_samples=ANSWERS,
        device_batch_size=ANSWERS,
        examples_per_step=QUESTIONS,
        max_new_tokens=32,
    )
    test = ToyArithmetic("test", "stories")
    for step in range(STEPS + 1):
        if step % 12 == 0:
            passes[step] = trainer.evaluate(test, 24, ANSWERS)
            recent = f"{torch.stack(rewards[-12:]).mean():.3f}" if rewards else "-----"
            print(
                f"step {step:2d}: mean reward of the last 12 steps {recent}, "
                f"test pass@1 {passes[step][0]:.3f}, pass@{ANSWERS} {passes[step][-1]:.3f}"
            )
        if step < STEPS:
            rolled = trainer.step(step)
            rewards.append(torch.stack([each.rewards for each in rolled]).cpu())
            advantages.append(torch.stack([each.advantages for each in rolled]).cpu())

# %% given="plot-training" tags=["oracle"]
with picture(
    "Thirty seconds of reinforcement learning",
    alt="Three panels: reward and pass@k rise by step; pass@k before and after; advantages pile up at zero.",
    columns=3,
    size=(12.0, 3.5),
) as p:
    if not rewards:
        raise NotImplementedError("the run above has not taken a step")
    by_step = torch.stack(rewards).mean(dim=(1, 2))
    smooth = [by_step[max(0, i - 7) : i + 1].mean().item() for i in range(len(by_step))]
    p.axes[0].plot(by_step, ".", color=GREY, label="reward of a step")
    p.axes[0].plot(smooth, color=BLUE, linewidth=2, label="mean of 8 steps")
    for k, colour, marker in ((1, COLOURS[1], MARKERS[1]), (ANSWERS, COLOURS[2], MARKERS[2])):
        values = [each[k - 1].item() for each in passes.values()]
        p.axes[0].plot(list(passes), values, "--", color=colour, marker=marker, label=f"test pass@{k}")
    p.axes[0].set(title="Reward and pass@k", xlabel="step", ylabel="mean reward or share", ylim=(0, 1))
    p.axes[0].legend(fontsize=7)
    ks = range(1, ANSWERS + 1)
    p.axes[1].plot(ks, passes[0].cpu(), "--", color=ORANGE, marker="s", label="before")
    p.axes[1].plot(ks, passes[max(passes)].cpu(), color=BLUE, marker="o", label="after")
    p.axes[1].set(title="pass@k on test questions", xlabel="k", ylabel="share of questions", ylim=(0, 1))
    p.axes[1].legend(fontsize=7)
    third = len(advantages) // 3
    parts = (("first", advantages[:third], ORANGE, "//"), ("last", advantages[-third:], BLUE, ""))
    bins = torch.linspace(-1.0625, 1.0625, 18).tolist()
    for shift, (which, some, colour, hatch) in enumerate(parts):
        counts = torch.histc(torch.stack(some), 17, bins[0], bins[-1]) / torch.stack(some).numel()
        at = torch.linspace(-1, 1, 17) + 0.05 * (shift - 0.5)
        p.axes[2].bar(at, counts, 0.05, color=colour, hatch=hatch, edgecolor=GREY, label=f"{which} {third} steps")
    p.axes[2].set(title="Advantages", xlabel="advantage", ylabel="share of answers")
    p.axes[2].legend(fontsize=7)
    groups = torch.cat(rewards)
    idle = int((groups.min(dim=1).values == groups.max(dim=1).values).sum())
    p.caption = (
        f"Mean reward of the first {third} steps {by_step[:third].mean():.3f}, of the last {by_step[-third:].mean():.3f}; "
        f"{idle} of {len(groups)} questions taught nothing, for all answers earned the same."
    )

# %% [markdown]
# Read the middle panel with care. If *before* and *after* meet on the right, the model has become surer, not abler:
# what it now says at the first attempt it could say before, in eight. Much of what reinforcement learning does on small
# budgets is that. And the spike of advantages at zero is compute for nothing: questions that are always right or always
# wrong. Real runs choose their questions so that few are.
#
# ## What you have built
#
# First the proof: on answers of the real model, nanochat's gradients against those your step gives to the optimizer.
# Then nanochat's command for reinforcement learning, `python -m nanochat.scripts.chat_rl`, runs twice for two steps:
# as it is, and with your parts in the place of its own. The rewards and losses it logs must be the same.

# %% given="what-you-have-built" tags=["oracle"]
import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from nanochat import rl
from nanochat.metrics import read_metrics
from nanochat.scripts import chat_rl


def your_rollouts(engine: Any, prompt: list[int], num_samples: int, *more: Any, **sampling: Any) -> tuple[list, list]:
    """Your rollout as nanochat calls it, which asks for rewards later."""
    tokenizer = SimpleNamespace(render_for_completion=lambda _: prompt, decode=lambda ids: "")
    task = SimpleNamespace(reward=lambda *_: 0.0)
    rows, names = (num_samples, *more), ("num_samples", "device_batch_size", "step", "example_idx")
    return rollout(engine, tokenizer, task, None, **dict(zip(names, rows, strict=False)), **sampling)[:2]


def run_chat_rl() -> list[dict]:
    """Two steps of nanochat's command from the shipped model, in a folder of their own: what it logs."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, NANOCHAT_BASE_DIR=folder):
        shutil.copytree(toyworld.assets_dir(), folder, dirs_exist_ok=True)
        flags = "--toy --num-steps 2 --examples-per-step 2 --num-samples 8 --device-batch-size 4 --eval-every -1"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            chat_rl.main(flags.split())
        return read_metrics(next(Path(folder, "chatrl_checkpoints").iterdir()))


with attempt("Your gradients beside nanochat's"):
    model, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    trainer = RLTrainer(model, Engine(model, tokenizer), task, torch.optim.SGD(model.parameters(), 0.0))
    rolled = [trainer.roll_out(task, index, 0, 8) for index in range(12)]
    rolled = [each for each in rolled if each.advantages.any()][:2] or rolled[:2]
    yours: list[torch.Tensor] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: yours.extend(w.grad.clone() for w in model.parameters() if w.grad is not None)
    )
    questions = [(each.inputs, each.targets, each.advantages) for each in rolled]
    train_step(model, trainer.optimizer, questions, 4, policy_gradient_loss)
    model.zero_grad()
    for each in rolled:
        batch = rl.RolloutBatch(each.sequences, each.inputs, each.targets, each.rewards, each.advantages)
        rl.accumulate_gradients(model, batch, 4, len(rolled))
    theirs = [weight.grad for weight in model.parameters() if weight.grad is not None]
    error = max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() for a, b in zip(yours, theirs, strict=True)
    )
    print(f"{len(theirs)} weights, largest difference of a gradient: {error:.1e} of its largest entry.")

with attempt("Your parts in nanochat's command"):
    mine = {
        "sample_rollouts": your_rollouts,
        "compute_advantages": compute_advantages,
        "collate_rollouts": collate_rollouts,
        "policy_gradient_loss": policy_gradient_loss,
    }
    original = run_chat_rl()
    with patch.multiple(rl, **mine):
        replaced = run_chat_rl()
    for line, other in zip(original, replaced, strict=True):
        told = [f"reward {each['reward']:.4f} loss {each['loss']:+.6f}" for each in (line, other)]
        print(f"step {line['step']}: nanochat's {told[0]}; with your parts {told[1]}")

# %% [markdown]
# ## In your own words
#
# In about ten sentences: (a) nanochat never makes `<|assistant_end|>` a target. What does the reward then say about
# when to stop, and what would you have to change, in which parts, so that the model learns to stop? (b) Sampling is
# most of the cost, and you want to take four optimizer steps on each batch of answers. Why is the loss of part 4 wrong
# from the second step on, and what must be kept from the rollout and added to the loss? (c) At the end of a run, on
# training questions nine groups of ten have all answers right. What happens to the gradient with simple and with full
# advantages, and what would you do with the compute?

# %% [markdown] written="stopping_and_reusing"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) Stopping is an action like any other, but it gets no credit: no gradient makes ending earlier or later likelier,
# except through the tokens before it. An answer that is right and rambles on is not pushed towards stopping; one cut
# off by max_new_tokens is judged by what is there. To learn it, the engine (or the rollout) has to keep the sampled end
# token, with mask 1, if the row really sampled it (not if it was cut off); the collating then makes it a target without
# a change. pad_id, which is the same id, stays harmless because only the mask decides. It should be cut off before the
# task judges the text.
#
# (b) After one step the policy is no longer the one that has drawn the answers: the expectation of part 1 is over
# another distribution. It has to be corrected by importance weights: the ratio of new to old probability of each token,
# times the advantage (its gradient at ratio 1 is that of log-probability times advantage). For that, the
# log-probabilities at sampling time (or from a forward pass before the first step) must be kept, without gradient. As
# ratios drift, their variance explodes, so PPO and GRPO clip them (1 ± 0.2). Also right: the mask and temperature / top-k
# must be the same in both, otherwise the ratio is not 1 at the start.
#
# (c) Groups with equal rewards have zero advantage in both: nine tenths of the samples give no gradient. Yet they count
# in the divisor (each group is a pass of its own and every pass weighs the same), so the mean gradient is ten times
# smaller. In the tenth group, full advantages are larger, above all for rare failures. Sensible: leave out or stop
# asking what is always right (dynamic sampling as in DAPO), ask harder questions, more answers to those that are
# neither, or end the run and watch the test questions.
# ### END SOLUTION
