"""Judges of `render_conversation` and `render_for_completion`, against nanochat.rendering, on a tokenizer of words."""

import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import rendering
from puzzles.words import SPECIAL_TOKENS, WordTokenizer

WORDS = ("ada", "bimble", "12", "*", "lives", "in", "?", "\n", "<|user_end|>", "é", "print(3)", "  ")
KINDS = tuple(rendering.PARTS)
Render = Callable[[Any, Any, int], tuple[list[int], list[int]]]


def some_text(rng: Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 5)))


def some_parts(rng: Random) -> list[dict[str, str]]:
    return [{"type": rng.choice(KINDS), "text": some_text(rng)} for _ in range(rng.randint(0, 5))]


def said(*contents: Any, system: Any = None) -> dict[str, Any]:
    """A conversation: user and assistant in turn, after a system message if there is one."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, *({"role": "ua"[i % 2], "content": text} for i, text in enumerate(contents))]}


def some_conversation(rng: Random, turns: int) -> dict[str, Any]:
    contents = [some_text(rng) if i % 2 == 0 or rng.random() < 0.3 else some_parts(rng) for i in range(turns)]
    return said(*contents, system=some_text(rng) if rng.random() < 0.5 else None)


def with_roles(conversation: dict[str, Any]) -> dict[str, Any]:
    names = {"u": "user", "a": "assistant"}
    return {"messages": [{**m, "role": names.get(m["role"], m["role"])} for m in conversation["messages"]]}


def some_special(rng: Random) -> tuple[list[int], int]:
    """Ids of the special tokens, in any order, and of the first word."""
    special = rng.sample(range(100), len(SPECIAL_TOKENS))
    return special, rng.choice([100, 5000])


# render_conversation


def part(kind: str, text: str) -> dict[str, str]:
    return {"type": kind, "text": text}


def conversations(rng: Random) -> list[Case]:
    usual = list(range(9)), 1000
    fixed = [
        said(""),
        said("a b"),
        said("a", "b"),
        said("a", "b", "c", "d", "e"),
        said("a", "b", system=""),
        said("a", "b", "c", system="s t"),
        said("\n a", "b", system="s\n"),
        *(said("a", [part(kind, "x y")]) for kind in KINDS),
        said("a", [part("python", "")]),
        said("a", [part("text", "ab"), part("text", "cd"), part("python_output", "ef")], "g", [part("python", "h")]),
        said("<|assistant_end|>", "<|bos|>", system="<|user_end|>"),
    ]
    refused = [
        said(),
        said(system="s"),
        said("a", "b", system=[part("text", "s")]),
        said(["a"]),
        said([part("text", "a")], "b", system="s"),
        said("a", 5),
        said("a", {"b": "c"}),
        said("a", [part("text", "b"), part("thought", "c")]),
        said("a", "b", ["c"]),
    ]
    out_of_turn = [
        said("a", "b")["messages"][::-1],
        said("a")["messages"] * 2,
        [*said("a", "b")["messages"], *said("a", "b")["messages"][1:]],
        [*said(system="s")["messages"], *said("a", "b")["messages"][1:]],
        said(system="s")["messages"] * 2,
        [*said("a")["messages"], *said(system="s")["messages"]],
        [{"role": "tool", "content": "x"}],
    ]
    rows: list[tuple] = [(with_roles(each), *usual, 2048) for each in fixed]
    rows += [(with_roles({"messages": messages}), *usual, 2048) for messages in out_of_turn]
    rows += [(with_roles(each), *usual, 2048) for each in refused]
    rows += [(with_roles(fixed[3]), *usual, most) for most in (0, 1, 5, 100)]
    for _ in range(8):
        most = rng.choice([2048, rng.randint(1, 40)])
        rows.append((with_roles(some_conversation(rng, rng.randint(1, 6))), *some_special(rng), most))
    return asked("conversation special first max_tokens", *rows)


def rendered_by(render: Render = rendering.render_conversation) -> Callable[..., Case]:
    """What the graded cell reports of a rendering."""

    def report(conversation: Any, special: list[int], first: int, max_tokens: int) -> Case:
        conversation = deepcopy(conversation)  # a mistake may change it, and the exam goes on
        tokenizer = WordTokenizer(special, first)
        before = json.dumps(conversation)
        try:
            ids, mask = render(tokenizer, conversation, max_tokens)
        except (ValueError, IndexError) as error:
            raise ValueError(str(error)) from error
        return {"tokens": tokenizer.show(ids), "mask": mask, "unchanged": json.dumps(conversation) == before}

    return report


def masked(*changes: tuple[str, int]) -> Render:
    """nanochat's rendering, but these special tokens have this mask."""

    def render(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
        ids, mask = rendering.render_conversation(tokenizer, conversation, max_tokens)
        fixed = {tokenizer.encode_special(name): value for name, value in changes}
        return ids, [fixed.get(token, trained) for token, trained in zip(ids, mask, strict=True)]

    return render


def between(tag: str, value: int) -> Render:
    """nanochat's rendering, but this is the mask from the start to the end of parts with this tag."""

    def render(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
        ids, mask = rendering.render_conversation(tokenizer, conversation, max_tokens)
        start, end = (tokenizer.encode_special(f"<|{tag}_{edge}|>") for edge in ("start", "end"))
        inside = False
        for i, token in enumerate(ids):
            inside = inside or token == start
            mask[i] = value if inside else mask[i]
            inside = inside and token != end
        return ids, mask

    return render


def without(*names: str) -> Render:
    """nanochat's rendering less these special tokens."""

    def render(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
        ids, mask = rendering.render_conversation(tokenizer, conversation, 2**30)
        dropped = {tokenizer.encode_special(name) for name in names}
        kept = [(token, trained) for token, trained in zip(ids, mask, strict=True) if token not in dropped]
        return [token for token, _ in kept][:max_tokens], [trained for _, trained in kept][:max_tokens]

    return render


def with_system(change: Callable[[str, str], str | None]) -> Render:
    """nanochat's rendering of a conversation whose first user message is `change` of system and user message."""

    def render(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
        messages = conversation["messages"]
        ids, mask = rendering.render_conversation(tokenizer, conversation, max_tokens)
        if messages[0]["role"] != "system":
            return ids, mask
        text = change(messages[0]["content"], messages[1]["content"])
        fresh = {"messages": [{"role": "user", "content": text}, *messages[2:]]}
        return rendering.render_conversation(tokenizer, fresh, max_tokens)

    return render


def changing(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
    """The system message is merged in the caller's own conversation."""
    answer = rendering.render_conversation(tokenizer, deepcopy(conversation), max_tokens)
    conversation["messages"][:] = rendering._turns(conversation["messages"])
    return answer


def long_mask(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
    ids, mask = rendering.render_conversation(tokenizer, conversation, 2**30)
    return ids[:max_tokens], mask


def uncut(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
    return rendering.render_conversation(tokenizer, conversation, 2**30)


def from_the_end(tokenizer: Any, conversation: Any, max_tokens: int) -> tuple[list[int], list[int]]:
    ids, mask = rendering.render_conversation(tokenizer, conversation, 2**30)
    first = max(0, len(ids) - max_tokens)
    return ids[first:], mask[first:]


RENDER_CONVERSATION = Judge(
    conversations,
    rendered_by(),
    mistakes={
        "<|assistant_start|> is trained on; the engine puts it there": rendered_by(masked(("<|assistant_start|>", 1))),
        "<|assistant_end|> is not trained on, and the model will never stop": (
            rendered_by(masked(("<|assistant_end|>", 0)))
        ),
        "BOS is trained on": rendered_by(masked(("<|bos|>", 1))),
        "the calculator's output is trained on; the engine puts it there": (rendered_by(between("output", 1))),
        "Python calls are not trained on; the model has to write them itself": (rendered_by(between("python", 0))),
        "<|python_start|> and <|python_end|> are not trained on; the model decides about calls": (
            rendered_by(masked(("<|python_start|>", 0), ("<|python_end|>", 0)))
        ),
        "parts of Python have no special tokens around them": rendered_by(
            without("<|python_start|>", "<|python_end|>")
        ),
        "the output has no special tokens around it": rendered_by(without("<|output_start|>", "<|output_end|>")),
        "the system message is dropped": rendered_by(with_system(lambda system, user: user)),
        "one newline stands between system and user message; it is an empty line, two newlines": (
            rendered_by(with_system(lambda system, user: f"{system}\n{user}"))
        ),
        "the conversation is changed; merge the system message in a copy": rendered_by(changing),
        "the mask is not cut to max_tokens": rendered_by(long_mask),
        "nothing is cut to max_tokens": rendered_by(uncut),
        "the end is kept where the beginning should be": rendered_by(from_the_end),
    },
)


# render_for_completion


def prompts(rng: Random) -> list[Case]:
    usual = list(range(9))
    fixed = [
        said("a", "b"),
        said("a b", [part("python", "1+1"), part("python_output", "2")]),
        said("a", "b", "c", "d"),
        said("a", "b", system="s"),
        said(),
        said("a"),
        said("a", "b", "c"),
        said("a", system="s"),
    ]
    rows: list[tuple] = [(with_roles(each), usual) for each in fixed]
    rows.append((with_roles(fixed[0]) | {"split": "test"}, usual))
    drawn = (some_conversation(rng, 2 * rng.randint(1, 3)) for _ in range(6))
    rows += [(with_roles(each), some_special(rng)[0]) for each in drawn]
    return asked("conversation special", *rows)


Complete = Callable[[Any, Any, Callable], list[int]]


def nanochats(tokenizer: Any, conversation: Any, render: Callable) -> list[int]:
    """nanochat's prompt, in which what `render` makes of the conversation stands for what nanochat makes of it."""
    prompt = rendering.render_for_completion(tokenizer, conversation)
    before = {"messages": conversation["messages"][:-1]}
    ids, _ = rendering.render_conversation(tokenizer, before)
    return [*render(before)[0], *prompt[len(ids) :]]


def prompted_by(complete: Complete = nanochats) -> Callable[..., Case]:
    """What the graded cell reports of a prompt."""

    def report(conversation: Any, special: list[int]) -> Case:
        conversation = deepcopy(conversation)
        tokenizer = WordTokenizer(special, 1000)
        before = json.dumps(conversation)
        asked_for: list = []
        kept: list = []

        def render(given: Any) -> tuple[list[int], list[int]]:
            asked_for.append([[message["role"], message["content"]] for message in given["messages"]])
            text = "".join(f"[{message['role'][0]}]{message['content']}" for message in given["messages"])
            kept.append(tokenizer.encode(text))
            return kept[-1], [0] * len(kept[-1])

        try:
            ids = complete(tokenizer, conversation, render)
        except (ValueError, IndexError) as error:
            raise ValueError(str(error)) from error
        return {
            "tokens": tokenizer.show(ids),
            "asked": asked_for,
            "unchanged": json.dumps(conversation) == before,
            "list unchanged": all(each not in kept[0] for each in special),
        }

    return report


def nothing_left_out(tokenizer: Any, conversation: Any, render: Callable) -> list[int]:
    nanochats(tokenizer, conversation, lambda given: ([], []))
    return [*render(conversation)[0], tokenizer.encode_special("<|assistant_start|>")]


def not_handed_over(tokenizer: Any, conversation: Any, render: Callable) -> list[int]:
    return nanochats(tokenizer, conversation, render)[:-1]


def popped(tokenizer: Any, conversation: Any, render: Callable) -> list[int]:
    answer = nanochats(tokenizer, conversation, render)
    conversation["messages"].pop()
    return answer


def appended(tokenizer: Any, conversation: Any, render: Callable) -> list[int]:
    kept: list = []

    def keeping(given: Any) -> tuple[list[int], list[int]]:
        kept.append(render(given))
        return kept[0]

    nanochats(tokenizer, conversation, keeping)
    kept[0][0].append(tokenizer.encode_special("<|assistant_start|>"))
    return kept[0][0]


def ended(tokenizer: Any, conversation: Any, render: Callable) -> list[int]:
    return [*nanochats(tokenizer, conversation, render)[:-1], tokenizer.encode_special("<|assistant_end|>")]


RENDER_FOR_COMPLETION = Judge(
    prompts,
    prompted_by(),
    mistakes={
        "the last message is left in the prompt": prompted_by(nothing_left_out),
        "<|assistant_start|> is missing: the turn is not handed over": prompted_by(not_handed_over),
        "the turn is handed over with <|assistant_start|>, not <|assistant_end|>": prompted_by(ended),
        "the last message is taken out of the caller's conversation": prompted_by(popped),
        "the list that `render` returned is changed": prompted_by(appended),
    },
)
