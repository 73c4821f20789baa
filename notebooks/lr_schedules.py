# %% [markdown]
# # Lab: learning-rate schedules, and what Muon does to a matrix
#
# **Goal: know every dial that moves during a nanochat run and what it buys, and see Muon turn any matrix into an
# orthogonal one, step by step.**
#
# about 25 minutes to read, under a minute to run · no points · any CPU · goes with puzzle 2
#
# ## Why first
#
# A run that fails rarely says why. Rates that start too high make the loss explode in the first hundred steps; rates that
# never fall leave it bouncing above where it could be; a momentum that is still warming up when the rates fall costs a per
# cent that nobody looks for. All of it is set before the first step by a handful of small functions, and none of them can be
# judged from its formula. Draw it. Afterwards you can
#
# 1. read the schedule of a pretraining, fine-tuning or RL run off its settings, and spot settings that do not fit together;
# 2. say what a falling rate buys, from a measurement;
# 3. explain what Muon does to a gradient through its singular values, and why five steps are enough.
#
# All curves call `nanochat.schedules`, `nanochat.recipe` and `nanochat.optim`; no formula stands in this notebook.
#
# Run all cells (*Run*, *Run All Cells*). Code that only draws is folded: click the bar beside `•••` to read it.

# %%
import itertools

import torch
from torch import Tensor

from nanochat import optim, recipe, schedules
from nanochat.toyworld.recipe import RECIPE
from puzzles.explore import choice, explore, powers, slider
from puzzles.plots import BLACK, BLUE, COLOURS, GREEN, GREY, MARKERS, ORANGE, picture

LINES = ("-", "--", "-.", ":", "-", "--")

# %% [markdown]
# ## 1 · Pretraining
#
# Three things move: a multiplier on every learning rate (up, flat, down), Muon's momentum (up, flat, down) and Muon's weight
# decay (half a cosine). The first of them counts from your settings, the second from fixed step numbers.
#
# Try 600 iterations, the length of the toy run in `pipeline`. Momentum is still warming up at step 400 while the rates
# have been falling since step 210, and then it **jumps**. On a real run of 20,000 steps nobody can see those 400.


# %% tags=["drawing"]
def draw_pretraining(iterations: int, warmup: int, warmdown: float, final: float, weight_decay: float) -> None:
    steps = range(iterations + 1)
    rates = [schedules.lr_multiplier(it, iterations, warmup, warmdown, final) for it in steps]
    momenta = [schedules.muon_momentum(it, iterations, warmdown) for it in steps]
    decays = [schedules.muon_weight_decay(it, iterations, weight_decay) for it in steps]
    jumps = [abs(b - a) for a, b in itertools.pairwise(momenta)]
    jump = max(range(len(jumps)), key=jumps.__getitem__)
    alt = (
        f"Three curves by step: the rate rises to 1, stays, and falls to {rates[-1]:.2g}; momentum goes from {momenta[0]:.2f} to "
        f"{max(momenta):.2f} and {momenta[-1]:.2f}; weight decay from {decays[0]:.2g} to 0."
    )
    with picture(f"Pretraining, {iterations:,} steps", alt, columns=3, size=(13, 3.4)) as p:
        for axes, values, name, colour in zip(
            p.axes,
            (rates, momenta, decays),
            ("rate × this", "Muon's momentum", "Muon's weight decay"),
            COLOURS,
            strict=False,
        ):
            axes.plot(steps, values, color=colour)
            axes.set(xlabel="step", ylabel=name)
        p.axes[0].fill_between(steps, rates, alpha=0.15, color=BLUE, hatch="..")
        p.axes[0].set_ylim(0, max(1.05, *rates))
        p.axes[1].set_ylim(0.83, 0.99)
        if jumps[jump] > 0.005:
            p.axes[1].annotate(
                f"jumps by {momenta[jump + 1] - momenta[jump]:+.3f}",
                (jump + 1, momenta[jump + 1]),
                (0.35, 0.12),
                textcoords="axes fraction",
                arrowprops={"arrowstyle": "->"},
            )
        area = sum(rates[:-1]) / iterations
        p.caption = (
            f"The run takes {area:.0%} of the distance that a constant full rate would. Peak from step {rates.index(max(rates))} "
            f"on, falling from step {max((i for i in steps if rates[i] == max(rates)), default=0)}. Largest change of momentum in a "
            f"step: {jumps[jump]:.4f}, at step {jump + 1}."
        )


# %%
explore(
    draw_pretraining,
    iterations=slider("iterations", 50, 5000, 600, 50),
    warmup=slider("warmup steps", 1, 400, 40),
    warmdown=slider("warmdown ratio", 0.0, 1.0, 0.65, 0.05),
    final=slider("final fraction", 0.0, 0.5, 0.05, 0.01),
    weight_decay=slider("weight decay", 0.0, 0.5, 0.28, 0.02),
)

# %% [markdown]
# ## 2 · Where the peak rates come from
#
# The multiplier is the same for all; the rates are not. From the depth, `plan_training` derives batch size, steps, and a
# factor on the rates; `build_param_groups` gives embeddings, unembedding, scalars and matrices their own; `apply_schedules`
# writes the product into the optimizer every step. Here is what each group really gets.


# %% tags=["drawing"]
def draw_groups(depth: int, ratio: float) -> None:
    plan = recipe.plan_training(depth, target_param_data_ratio=ratio)
    model = recipe.build_meta_model(recipe.config_from_depth(depth))
    optimizer = recipe.setup_optimizer(model, plan)
    steps = sorted({round(plan.num_iterations * i / 200) for i in range(201)})
    names = {
        "matrices (Muon)": model.transformer.h[0].mlp.c_fc.weight,
        "unembedding": model.lm_head.weight,
        "embedding": model.transformer.wte.weight,
        "value embeddings": next(iter(model.value_embeds.parameters())),
        "residual scalars": model.resid_lambdas,
        "x0 scalars": model.x0_lambdas,
    }
    rates: dict[str, list[float]] = {name: [] for name in names}
    for it in steps:
        schedules.apply_schedules(optimizer, schedules.lr_multiplier(it, plan.num_iterations))
        for name, weight in names.items():
            [group] = [g for g in optimizer.param_groups if any(weight is each for each in g["params"])]
            rates[name].append(group["lr"])
    alt = (
        f"Learning rates of six groups on a logarithmic axis over {plan.num_iterations:,} steps, all of the same shape."
    )
    with picture(f"Depth {depth}: the rate of each group", alt, size=(11, 4)) as p:
        axes = p.axes[0]
        for (name, values), colour, marker, line in zip(rates.items(), COLOURS, MARKERS, LINES, strict=True):
            axes.plot(
                steps,
                values,
                color=colour,
                marker=marker,
                markevery=25,
                linestyle=line,
                label=f"{name}, {max(values):.2g}",
            )
        axes.set(xlabel="optimizer step", ylabel="learning rate", yscale="log")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title="group, highest rate")
        p.caption = (
            f"{plan.scaling_params:,} scaling parameters × {ratio:g} = {plan.target_tokens:,} tokens; {plan.num_iterations:,} steps "
            f"of {plan.total_batch_size:,}. The batch scales every rate by {plan.batch_lr_scale:.3f}; weight decay "
            f"{plan.weight_decay:.4f}."
        )


# %%
explore(draw_groups, depth=slider("depth", 4, 32, 12, 2), ratio=slider("tokens per parameter", 2.0, 40.0, 12.0, 1.0))

# %% [markdown]
# Slide the depth and watch the caption: batch size moves in powers of two, the rates with its square root, and weight decay
# falls as the run gets longer than the reference run. Depth is the only number a person chooses.
#
# ## 3 · Fine-tuning and reinforcement learning
#
# Fine-tuning does not know its number of steps in advance (conversations are packed, so the data decide), hence a schedule by
# *progress*, the share of the data consumed. It starts from a fraction of the pretraining rates. RL falls in one line.


# %%
PEAK = 0.02  # of the matrices in pretraining, at the reference batch size


# %% tags=["drawing"]
def draw_chat_stages(warmup: float, warmdown: float, final: float, sft_frac: float, rl_frac: float, steps: int) -> None:
    shares = [i / 400 for i in range(401)]
    sft = [schedules.sft_lr_multiplier(share, warmup, warmdown, final) for share in shares]
    momentum = [schedules.sft_muon_momentum(it) for it in range(steps + 1)]
    rl = [schedules.rl_lr_multiplier(it, steps) for it in range(steps + 1)]
    peaks = []
    for fraction in (sft_frac, rl_frac):
        parameter = torch.nn.Parameter(torch.zeros(2, 2))
        optimizer = optim.Muon([{"params": [parameter], "initial_lr": PEAK}], lr=PEAK)
        schedules.scale_initial_lr(optimizer, fraction)
        peaks.append(optimizer.param_groups[0]["initial_lr"])
    alt = f"Three curves: the rate of SFT from {peaks[0] * sft[0]:.2g}, of RL from {peaks[1]:.2g} to 0, the momentum of SFT."
    with picture("After pretraining", alt, columns=3, size=(13, 3.4)) as p:
        left, middle, right = p.axes
        left.plot(shares, [peaks[0] * m for m in sft], color=BLUE)
        left.set(xlabel="share of the data seen", ylabel="Muon's learning rate", ylim=(0, 0.021), title="SFT")
        middle.plot(range(steps + 1), [peaks[1] * m for m in rl], color=ORANGE)
        middle.set(xlabel="RL step", ylabel="Muon's learning rate", ylim=(0, 0.021), title="RL, on the same scale")
        for axes in (left, middle):
            axes.axhline(PEAK, color=GREY, linestyle=":")
            axes.annotate(
                "pretraining's peak", (0.02, PEAK), xycoords=("axes fraction", "data"), va="bottom", fontsize=8
            )
        right.plot(range(steps + 1), momentum, color=GREEN)
        right.set(xlabel="SFT step", ylabel="Muon's momentum", ylim=(0.83, 0.97), title="SFT")
        p.caption = (
            f"SFT peaks at {peaks[0]:.2g}, RL at {peaks[1]:.2g}: a {peaks[0] / peaks[1]:.0f}th of it. After {steps} SFT steps "
            f"momentum is {momentum[-1]:.3f}."
        )


# %%
explore(
    draw_chat_stages,
    warmup=slider("SFT warmup", 0.0, 0.5, 0.0, 0.05),
    warmdown=slider("SFT warmdown", 0.0, 1.0, 0.5, 0.05),
    final=slider("SFT final", 0.0, 0.5, 0.0, 0.05),
    sft_frac=slider("SFT starts at", 0.05, 1.0, 0.8, 0.05),
    rl_frac=slider("RL starts at", 0.01, 1.0, 0.05, 0.01),
    steps=slider("steps", 20, 600, 250, 10),
)

# %% [markdown]
# ## 4 · What a falling rate buys
#
# nanochat's own `Muon` fits a matrix to noisy measurements: minimise ‖WX − Y‖² where every step sees another small batch. Four
# schedules, the same peak. The error is the distance from the true matrix, which no batch shows.


# %%
WARMDOWNS = {"constant": None, "warmdown 0.2": 0.2, "warmdown 0.65": 0.65, "all the way": 1.0}


def fit(lr: float, warmdown: float | None, steps: int, noise: float) -> list[float]:
    """Relative distance from the true matrix after every step."""
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(24, 16, generator=rng)
    weight = torch.nn.Parameter(torch.zeros(24, 16))
    optimizer = optim.Muon([weight], lr=lr)
    errors = []
    for it in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (
            1 if warmdown is None else schedules.lr_multiplier(it, steps, 10, warmdown, 0)
        )
        x = torch.randn(16, 32, generator=rng)
        y = true @ x + noise * torch.randn(24, 32, generator=rng)
        weight.grad = (weight.detach() @ x - y) @ x.T / 32
        optimizer.step()
        errors.append(((weight.detach() - true).norm() / true.norm()).item())
    return errors


# %% tags=["drawing"]
def draw_fits(lr: float, steps: int, noise: float) -> None:
    curves = {name: fit(lr, warmdown, steps, noise) for name, warmdown in WARMDOWNS.items()}
    ends = {name: sum(values[-10:]) / 10 for name, values in curves.items()}
    alt = "Error by step on a logarithmic axis, four schedules; at the end: " + ", ".join(
        f"{n} {e:.3f}" for n, e in ends.items()
    )
    with picture(f"Fitting a 24 × 16 matrix, peak rate {lr:.2g}", alt, size=(10, 3.8)) as p:
        axes = p.axes[0]
        for (name, values), colour, marker, line in zip(curves.items(), COLOURS, MARKERS, LINES, strict=False):
            axes.plot(values, color=colour, linestyle=line, marker=marker, markevery=max(1, steps // 10), label=name)
        axes.set(xlabel="step", ylabel="distance from the true matrix\n(share of its norm)", yscale="log")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        best = min(ends, key=ends.__getitem__)
        p.caption = f"At the end: {', '.join(f'{n} {e:.4f}' for n, e in ends.items())}. Best: {best}."


# %%
explore(
    draw_fits,
    lr=powers("peak rate", -2, 0, 0.1),
    steps=slider("steps", 50, 400, 200, 50),
    noise=slider("noise", 0.0, 3.0, 0.5, 0.25),
)

# %% [markdown]
# An orthogonalised update has the same size whatever the gradient's, so at a constant rate Muon cannot settle: it circles at a
# distance set by the rate. The fall at the end is not caution, it is where most of the progress is *collected*; and while the
# rate is high, the curve that will end lowest looks no better than the others. Do not judge a run by its middle.
#
# With a rate too small for the distance (10⁻¹·⁵ at 200 steps) the order turns round: nothing is collected before you arrive.
#
# ## 5 · Muon, watched on a matrix you choose
#
# A gradient is mostly a few strong directions. Gradient descent follows them and starves the rest. Muon replaces the gradient
# UΣVᵀ by about UVᵀ: the same directions, all equally strong. It never computes a singular value: a polynomial in X, applied a
# few times, pushes all of them towards 1. nanochat uses **Polar Express** (coefficients of its own for each step); classic Muon
# used **Newton–Schulz** (one set for all).
#
# Left: the singular values, step by step. Middle: what the chosen number of steps does to *any* singular value between 0 and 1.
# Right: X Xᵀ of the result, which should be the identity.


# %%
def loaded_gradient() -> Tensor:
    """The gradient of an MLP matrix of a small nanochat model on random tokens: what Muon gets to see."""
    torch.manual_seed(0)
    settings = RECIPE["base_train"]
    config = recipe.config_from_depth(2, settings["aspect_ratio"], settings["head_dim"], 64, 256, "L")
    model = recipe.build_model(config, "cpu")
    optimizer = model.setup_optimizer()
    tokens = torch.randint(0, 256, (8, 65)).cummax(dim=1).values  # rising, so that there is something to learn
    for _ in range(4):  # at the start the gradient is zero, because the matrices behind it are
        optimizer.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    return model.transformer.h[0].mlp.c_fc.weight.grad[:48, :32].clone()


def make_matrix(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=rng)
    if kind == "singular values from 1 to 1/1000":
        u, s, vt = torch.linalg.svd(x, full_matrices=False)
        return u @ torch.diag(torch.logspace(0, -3, len(s))) @ vt
    if kind == "rank 2 and a little noise":
        return x[:, :2] @ torch.randn(2, columns, generator=rng) + 0.01 * x
    if kind == "one loud row":
        x[0] *= 3000
    if kind == "a real gradient (48 × 32)":
        return loaded_gradient()
    return x


KINDS = [
    "a real gradient (48 × 32)",
    "singular values from 1 to 1/1000",
    "one loud row",
    "rank 2 and a little noise",
    "Gaussian",
]
METHODS = {
    "Polar Express": (optim.polar_express, BLUE, "o", "-"),
    "Newton–Schulz": (optim.newton_schulz, ORANGE, "s", "--"),
}


def coefficients(method: str, steps: int) -> list[tuple[float, float, float]]:
    return optim.polar_express_coeffs[:steps] if method == "Polar Express" else [optim.NEWTON_SCHULZ_COEFFS] * steps


# %% tags=["drawing"]
def draw_muon(kind: str, rows: int, columns: int, steps: int, equilibrate: str, seed: int) -> None:
    x = make_matrix(kind, rows, columns, seed)
    if equilibrate == "yes":
        x = optim.equilibrate_rows(x)
    values = {
        name: [torch.linalg.svdvals(method(x, k)) for k in range(steps + 1)] for name, (method, *_) in METHODS.items()
    }
    grid = torch.logspace(-4, 0, 400)
    result = optim.polar_express(x, steps)
    gram = result @ result.mT if x.size(0) <= x.size(1) else result.mT @ result
    smallest = {name: f"{each[-1].min():.3f} to {each[-1].max():.3f}" for name, each in values.items()}
    alt = (
        f"Left: singular values by step, ending at {smallest['Polar Express']} for Polar Express and {smallest['Newton–Schulz']} "
        "for Newton–Schulz. Middle: the two maps. Right: the Gram matrix of the result as a heat map."
    )
    with picture(f"{kind}, {steps} steps", alt, columns=3, size=(14, 4)) as p:
        left, middle, right = p.axes
        for shift, (name, (_, colour, marker, line)) in zip((-0.08, 0.08), METHODS.items(), strict=True):
            for k, each in enumerate(values[name]):
                label = name if k == 0 else None
                left.plot(
                    [k + shift] * len(each), each.clamp_min(1e-7), marker, color=colour, markersize=3, label=label
                )
            scalars = torch.linalg.diagonal(optim.quintic_iterations(torch.diag(grid), coefficients(name, steps)))
            middle.plot(grid, scalars, color=colour, linestyle=line, label=name)
        left.axhline(1, color=BLACK, linewidth=0.8)
        left.set(yscale="log", ylim=(1e-5, 3), xlabel="steps", ylabel="singular values", xticks=range(steps + 1))
        left.legend(frameon=False, loc="lower right")
        middle.axhline(1, color=BLACK, linewidth=0.8)
        middle.set(
            xscale="log",
            xlabel="singular value before",
            ylabel="after",
            ylim=(0, 1.6),
            title=f"the map after {steps} steps",
        )
        middle.legend(frameon=False, loc="lower right")
        image = right.imshow(gram, cmap="cividis", vmin=0, vmax=1)
        right.set(title="Gram matrix of Polar Express's result", xlabel="index", ylabel="index")
        p.figure.colorbar(image, ax=right, label="inner product")
        condition = (values["Polar Express"][0].max() / values["Polar Express"][0].min().clamp_min(1e-12)).item()
        exact = torch.linalg.svd(x, full_matrices=False)
        distance = (result - exact.U @ exact.Vh).norm() / min(x.shape) ** 0.5
        p.caption = (
            f"Condition number {condition:,.0f} before. After {steps} steps: Polar Express {smallest['Polar Express']}, Newton–Schulz "
            f"{smallest['Newton–Schulz']}. Distance of Polar Express from the exact UVᵀ: {distance:.3f} of its norm."
        )


# %%
explore(
    draw_muon,
    kind=choice("matrix", KINDS),
    rows=slider("rows", 1, 64, 24),
    columns=slider("columns", 1, 64, 40),
    steps=slider("steps", 0, 5, 5),
    equilibrate=choice("rows made equal first", ["no", "yes"]),
    seed=slider("seed", 0, 20, 0),
)

# %% [markdown]
# What to look for:
#
# - **Step by step** (steps 0 to 5, singular values from 1 to 1/1000). The first step of Polar Express multiplies small values
#   by eight, Newton–Schulz's by three and a half: a value of 1/1000 starts a long way down, and every factor counts.
# - **The middle panel** is the contract. After five steps Polar Express has everything from 1/1000 to 1 within 15 % of 1;
#   Newton–Schulz leaves it between 0.7 and 1.2, and 1/1000 at a half. Neither has to converge: what matters is that no
#   direction is starved, and `renormalize` puts the size right afterwards.
# - **One loud row**, 3000 times the others: they start too far down for five steps. Making all rows equal first, as nanochat
#   does, lifts them into the range before the first step.
# - **Rank 2**: what is noise at one per cent comes out as strong as the signal. That is the price of treating all directions
#   alike, and one reason why Muon gets momentum (an average over steps) and not a single gradient.
# - **A tall matrix, a single row, a single column**: the Gram matrix is always the smaller of the two.
