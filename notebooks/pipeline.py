# %% [markdown]
# # Lab: the whole pipeline, from raw text to a chat, in a minute or two
#
# **Goal: see every stage of nanochat happen once, small, in one sitting: tokenizer, pretraining, fine-tuning, reinforcement
# learning, chat. Each stage is a dozen lines that call nanochat's own functions, and each has its curve.**
#
# about 25 minutes to read, one to two minutes to run · no points · CPU, or a GPU if there is one · touches all puzzles
#
# ## Why first
#
# Read stage by stage, nanochat is a heap of good parts. What is hard to read off is what each stage *leaves for the next*: the
# tokenizer fixes what a model can be told apart by; pretraining gives knowledge but no manners; fine-tuning gives manners but
# no judgement; reinforcement learning can only strengthen what already happens now and then. Skip one and look what is missing.
#
# The text comes from a **toy world**: invented people, towns and creatures, and sums. Nothing in it can be known from
# elsewhere, so whatever the model gets right it has learned here. Afterwards you can
#
# 1. say what goes into and comes out of each stage, and with which numbers you would watch it;
# 2. recognise on a curve what was learned: frequencies, grammar, facts;
# 3. explain why a model that never succeeds learns nothing from rewards.
#
# A minute makes no good model. Beside ours you meet the **shipped** toy model, made by the same steps in a few minutes
# (`python -m nanochat.scripts.toy_pipeline`).
#
# Run all cells (*Run*, *Run All Cells*). Code that only draws is folded: click the bar beside `•••` to read it.

# %%
import itertools
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from nanochat import common, recipe, rl, schedules, train
from nanochat.chat import MARKS, complete
from nanochat.chat_eval import run_chat_eval
from nanochat.curriculum import TOY
from nanochat.dataloader import BestFitLoader
from nanochat.dataset import read_row_groups, split_files
from nanochat.engine import Engine
from nanochat.loss_eval import evaluate_bpb
from nanochat.sft import SFTLoader
from nanochat.tokenizer import RustBPETokenizer, compute_token_bytes, text_iterator
from nanochat.toyworld import load_toy, write_world
from nanochat.toyworld.recipe import RECIPE
from nanochat.toyworld.tasks import ToyArithmetic
from puzzles.explore import choice, explore, slider, text, watch
from puzzles.plots import BLACK, BLUE, COLOURS, GREEN, GREY, ORANGE, SKY, picture

device = common.compute_init(common.autodetect_device_type())[-1]
print(f"On {device}, computing in {common.COMPUTE_DTYPE} ({common.COMPUTE_DTYPE_REASON}).")

# %% [markdown]
# How long each stage runs. On a GPU, or with more patience, multiply them.

# %% tags=["parameters"]
BASE_STEPS, SFT_STEPS, RL_STEPS = 180, 60, 10
EXAM_QUESTIONS = 24

# %% [markdown]
# ## 1 · The world, and its tokens
#
# `write_world` puts documents where nanochat looks for its data, here in a folder that is thrown away. `rustbpe` learns which
# bytes stand together; a larger vocabulary makes texts shorter, and rows of the embedding rarer and so worse trained.
#
# Type a sentence of your own, also one in another language, and move the vocabulary.

# %%
folder = tempfile.TemporaryDirectory(prefix="pipeline-")
os.environ["NANOCHAT_BASE_DIR"] = folder.name
write_world(folder.name)
documents = [document for path in split_files("train") for _, batch in read_row_groups(path) for document in batch]
unseen = [document for _, batch in read_row_groups(split_files("val")[0]) for document in batch]
SIZES = (280, 320, 400, 512, 640, 1024)
tokenizers = {size: RustBPETokenizer.train_from_iterator(text_iterator(documents), size) for size in SIZES}
print(f"{len(documents):,} documents of {sum(map(len, documents)):,} characters. One of them:\n{documents[4]}")


# %% tags=["drawing"]
def draw_tokens(
    axes: Axes, texts: Sequence[str], kinds: Sequence[str], looks: dict[str, dict[str, Any]], width: int = 110
) -> int:
    """Boxes of tokens in reading order; a kind has a look and a letter below. Returns the number of lines."""
    x = line = 0
    for token, kind in zip(texts, kinds, strict=True):
        size = max(2, len(token) + 1)
        if x + size > width:
            x, line = 0, line + 1
        axes.add_patch(
            Rectangle((x + 0.1, -line - 0.4), size - 0.2, 0.8, edgecolor=BLACK, linewidth=0.8, **looks[kind])
        )
        axes.text(
            x + size / 2, -line, token, ha="center", va="center", fontsize=8, family="monospace", parse_math=False
        )
        x += size
    axes.set(xlim=(0, width), ylim=(-line - 0.7, 0.7))
    axes.axis("off")
    return line + 1


# %%
def readable(tokenizer: RustBPETokenizer, token: int) -> str:
    """A token as one can see it: spaces and line ends shown, bytes that are no character as their number."""
    raw = tokenizer.decode_single_token_bytes(token)
    try:
        return raw.decode().replace(" ", "␣").replace("\n", "↵")
    except UnicodeDecodeError:
        return raw.hex(" ")


PLAIN = {"token": {"facecolor": "#d6ecf8"}}


# %% tags=["drawing"]
def draw_tokenizer(sentence: str, vocab_size: int) -> None:
    tokenizer = tokenizers[vocab_size]
    ids = tokenizer.encode(sentence)
    rates = [sum(len(d.encode()) for d in unseen) / sum(len(t.encode(d)) for d in unseen) for t in tokenizers.values()]
    size = len(sentence.encode())
    alt = f"Left: bytes a token against vocabulary size, {rates[0]:.2f} to {rates[-1]:.2f}. Right: the sentence in {len(ids)} boxes."
    with picture(f"A vocabulary of {vocab_size} tokens", alt, columns=2, size=(14, 3.4)) as p:
        left, right = p.axes
        left.plot(SIZES, rates, marker="o", color=BLUE)
        left.plot(vocab_size, rates[SIZES.index(vocab_size)], "D", color=ORANGE, markeredgecolor=BLACK, markersize=10)
        left.set(xlabel="tokens in the vocabulary", ylabel="bytes a token, on unseen documents", ylim=(0, None))
        draw_tokens(right, [readable(tokenizer, token) for token in ids], ["token"] * len(ids), PLAIN, width=70)
        p.caption = f"{size} bytes in {len(ids)} tokens: {size / max(1, len(ids)):.2f} bytes a token."


# %%
explore(
    draw_tokenizer,
    sentence=text("sentence", "Ada lives in Amberly. What is 417 times 36? Où est le drogo?"),
    vocab_size=choice("vocabulary", SIZES, 640),
)

# %% [markdown]
# Numbers matter most here: in a small vocabulary every digit is a token, so that the model can *copy* a number it has never seen
# into the calculator, digit by digit. What the world never mentions falls apart into bytes, but is never lost.
#
# ## 2 · Pretraining
#
# Documents are packed into full rows, and every token is a target. Watch for three plateaus: **uniform** (knows nothing), **token
# counts** (knows what is frequent), and then the long slope, on which grammar comes first and facts last. Validation is in bits
# *per byte*, the only loss that can be compared between tokenizers.

# %%
tokenizer = tokenizers[640]
token_bytes = compute_token_bytes(tokenizer).to(device)
settings = RECIPE["base_train"]
B, T = 4, settings["max_seq_len"]
shape = (3, settings["aspect_ratio"], settings["head_dim"], T, tokenizer.get_vocab_size(), "SSSL")
plan = recipe.plan_training(*shape, total_batch_size=B * T, num_iterations=BASE_STEPS, weight_decay=0.0)
model = recipe.build_model(recipe.config_from_depth(*shape), device)
engine = Engine(model, tokenizer)
counts = Counter(token for document in documents[:2000] for token in tokenizer.encode(document))
token_entropy = -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())
rates = {name: settings[name] * math.sqrt(2) for name in ("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr")}


def batches_of(split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return ((inputs, targets) for inputs, targets, _ in BestFitLoader(tokenizer, B, T, split, device=device))


def pretrain() -> Iterator[dict[str, float]]:
    """What base_train does, without its command line: a dict of numbers a step."""
    optimizer = recipe.setup_optimizer(model, plan, **rates)
    scaler = train.make_grad_scaler(device)
    batches = train.Ahead(BestFitLoader(tokenizer, B, T, "train", device=device))
    for step in range(BASE_STEPS):
        multiplier = schedules.lr_multiplier(step, BASE_STEPS, settings["warmup_steps"])
        schedules.apply_schedules(optimizer, multiplier, schedules.muon_momentum(step, BASE_STEPS), 0.0)
        loss = train.accumulate_gradients(model, batches, 1, scaler)
        train.update_weights(optimizer, scaler)
        numbers = {"step": step, "loss": loss.item()}
        if step % 40 == 0 or step == BASE_STEPS - 1:
            numbers["bpb"] = evaluate_bpb(model, batches_of("val"), 4, token_bytes)
        yield numbers


def smoothed(values: Sequence[float], window: int = 15) -> list[float]:
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]


# %% tags=["drawing"]
def draw_pretraining(seen: list[dict[str, float]]) -> None:
    losses = [numbers["loss"] for numbers in seen]
    evaluated = [(numbers["step"], numbers["bpb"]) for numbers in seen if "bpb" in numbers]
    alt = f"Left: training loss from {losses[0]:.2f} to {losses[-1]:.2f} nats. Right: bits per byte, {evaluated[0][1]:.2f} to {evaluated[-1][1]:.2f}."
    with picture(f"Pretraining, step {len(seen)} of {BASE_STEPS}", alt, columns=2, size=(12, 3.6)) as p:
        left, right = p.axes
        left.plot(losses, ".", color=SKY, markersize=3, label="batch")
        left.plot(smoothed(losses), color=BLUE, linewidth=2, label="mean of 15")
        for level, name, line in (
            (math.log(tokenizer.get_vocab_size()), "uniform", "--"),
            (token_entropy, "token counts", ":"),
        ):
            left.axhline(level, color=BLACK, linewidth=1, linestyle=line, label=f"{name}, {level:.2f}")
        left.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, 7), xlim=(0, BASE_STEPS))
        left.legend(frameon=False, fontsize=8)
        right.plot(*zip(*evaluated, strict=True), color=ORANGE, marker="s")
        right.set(xlabel="step", ylabel="validation (bits per byte)", ylim=(0, None), xlim=(0, BASE_STEPS))
        samples = [complete(engine, prompt, max_tokens=8, temperature=0) for prompt in TOY.prompts[:3]]
        p.caption = (
            f"Loss {smoothed(losses)[-1]:.3f}, validation {evaluated[-1][1]:.3f} bits per byte. It goes on like this:\n"
            + "\n".join(samples)
        )


# %%
parameters = model.num_scaling_params()["total"]
print(f"{parameters:,} parameters, {BASE_STEPS} steps of {B * T:,} tokens, on {plan.total_tokens:,} tokens in all")
base_curve = watch(pretrain(), draw_pretraining)

# %% [markdown]
# ## An exam after every stage
#
# The same questions each time, none of them asked in training: **chat** (a fact, in a sentence), **choice** (a letter; guessing
# gives a quarter) and **sums** (to be done with the calculator). A base model can complete texts; it does not know that
# it is being asked.

# %%
exams: dict[str, dict[str, float]] = {}


def examine(model: torch.nn.Module, tokenizer: Any) -> dict[str, float]:
    engine = Engine(model, tokenizer)
    return {
        name: run_chat_eval(make_task(), model, tokenizer, engine, 8, max_new_tokens=32, max_problems=EXAM_QUESTIONS)
        for name, (make_task, _) in TOY.chat_tasks.items()
    }


# %% tags=["drawing"]
def draw_exams() -> None:
    names = list(TOY.chat_tasks)
    told = "; ".join(f"{who}: " + ", ".join(f"{n} {v:.0%}" for n, v in each.items()) for who, each in exams.items())
    with picture("The exam so far", f"Bars of accuracy by task and stage. {told}.", size=(9, 3.2)) as p:
        axes = p.axes[0]
        width = 0.8 / len(exams)
        for i, (who, scores) in enumerate(exams.items()):
            places = [x - 0.4 + (i + 0.5) * width for x in range(len(names))]
            hatch = ("", "//", "..", "xx", "\\\\", "++")[i]
            bars = axes.bar(
                places, [scores[n] for n in names], width, color=COLOURS[i], edgecolor=BLACK, hatch=hatch, label=who
            )
            axes.bar_label(bars, [f"{scores[n]:.0%}" for n in names], fontsize=8)
        for x, (_, guessing) in enumerate(TOY.chat_tasks.values()):
            axes.plot(
                [x - 0.42, x + 0.42], [guessing] * 2, color=BLACK, linestyle=":", label="guessing" if x == 0 else None
            )
        axes.set(ylabel="share of questions right", ylim=(0, 1.15), xticks=range(len(names)))
        axes.set_xticklabels(names)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        p.caption = f"{EXAM_QUESTIONS} questions a task. {told}."


# %%
exams["ours, pretrained"] = examine(model, tokenizer)
draw_exams()

# %% [markdown]
# ## 3 · Fine-tuning
#
# The same loss, on conversations; but only what the *assistant says* counts. The mask decides that, and it is drawn here for a
# conversation with a sum: filled boxes are targets. The question is not (it should answer questions, not ask them), and
# neither is the calculator's output (it should not make results up).


# %%
TARGETS = {
    "learned": {"facecolor": "#56B4E9"},
    "only read": {"facecolor": "white", "linestyle": ":"},
}


# %% tags=["drawing"]
def draw_mask(task: str, index: int) -> None:
    conversation = TOY.chat_tasks[task][0]()[index]
    ids, mask = tokenizer.render_conversation(conversation)
    kinds = ["learned" if each else "only read" for each in mask]
    alt = f"{len(ids)} boxes, one a token; the {sum(mask)} of the assistant's own words are filled: {tokenizer.decode(ids)}"
    with picture(f"{task}, conversation {index}: what is learned from it", alt, size=(12, 2.6)) as p:
        draw_tokens(p.axes[0], [readable(tokenizer, token) for token in ids], kinds, TARGETS)
        p.caption = f"Filled: a target ({sum(mask)} of {len(ids)} tokens). White, dotted: read but not learned."


# %%
explore(draw_mask, task=choice("task", list(TOY.chat_tasks), "ToyArithmetic"), index=slider("conversation", 0, 200, 3))


# %%
def finetune() -> Iterator[dict[str, float]]:
    """What chat_sft does: a dict of numbers a step."""
    optimizer = recipe.setup_optimizer(model, plan, **rates)
    schedules.scale_initial_lr(optimizer, RECIPE["chat_sft"]["init_lr_frac"])
    scaler = train.make_grad_scaler(device)
    loader = SFTLoader(TOY.sft_train(2, 3), tokenizer, B, T, num_iterations=SFT_STEPS, device=device)
    batches = train.Ahead(loader)
    for step in range(SFT_STEPS):
        targets = batches.batch[1]
        share = (targets >= 0).float().mean().item()
        loss = train.accumulate_gradients(model, batches, 1, scaler)
        schedules.apply_schedules(
            optimizer, schedules.sft_lr_multiplier(step / SFT_STEPS), schedules.sft_muon_momentum(step)
        )
        train.update_weights(optimizer, scaler)
        yield {"loss": loss.item(), "share": share}


# %% tags=["drawing"]
def draw_finetuning(seen: list[dict[str, float]]) -> None:
    losses, shares = ([numbers[name] for numbers in seen] for name in ("loss", "share"))
    alt = f"Left: loss on the assistant's tokens from {losses[0]:.2f} to {smoothed(losses)[-1]:.2f}. Right: share of tokens learned from."
    with picture(f"Fine-tuning, step {len(seen)} of {SFT_STEPS}", alt, columns=2, size=(12, 3.2)) as p:
        left, right = p.axes
        left.plot(losses, ".", color=SKY, markersize=3, label="batch")
        left.plot(smoothed(losses), color=BLUE, linewidth=2, label="mean of 15")
        left.set(xlabel="step", ylabel="loss (nats per target)", ylim=(0, None), xlim=(0, SFT_STEPS))
        left.legend(frameon=False)
        right.plot(shares, color=GREEN)
        right.set(xlabel="step", ylabel="share of positions with a target", ylim=(0, 1), xlim=(0, SFT_STEPS))
        p.caption = (
            f"Loss {smoothed(losses)[-1]:.3f} nats a target; {sum(shares) / len(shares):.0%} of the positions have one."
        )


# %%
sft_curve = watch(finetune(), draw_finetuning)
exams["ours, fine-tuned"] = examine(model, tokenizer)
draw_exams()

# %% [markdown]
# The loss falls steeply within the first steps: that is the *form* of an answer, and it is cheap. What the answer says had to be
# learned before. Compare with the shipped model below, whose pretraining was several times as long.
#
# ## 4 · Reinforcement learning
#
# The model answers each question several times; answers better than the average of their group become likelier, the others less
# likely. If all answers to a question are wrong, **or all right**, the advantages are zero and nothing is learned. So watch two
# numbers: the reward, and the share of questions that had something to teach.
#
# First a look at who could learn what: eight answers to each of six questions, by each model, on the plain sums of fine-tuning
# and on **stories** ("Ada has 12 nuts and gives away 5"), which it never asked. A bar is a question, its height the share of
# answers that are right. Only bars strictly between 0 and 1 teach anything.


# %%
def shipped(stage: str) -> tuple[torch.nn.Module, Any] | None:
    """The toy model that comes with the package, None if it comes without."""
    try:
        return load_toy(stage, device)[:2]
    except FileNotFoundError as error:
        print(error)
        return None


ready_made = shipped("sft")
candidates = {"ours": (model, tokenizer)} | ({"shipped": ready_made} if ready_made else {})


def rollouts_of(who: str, subset: str, questions: int, samples: int) -> Iterator[rl.RolloutBatch]:
    """Endless answers to the same few questions, in turn; what `chat_rl` takes its batches from."""
    policy, words = candidates[who]
    task = ToyArithmetic("train", subset, stop=questions)
    return rl.rollout_batches(task, words, Engine(policy, words), samples, samples, questions, max_new_tokens=32)


# %% tags=["drawing"]
def draw_candidates(number: int = 6) -> None:
    rewards = {
        f"{who}, {subset}": [
            batch.rewards.mean().item() for batch in itertools.islice(rollouts_of(who, subset, number, 8), number)
        ]
        for who in candidates
        for subset in ("plain", "stories")
    }
    teaching = {name: sum(0 < reward < 1 for reward in each) for name, each in rewards.items()}
    told = "; ".join(f"{name}: {count} of {number} questions teach" for name, count in teaching.items())
    with picture(
        "Who can learn from what", f"Bars of reward by question. {told}.", columns=len(rewards), size=(13, 2.8)
    ) as p:
        for axes, (name, each) in zip(p.axes, rewards.items(), strict=True):
            bars = axes.bar(range(number), each, color=[ORANGE if 0 < r < 1 else GREY for r in each], edgecolor=BLACK)
            axes.bar_label(bars, ["teaches" if 0 < r < 1 else "" for r in each], fontsize=7, rotation=90, padding=2)
            axes.set(title=name, xlabel="question", ylim=(0, 1.35), yticks=(0, 0.5, 1), xticks=range(number))
        p.axes[0].set_ylabel("share of answers right")
        p.caption = f"{told}."


# %%
draw_candidates()

# %% [markdown]
# All wrong is as mute as all right. Now the training itself, from our own model on plain sums: **the same eight questions at
# every step**, sixteen answers to each, so that the curve shows learning and not the luck of the draw. On the right a row is a
# question: those in between climb, those at zero stay there, because there is no right answer to make likelier.

# %%
QUESTIONS, SAMPLES = 8, 16


def reinforce() -> Iterator[list[float]]:
    """What chat_rl does: the mean reward of each question, step by step."""
    optimizer = model.setup_optimizer()
    schedules.scale_initial_lr(optimizer, 0.05)
    scaler = torch.amp.GradScaler(enabled=False)
    rollouts = rollouts_of("ours", "plain", QUESTIONS, SAMPLES)
    for step in range(RL_STEPS):
        rewards = []
        for batch in itertools.islice(rollouts, QUESTIONS):
            rl.accumulate_gradients(model, batch, SAMPLES, QUESTIONS)
            rewards.append(batch.rewards.mean().item())
        schedules.apply_schedules(optimizer, schedules.rl_lr_multiplier(step, RL_STEPS))
        train.update_weights(optimizer, scaler)
        yield rewards


# %% tags=["drawing"]
def draw_rl(seen: list[list[float]]) -> None:
    rewards = [sum(each) / QUESTIONS for each in seen]
    teaching = sum(0 < reward < 1 for each in seen for reward in each) / (len(seen) * QUESTIONS)
    alt = f"Left: mean reward by step, from {rewards[0]:.2f} to {rewards[-1]:.2f}. Right: a heat map of reward by question and step."
    with picture(f"Reinforcement learning, step {len(seen)} of {RL_STEPS}", alt, columns=2, size=(12, 3.4)) as p:
        left, right = p.axes
        left.plot(rewards, marker="o", color=BLUE)
        left.set(xlabel="step", ylabel="mean reward (0 to 1)", ylim=(0, 1.05), xlim=(-0.5, RL_STEPS - 0.5))
        image = right.imshow(torch.tensor(seen).T, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        right.set(xlabel="step", ylabel="question", xlim=(-0.5, RL_STEPS - 0.5))
        p.figure.colorbar(image, ax=right, label=f"share of {SAMPLES} answers right")
        p.caption = (
            f"Mean reward {rewards[0]:.2f} at the first step, {sum(rewards[-3:]) / len(rewards[-3:]):.2f} over the last three; "
            f"{teaching:.0%} of all groups of answers could teach."
        )


# %%
rl_curve = watch(reinforce(), draw_rl)
exams["ours, after RL"] = examine(model, tokenizer)
if ready_made:
    exams["shipped, fine-tuned"] = examine(*ready_made)
draw_exams()

# %% [markdown]
# A few steps are a twitch, not a training. Puzzle 5 runs it long enough on the stories to see the reward climb, and shows why
# the reward may rise while pass@k does not.
#
# What a minute could not buy is in the other two columns: facts. Every one of them has to be read often, and has to be read
# *before* fine-tuning, which only teaches how to answer.
#
# ## 5 · A chat, and whose words they are
#
# Filled boxes were chosen by the model; the bar below shows how sure it was of each. White, dotted boxes were forced by the
# engine: the calculator's answer, which the model only reads. Choose who answers, and ask.

# %%
LOOKS = {"sampled": {"facecolor": "#56B4E9"}, "forced": {"facecolor": "white", "linestyle": ":"}}


@torch.inference_mode()
def answer(speaker: torch.nn.Module, tokenizer: Any, message: str) -> tuple[list[int], list[int], list[float]]:
    """(tokens, masks, probabilities) of the greedy answer to `message`."""
    conversation = {"messages": [{"role": "user", "content": message}, {"role": "assistant", "content": ""}]}
    prompt = tokenizer.render_for_completion(conversation)
    [ids], [mask] = Engine(speaker, tokenizer).generate_batch(prompt, max_tokens=40, temperature=0)
    chances = speaker(torch.tensor([ids], device=device)).softmax(dim=-1)[0]
    said = range(len(prompt), len(ids))
    return ids[len(prompt) :], mask[len(prompt) :], [chances[t - 1, ids[t]].item() for t in said]


# %% tags=["drawing"]
def draw_answer(speaker: str, message: str) -> None:
    used = candidates[speaker]
    ids, mask, chances = answer(*used, message)
    texts = [MARKS.get(readable(used[1], token), readable(used[1], token)) for token in ids]
    alt = f"The answer to '{message}' in {len(ids)} boxes, {len(ids) - sum(mask)} of them forced: {used[1].decode(ids)}"
    with picture(f"{speaker}: {message}", alt, rows=2, size=(12, 3.6)) as p:
        boxes, bars = p.axes
        draw_tokens(boxes, texts, ["sampled" if each else "forced" for each in mask], LOOKS)
        colours = [SKY if each else "white" for each in mask]
        drawn = bars.bar(range(len(ids)), chances, color=colours, edgecolor=[BLUE if each else GREY for each in mask])
        for bar, each in zip(drawn, mask, strict=True):
            bar.set_linestyle("-" if each else ":")
        bars.set(ylabel="probability", xlabel="token of the answer", ylim=(0, 1.05))
        bars.set_xticks(range(len(ids)), texts, rotation=45, fontsize=7)
        least = {
            kind: min((c for c, m in zip(chances, mask, strict=True) if m == kind), default=1.0) for kind in (1, 0)
        }
        p.caption = (
            f"{sum(mask)} tokens sampled (the least sure at {least[1]:.2f}), {len(ids) - sum(mask)} forced (the least expected at "
            f"{least[0]:.2g}).\n{''.join(texts).replace('␣', ' ')}"
        )


# %%
explore(
    draw_answer,
    speaker=choice("who", list(candidates)),
    message=text("you", "What is 417 times 36?"),
)

# %% [markdown]
# Look at the bars of the calculator's output: close to zero. The model would never have said these digits, it was never taught
# to. It learned to *stop and ask*, and to copy what comes back. That is what the mask in fine-tuning and in RL is for.
#
# **Next.** Every function called here is a puzzle: the rows (3), the rates and Muon (2), the engine and its calculator (4), the
# rollouts and advantages (5), the exam (6), tokens and masks (7), the model (1 and 8).

# %%
folder.cleanup()
print(
    f"Stages run: {len(base_curve)} + {len(sft_curve)} + {len(rl_curve)} steps; the folder {Path(folder.name).name} is gone."
)
