# %% [markdown]
# # Puzzle 6: The Evaluator
#
# **Turn a base model that can only continue text into one number that says how much it knows, and get the same number
# on one GPU and on eight.**
#
# ⭐⭐⭐⭐ · about 150 minutes · 100 points in 8 parts · builds on nothing · runs on any CPU, uses a GPU if there is one
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.06_evaluator` | runs your notebook and shows the visible checks |
# | `python -m puzzles.06_evaluator --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.06_evaluator --hint answer_spans` | gives hints for a part |
# | `python -m puzzles.06_evaluator --peek answer_spans` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# A base model does not answer questions. It says how likely a text is. Whether it *knows* something has to be read off
# its losses, and an evaluation that reads them wrongly still prints a number between 0 and 1. Four ways to get a wrong
# one:
#
# - **One position off.** The loss of a token stands at the position *before* it. Measured on a toy model that picks the
#   right one of four answers in 30 of 30 items: read one position later, it seems to know 19. Of 30 answers it can
#   write, 0 are left.
# - **The sum for the mean.** An answer of one token with a loss of 3.0 nats beats one of four tokens with 1.0 nat each,
#   3 to 4. The sum asks which answer is shortest.
# - **The mean of the ranks' means.** 9 items on 8 ranks: rank 0 has two items, the others one. Averaged by rank, each
#   item of rank 0 counts 1/16, the other items 1/8 each. The number changes with the number of GPUs.
# - **Chance not taken off.** Guessing gives 0.25 on four options and 0.50 on two. Without centring, a model that knows
#   nothing scores 0.375 on two such tasks, and 0.25 on three if the third has to be written.
#
# After this puzzle you can
# 1. render any multiple-choice, schema or completion task as prompts, to the last space;
# 2. find, on tokens, exactly which of them are the answer, also when texts share letters that their tokens do not;
# 3. score hundreds of options of all lengths in few forwards, with at most a given number of tokens in each;
# 4. get the same accuracy, to the last item, on any number of ranks;
# 5. compute nanochat's CORE metric of a real checkpoint, equal to nanochat's, with code of your own.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other numbers. The parts do not depend on each other: stuck on one, go on with the next. Letters
# used throughout: an **item** is one question of a task; it has several **options**, each a sequence of tokens that
# ends in an **answer**. A forward has `B` rows of `T` positions and gives logits for `V` tokens.

# %% given="imports"
import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from puzzles.checks import Checks, expect
from puzzles.compare import FLOAT32, Tolerance
from puzzles.plots import BLACK, BLUE, COLOURS, GREY, ORANGE, SKY, attempt, picture

check = Checks("06_evaluator")

# %% [markdown]
# ## Part 1 · Which examples are shown: few-shot sampling (5 points, 5 minutes)
#
# A base model has never been told what "answer the question" means. It is shown: a few items with their solutions come
# first (the **shots**), then the item itself, and the model continues the pattern.
#
# Which items are shown must be the **same every time** an item is asked, for every model and on any GPU, or two models
# are not compared on the same questions. It should not be the same for *all* items, or one unlucky example spoils the
# whole task. And the item asked must never be among them: its answer would stand in its own prompt.
#
# nanochat gives every item a generator of its own, Python's `random.Random`, seeded with **1234 plus the index** of the
# item. From the indices of all other items, in order, its method `sample` draws the shots. Of 6 items, with two shots:
#
# | item asked | drawn from | shown |
# |---|---|---|
# | 0 | 1, 2, 3, 4, 5 | 4, 1 |
# | 1 | 0, 2, 3, 4, 5 | 4, 5 |
# | 2 | 0, 1, 3, 4, 5 | 5, 4 |
#
# **Contract.** Returns `num_fewshot` different indices in the order drawn, never `idx`. Python's global generator is
# left as it is: an evaluation in the middle of a training run must not change the run. Raises `ValueError` if there are
# fewer than `num_fewshot` other items.


# %% hole="choose_fewshot"
def choose_fewshot(idx: int, num_items: int, num_fewshot: int) -> list[int]:
    """Indices of the items that are shown solved before item `idx` of `num_items`, in the order they are shown.

    Drawn by random.Random(1234 + idx) from all other indices. Raises ValueError if there are not enough of them.
    """
    ### BEGIN SOLUTION
    others = [i for i in range(num_items) if i != idx]
    if num_fewshot > len(others):
        raise ValueError(f"{num_fewshot} examples are wanted, but there are only {len(others)} other items")
    return random.Random(1234 + idx).sample(others, num_fewshot)
    ### END SOLUTION


# %% given="check-choose_fewshot"
def shown(idx: int, num_items: int, num_fewshot: int) -> dict:
    """The examples you choose, and whether Python's global generator is as it was."""
    before = random.getstate()
    chosen = choose_fewshot(idx, num_items, num_fewshot)
    return {"shown": chosen, "global generator untouched": random.getstate() == before}


with check("choose_fewshot"):
    own = "random.Random(1234 + idx) draws by `sample` from the other indices in order"
    expect(choose_fewshot, (0, 6, 2), [4, 1], own)
    expect(choose_fewshot, (1, 6, 2), [4, 5], own)
    expect(choose_fewshot, (2, 6, 2), [5, 4], own)
    expect(choose_fewshot, (4, 6, 5), [0, 3, 5, 1, 2], "five shots of six items are all but the one asked")
    expect(choose_fewshot, (70, 90, 3), [50, 35, 80], own)
    expect(choose_fewshot, (3, 6, 0), [], "no shots are no indices")
    expect(choose_fewshot, (2, 3, 3), ValueError, "beside item 2 there are two items, not three")
    untouched = {"shown": [4, 1], "global generator untouched": True}
    expect(shown, (0, 6, 2), untouched, "seed a generator of your own, not the one of the module `random`")

# %% graded="choose_fewshot"
# 5 points. The hidden tests are more of the same, with other items; `--verify` runs them.
check.visible("choose_fewshot")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "choose_fewshot", shown)
### END HIDDEN TESTS

# %% given="plot-choose_fewshot" tags=["plot"]
with picture(
    "Which of 24 items are shown before which",
    alt="A grid, a column for each item asked. Three dots a column, scattered, none on the crossed-out diagonal.",
    size=(5.0, 4.2),
) as p:
    chosen = [choose_fewshot(idx, 24, 3) for idx in range(24)]
    p.axes[0].plot(range(24), range(24), "x", color=GREY, markersize=5, label="the item itself")
    for place, (colour, marker) in enumerate(zip(COLOURS, ("o", "s", "^"), strict=False)):
        dots = [(idx, shots[place]) for idx, shots in enumerate(chosen) if place < len(shots)]
        p.axes[0].plot(*zip(*dots, strict=True), marker, color=colour, markersize=5, label=f"shot {place + 1}")
    p.axes[0].set(xlabel="item asked", ylabel="item shown", xticks=range(0, 24, 4), yticks=range(0, 24, 4))
    p.figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    own_answer = sum(idx in shots for idx, shots in enumerate(chosen))
    different = len({tuple(shots) for shots in chosen})
    p.caption = f"{different} different selections for 24 items; {own_answer} items are shown their own answer."

# %% [markdown]
# ## Part 2 · From an item to prompts (20 points, 25 minutes)
#
# CORE has three types of task. They differ in what varies between the options:
#
# | `task_type` | an item has | varies | prompts |
# |---|---|---|---|
# | `"multiple_choice"` | `query`, `choices`, `gold` | the end | one for each choice |
# | `"schema"` | `context_options`, `continuation`, `gold` | the beginning | one for each context |
# | `"language_modeling"` | `context`, `continuation` | nothing | two: without and with the continuation |
#
# `gold` is the index of the right choice or context. A prompt is made of **blocks**: first one for each solved example,
# then the item's own. A block is *context, delimiter, continuation*, with nothing between them; after every solved
# example comes an empty line (two newlines). Solved examples have their gold choice or gold context.
#
# With one shot and the delimiter `" "`, shown as Python writes text:
#
# ```
# multiple_choice    'A trout is a fish\n\nA gull is a bird'
#                    'A trout is a fish\n\nA gull is a fish'
# schema             'Ann fell, so Bob laughed\n\nThe cup broke because the cup was brittle.'
#                    'Ann fell, so Bob laughed\n\nThe cup broke because the stone was brittle.'
# language_modeling  'Two and two is four\n\nThree and three is'
#                    'Two and two is four\n\nThree and three is six'
# ```
#
# **Spaces.** In language modeling, and only there, all **contexts are stripped** (of white space at both ends), those
# of the examples too, and the prompt *without* the continuation is stripped again as a whole. Why: tokenizers join a
# space to the word behind it. `'is six'` is the tokens `is`, `␣six`; but `'is '` is `is`, `␣`, and does not begin
# `'is six'`. With a space at its end the first prompt would be no prefix of the second, in tokens. Nothing else is ever
# stripped: choices, queries and continuations are taken as they are, also if they begin with a space or end in a
# newline.
#
# **Jinja2.** nanochat writes the blocks as a template, and so may you (or join strings: only the prompts are looked
# at). The next cell shows four things a Jinja2 template does that you might not expect.
#
# **Contract.** `fewshot_examples` is a list of items of the same type, in the order they are shown; it may be empty.
# Returns the list of prompts. Items are data: whatever stands in them, `{{ braces }}`, `<b>` or `&`, comes out as it
# went in. Raises `ValueError` for any other `task_type`; `KeyError` or `jinja2.UndefinedError` if an item or an example
# lacks a field that its block needs (never a prompt with a gap).

# %% given="jinja"
FRUIT = {"fruit": ["fig", "<plum>"], "greeting": "{{ fruit }}"}
for what, template in {
    "a loop keeps its newlines": "{% for name in fruit %}\n{{ name }};\n{% endfor %}",
    "a minus sign eats the white space on its side": "{% for name in fruit -%}\n{{ name }};\n{% endfor %}",
    "a value is never a template, and the last newline of a template is dropped": "{{ greeting }}!\n",
    "what is not there is silently nothing (but with undefined=jinja2.StrictUndefined)": "{{ vegetable }}!",
}.items():
    print(f"{what}:\n    {template!r}\n    gives {jinja2.Template(template).render(FRUIT)!r}")


# %% hole="render_prompts"
def render_prompts(
    task_type: str, item: dict[str, Any], continuation_delimiter: str, fewshot_examples: list[dict[str, Any]]
) -> list[str]:
    """The prompts of an item: one for each choice or context, or one without and one with the continuation.

    Each begins with the solved examples. Raises ValueError for an unknown task type, KeyError or jinja2.UndefinedError
    for a field that is missing.
    """
    ### BEGIN SOLUTION
    shots = fewshot_examples
    if task_type == "multiple_choice":
        solved = [(shot["query"], shot["choices"][shot["gold"]]) for shot in shots]
        asked = [(item["query"], choice) for choice in item["choices"]]
    elif task_type == "schema":
        solved = [(shot["context_options"][shot["gold"]], shot["continuation"]) for shot in shots]
        asked = [(context, item["continuation"]) for context in item["context_options"]]
    elif task_type == "language_modeling":
        solved = [(shot["context"].strip(), shot["continuation"]) for shot in shots]
        asked = [(item["context"].strip(), end) for end in ("", item["continuation"])]
    else:
        raise ValueError(f"there is no task type {task_type!r}")
    template = jinja2.Template(
        "{% for context, end in solved %}{{ context }}{{ delimiter }}{{ end }}\n\n{% endfor %}"
        "{{ context }}{{ delimiter }}{{ end }}"
    )
    fill = partial(template.render, solved=solved, delimiter=continuation_delimiter)
    prompts = [fill(context=context, end=end) for context, end in asked]
    if task_type == "language_modeling":
        prompts[0] = prompts[0].strip()
    return prompts
    ### END SOLUTION


# %% given="check-render_prompts"
def prompts_of(task_type: str, item: dict, delimiter: str, shots: list[dict]) -> Any:
    """Your prompts, or "a field is missing"."""
    try:
        return render_prompts(task_type, item, delimiter, shots)
    except (KeyError, jinja2.UndefinedError):
        return "a field is missing"


with check("render_prompts"):
    trout = {"query": "A trout is a", "choices": ["bird", "fish"], "gold": 1}
    gull = {"query": "A gull is a", "choices": ["bird", "fish"], "gold": 0}
    block = "a block is context, delimiter, continuation; an empty line follows every solved example"
    expect(prompts_of, ("multiple_choice", gull, " ", []), ["A gull is a bird", "A gull is a fish"], block)
    expect(
        prompts_of,
        ("multiple_choice", gull, " ", [trout]),
        ["A trout is a fish\n\nA gull is a bird", "A trout is a fish\n\nA gull is a fish"],
        "a solved example has its gold choice, and is followed by an empty line",
    )
    expect(
        prompts_of,
        ("multiple_choice", gull, "\nAnswer: ", [trout, gull]),
        [
            f"A trout is a\nAnswer: fish\n\nA gull is a\nAnswer: bird\n\nA gull is a\nAnswer: {choice}"
            for choice in ("bird", "fish")
        ],
        "the delimiter stands in every block, as it is given, and the examples keep their order",
    )
    odd = {"query": " {{ query }} & <b> ", "choices": [" a ", "{% if %}", "b\n"], "gold": 2}
    expect(
        prompts_of,
        ("multiple_choice", odd, " ", [odd]),
        [f" {{{{ query }}}} & <b>  b\n\n\n {{{{ query }}}} & <b>  {choice}" for choice in odd["choices"]],
        "items are data: nothing in them is a template, escaped or stripped",
    )
    cup = {
        "context_options": ["The cup broke because the cup", "The cup broke because the stone"],
        "continuation": "was brittle.",
        "gold": 0,
    }
    fall = {"context_options": ["Ann fell, so Ann", "Ann fell, so Bob"], "continuation": "laughed", "gold": 1}
    expect(
        prompts_of,
        ("schema", cup, " ", [fall]),
        [
            "Ann fell, so Bob laughed\n\nThe cup broke because the cup was brittle.",
            "Ann fell, so Bob laughed\n\nThe cup broke because the stone was brittle.",
        ],
        "a schema has a prompt for each context, always with the same continuation; examples have their gold context",
    )
    loose = {"context_options": [" a ", "b\n", "c"], "continuation": " d\n", "gold": 1}
    expect(
        prompts_of,
        ("schema", loose, "|", [loose]),
        ["b\n| d\n\n\n a | d\n", "b\n| d\n\n\nb\n| d\n", "b\n| d\n\n\nc| d\n"],
        "in a schema nothing is stripped",
    )
    two = {"context": " Two and two is\n", "continuation": "four"}
    three = {"context": "\tThree and three is  ", "continuation": "six"}
    without = "in language modeling contexts are stripped, and so is the prompt without the continuation"
    expect(prompts_of, ("language_modeling", three, " ", []), ["Three and three is", "Three and three is six"], without)
    expect(
        prompts_of,
        ("language_modeling", three, " ", [two]),
        ["Two and two is four\n\nThree and three is", "Two and two is four\n\nThree and three is six"],
        "the contexts of the examples are stripped as well",
    )
    tail = {"context": "x", "continuation": " y \n"}
    expect(
        prompts_of,
        ("language_modeling", tail, ":\n", [tail]),
        ["x:\n y \n\n\nx:", "x:\n y \n\n\nx:\n y \n"],
        "continuations are not stripped, nor is the prompt with the continuation; the one without is, as a whole",
    )
    lacking = "a field that is missing must raise: jinja2.StrictUndefined, or look fields up in Python"
    expect(prompts_of, ("multiple_choice", {"choices": ["a"], "gold": 0}, " ", []), "a field is missing", lacking)
    expect(prompts_of, ("language_modeling", two, " ", [{"context": "x"}]), "a field is missing", lacking)
    expect(prompts_of, ("poetry", gull, " ", []), ValueError, "there are three types of task")

# %% graded="render_prompts"
# 20 points. The hidden tests are more of the same, with other items; `--verify` runs them.
check.visible("render_prompts")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "render_prompts", prompts_of)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 3 · Which tokens are the answer (15 points, 20 minutes)
#
# Now the prompts become tokens, and we must know which of them to score.
#
# - **multiple_choice**: all options begin alike. The answer of each is what follows the **common prefix**.
# - **schema**: all options end alike. The answer is the **common suffix**: the same tokens in each, but made likelier or
#   less likely by what stands before them.
# - **language_modeling**: the answer is what the prompt with the continuation has beyond the one without. Only the
#   longer one is scored, so this is one option.
#
# Prefix and suffix are found on the **tokens**, not on the text. Two town names, `Bramwick` and `Bramford`, share four
# letters. To a tokenizer for which each name is one token, they share nothing:
#
# ```
# tokens    <bos>  Ada  ␣lives  ␣in  ␣Bramwick         start 4, end 5
#           <bos>  Ada  ␣lives  ␣in  ␣Bramford         start 4, end 5
# letters   A d a ␣ l i v e s ␣ i n ␣ B r a m w ...    "Ada lives in Bram" is 5 tokens with <bos>: start 5, nothing left
# ```
#
# A span is `start` and `end`, positions in the sequence with BOS: the answer is `tokens[start:end]`. Options may have
# different lengths; a common prefix is at most as long as the shortest one. If one option is the beginning of another
# (`four` and `four!`), its answer is empty: `start == end`. A common suffix is *all* that is common: if two contexts
# happen to end in the same words, those count too.
#
# **Contract.** `tokenizer(prompts, prepend=id)` takes a list of texts and returns a list of lists of ids, each with
# `id` at its beginning; `tokenizer.get_bos_token_id()` is the id to put there. Returns `(sequences, starts, ends)`,
# three lists with an entry for each option. For language modeling `prompts` has two texts, the lists have one entry,
# and `ValueError` is raised if the tokens of the first are not the beginning of the second's, or are all of them:
# there would be nothing to score. Raises `ValueError` for an unknown `task_type`.


# %% given="piece-tokenizer"
class PieceTokenizer:
    """Cuts a text from the left, each time at the longest piece it knows; any other character is a piece of its own.

    Ids: `bos`, then the pieces in order, then the characters."""

    def __init__(self, pieces: Sequence[str], bos: int = 0) -> None:
        self.bos, self.pieces = bos, list(pieces)
        self.by_length = sorted(self.pieces, key=len, reverse=True)

    def get_bos_token_id(self) -> int:
        return self.bos

    def __call__(self, text: str | list[str], prepend: int | None = None) -> list:
        if isinstance(text, list):
            return [self(each, prepend) for each in text]
        ids = [] if prepend is None else [prepend]
        while text:
            piece = next((piece for piece in self.by_length if text.startswith(piece)), text[0])
            known = piece in self.pieces
            ids.append(self.bos + 1 + (self.pieces.index(piece) if known else len(self.pieces) + ord(piece)))
            text = text[len(piece) :]
        return ids

    encode = __call__

    def show(self, token: int) -> str:
        """A token as text, for pictures: a space as ␣."""
        number = token - self.bos - 1
        if number < 0:
            return "<bos>"
        text = self.pieces[number] if number < len(self.pieces) else chr(number - len(self.pieces))
        return text.replace(" ", "␣").replace("\n", "⏎")


# %% hole="answer_spans"
def answer_spans(task_type: str, prompts: list[str], tokenizer: Any) -> tuple[list[list[int]], list[int], list[int]]:
    """Token sequences of the options, BOS first, and for each where its answer starts and ends: (sequences, starts,
    ends).

    Raises ValueError for an unknown task type, and in language modeling if the tokens of prompts[0] are not a shorter
    beginning of those of prompts[1].
    """
    ### BEGIN SOLUTION
    sequences = tokenizer(prompts, prepend=tokenizer.get_bos_token_id())
    if task_type == "multiple_choice":
        starts = [_common_prefix(sequences)] * len(sequences)
    elif task_type == "schema":
        suffix = _common_prefix([sequence[::-1] for sequence in sequences])
        starts = [len(sequence) - suffix for sequence in sequences]
    elif task_type == "language_modeling":
        without, complete = sequences
        if len(without) >= len(complete) or complete[: len(without)] != without:
            raise ValueError("the tokens of the first prompt are not a shorter beginning of the second's")
        sequences, starts = [complete], [len(without)]
    else:
        raise ValueError(f"there is no task type {task_type!r}")
    return sequences, starts, [len(sequence) for sequence in sequences]


def _common_prefix(sequences: list[list[int]]) -> int:
    """How many tokens all sequences share at their start."""
    shortest = min(map(len, sequences))
    different = (i for i in range(shortest) if len({sequence[i] for sequence in sequences}) > 1)
    return next(different, shortest)
    ### END SOLUTION


# %% given="check-answer_spans"
PIECES = [
    "Ada",
    "Ben",
    " lives",
    " in",
    " Bram",
    " Bramwick",
    " Bramford",
    " Elmford",
    ".",
    " has",
    " a",
    " cat",
    " bat",
]
PIECES += [" sat", "wick", " because", " the", " it", "the", "four", "!", " black"]


def spans(task_type: str, prompts: list[str], pieces: Sequence[str] = PIECES, bos: int = 0) -> dict:
    """Your sequences and spans, with a tokenizer that knows these pieces."""
    sequences, starts, ends = answer_spans(task_type, list(prompts), PieceTokenizer(pieces, bos))
    return {"sequences": sequences, "starts": starts, "ends": ends}


def answers(task_type: str, *prompts: str) -> list[tuple[int, str]]:
    """For each of your options: where its answer starts, and its tokens, separated by |."""
    tokenizer = PieceTokenizer(PIECES)
    sequences, starts, ends = answer_spans(task_type, list(prompts), tokenizer)
    texts = ["|".join(map(tokenizer.show, s[start:end])) for s, start, end in zip(sequences, starts, ends, strict=True)]
    return list(zip(starts, texts, strict=True))


with check("answer_spans"):
    expect(
        spans,
        ("multiple_choice", ["Ada lives in Elmford", "Ada lives in Bramwick."]),
        {"sequences": [[0, 1, 3, 4, 8], [0, 1, 3, 4, 6, 9]], "starts": [4, 4], "ends": [5, 6]},
        "positions count BOS, which stands at the beginning of every sequence; an answer goes to the end of its own",
    )
    expect(
        answers,
        ("multiple_choice", "Ada lives in Bramwick", "Ada lives in Bramford"),
        [(4, "␣Bramwick"), (4, "␣Bramford")],
        "the common prefix is one of tokens: here the texts share letters that the tokens do not",
    )
    expect(
        answers,
        ("multiple_choice", "Ada has a cat", "Ada has a bat", "Ada has a cat."),
        [(4, "␣cat"), (4, "␣bat"), (4, "␣cat|.")],
        "the prefix is common to all options, not to two of them",
    )
    expect(
        answers,
        ("multiple_choice", "four", "four!"),
        [(2, ""), (2, "!")],
        "an option that begins the other has an empty answer",
    )
    expect(
        answers,
        ("schema", "Ada has a cat sat.", "the bat sat."),
        [(5, "␣sat|."), (3, "␣sat|.")],
        "the suffix is one of tokens: cat and bat share letters, but no token. It starts where each option says",
    )
    expect(
        answers,
        ("schema", "Ada has a black cat", "the black cat", "Ben lives in the black cat"),
        [(4, "␣black|␣cat"), (2, "␣black|␣cat"), (5, "␣black|␣cat")],
        "all that is common at the end counts",
    )
    expect(answers, ("schema", "the cat", "the cat"), [(0, "<bos>|the|␣cat")] * 2, "two equal options share it all")
    expect(
        spans,
        ("language_modeling", ["Ben lives", "Ben lives in Bramwick"], PIECES, 7),
        {"sequences": [[7, 9, 10, 11, 13]], "starts": [3], "ends": [5]},
        "one option, the complete prompt; its answer begins where the other ends",
    )
    merged = "the tokens of the first are not the beginning of the second's: nothing can be scored"
    expect(answers, ("language_modeling", "Ben in Bram", "Ben in Bramwick."), ValueError, merged)
    expect(answers, ("language_modeling", "Ada lives", "Ben lives in"), ValueError, merged)
    expect(answers, ("language_modeling", "Ada lives", "Ada lives"), ValueError, "an empty answer cannot be scored")
    expect(answers, ("language_modeling", "Ada lives in", "Ada lives"), ValueError, "the second is the shorter")
    expect(answers, ("poetry", "Ada"), ValueError, "there are three types of task")

# %% graded="answer_spans"
# 15 points. The hidden tests are more of the same, with other tokenizers; `--verify` runs them.
check.visible("answer_spans")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "answer_spans", spans)
### END HIDDEN TESTS


# %% given="draw-strips"
def draw_strips(
    axis: Axes, names: list[str], pieces: list[list[str]], faces: list[list], notes: list | None = None
) -> None:
    """A line for each option, a box for each token: its text, its colour, and below the text a note."""
    for row, (texts, colours) in enumerate(zip(pieces, faces, strict=True)):
        for t, (text, colour) in enumerate(zip(texts, colours, strict=True)):
            axis.barh(row, 0.96, left=t, height=0.86, color=colour, edgecolor=GREY, linewidth=0.5)
            note = notes[row][t] if notes else ""
            red, green, blue, _ = matplotlib.colors.to_rgba(colour)
            ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else BLACK
            said = {"ha": "center", "va": "center", "parse_math": False, "color": ink}
            axis.text(t + 0.48, row - (0.16 if note else 0), text, fontsize=7, **said)
            axis.text(t + 0.48, row + 0.22, note, fontsize=7, **said)
    axis.set(yticks=range(len(names)), xlim=(0, max(map(len, pieces), default=1)), xticks=[])
    axis.set_yticklabels(names, fontsize=8)
    axis.invert_yaxis()


# %% given="plot-answer_spans" tags=["plot"]
with picture(
    "Which tokens are the answer",
    alt="Six rows of boxes with tokens, three types of task. Dark boxes are answers, at the end of every row.",
    size=(9.0, 3.4),
) as p:
    examples = {
        "multiple choice": (
            "multiple_choice",
            ["Ada lives in Bramwick.", "Ada lives in Bramford.", "Ada lives in Elmford"],
        ),
        "schema": ("schema", ["Ada has a cat because it sat.", "Ben has a bat sat."]),
        "language modeling": ("language_modeling", ["the black", "the black cat sat."]),
    }
    names, pieces, faces, lengths = [], [], [], []
    tokenizer = PieceTokenizer(PIECES)
    for name, (task_type, prompts) in examples.items():
        for sequence, start, end in zip(*answer_spans(task_type, prompts, tokenizer), strict=True):
            names.append(name)
            pieces.append([tokenizer.show(token) for token in sequence])
            faces.append([BLUE if start <= t < end else "#eeeeee" for t in range(len(sequence))])
            lengths.append(end - start)
    draw_strips(p.axes[0], names, pieces, faces)
    patches = [Patch(facecolor=c, edgecolor=GREY, label=n) for n, c in (("answer", BLUE), ("context", "#eeeeee"))]
    p.figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=8)
    p.caption = f"Tokens of the answers: {lengths}."

# %% [markdown]
# ## Part 4 · What fits: truncation (10 points, 10 minutes)
#
# Ten shots of long questions can be longer than the model's context. Something has to go, and it must not be the end:
# there stands the answer. So a sequence that is too long keeps its **last** `max_seq_len` tokens. BOS goes, then the
# first examples, and every position moves to the left by what was cut.
#
# Context 6, an option of 8 tokens whose answer is the last two:
#
# ```
#                tokens                        start  end
# before         0  11 12 13 14 15 21 22       6      8
# after                12 13 14 15 21 22       4      6        2 tokens cut
# ```
#
# Every option is cut on its own: the shorter ones keep more of their context, or all of it.
#
# **Contract.** Takes and returns `(sequences, starts, ends)`, the lists of part 3; the lists given are left as they
# are. `max_seq_len` of `None` means no limit. Raises `ValueError` if a token of an answer would have to be cut. An
# answer that fills the context to the last position is let pass: nothing of it is cut, and its start is 0.


# %% hole="crop_to_context"
def crop_to_context(
    sequences: list[list[int]], starts: list[int], ends: list[int], max_seq_len: int | None
) -> tuple[list[list[int]], list[int], list[int]]:
    """Each option's last `max_seq_len` tokens (None: all), with its span moved along.

    Raises ValueError if that would cut a token of an answer.
    """
    ### BEGIN SOLUTION
    if max_seq_len is None:
        return sequences, starts, ends
    cuts = [max(0, len(sequence) - max_seq_len) for sequence in sequences]
    if any(start < cut for start, cut in zip(starts, cuts, strict=True)):
        raise ValueError(f"an answer is longer than the context of {max_seq_len} tokens")
    return (
        [sequence[cut:] for sequence, cut in zip(sequences, cuts, strict=True)],
        [start - cut for start, cut in zip(starts, cuts, strict=True)],
        [end - cut for end, cut in zip(ends, cuts, strict=True)],
    )
    ### END SOLUTION


# %% given="check-crop_to_context"
def cropped(sequences: list[list[int]], starts: list[int], ends: list[int], max_seq_len: int | None) -> dict:
    """Your cropped options, and whether the lists you were given are as they were."""
    given = [[list(sequence) for sequence in sequences], list(starts), list(ends)]
    result = crop_to_context(*given, max_seq_len)
    kept = given == [[list(sequence) for sequence in sequences], list(starts), list(ends)]
    return dict(zip(("sequences", "starts", "ends"), result, strict=True)) | {"given lists unchanged": kept}


def crop(*arguments: Any) -> list:
    """Your cropped sequences, starts and ends."""
    return list(cropped(*arguments).values())[:3]


with check("crop_to_context"):
    long, short = [0, 11, 12, 13, 14, 15, 21, 22], [0, 14, 15, 23]
    moved = "the last max_seq_len tokens are kept, and start and end move to the left by what was cut"
    expect(crop, ([long], [6], [8], 6), [[[12, 13, 14, 15, 21, 22]], [4], [6]], moved)
    each = "every option is cut on its own"
    expect(crop, ([long, short], [6, 3], [8, 4], 6), [[[12, 13, 14, 15, 21, 22], short], [4, 3], [6, 4]], each)
    expect(crop, ([long, short], [6, 2], [8, 4], 3), [[[15, 21, 22], [14, 15, 23]], [1, 1], [3, 3]], each)
    expect(crop, ([long, short], [6, 3], [8, 4], None), [[long, short], [6, 3], [8, 4]], "without a limit all is kept")
    expect(crop, ([long], [6], [8], 8), [[long], [6], [8]], "what just fits is kept whole")
    expect(crop, ([long], [8], [8], 5), [[[13, 14, 15, 21, 22]], [5], [5]], "an empty answer moves too")
    expect(
        crop, ([long], [6], [8], 2), [[[21, 22]], [0], [2]], "an answer that fills the context is not cut: it passes"
    )
    expect(crop, ([short, long], [3, 5], [4, 8], 2), ValueError, "the answer of the second option has three tokens")
    unchanged = {"sequences": [[22]], "starts": [0], "ends": [1], "given lists unchanged": True}
    expect(cropped, ([long], [7], [8], 1), unchanged, "the lists you were given must stay as they are")

# %% graded="crop_to_context"
# 10 points. The hidden tests are more of the same, with other options; `--verify` runs them.
check.visible("crop_to_context")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "crop_to_context", cropped)
### END HIDDEN TESTS

# %% given="plot-crop_to_context" tags=["plot"]
with picture(
    "Six options in a context of 12",
    alt="Two panels of bars, an option each. Left: before, up to 20 tokens. Right: after, none beyond the dashed line.",
    columns=2,
    size=(9.5, 2.9),
) as p:
    lengths, answer = (20, 16, 14, 12, 9, 7), 3
    before = [list(range(n)) for n in lengths], [n - answer for n in lengths], list(lengths)
    after = crop_to_context(*before, 12)
    for axis, title, options in zip(p.axes, ("as rendered", "as the model reads them"), (before, after), strict=True):
        for row, (sequence, start, end) in enumerate(zip(*options, strict=True)):
            axis.barh(row, len(sequence), color="#eeeeee", edgecolor=GREY)
            axis.barh(row, end - start, left=start, color=BLUE, edgecolor=GREY, hatch="//")
            axis.text(
                len(sequence) + 0.3,
                row,
                f"{sequence[0]} ... {sequence[-1]}" if sequence else "",
                va="center",
                fontsize=7,
            )
        axis.axvline(12, color=BLACK, linestyle="--")
        axis.set(title=title, xlabel="position", xlim=(0, 24), yticks=range(6), ylabel="option")
        axis.invert_yaxis()
    patches = [Patch(facecolor=BLUE, hatch="//", label="answer"), Patch(facecolor="#eeeeee", label="context")]
    p.figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=8)
    still = [
        sequence[start:end] == given[-answer:]
        for sequence, given, start, end in zip(after[0], before[0], *after[1:], strict=True)
    ]
    p.caption = f"Lengths {[len(s) for s in after[0]]}; starts {after[1]}; {sum(still)} of 6 spans hold their answer."

# %% [markdown]
# ## Part 5 · Many options, few forwards: batching (15 points, 20 minutes)
#
# An option is a short sequence, and a forward of one short sequence leaves most of the machine idle. So options of many
# items share a forward. They have different lengths and a tensor has not: shorter ones are **padded on the right**. A
# causal model never looks to the right, so nothing in front of the padding changes; what the model says *at* the
# padding is thrown away.
#
# Padding costs as much as text. A forward may have at most `max_tokens` tokens **with** padding, rows times longest. To
# pad little, options of similar length go together:
#
# 1. Order the options by length, shortest first; of equal ones the earlier first.
# 2. Go through them and put each into the current batch. If it does not fit there (the batch, padded to this option's
#    length, would have more than `max_tokens`), close that batch and begin a new one with it.
# 3. An option that is longer than `max_tokens` by itself has a batch to itself.
#
# Lengths 4, 2, 3, 2, 7, and `max_tokens` 8:
#
# ```
# batch     options    rows × longest                 the next one does not fit because
# 1         1, 3       2 × 2 = 4 of 8                 3 × 3 = 9
# 2         2          1 × 3 = 3 of 8                 2 × 4 = 8 is not above 8: it does fit
# 2         2, 0       2 × 4 = 8 of 8, 1 of padding   3 × 7 = 21
# 3         4          1 × 7 = 7 of 8
# ```
#
# **Contract.** `sequences` may be empty; each has at least one token. Returns a list of batches `(indices, input_ids)`
# in the order above: which sequences are in the rows, as a list of ints, and a tensor `(B, T)`, int64, on the CPU, with
# `pad_token_id` behind the shorter ones. `T` is the longest of this batch.


# %% hole="batch_options"
def batch_options(
    sequences: list[list[int]], max_tokens: int, pad_token_id: int
) -> list[tuple[list[int], torch.Tensor]]:
    """Batches (indices, input_ids (B, T) int64, padded on the right) of at most `max_tokens` tokens with padding.

    Shortest first, so that little is padded; a sequence longer than `max_tokens` has a batch to itself.
    """
    ### BEGIN SOLUTION
    groups: list[list[int]] = []
    for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        if groups and (len(groups[-1]) + 1) * len(sequences[i]) <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    batches = []
    for group in groups:
        longest = len(sequences[group[-1]])
        rows = [sequences[i] + [pad_token_id] * (longest - len(sequences[i])) for i in group]
        batches.append((group, torch.tensor(rows)))
    return batches
    ### END SOLUTION


# %% given="check-batch_options"
def batches_of(sequences: list[list[int]], max_tokens: int, pad_token_id: int) -> list:
    """Your batches."""
    return [[list(indices), input_ids] for indices, input_ids in batch_options(sequences, max_tokens, pad_token_id)]


def rows_of(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Which sequences stand in the rows of your batches, for sequences of these lengths."""
    return [indices for indices, _ in batches_of([[1] * n for n in lengths], max_tokens, 0)]


with check("batch_options"):
    stacked = torch.tensor([[8, 99, 99], [9, 10, 99], [5, 6, 7]])
    padded = "shorter ones are padded on the right with pad_token_id, to the longest of the batch"
    expect(batches_of, ([[5, 6, 7], [8], [9, 10]], 100, 99), [[[1, 2, 0], stacked]], padded)
    expect(
        batches_of,
        ([[4] * 4, [2] * 2, [3] * 3, [1] * 2, [7] * 7], 8, 0),
        [
            [[1, 3], torch.tensor([[2, 2], [1, 1]])],
            [[2, 0], torch.tensor([[3, 3, 3, 0], [4, 4, 4, 4]])],
            [[4], torch.tensor([[7] * 7])],
        ],
        "shortest first, and rows times longest is at most max_tokens, padding included",
    )
    full = "a batch may have exactly max_tokens tokens"
    expect(rows_of, ([3, 3, 3, 3, 3], 6), [[0, 1], [2, 3], [4]], full)
    expect(rows_of, ([5, 4, 5, 4, 5], 15), [[1, 3, 0], [2, 4]], "the room is rows times the longest, not the sum")
    expect(rows_of, ([9, 2, 12], 5), [[1], [0], [2]], "one that is longer than max_tokens has a batch to itself")
    expect(rows_of, ([12], 5), [[0]], "no batch is empty")
    expect(rows_of, ([6, 6, 1], 1), [[2], [0], [1]], "no two share a batch of max_tokens 1")
    expect(batches_of, ([], 8, 0), [], "no options, no batches")
    one = [[[0], torch.tensor([[5]])]]
    expect(batches_of, ([[5]], 8, 0), one, "token ids are int64")

# %% graded="batch_options"
# 15 points. The hidden tests are more of the same, with other lengths; `--verify` runs them.
check.visible("batch_options")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "batch_options", batches_of)
### END HIDDEN TESTS

# %% given="plot-batch_options" tags=["plot"]
with picture(
    "40 options of 5 to 60 tokens, at most 256 tokens a forward",
    alt="Left: bars of rows, batches in alternating colours, little padding. Right: padding grows with the batch size.",
    columns=2,
    size=(10.0, 3.4),
) as p:
    rng = random.Random(5)
    sequences = [[1] * min(60, 5 + int(rng.expovariate(1 / 14))) for _ in range(40)]

    def padding_of(batches: list) -> float:
        """The share of padding among all tokens of these batches."""
        real = sum(int((ids == 1).sum()) for _, ids in batches)
        return 1 - real / max(1, sum(ids.numel() for _, ids in batches))

    row, batches = 0, batch_options(sequences, 256, 0)
    for number, (_, ids) in enumerate(batches):
        for line in ids.tolist():
            text = sum(token == 1 for token in line)
            p.axes[0].barh(row, len(line), height=1, color="white", edgecolor=GREY, hatch="....", linewidth=0.3)
            p.axes[0].barh(row, text, height=1, color=(BLUE, ORANGE)[number % 2], edgecolor="white", linewidth=0.3)
            row += 1
    p.axes[0].set(title="your batches (dots: padding)", xlabel="position", ylabel="row")
    p.axes[0].invert_yaxis()
    sizes = (128, 256, 512, 1024)
    yours = [padding_of(batch_options(sequences, size, 0)) for size in sizes]
    as_given = []
    for size in sizes:
        rows = max(1, size // 60)
        groups = [sequences[i : i + rows] for i in range(0, len(sequences), rows)]
        as_given.append(1 - sum(map(len, sequences)) / sum(len(group) * max(map(len, group)) for group in groups))
    p.axes[1].semilogx(sizes, yours, color=BLUE, marker="o", label="your batches")
    p.axes[1].semilogx(sizes, as_given, "--", color=ORANGE, marker="s", label="in the order given")
    p.axes[1].set(title="what is wasted", xlabel="max_tokens", ylabel="share of padding", ylim=(0, None))
    p.axes[1].set_xticks(sizes, labels=map(str, sizes), minor=False)
    p.axes[1].minorticks_off()
    p.axes[1].legend(fontsize=8)
    largest = max((ids.numel() for _, ids in batches), default=0)
    p.caption = (
        f"{len(batches)} forwards for {sum(len(i) for i, _ in batches)} options, the largest of {largest} tokens; "
        f"{padding_of(batches):.0%} padding, in the order given {as_given[1]:.0%}."
    )

# %% [markdown]
# ## Part 6 · The verdict: losses and a choice (15 points, 25 minutes)
#
# The forward gives logits `(B, T, V)`. Those at position $t$ are about the token at $t + 1$. So the tokens of an answer
# `start` to `end` are predicted from positions **`start - 1` to `end - 2`**. For each of them
#
# $$\mathrm{loss}_t = -\log \frac{e^{z_{t,\,x_{t+1}}}}{\sum_v e^{z_{t,v}}}, \qquad
# \text{mean loss} = \frac{1}{\text{end} - \text{start}} \sum_{t = \text{start} - 1}^{\text{end} - 2} \mathrm{loss}_t$$
#
# The **mean**, not the sum: options have different numbers of tokens. And only over the answer: neither the context nor
# the padding behind it counts.
#
# ```
# position          0      1      2      3      4      5
# token             <bos>  Ada    ␣has   ␣a     ␣cat   .          start 4, end 6
# says what is at   1      2      3      4      5      nothing
#                                        ^      ^
#                                        the two losses that count: positions 3 and 4
# ```
#
# What a loss is worth: if the model gives 4 tokens the logits 2, 1, 0, 0 and the one with logit 1 comes, the loss is
# $\log(e^2 + e^1 + 2) - 1 = 1.494$ nats.
#
# Then the **verdict**:
# - `multiple_choice` and `schema`: the option with the lowest mean loss is chosen, and the item is right if that is the
#   gold one. Of equal ones the **first** is chosen: later ones have to be strictly lower.
# - `language_modeling`: there is one option, and no choice. The item is right if the model would have *written* the
#   answer: at each of its positions the likeliest token is the one that comes. Then greedy decoding, one token at a
#   time, writes just that. One wrong token and the item is wrong.
#
# An **empty answer** has no mean: its loss is NaN. (And all of its no tokens are greedy.) Comparisons with NaN are
# false, so "strictly lower than the lowest so far" makes it win in first place and lose in any other. That is an
# accident, but it is nanochat's, and CORE numbers are only worth something if they are compared like with like.
#
# **Contract.** `score_options`: `logits` `(B, T, V)` float32 and `input_ids` `(B, T)` int64 on one device, left as they
# are; `starts` and `ends` are lists with `1 <= start <= end <= T` for each row. Returns a list of `(mean_loss,
# is_greedy)`, a float and a bool. Logits may differ by hundreds, so that some softmax probabilities are 0 in float32;
# the losses are finite all the same. `is_right`: `scores` is such a list, one for each option; returns a bool. `gold`
# is ignored for language modeling.


# %% hole="loss_choice"
def score_options(
    logits: torch.Tensor, input_ids: torch.Tensor, starts: list[int], ends: list[int]
) -> list[tuple[float, bool]]:
    """(mean_loss, is_greedy) for each row: the mean loss of its answer's tokens in nats (NaN if it has none), and
    whether each of them is the likeliest."""
    ### BEGIN SOLUTION
    scores = []
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        answer, predicting = input_ids[row, start:end], logits[row, start - 1 : end - 1]
        mean_loss = F.cross_entropy(predicting, answer).item()
        scores.append((mean_loss, torch.equal(predicting.argmax(dim=-1), answer)))
    return scores
    ### END SOLUTION


def is_right(task_type: str, scores: list[tuple[float, bool]], gold: int | None) -> bool:
    """Whether an item is right, from the scores of its options: greedily decoded (language modeling), or its gold
    option has the lowest mean loss, the first of equals."""
    ### BEGIN SOLUTION
    if task_type == "language_modeling":
        return scores[0][1]
    losses = [loss for loss, _ in scores]
    return losses.index(min(losses)) == gold
    ### END SOLUTION


# %% given="check-loss_choice"
NAN = float("nan")


def scored(logits: torch.Tensor, input_ids: torch.Tensor, starts: list[int], ends: list[int], verdicts: list) -> dict:
    """Your scores of these rows, and your verdicts on items (task_type, scores, gold) that have nothing to do with
    them."""
    before = logits.clone(), input_ids.clone()
    scores = score_options(logits, input_ids, list(starts), list(ends))
    unchanged = torch.equal(logits, before[0]) and torch.equal(input_ids, before[1])
    right = [is_right(task_type, [tuple(score) for score in scores], gold) for task_type, scores, gold in verdicts]
    return {"scores": scores, "tensors unchanged": unchanged, "right": right}


def score_rows(rows: list, input_ids: list, starts: list[int], ends: list[int]) -> list:
    """Your scores, for logits and token ids as lists."""
    return score_options(torch.tensor(rows), torch.tensor(input_ids), starts, ends)


def verdict(task_type: str, losses: list[float], gold: int | None, greedy: bool = False) -> bool:
    """Your verdict on options of these mean losses."""
    return is_right(task_type, [(loss, greedy) for loss in losses], gold)


with check("loss_choice"):
    a, b, c = [2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    la, lb, lc = 1.4938, 0.1392, 1.7437  # of token 1 after a, of token 2 after b, of token 0 after c
    near = Tolerance(atol=2e-4)
    before = "the loss of the token at t stands at position t - 1"
    expect(score_rows, ([[a, b, c]], [[0, 1, 2]], [1], [2]), [[la, False]], before, near)
    expect(score_rows, ([[a, b, c]], [[0, 1, 2]], [2], [3]), [[lb, True]], before, near)
    mean = "the mean over the answer's tokens, and greedy only if every one of them is the likeliest"
    expect(score_rows, ([[a, b, c]], [[0, 1, 2]], [1], [3]), [[(la + lb) / 2, False]], mean, near)
    expect(
        score_rows,
        ([[a, b, c, a, c], [b, a, c, c, c]], [[3, 1, 2, 0, 1], [0, 2, 1, 0, 0]], [1, 2], [4, 4]),
        [[(la + lb + lc) / 3, False], [(la + lc) / 2, False]],
        "every row has its own span; what stands before the answer and behind it does not count",
        near,
    )
    greedy = [[[b, a, c, b], [b, a, c, b]], [[1, 2, 0, 3], [1, 2, 0, 1]], [1, 1], [4, 3]]
    expect(score_rows, greedy, [[(lb + 0.4938 + 0.7437) / 3, True], [(lb + 0.4938) / 2, True]], mean, near)
    expect(
        score_rows,
        ([[[0.0, 300.0], [0.0, 0.0]]], [[1, 0]], [1], [2]),
        [[300.0, False]],
        "log-softmax of the logits: the softmax itself is 0 in float32 here, and its logarithm infinite",
        near,
    )
    expect(score_rows, ([[a, b, c]], [[0, 1, 2]], [2], [2]), [[NAN, True]], "an empty answer has the loss NaN", near)
    kept = {"scores": [[la, False]], "tensors unchanged": True, "right": [True]}
    expect(
        scored,
        (torch.tensor([[a, b]]), torch.tensor([[0, 1]]), [1], [2], [("schema", [(1.0, False)], 0)]),
        kept,
        "logits and token ids must be left as they are, and a verdict is a bool",
        near,
    )
    lowest = "the lowest mean loss is chosen, the first of equals; it is right if that is the gold one"
    expect(verdict, ("multiple_choice", [2.0, 1.0, 3.0], 1), True, lowest)
    expect(verdict, ("multiple_choice", [2.0, 1.0, 3.0], 2), False, lowest)
    expect(verdict, ("schema", [1.0, 0.5, 0.5], 1), True, lowest)
    expect(verdict, ("schema", [1.0, 0.5, 0.5], 2), False, lowest)
    expect(
        verdict,
        ("multiple_choice", [2.0, 1.0, 1.0], 0, True),
        False,
        "greedy decoding matters in language modeling only",
    )
    nan = "a NaN in first place is never beaten, a NaN anywhere else never wins"
    expect(verdict, ("multiple_choice", [NAN, 1.0], 0), True, nan)
    expect(verdict, ("multiple_choice", [2.0, NAN, 1.0], 2), True, nan)
    expect(verdict, ("multiple_choice", [2.0, NAN, 1.0], 1), False, nan)
    written = "in language modeling the answer must be greedily decoded, whatever its loss"
    expect(verdict, ("language_modeling", [0.1], None, False), False, written)
    expect(verdict, ("language_modeling", [9.0], None, True), True, written)

# %% graded="loss_choice"
# 15 points. The hidden tests are more of the same, with other logits; `--verify` runs them.
check.visible("loss_choice")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "loss_choice", scored)
### END HIDDEN TESTS


# %% given="draw-losses"
def token_losses(logits: torch.Tensor, input_ids: torch.Tensor, row: int, start: int, end: int) -> list[float]:
    """The losses of a row's tokens from start to end, each scored by you as an answer of one token."""
    logits, input_ids = logits[row : row + 1], input_ids[row : row + 1]
    return [score_options(logits, input_ids, [t], [t + 1])[0][0] for t in range(start, end)]


def draw_losses(
    axis: Axes, names: list[str], pieces: list[list[str]], losses: list[list[float]], starts: list[int]
) -> None:
    """A line for each option, a box for each token; those of the answer are the darker the larger their loss, which
    stands in them."""
    colours, largest = (
        matplotlib.colormaps["Oranges"],
        max([loss for row in losses for loss in row if loss == loss] + [1.0]),
    )
    faces = [
        ["#eeeeee"] * start + [colours(0.1 + 0.8 * loss / largest) if loss == loss else "white" for loss in row]
        for start, row in zip(starts, losses, strict=True)
    ]
    notes = [[""] * start + [f"{loss:.2f}" for loss in row] for start, row in zip(starts, losses, strict=True)]
    draw_strips(axis, names, pieces, faces, notes)


def draw_options(axis: Axes, names: list[str], means: list[float], gold: int) -> None:
    """A bar for each option's mean loss, the gold one hatched, the lowest marked."""
    means = [0.0 if mean != mean else mean for mean in means]
    bars = axis.barh(range(len(means)), means, color=SKY, edgecolor=GREY)
    bars[gold].set(hatch="//", facecolor=ORANGE)
    chosen = means.index(min(means))
    axis.plot(means[chosen], chosen, "<", color=BLACK, markersize=8, clip_on=False)
    axis.set(yticks=range(len(means)), xlabel="mean loss (nats)", xlim=(0, 1.4 * max([*means, 1.0])))
    axis.set_yticklabels([f"{name}, gold" if i == gold else name for i, name in enumerate(names)], fontsize=8)
    axis.invert_yaxis()
    patches = [Patch(facecolor=ORANGE, hatch="//", label="gold"), Patch(facecolor=SKY, label="other")]
    marker = axis.plot([], [], "<", color=BLACK, label="chosen")
    axis.legend(handles=[*patches, *marker], fontsize=7, loc="center right")


# %% given="plot-loss_choice" tags=["plot"]
with picture(
    "A toy model that counts pairs of tokens: loss by token, and the choice",
    alt="Left: three options as boxes of tokens, their answers with losses. Right: a bar for each; the gold is lowest.",
    columns=2,
    size=(11.0, 2.6),
) as p:
    words = ["A", " gull", " trout", " is", " a", " bird", " fish", " lamp", " of", " the", " sea", "."]
    tokenizer = PieceTokenizer(words)
    read = ["A gull is a bird.", "A trout is a fish of the sea.", "A gull is a bird of the sea.", "A trout is a fish."]
    table = torch.full((1 + len(words) + 128,) * 2, 0.05)
    for text in read:
        for pair in pairwise(tokenizer(text, prepend=0)):
            table[pair] += 1
    options = ["A gull is a bird", "A gull is a fish of the sea", "A gull is a lamp"]
    sequences = tokenizer(options, prepend=0)
    input_ids = torch.tensor([sequence + [0] * (9 - len(sequence)) for sequence in sequences])
    logits, starts = table.log()[input_ids], [5, 5, 5]
    scores = score_options(logits, input_ids, starts, [len(sequence) for sequence in sequences])
    losses = [token_losses(logits, input_ids, row, 5, len(s)) for row, s in enumerate(sequences)]
    names = [f"option {i}" for i in range(3)]
    draw_losses(p.axes[0], names, [[tokenizer.show(token) for token in s] for s in sequences], losses, starts)
    p.axes[0].set_title("loss of each token (nats)", fontsize=9)
    draw_options(p.axes[1], names, [loss for loss, _ in scores], gold=0)
    p.caption = (
        f"Mean losses {[round(loss, 2) for loss, _ in scores]}, sums {[round(sum(row), 2) for row in losses]}: "
        f"{'right' if is_right('multiple_choice', scores, 0) else 'wrong'}."
    )

# %% [markdown]
# A table of pairs has seen `A`, `gull`, `trout` and `is a`, but no further back than one token: after `a`, `bird` and
# `fish` are equally likely to it. Option 1 gains from words that have nothing to do with the gull. That is why real
# models are larger.
#
# ## Part 7 · Many ranks, one number (10 points, 15 minutes)
#
# With several GPUs, each process (**rank**) evaluates a part of the items, and at the end all must agree on one
# accuracy. Items are dealt like cards: rank `r` of `world_size` takes items `r`, `r + world_size`, `r + 2 world_size`,
# ... Long and short items, often sorted, are spread evenly.
#
# To agree, ranks call a **collective**: `all_reduce(tensor)` waits until every rank has called it, then each rank's
# tensor holds, in place, the **sum** over all ranks. It returns nothing. Two rules of every collective, whose breach
# is not an error but a program that hangs for ever:
# - **every** rank calls it, equally often, also one that has nothing to contribute;
# - all bring tensors of the same shape and dtype, on the device that the communication runs on.
#
# What has to be summed? Seven items on three ranks:
#
# | | items | right | own accuracy |
# |---|---|---|---|
# | rank 0 | 0, 3, 6 | 3 | 3/3 |
# | rank 1 | 1, 4 | 1 | 1/2 |
# | rank 2 | 2, 5 | 0 | 0/2 |
# | all | 7 | 4 | **4/7 = 0.571** |
#
# The mean of the ranks' accuracies is 0.5. Counts can be added, rates cannot.
#
# **Contract.** `evaluate(indices)` takes a list of ints and returns a list of bools, whether each of these items is
# right; this is the expensive part, so each item is evaluated exactly once, on its rank. `num_items` is at least 1, but
# may be less than `world_size`. Returns the accuracy over all items as a float, the same on every rank. `all_reduce`
# is given also if `world_size` is 1. Tasks have up to 100,000 items, so mind the dtype: float16 cannot even count to
# 2049. bool tensors cannot be summed.


# %% given="simulated-ranks"
class Waiting(BaseException):
    """A rank waits in all_reduce for the others."""


class Collective:
    """`all_reduce` of one rank: hands out the sums there are already; the next time it notes what it is brought."""

    def __init__(self, sums: list[torch.Tensor], device: Any) -> None:
        self.sums, self.device = iter(sums), torch.device(device)
        self.brought: torch.Tensor | None = None

    def __call__(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != self.device.type or tensor.dtype == torch.bool:
            raise RuntimeError(f"a tensor of {tensor.dtype} on {tensor.device} cannot be summed on {self.device}")
        total = next(self.sums, None)
        if total is None:
            self.brought = tensor.detach().clone()
            raise Waiting
        tensor.detach().copy_(total)


def on_ranks(program: Callable[[int, Callable], Any], world_size: int, device: Any = "cpu") -> list[Any]:
    """What `program(rank, all_reduce)` returns on each of `world_size` ranks, without any processes.

    Each rank's program is run until it calls all_reduce, then from the beginning with the first sum at hand, and so on.
    RuntimeError where real ranks would wait for ever or be refused.
    """
    sums: list[torch.Tensor] = []
    while len(sums) < 9:
        brought, results = {}, {}
        for rank in range(world_size):
            collective = Collective(sums, device)
            try:
                results[rank] = program(rank, collective)
            except Waiting:
                brought[rank] = collective.brought
        if not brought:
            return [results[rank] for rank in range(world_size)]
        if results:
            raise RuntimeError(
                f"rank {min(brought)} waits in all_reduce for ever: rank {min(results)} does not call it"
            )
        if len({(tensor.shape, tensor.dtype) for tensor in brought.values()}) > 1:
            raise RuntimeError("the ranks bring tensors of different shapes or dtypes to all_reduce")
        sums.append(reduce(add, brought.values()))
    raise RuntimeError("all_reduce has been called ten times: once or twice is enough")


# %% hole="reduce_accuracy"
def reduce_accuracy(
    evaluate: Callable[[list[int]], list[bool]],
    num_items: int,
    rank: int,
    world_size: int,
    all_reduce: Callable[[torch.Tensor], None],
    device: torch.device | str,
) -> float:
    """Evaluate this rank's items and return the accuracy over all `num_items`, the same on every rank.

    `all_reduce` sums a tensor on `device` over the ranks, in place; every rank has to call it.
    """
    ### BEGIN SOLUTION
    right = evaluate(list(range(rank, num_items, world_size)))
    num_right = torch.tensor(sum(right), dtype=torch.float32, device=device)
    all_reduce(num_right)
    return num_right.item() / num_items
    ### END SOLUTION


# %% given="check-reduce_accuracy"
def on_all_ranks(right: str, world_size: int, device: Any = "cpu") -> list[dict]:
    """For each rank: the accuracy you return, and which items you evaluated. `right` has a 1 for each right item."""

    def program(rank: int, all_reduce: Callable) -> dict:
        asked: list[int] = []

        def evaluate(indices: list[int]) -> list[bool]:
            asked.extend(indices)
            return [right[i] == "1" for i in indices]

        accuracy = reduce_accuracy(evaluate, len(right), rank, world_size, all_reduce, device)
        return {"accuracy": accuracy, "items": sorted(asked)}

    return on_ranks(program, world_size, device)


def accuracies_of(right: str, world_size: int) -> list[float]:
    """The accuracies you return on each rank."""
    return [told["accuracy"] for told in on_all_ranks(right, world_size)]


with check("reduce_accuracy"):
    expect(
        on_all_ranks,
        ("1101001", 3),
        [
            {"accuracy": 4 / 7, "items": [0, 3, 6]},
            {"accuracy": 4 / 7, "items": [1, 4]},
            {"accuracy": 4 / 7, "items": [2, 5]},
        ],
        "deal the items to the ranks in turn, sum what can be summed, and divide by the number of all items",
        FLOAT32,
    )
    expect(
        accuracies_of, ("0111", 1), [0.75], "with one rank there is nothing to sum, and nothing to get wrong", FLOAT32
    )
    expect(accuracies_of, ("10111", 2), [0.8, 0.8], "the mean of the ranks' means would be 0.75", FLOAT32)
    expect(accuracies_of, ("01", 4), [0.5] * 4, "a rank without items takes part in all_reduce like any other", FLOAT32)
    expect(accuracies_of, ("0" * 9, 2), [0.0, 0.0], "none is right", FLOAT32)
    expect(accuracies_of, ("1" * 2601 + "0" * 1400, 3), [2601 / 4001] * 3, "mind the dtype of the counts", FLOAT32)

# %% graded="reduce_accuracy"
# 10 points. The hidden tests are more of the same, with other numbers of items and ranks; `--verify` runs them.
check.visible("reduce_accuracy")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "reduce_accuracy", on_all_ranks)
### END HIDDEN TESTS

# %% given="plot-reduce_accuracy" tags=["plot"]
with picture(
    "One set of 11 items on 1 to 10 ranks",
    alt="A flat line for your accuracy over the number of ranks; a dashed line for the mean of rank means, jagged.",
    size=(7.0, 3.0),
) as p:
    right = "00011111111"  # sorted by how hard they are, as real tasks often are
    sizes = list(range(1, 11))
    yours = [accuracies_of(right, size) for size in sizes]
    shares = [[right[rank::size] for rank in range(size)] for size in sizes]
    naive = [sum(own.count("1") / len(own) for own in split) / len(split) for split in shares]
    for rank in range(max(sizes)):
        there = [(size, said[rank]) for size, said in zip(sizes, yours, strict=True) if rank < len(said)]
        label = "your accuracy (a line for each rank)" if rank == 0 else None
        p.axes[0].plot(*zip(*there, strict=True), color=BLUE, marker="o", markersize=4, label=label)
    p.axes[0].plot(sizes, naive, "--", color=ORANGE, marker="s", markersize=4, label="mean of the ranks' means")
    p.axes[0].axhline(8 / 11, color=GREY, linewidth=0.8)
    p.axes[0].set(xlabel="ranks", ylabel="accuracy", xticks=sizes)
    p.axes[0].margins(y=0.2)
    p.axes[0].legend(fontsize=8)
    said = {round(value, 4) for values in yours for value in values}
    p.caption = (
        f"True accuracy {8 / 11:.4f}; you say {sorted(said)}; "
        f"means of means go from {min(naive):.4f} to {max(naive):.4f}."
    )

# %% [markdown]
# **Two real processes.** The ranks above are simulated one after the other. The next cell starts two real ones, joined
# by torch.distributed with gloo (the backend for CPUs), and runs your function in both: the same `all_reduce` that eight
# GPUs would call.

# %% given="two-processes" tags=["oracle"]
import multiprocessing
import os
import warnings
from datetime import timedelta
from tempfile import TemporaryDirectory

import torch.distributed as dist


def run_rank(rank: int, program: Callable[[int, Callable], Any], rendezvous: str, link: Any) -> None:
    """What one of the two processes does: join the group, run the program, send what it returns or raises."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    torch.set_num_threads(1)  # the pool of threads does not survive a fork
    try:
        patience = timedelta(seconds=20)
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=patience)
        link.send((os.getpid(), program(rank, dist.all_reduce)))
    except Exception as error:
        link.send((os.getpid(), f"{type(error).__name__}: {error}"))
    link.recv()  # a rank that leaves early would break the other one's connection
    os._exit(0)


def on_two_processes(program: Callable[[int, Callable], Any]) -> list[tuple[int, Any]]:
    """(process id, what `program(rank, all_reduce)` returns) of two processes joined by gloo."""
    context = multiprocessing.get_context("fork")
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads; these ranks start none before
        links, processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(rank, program, f"{folder}/rendezvous", theirs))
            process.start()
            links.append(ours)
            processes.append(process)
        try:
            return [link.recv() if link.poll(90) else (0, "no answer within 90 s") for link in links]
        finally:
            for link, process in zip(links, processes, strict=True):
                link.send("leave")
                process.join(5)
                process.kill()


with attempt("Your function on two real processes"):
    right = "1101001101111"

    def program(rank: int, all_reduce: Callable) -> float:
        """One rank of two."""
        return reduce_accuracy(lambda items: [right[i] == "1" for i in items], len(right), rank, 2, all_reduce, "cpu")

    told = on_two_processes(program)
    for rank, (process_id, accuracy) in enumerate(told):
        own = right[rank::2]
        print(
            f"rank {rank} is process {process_id}: {own.count('1')} of its {len(own)} items are right, says {accuracy}"
        )
    print(f"{right.count('1')} of {len(right)} items are right: {right.count('1') / len(right)}")

# %% [markdown]
# ## Part 8 · From accuracies to CORE (10 points, 10 minutes)
#
# Accuracies of different tasks cannot be averaged as they are: 0.5 is perfect ignorance where there are two options,
# and remarkable where the answer has to be written. So each is **centred**: 0 for a model that guesses, 1 for one that
# is always right,
#
# $$\text{centred} = \frac{\text{accuracy} - \text{baseline}}{1 - \text{baseline}}$$
#
# where the baseline is the probability that a guess is right. The **CORE metric** (from DCLM, arXiv 2406.11794) is the
# mean of the centred accuracies over all tasks, each task counting the same however many items it has.
#
# | task | accuracy | baseline | centred |
# |---|---|---|---|
# | four options | 0.40 | 0.25 | 0.20 |
# | two options | 0.45 | 0.50 | −0.10 |
# | written | 0.20 | 0 | 0.20 |
# | **CORE** | | | **0.10** |
#
# Centred accuracies may be negative; they are not cut at 0, because then luck would count and bad luck would not.
#
# Baselines stand in the file `eval_meta_data.csv` of the evaluation bundle, as **percentages**. The file has a header,
# and fields that contain a comma are in quotes, as usual:
#
# ```
# Eval Task,Task Category,Random baseline
# four options,"reading, short",25
# two options,symbols,50.0
# ```
#
# **Contract.** `accuracies` is accuracy by task, at least one. `baselines_csv` is the text of the file, with `\n` at the
# ends of lines. The columns `Eval Task` and `Random baseline` are found by their names; others may stand anywhere
# between. It may have tasks that were not evaluated: they do not count. Returns `(centred, core)`: centred accuracy by
# task, for the tasks of `accuracies`, and CORE. Raises `KeyError` for a task without a baseline.


# %% hole="core_metric"
def core_metric(accuracies: dict[str, float], baselines_csv: str) -> tuple[dict[str, float], float]:
    """Centred accuracy by task, and their mean, the CORE metric.

    `baselines_csv` has the columns "Eval Task" and "Random baseline" (a percentage), among others. Raises KeyError for
    a task that is not in it.
    """
    ### BEGIN SOLUTION
    rows = csv.DictReader(io.StringIO(baselines_csv))
    baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
    centred = {task: (accuracy - baselines[task]) / (1 - baselines[task]) for task, accuracy in accuracies.items()}
    return centred, sum(centred.values()) / len(centred)
    ### END SOLUTION


# %% given="check-core_metric"
def core(accuracies: dict[str, float], baselines_csv: str) -> dict:
    """Your centred accuracies and CORE."""
    centred, metric = core_metric(dict(accuracies), baselines_csv)
    return {"centred": centred, "CORE": metric}


with check("core_metric"):
    close = Tolerance(rtol=1e-9, atol=1e-12)
    file = 'Eval Task,Task Category,Random baseline\nfour options,"reading, short",25\ntwo options,symbols,50.0\n'
    file += "written,world knowledge,0\nnever run,symbols,10\n"
    expect(
        core,
        ({"four options": 0.4, "two options": 0.45, "written": 0.2}, file),
        {"centred": {"four options": 0.2, "two options": -0.1, "written": 0.2}, "CORE": 0.1},
        "(accuracy - baseline) / (1 - baseline), a percentage made a probability; the mean over the tasks evaluated",
        close,
    )
    expect(core, ({"two options": 0.5}, file), {"centred": {"two options": 0.0}, "CORE": 0.0}, "guessing is 0", close)
    expect(core, ({"four options": 1.0}, file), {"centred": {"four options": 1.0}, "CORE": 1.0}, "perfect is 1", close)
    turned = 'Random baseline,Shots,Eval Task\n20.0,10,"a, b"\n37.5,5,c\n'
    by_name = "columns are found by their names, and a quoted field may have a comma"
    expect(
        core, ({"c": 0.25, "a, b": 0.6}, turned), {"centred": {"c": -0.2, "a, b": 0.5}, "CORE": 0.15}, by_name, close
    )
    expect(core, ({"written": 0.5, "unheard of": 0.5}, file), KeyError, "a task without a baseline")

# %% graded="core_metric"
# 10 points. The hidden tests are more of the same, with other tasks; `--verify` runs them.
check.visible("core_metric")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("06_evaluator", "core_metric", core)
### END HIDDEN TESTS


# %% given="draw-core"
def draw_core(axis: Axes, accuracies: dict, baselines: dict, centred: dict, metric: float) -> None:
    """Accuracy over its baseline and centred accuracy for each task, CORE as a dashed line."""
    places = range(len(accuracies))
    axis.bar([x - 0.2 for x in places], accuracies.values(), 0.38, color=SKY, edgecolor=GREY, label="accuracy")
    bars = axis.bar([x + 0.2 for x in places], centred.values(), 0.38, color=ORANGE, edgecolor=GREY, label="centred")
    for bar in bars:
        bar.set_hatch("//")
    for x, task in zip(places, accuracies, strict=True):
        label = "baseline" if x == 0 else None
        axis.plot([x - 0.4, x - 0.01], [baselines[task]] * 2, color=BLACK, linewidth=2.5, label=label)
    axis.axhline(metric, color=BLUE, linestyle="--", label=f"CORE {metric:.3f}")
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set(xticks=places, ylabel="accuracy", ylim=(min(0, *centred.values(), metric) - 0.05, 1.05))
    axis.set_xticklabels(accuracies, fontsize=8)
    axis.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))


# %% given="plot-core_metric" tags=["plot"]
with picture(
    "A model that guesses on four options and knows a little elsewhere",
    alt="Four tasks with two bars each, accuracy and centred accuracy; the guessed task's centred bar has no height.",
    size=(7.5, 3.2),
) as p:
    accuracies = {"four options": 0.25, "two options": 0.7, "ten options": 0.28, "written": 0.2}
    percentages = {"four options": 25, "two options": 50, "ten options": 10, "written": 0}
    rows = "".join(f"{task},,{percentage}\n" for task, percentage in percentages.items())
    centred, metric = core_metric(accuracies, f"Eval Task,Task Category,Random baseline\n{rows}")
    draw_core(p.axes[0], accuracies, {task: value / 100 for task, value in percentages.items()}, centred, metric)
    plain = sum(accuracies.values()) / len(accuracies)
    p.caption = f"Mean accuracy {plain:.3f}, CORE {metric:.3f}."

# %% [markdown]
# ## All of it in one piece
#
# This cell puts your eight parts together. There is nothing to fill in. `evaluate_core` takes a folder laid out like
# nanochat's evaluation bundle and returns what nanochat's function of that name returns.


# %% given="core-evaluator"
class CORE_Evaluator:
    """Evaluates a model on in-context tasks. Made of your parts.

    A `task_meta` is a dict of task_type, num_fewshot and continuation_delimiter. With several ranks, each has an
    evaluator of its own and they all call the same methods.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device | str = "cpu",
        *,
        max_batch_tokens: int = 1024,
        rank: int = 0,
        world_size: int = 1,
        all_reduce: Callable[[torch.Tensor], None] = lambda tensor: None,
    ) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.max_batch_tokens = max_batch_tokens
        self.rank, self.world_size, self.all_reduce = rank, world_size, all_reduce

    def options(self, idx: int, data: list, task_meta: dict) -> tuple[list[list[int]], list[int], list[int]]:
        """The options of item `idx` as the model reads them, with their spans."""
        shots = [data[i] for i in choose_fewshot(idx, len(data), task_meta["num_fewshot"])]
        task_type = task_meta["task_type"]
        prompts = render_prompts(task_type, data[idx], task_meta["continuation_delimiter"], shots)
        found = answer_spans(task_type, prompts, self.tokenizer)
        return crop_to_context(*found, getattr(self.model, "max_seq_len", None))

    @torch.no_grad()
    def score(self, indices: list[int], data: list, task_meta: dict) -> list[list[tuple[float, bool]]]:
        """(mean_loss, is_greedy) of every option of every one of these items."""
        of_item = [list(zip(*self.options(idx, data, task_meta), strict=True)) for idx in indices]
        flat = [option for options in of_item for option in options]
        scores: dict[int, tuple[float, bool]] = {}
        sequences = [sequence for sequence, _, _ in flat]
        for rows, input_ids in batch_options(sequences, self.max_batch_tokens, self.tokenizer.get_bos_token_id()):
            input_ids = input_ids.to(self.device)
            starts, ends = [flat[i][1] for i in rows], [flat[i][2] for i in rows]
            scores |= zip(rows, score_options(self.model(input_ids), input_ids, starts, ends), strict=True)
        in_order = iter(range(len(flat)))
        return [[scores[next(in_order)] for _ in options] for options in of_item]

    def verdicts(self, indices: list[int], data: list, task_meta: dict) -> list[bool]:
        """Whether the model gets each of these items right."""
        scores = self.score(indices, data, task_meta)
        kind = task_meta["task_type"]
        return [is_right(kind, own, data[idx].get("gold")) for idx, own in zip(indices, scores, strict=True)]

    def evaluate_task(self, data: list, task_meta: dict) -> float:
        """Accuracy over `data`, the same on all ranks."""
        evaluate = partial(self.verdicts, data=data, task_meta=task_meta)
        return reduce_accuracy(evaluate, len(data), self.rank, self.world_size, self.all_reduce, self.device)

    def evaluate_core(self, bundle: Path, max_per_task: int = -1) -> dict[str, Any]:
        """All tasks of a bundle: {"results", "centered_results", "core_metric"}."""
        tasks = read_bundle(bundle, max_per_task)
        results = {label: self.evaluate_task(data, task_meta) for label, (data, task_meta) in tasks.items()}
        centred, metric = core_metric(results, (bundle / "eval_meta_data.csv").read_text())
        return {"results": results, "centered_results": centred, "core_metric": metric}


def read_bundle(bundle: Path, max_per_task: int = -1) -> dict[str, tuple[list, dict]]:
    """(data, task_meta) by task. Files are sorted by topic or answer, so items are shuffled, always in the same way."""
    import yaml

    tasks = {}
    for task in yaml.safe_load((bundle / "core.yaml").read_text())["icl_tasks"]:
        data = [json.loads(line) for line in (bundle / "eval_data" / task["dataset_uri"]).open(encoding="utf-8")]
        random.Random(1337).shuffle(data)
        task_meta = {
            "task_type": task["icl_task_type"],
            "num_fewshot": task["num_fewshot"][0],
            "continuation_delimiter": task.get("continuation_delimiter", " "),
        }
        tasks[task["label"]] = (data[:max_per_task] if max_per_task > 0 else data, task_meta)
    return tasks


# %% [markdown]
# ## On real data: what does the shipped base model know?
#
# nanochat ships a small model that has read about a toy world: who lives where, which animal sleeps in what. The
# world's evaluation bundle has a task of each type about facts that stand in those texts: pick the right value among
# four (`toy_choice`), say which of two subjects a value belongs to (`toy_schema`), write the value (`toy_recall`). Each
# with two shots.
#
# A second bundle is of **another world**: the same names and the same questions, but other facts, which the model has
# never read. What it scores there is what the format alone is worth.

# %% given="toy-bundles" tags=["oracle"]
from nanochat import toyworld

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
toy_folder = TemporaryDirectory()
WORLDS = {"the world it has read about": 0, "another world": 1}
BUNDLES = {name: Path(toy_folder.name, str(seed), "eval_bundle") for name, seed in WORLDS.items()}
tasks: dict[str, dict] = {}
with attempt("The bundles of two toy worlds"):
    for name, seed in WORLDS.items():
        toyworld.write_world(BUNDLES[name].parent, seed)
        tasks[name] = read_bundle(BUNDLES[name])
    for label, (data, task_meta) in tasks["another world"].items():
        print(f"{label}: {len(data)} items, {task_meta['task_type']}, {task_meta['num_fewshot']} shots")
with attempt("A prompt of each task"):
    for data, task_meta in tasks["the world it has read about"].values():
        shots = [data[i] for i in choose_fewshot(0, len(data), task_meta["num_fewshot"])]
        prompts = render_prompts(task_meta["task_type"], data[0], task_meta["continuation_delimiter"], shots)
        print(repr(prompts[-1]))
with attempt("The shipped base model"):
    model, tokenizer, _ = toyworld.load_toy("base", DEVICE)
    evaluator = CORE_Evaluator(model, tokenizer, DEVICE)

# %% [markdown]
# **Loss by token and option.** One item of each task, as the model sees it, and one about the other world. Dark boxes
# surprise it. In the schema the same tokens are scored twice, after different contexts: see which of them makes the
# difference, and how much the mean makes of it.


# %% given="plot-losses" tags=["plot", "oracle"]
def look_into(world: str, label: str, idx: int, axes: list[Axes]) -> tuple[list[float], str]:
    """Draw the losses of an item's options, token by token, and their means; returns the means and the verdict."""
    data, task_meta = tasks[world][label]
    pieces, losses, starts, means = [], [], [], []
    for sequence, start, end in zip(*evaluator.options(idx, data, task_meta), strict=True):
        input_ids = torch.tensor([sequence], device=DEVICE)
        with torch.no_grad():
            logits = model(input_ids)
        first = max(0, min(start - 5, len(sequence) - 10))  # the last few tokens of the context are enough
        pieces.append([tokenizer.decode([t]).replace(" ", "␣").replace("\n", "⏎") for t in sequence[first:end]])
        losses.append(token_losses(logits, input_ids, 0, start, end))
        starts.append(start - first)
        means.append(score_options(logits, input_ids, [start], [end])[0][0])
    names = [f"option {i}" for i in range(len(means))]
    draw_losses(axes[0], names, pieces, losses, starts)
    axes[0].set_title(f"{label}, {world}: loss of each token (nats)", fontsize=9)
    draw_options(axes[1], names, means, data[idx].get("gold", 0))
    return means, "right" if evaluator.verdicts([idx], data, task_meta)[0] else "wrong"


with picture(
    "The shipped base model on four items",
    alt="Four rows of panels: options as boxes of tokens with losses, and beside them a bar for each option's mean.",
    rows=4,
    columns=2,
    size=(12.0, 8.4),
) as p:
    home, abroad = WORLDS
    data, task_meta = tasks[abroad]["toy_choice"]
    wrong = [idx for idx, right in enumerate(evaluator.verdicts(list(range(len(data))), data, task_meta)) if not right]
    looked_at = [(home, label, 3) for label in tasks[home]] + [(abroad, "toy_choice", wrong[0] if wrong else 0)]
    told = []
    for place, item in enumerate(looked_at):
        means, verdict_on_it = look_into(*item, p.axes[2 * place : 2 * place + 2])
        told.append(f"{item[1]} {[round(mean, 2) for mean in means]} {verdict_on_it}")
    p.caption = "; ".join(told) + "."

# %% [markdown]
# **All items, beside nanochat's.** First every score of every option, then the verdicts, the accuracies and CORE.

# %% given="beside-nanochat" tags=["oracle"]
from unittest.mock import patch

import nanochat.base_eval
from nanochat import core_eval


def compare_task(data: list, task_meta: dict) -> str:
    """Your scores and verdicts on all items of a task beside nanochat's, in words."""
    kept: list[list] = []
    score = core_eval._score

    def record(*arguments: Any) -> list:
        kept.append(score(*arguments))
        return kept[-1]

    indices = list(range(len(data)))
    with patch.object(core_eval, "_score", record):
        theirs = core_eval.evaluate_examples(indices, model, tokenizer, data, DEVICE, task_meta)
    by_item = evaluator.score(indices, data, task_meta)
    pairs = list(zip((own for scores in by_item for own in scores), kept[0], strict=True))
    apart = max(abs(loss - other.mean_loss) for (loss, _), other in pairs)
    greedy = sum(mark == other.is_greedy for (_, mark), other in pairs)
    verdicts = [
        is_right(task_meta["task_type"], scores, item.get("gold")) for scores, item in zip(by_item, data, strict=True)
    ]
    same = sum(yours == other for yours, other in zip(verdicts, theirs, strict=True))
    return (
        f"mean losses of {len(pairs)} options at most {apart:.1g} nats apart, {greedy} greedy marks and "
        f"{same} of {len(data)} verdicts the same"
    )


measured: dict[str, dict] = {}
with attempt("Your evaluator beside nanochat's"):
    for name, bundle in BUNDLES.items():
        print(name)
        for label, (data, task_meta) in tasks[name].items():
            print(f"  {label}: {compare_task(data, task_meta)}")
        measured[name] = evaluator.evaluate_core(bundle)
        with patch.dict(os.environ, NANOCHAT_BASE_DIR=str(bundle.parent)):
            theirs = nanochat.base_eval.evaluate_core(model, tokenizer, DEVICE)
        for label, accuracy in measured[name]["results"].items():
            print(f"  {label}: accuracy {accuracy:.4f}, nanochat's {theirs['results'][label]:.4f}")
        print(f"  CORE {measured[name]['core_metric']:.6f}, nanochat's {theirs['core_metric']:.6f}")

# %% given="plot-core" tags=["plot", "oracle"]
with picture(
    "CORE by task: the shipped base model",
    alt="Two panels of three tasks with two bars each. Left: all bars high. Right: accuracies at their baselines.",
    columns=2,
    size=(11.0, 3.6),
) as p:
    baselines = {"toy_choice": 0.25, "toy_schema": 0.5, "toy_recall": 0.0}
    told = []
    for axis, (name, bundle) in zip(p.axes, BUNDLES.items(), strict=True):
        yours = measured.get(name) or evaluator.evaluate_core(bundle)
        draw_core(axis, yours["results"], baselines, yours["centered_results"], yours["core_metric"])
        axis.set_title(name, fontsize=10)
        told.append(f"{name} {yours['core_metric']:.3f}")
    p.caption = f"CORE: {', '.join(told)}."

# %% [markdown]
# CORE of the other world need not be exactly 0: with 30 items, luck alone moves a centred accuracy by about 0.1. It may
# well be below: the model does not guess there, it is sure of facts that hold elsewhere.
#
# **On two real processes.** Two ranks share the items of the three tasks, each with an evaluator of yours, and must come
# to the number of one.

# %% given="core-on-two-processes" tags=["oracle"]
with attempt("Your evaluator on two real processes"):
    on_cpu = model.cpu()
    bundle = BUNDLES["another world"]

    def evaluate_share(rank: int, all_reduce: Callable) -> dict:
        """One rank's evaluation."""
        own = CORE_Evaluator(on_cpu, tokenizer, "cpu", rank=rank, world_size=2, all_reduce=all_reduce)
        return own.evaluate_core(bundle, 25)

    for rank, (process_id, told) in enumerate(on_two_processes(evaluate_share)):
        said = f"CORE {told['core_metric']:.6f}" if isinstance(told, dict) else told
        print(f"rank {rank} of two, process {process_id}: {len(range(rank, 25, 2))} items a task, {said}")
    alone = CORE_Evaluator(on_cpu, tokenizer).evaluate_core(bundle, 25)
    print(f"one rank, this process: 25 items a task, CORE {alone['core_metric']:.6f}")
    model.to(DEVICE)

# %% [markdown]
# ## What you have built
#
# nanochat's command for evaluating a base model asks for a function `evaluate_core(model, tokenizer, device,
# max_per_task)`. Here it gets your evaluator: same command, same flags, your code behind it.

# %% given="what-you-have-built" tags=["oracle"]
from nanochat.scripts import base_eval


def evaluate_core_by_you(model: Any, tokenizer: Any, device: Any, max_per_task: int = -1) -> dict:
    """nanochat's function, done by your evaluator."""
    bundle = Path(os.environ["NANOCHAT_BASE_DIR"], "eval_bundle")
    return CORE_Evaluator(model, tokenizer, device).evaluate_core(bundle, max_per_task)


with attempt("Your evaluator in nanochat's command"):
    base_dir = str(BUNDLES["another world"].parent)
    for whose, function in (("yours", evaluate_core_by_you), ("nanochat's", nanochat.base_eval.evaluate_core)):
        print(f"base_eval --toy --eval core, in another world, with {whose}:")
        with patch.dict(os.environ, NANOCHAT_BASE_DIR=base_dir), patch.object(base_eval, "evaluate_core", function):
            base_eval.main(["--toy", "--eval", "core"])
toy_folder.cleanup()

# %% [markdown]
# ## In your own words
#
# In about ten sentences: (a) nanochat chooses by the mean loss a *token*. Two models with different tokenizers are
# compared on a multiple-choice task; in what way can the tokenizer alone change which option is chosen, and what would
# you divide by instead of the number of tokens? (b) A change lifts CORE from 0.200 to 0.215. Each of 22 tasks was run on
# 500 items. Estimate the standard error of CORE, with accuracy around 0.5 and baseline 0.25 everywhere, and say whether
# you would believe the change; what is special about both models having been asked the same items? (c) You may run
# each item with 0 or with 10 shots. Which of the two tells you more about a base model of 20 layers and why, and what
# does `max_seq_len` do to the other?

# %% [markdown] written="what_the_number_says"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) The mean is over tokens, so the same text with the same total loss has a different mean if it is cut into another
# number of tokens. A rare word that one tokenizer spells in five pieces has four pieces that are nearly certain once
# the first is there, and these pull its mean down; as a single token it would carry the whole loss. Dividing by the
# number of bytes (or characters) of the answer does not depend on the tokenizer. (The sum does not either, but favours
# short answers. The loss relative to that of the answer without its question is right too.)
#
# (b) One task: sqrt(0.5 · 0.5 / 500) = 0.0224 of accuracy, divided by 1 − 0.25: 0.0298 centred. The mean of 22
# independent tasks: 0.0298 / sqrt(22) = 0.0064. A difference of two independent runs has sqrt(2) times that, 0.009, so
# 0.015 is 1.7 standard errors: a hint, no proof. As both were asked the same items, with the same shots, their errors
# go together: only items on which the two differ add noise, so the error of the difference is smaller than that. It
# can be estimated from the pairs of verdicts (or by resampling items).
#
# (c) Ten shots: a base model has to be told the format, and with 0 shots one measures mostly whether it guesses it. A
# small model gains from the pattern, also in tasks it then still gets wrong. (An argument for 0 shots: it is cheaper
# and shows what instruction tuning would need; full marks if it is argued.) Ten long shots can exceed `max_seq_len`:
# then the first ones are cut, perhaps in the middle of one, so that the model sees fewer shots than the table says.
# ### END SOLUTION
