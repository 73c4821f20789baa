"""Judges of `choose_fewshot` and `render_prompts`: which examples are shown, and what the model reads."""

import html
import random
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import core_eval

# few-shot examples


def fewshot_cases(rng: Random) -> list[Case]:
    fixed = [(0, 1, 0), (0, 2, 1), (1, 2, 1), (4, 5, 4), (2, 7, 3), (0, 9, 2), (3, 4, 4), (0, 1, 1), (5, 6, 9)]
    drawn = []
    for _ in range(8):
        num_items = rng.randint(5, 400)
        drawn.append((rng.randrange(num_items), num_items, rng.randint(1, min(12, num_items - 1))))
    return asked("idx num_items num_fewshot", *fixed, *drawn)


def shown_by(choose: Callable[[int, int, int], list[int]], untouched: bool = True) -> Callable[..., Case]:
    """What the graded cell reports of a way to choose."""

    def shown(idx: int, num_items: int, num_fewshot: int) -> Case:
        return {"shown": choose(idx, num_items, num_fewshot), "global generator untouched": untouched}

    return shown


def seeded_with(seed: Callable[[int], int]) -> Callable[..., Case]:
    def choose(idx: int, num_items: int, num_fewshot: int) -> list[int]:
        others = [i for i in range(num_items) if i != idx]
        return random.Random(seed(idx)).sample(others, num_fewshot)

    return shown_by(choose)


def among_all(idx: int, num_items: int, num_fewshot: int) -> list[int]:
    return random.Random(1234 + idx).sample(range(num_items), num_fewshot)


def as_many_as_there_are(idx: int, num_items: int, num_fewshot: int) -> list[int]:
    return core_eval.choose_fewshot(idx, num_items, min(num_fewshot, num_items - 1))


CHOOSE_FEWSHOT = Judge(
    fewshot_cases,
    shown_by(core_eval.choose_fewshot),
    mistakes={
        "the module's generator is seeded; a random.Random of your own leaves it alone": (
            shown_by(core_eval.choose_fewshot, untouched=False)
        ),
        "examples are drawn among all items; the one asked must not be among them": shown_by(among_all),
        "the seed is the same for every item; it is 1234 plus the item's index": seeded_with(lambda idx: 1234),
        "the seed is the item's index alone; it is 1234 plus the index": seeded_with(lambda idx: idx),
        "the examples are sorted; they are shown in the order in which they are drawn": (
            shown_by(lambda *case: sorted(core_eval.choose_fewshot(*case)))
        ),
        "where there are too few other items, fewer are shown; it must raise ValueError": shown_by(
            as_many_as_there_are
        ),
    },
)

# prompts

TEXTS = ("bird", " fish", "lamp ", "{{ query }}", "<b>&amp;", "a\nb", "café", "{% raw %}", "'x' & \"y\"", "two words")
DELIMITERS = (" ", "\nAnswer: ", ": ", "\n", "")


def text_of(rng: Random, loose: bool = True) -> str:
    """Some words, now and then with white space around them."""
    inside = "".join(rng.choice(TEXTS) for _ in range(rng.randint(1, 3))).strip()
    around = ("", "", " ", "\n", "  ", "\t") if loose else ("",)
    return rng.choice(around) + inside + rng.choice(around)


def item_of(rng: Random, task_type: str) -> dict[str, Any]:
    if task_type == "language_modeling":
        return {"context": text_of(rng), "continuation": text_of(rng)}
    options = [text_of(rng) for _ in range(rng.randint(2, 5))]
    gold = rng.randrange(len(options))
    if task_type == "schema":
        return {"context_options": options, "continuation": text_of(rng), "gold": gold}
    return {"query": text_of(rng), "choices": options, "gold": gold}


def prompt_cases(rng: Random) -> list[Case]:
    plain: dict[str, list[dict[str, Any]]] = {
        "multiple_choice": [
            {"query": "One and one are", "choices": ["three", "two", "one"], "gold": 1},
            {"query": "Ice is", "choices": ["cold", "hot"], "gold": 0},
            {"query": " {{ choices }} ", "choices": [" <i> ", "{# no #}", "&\n"], "gold": 2},
        ],
        "schema": [
            {"context_options": ["He fell as he", "He fell as she"], "continuation": "slipped.", "gold": 0},
            {"context_options": ["It sank since it", "It sank since air"], "continuation": "was iron", "gold": 1},
            {"context_options": [" a ", "{{ b }}", "c\n"], "continuation": " <d>\n", "gold": 1},
        ],
        "language_modeling": [
            {"context": "Ice melts in the", "continuation": "sun"},
            {"context": "  A day has hours \n", "continuation": "24"},
            {"context": "\t{{ x }} & <y>", "continuation": " z \n"},
        ],
    }
    cases: list[tuple] = []
    for task_type, items in plain.items():
        cases += [(task_type, items[0], " ", []), (task_type, items[1], " ", [items[0]])]
        cases += [(task_type, items[0], "\nA: ", [items[2], items[1]]), (task_type, items[2], " ", items[1:])]
        cases += [(task_type, items[2], "", [items[2]])]
        for field in items[0]:
            lacking = {name: value for name, value in items[1].items() if name != field}
            if field != "gold":
                cases.append((task_type, lacking, " ", [items[0]]))
            cases.append((task_type, items[0], " ", [items[2], lacking]))
        for _ in range(6):
            shots = [item_of(rng, task_type) for _ in range(rng.randint(0, 4))]
            cases.append((task_type, item_of(rng, task_type), rng.choice(DELIMITERS), shots))
    cases += [("perplexity", plain["schema"][0], " ", []), ("", plain["schema"][1], " ", [])]
    return asked("task_type item delimiter shots", *cases)


Render = Callable[[str, dict[str, Any], str, Sequence[dict[str, Any]]], list[str]]


def nanochat_prompts(task_type: str, item: dict, delimiter: str, shots: Sequence[dict]) -> list[str]:
    if task_type not in core_eval.TASK_TYPES:
        raise ValueError(task_type)
    return core_eval.TASK_TYPES[task_type][0](item, delimiter, shots)


def prompts_by(render: Render = nanochat_prompts) -> Callable[..., Any]:
    """What the graded cell reports of a way to render."""

    def prompts_of(task_type: str, item: dict, delimiter: str, shots: list[dict]) -> Any:
        try:
            return render(task_type, item, delimiter, shots)
        except KeyError:
            return "a field is missing"

    return prompts_of


def after(change: Callable[[list[str], str], list[str]]) -> Callable[..., Any]:
    """nanochat's prompts, changed afterwards, with the delimiter at hand."""
    return prompts_by(
        lambda kind, item, delimiter, shots: change(nanochat_prompts(kind, item, delimiter, shots), delimiter)
    )


def with_items(change: Callable[[str, dict], dict]) -> Callable[..., Any]:
    """nanochat's prompts of items and examples that were changed before."""
    return prompts_by(
        lambda kind, item, delimiter, shots: nanochat_prompts(
            kind, change(kind, item), delimiter, [change(kind, shot) for shot in shots]
        )
    )


def shots_changed(change: Callable[[str, dict], dict]) -> Callable[..., Any]:
    return prompts_by(
        lambda kind, item, delimiter, shots: nanochat_prompts(
            kind, item, delimiter, [change(kind, shot) for shot in shots]
        )
    )


def stripped(value: Any) -> Any:
    if isinstance(value, list):
        return [stripped(each) for each in value]
    return value.strip() if isinstance(value, str) else value


def contexts_kept(kind: str, item: dict, delimiter: str, shots: Sequence[dict]) -> list[str]:
    """Language modeling without stripping contexts: a schema with one context option does that."""
    if kind != "language_modeling":
        return nanochat_prompts(kind, item, delimiter, shots)

    def one_option(each: dict, end: str) -> dict:
        return {"context_options": [each["context"]], "continuation": end, "gold": 0}

    solved = [one_option(shot, shot["continuation"]) for shot in shots]
    ends = ("", item["continuation"])
    without, complete = (core_eval.render_prompts_schema(one_option(item, end), delimiter, solved)[0] for end in ends)
    return [without.strip(), complete]


def without_kept(kind: str, item: dict, delimiter: str, shots: Sequence[dict]) -> list[str]:
    """In language modeling the prompt without its continuation, not stripped."""
    prompts = nanochat_prompts(kind, item, delimiter, shots)
    if kind == "language_modeling":
        prompts[0] = prompts[1].removesuffix(item["continuation"])
    return prompts


RENDER_PROMPTS = Judge(
    prompt_cases,
    prompts_by(),
    mistakes={
        "the examples are left out": prompts_by(
            lambda kind, item, delimiter, _: nanochat_prompts(kind, item, delimiter, ())
        ),
        "the examples come in reverse order": prompts_by(
            lambda kind, item, delimiter, shots: nanochat_prompts(kind, item, delimiter, shots[::-1])
        ),
        "an example is solved with its first choice or context; it must be the gold one": shots_changed(
            lambda kind, shot: shot | {"gold": 0} if "gold" in shot else shot
        ),
        "blocks are separated by one newline; an empty line takes two": after(
            lambda prompts, _: [prompt.replace("\n\n", "\n") for prompt in prompts]
        ),
        "the delimiter is a space; it is the one given": prompts_by(
            lambda kind, item, delimiter, shots: nanochat_prompts(kind, item, " ", shots)
        ),
        "contexts are not stripped in language modeling; they must be, those of the examples too": (
            prompts_by(contexts_kept)
        ),
        "the prompt without the continuation is not stripped": prompts_by(without_kept),
        "both prompts of language modeling are stripped; only the one without the continuation is": prompts_by(
            lambda kind, *rest: [
                prompt.strip() if kind == "language_modeling" else prompt for prompt in nanochat_prompts(kind, *rest)
            ]
        ),
        "all fields are stripped; only contexts of language modeling are": with_items(
            lambda kind, item: {name: stripped(value) for name, value in item.items()}
        ),
        "special characters are escaped for HTML; a prompt is plain text": after(
            lambda prompts, _: [
                html.escape(prompt).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for prompt in prompts
            ]
        ),
    },
)
