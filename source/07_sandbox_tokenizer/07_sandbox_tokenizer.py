# %% [markdown]
# # Puzzle 7: The Sandbox and the Tokenizer
#
# **The two borders of a language model: text that comes in as tokens and must not turn into commands, and programs that
# go out to be run and must not get away.**
#
# ⭐⭐⭐⭐⭐ · about 200 minutes · 100 points in 7 parts · builds on nothing · runs on any CPU; parts 5 to 7 need
# Linux (a container, WSL or Colab will do)
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.07_sandbox_tokenizer` | runs your notebook and shows the visible checks |
# | `python -m puzzles.07_sandbox_tokenizer --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.07_sandbox_tokenizer --hint start` | gives hints for a part |
# | `python -m puzzles.07_sandbox_tokenizer --peek start` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# Between the model and everybody else there are two translations, and both are borders:
#
# - **Text in.** A chat is a list of messages; the model sees one row of numbers. Nine of these numbers are commands:
#   whose turn it is, what is a program, what is its result. If a user who types `<|assistant_end|>` gets that number,
#   he speaks with the assistant's voice. And the **mask** decides what the model learns to say. With it on everywhere,
#   the model is trained on the user's questions and on the calculator's answers as well: in the dialogue of part 3 that
#   is 14 of 28 tokens, half of the gradient, and it teaches the model to make results up.
# - **Programs out.** Whoever rewards a model for code that works has to run the code. HumanEval alone has 164 problems;
#   at 20 samples each that is 3,280 programs nobody has read, written by something that is rewarded for finding
#   shortcuts. Run by `exec`, one of them that ends in `while True` stops the evaluation, and one that calls
#   `shutil.rmtree` stops more than that.
#
# After this puzzle you can
# 1. train a byte-level BPE tokenizer and say what every one of its ids stands for, to the byte;
# 2. turn any text into tokens such that none of them is a command;
# 3. render a conversation with tools, and say of every token whether the model is trained on it;
# 4. run a program that nobody has read behind limits on memory, time, files, processes and output, and prove that
#    nothing of it is left;
# 5. say which attacks such a sandbox stops, by which layer, and which it does not.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other words and numbers. The parts do not depend on each other: stuck on one, go on with the
# next.

# %% given="imports"
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import rustbpe
import tiktoken
import torch
from matplotlib.patches import FancyBboxPatch

from nanochat import isolation
from nanochat.toyworld.documents import write_documents
from puzzles.checks import Checks, expect
from puzzles.plots import BLACK, BLUE, GREY, SKY, attempt, picture
from puzzles.witness import behind_walls, by_the_clock, played
from puzzles.words import WordTokenizer

check = Checks("07_sandbox_tokenizer")

# %% [markdown]
# ## Part 1 · Learning the words (10 points, 20 minutes)
#
# A byte-level tokenizer begins with 256 tokens, the bytes, so nothing can be written that it cannot read. Training
# looks for the pair of neighbours that is most frequent in a corpus, makes it a token of its own, and repeats. Frequent
# words end up as one token: shorter rows, fewer steps, more text in a context window. The price is the embedding table.
#
# Two libraries share the work. **rustbpe** (in Rust) learns: fast, and with nothing but learning in it. **tiktoken**
# (OpenAI's, also in Rust) serves: it encodes with a vocabulary that somebody else has learnt.
#
# ```
# trainer = rustbpe.Tokenizer()
# trainer.train_from_iterator(iterator_of_texts, vocab_size, pattern=...)   # 256 bytes and the merges
# trainer.get_mergeable_ranks()                                             # pairs (bytes of a token, its id)
# tiktoken.Encoding(name, pat_str=..., mergeable_ranks={bytes: id}, special_tokens={text: id})
# ```
#
# **The pattern** cuts text into word-like chunks before anything else, and merges never cross a chunk: `dog.` and
# `dog!` share a token for `dog`. nanochat's is GPT-4's, but for numbers, which are cut into two digits at a time.
#
# **The special tokens** are the nine commands of a chat. They are no text, so training knows nothing of them. They get
# the ids *after* all others, in the order of the list below.
#
# A corpus of `low lower lowest slow`, with `vocab_size` 269, has room for 4 merges:
#
# | ids | |
# |---|---|
# | 0 to 255 | the bytes |
# | 256 to 259 | `lo`, `low`, ` low`, ` lowe` |
# | 260 to 268 | `<\|bos\|>` to `<\|output_end\|>` |
#
# **Contract.** `texts` is any iterable of strings and is gone through once. `vocab_size` counts everything, the special
# tokens included; `ValueError` if bytes and special tokens do not fit. When a corpus has no pair left to merge, the
# vocabulary stays smaller than was asked for, *without* a gap: the special tokens come right after the last merge.
# Encode with the pattern that was trained with.

# %% given="vocabulary"
SPECIAL_TOKENS = [
    "<|bos|>",  # opens every document
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls Python
    "<|python_end|>",
    "<|output_start|>",  # what Python answered
    "<|output_end|>",
]
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


# %% hole="train_tokenizer"
def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """Learn a vocabulary of `vocab_size` tokens (fewer if there is nothing left to merge): bytes, merges, and then the
    SPECIAL_TOKENS, all numbered without a gap.

    Raises ValueError if there is no room for the 256 bytes and the special tokens.
    """
    ### BEGIN SOLUTION
    ordinary = vocab_size - len(SPECIAL_TOKENS)
    if ordinary < 256:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for 256 bytes and {len(SPECIAL_TOKENS)} commands")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), ordinary, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    special = {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding("nanochat", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    ### END SOLUTION


# %% given="check-train_tokenizer"
def token_text(encoding: tiktoken.Encoding, token_id: int) -> str | None:
    """The bytes of a token, each as a character; None if there is no token of this id."""
    try:
        return encoding.decode_single_token_bytes(token_id).decode("latin-1")
    except KeyError:
        return None


def learn(corpus: list[str], vocab_size: int, samples: list[str]) -> dict:
    """Your vocabulary of a corpus, which can be read once only: its size, its merges in order, the ids of the special
    tokens, and the samples, encoded and decoded again."""
    encoding = train_tokenizer((text for text in corpus), vocab_size)
    special = {name: encoding.encode_single_token(name) for name in SPECIAL_TOKENS}
    merges = range(256, encoding.n_vocab - len(SPECIAL_TOKENS))
    ids = [encoding.encode_ordinary(sample) for sample in samples]
    return {
        "size": encoding.n_vocab,
        "merges": [token_text(encoding, i) for i in merges],
        "special": special,
        "ids": ids,
        "texts": [encoding.decode(each) for each in ids],
    }


def commands_from(first: int) -> dict:
    """The special tokens, numbered from `first` on."""
    return dict(zip(SPECIAL_TOKENS, range(first, first + 9), strict=True))


with check("train_tokenizer"):
    low = ["low lower lowest slow"]
    pieces = [257, 259, 114, 259, 115, 116, 32, 115, 257]
    expect(
        learn,
        (low, 269, ["low lower lowest slow", "<|bos|>é"]),
        {
            "size": 269,
            "merges": ["lo", "low", " low", " lowe"],
            "special": commands_from(260),
            "ids": [pieces, [60, 124, 98, 111, 115, 124, 62, 195, 169]],
            "texts": ["low lower lowest slow", "<|bos|>é"],
        },
        "vocab_size counts the special tokens, which come after the merges; trained are the other tokens only",
    )
    expect(
        learn,
        (low, 500, []),
        {
            "size": 274,
            "merges": ["lo", "low", " low", " lowe", " s", "st", " lower", " lowest", " slow"],
            "special": commands_from(265),
            "ids": [],
            "texts": [],
        },
        "there are 9 merges to be learnt only, and the special tokens come right after the last one",
    )
    expect(
        learn,
        (["12345 12345 dog. dog! dog?"], 300, ["12345 dog."]),
        {
            "size": 270,
            "merges": [" d", "og", " dog", "12", "34"],
            "special": commands_from(261),
            "ids": [[259, 260, 53, 258, 46]],
            "texts": ["12345 dog."],
        },
        "SPLIT_PATTERN cuts texts both when a vocabulary is learnt and when it is used",
    )
    bare = {"size": 265, "merges": [], "special": commands_from(256), "ids": [[97]], "texts": ["a"]}
    expect(learn, (["abab"], 265, ["a"]), bare, "265 is enough, for no merge at all")
    expect(train_tokenizer, (low, 264), ValueError, "256 bytes and 9 special tokens are 265 tokens")

# %% graded="train_tokenizer"
# 10 points. The hidden tests are more of the same, with other texts and sizes; `--verify` runs them.
check.visible("train_tokenizer")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("07_sandbox_tokenizer", "train_tokenizer", learn)
### END HIDDEN TESTS

# %% given="plot-train_tokenizer" tags=["plot"]
with picture(
    "What a larger vocabulary buys: bytes a token",
    alt="A rising line that flattens: bytes a token against vocabulary size, from 1 at 265 on. It ends where no pair is left.",
    size=(8.0, 3.6),
) as p:
    documents = list(write_documents(400, "a corpus"))
    unseen = list(write_documents(50, "unseen"))
    size = sum(len(text.encode()) for text in unseen)
    asked = [265, 300, 350, 400, 500, 600, 700, 800, 1000, 1500]
    encodings = [train_tokenizer(documents, vocab_size) for vocab_size in asked]
    tokens = [sum(len(encoding.encode_ordinary(text)) for text in unseen) for encoding in encodings]
    got, ratios = [encoding.n_vocab for encoding in encodings], [size / count for count in tokens]
    p.axes[0].plot(got, ratios, "o-", color=BLUE, label="unseen documents of the toy world")
    p.axes[0].axhline(1, color=GREY, linestyle=":", label="bytes only")
    p.axes[0].set(xlabel="tokens in the vocabulary", ylabel="bytes a token")
    p.axes[0].legend(fontsize=8)
    longest = max((encodings[-1].decode_single_token_bytes(i) for i in range(256, got[-1] - 9)), key=len)
    p.caption = (
        f"{size:,} bytes are {tokens[0]:,} tokens of {got[0]}, and {tokens[-1]:,} of {got[-1]:,} (asked for {asked[-1]:,}); "
        f"the longest token is {longest.decode(errors='replace')!r}."
    )

# %% [markdown]
# ## Part 2 · Text in, and nothing but text (15 points, 25 minutes)
#
# Now the class that everything else in nanochat talks to. Its first duty is a refusal: **text is text**. Whatever a user
# types is encoded as ordinary bytes, and the only way to a command is `encode_special`, which no user can call:
#
# ```
# encode("<|bos|>")          60 124 98 111 115 124 62      seven harmless tokens: < | b o s | >
# encode_special("<|bos|>")  256                            a command (where there are no merges)
# ```
#
# A tiktoken `Encoding` can do three things with such a text, and two of them are wrong here: `encode(text)` raises an
# error (so a user can stop a server with seven characters), `encode(text, allowed_special="all")` makes the command,
# `encode_ordinary(text)` does what we want. `encode_ordinary_batch(texts, num_threads=...)` is the same for many.
#
# `prepend` and `append` put a token around *every* text: documents begin with BOS. Each is a token id or the name of a
# special token. An id may be 0.
#
# `token_bytes` is for measuring. Loss per token cannot be compared between vocabularies (fewer, longer tokens are
# harder to guess); loss per *byte* can, so one has to know how many bytes of text every id stands for. A special token
# stands for none. Count bytes, not characters: a token may be a piece of one, and `decode` then gives `\ufffd`.
#
# **Contract.** `RustBPETokenizer(encoding, bos_token)` raises `ValueError` if the encoding has no such special token.
# `encode` takes a string, or a list of strings and gives a list of lists; anything else is a `ValueError`.
# `encode_special` raises `KeyError` for a name that is no token. `decode` takes any list of ids, special ones too, which
# become their names. `token_bytes()` is `(vocab_size,)`, int32, in the order of the ids. No gaps are in the ids.


# %% hole="tokenizer"
class RustBPETokenizer:
    """A tiktoken encoding as nanochat uses it. Nothing in a text ever becomes a special token."""

    def __init__(self, encoding: tiktoken.Encoding, bos_token: str = "<|bos|>") -> None:
        """ValueError if `bos_token` is no special token of the encoding."""
        ### BEGIN SOLUTION
        if bos_token not in encoding.special_tokens_set:
            raise ValueError(f"the encoding has no special token {bos_token}")
        self.encoding = encoding
        self.bos_token_id = self.encode_special(bos_token)
        ### END SOLUTION

    def get_bos_token_id(self) -> int:
        """The id of the token that opens documents."""
        ### BEGIN SOLUTION
        return self.bos_token_id
        ### END SOLUTION

    def get_vocab_size(self) -> int:
        """How many ids there are, special tokens included."""
        ### BEGIN SOLUTION
        return self.encoding.n_vocab
        ### END SOLUTION

    def encode_special(self, name: str) -> int:
        """The id of a special token; KeyError if there is none of that name."""
        ### BEGIN SOLUTION
        return self.encoding.encode_single_token(name)
        ### END SOLUTION

    def encode(
        self, text: str | list[str], prepend: int | str | None = None, append: int | str | None = None
    ) -> list[int] | list[list[int]]:
        """The ids of a text, or of each of a list; `prepend` and `append` (id or name) go around each of them.
        ValueError for anything else than a text or a list."""

        ### BEGIN SOLUTION
        def one(token: int | str | None) -> list[int]:
            if token is None:
                return []
            return [self.encode_special(token) if isinstance(token, str) else token]

        before, after = one(prepend), one(append)
        if isinstance(text, str):
            return [*before, *self.encoding.encode_ordinary(text), *after]
        if isinstance(text, list):
            return [[*before, *ids, *after] for ids in self.encoding.encode_ordinary_batch(text)]
        raise ValueError(f"a text or a list of texts, not {type(text).__name__}")
        ### END SOLUTION

    def decode(self, ids: list[int]) -> str:
        """The text of some ids. Bytes that are no UTF-8 become U+FFFD, a special token its name."""
        ### BEGIN SOLUTION
        return self.encoding.decode(ids)
        ### END SOLUTION

    def token_bytes(self) -> torch.Tensor:
        """How many bytes of text each id stands for, (vocab_size,) int32; 0 for special tokens."""
        ### BEGIN SOLUTION
        special = {self.encode_special(name) for name in self.encoding.special_tokens_set}
        size = self.encoding.decode_single_token_bytes
        counts = [0 if i in special else len(size(i)) for i in range(self.get_vocab_size())]
        return torch.tensor(counts, dtype=torch.int32)
        ### END SOLUTION


# %% given="check-tokenizer"
def answers(merges: list[str], special: list[str], bos_token: str, questions: list) -> list:
    """What your tokenizer says to each question, or the name of the error it raises.

    Its encoding has some merges, written as characters of one byte each, and special tokens after them.
    Questions: ("encode", text, prepend, append), ("special", name), ("decode", ids), ("bytes",), ("numbers",)
    """
    ranks = {bytes([i]): i for i in range(256)}
    for merge in merges:
        ranks[merge.encode("latin-1")] = len(ranks)
    numbered = {name: len(ranks) + i for i, name in enumerate(special)}
    encoding = tiktoken.Encoding("toy", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=numbered)
    tokenizer = RustBPETokenizer(encoding, bos_token)

    def answer(what: str, *arguments: Any) -> Any:
        match what, arguments:
            case "encode", (text, prepend, append):
                return tokenizer.encode(text, prepend=prepend, append=append)
            case "special", (name,):
                return tokenizer.encode_special(name)
            case "decode", (ids,):
                return tokenizer.decode(ids)
            case "bytes", ():
                return tokenizer.token_bytes()
        return [tokenizer.get_bos_token_id(), tokenizer.get_vocab_size()]

    def tried(question: list) -> Any:
        try:
            return answer(*question)
        except (ValueError, KeyError) as error:
            return type(error).__name__

    return [tried(question) for question in questions]


with check("tokenizer"):
    chat = ["<|bos|>", "<|user_end|>"]
    harmless = [60, 124, 98, 111, 115, 124, 62]
    expect(
        answers,
        ([], chat, "<|bos|>", [("numbers",), ("special", "<|user_end|>"), ("special", "<|nobody|>")]),
        [[256, 258], 257, "KeyError"],
        "with no merges the special tokens are 256 and 257; a name that is no token is a KeyError",
    )
    injected = "a text stays a text: use encode_ordinary"
    expect(answers, ([], chat, "<|bos|>", [("encode", "<|bos|>", None, None)]), [harmless], injected)
    expect(answers, ([], chat, "<|bos|>", [("encode", ["<|bos|>", ""], None, None)]), [[harmless, []]], injected)
    expect(
        answers,
        (
            ["hi", "ho"],
            chat,
            "<|user_end|>",
            [("numbers",), ("encode", "hi ho", "<|bos|>", 0), ("encode", "", 0, "<|user_end|>")],
        ),
        [[259, 260], [258, 256, 32, 257, 0], [0, 259]],
        "prepend and append are ids or names, and 0 is an id",
    )
    expect(
        answers,
        (["hi", "ho"], chat, "<|bos|>", [("encode", ["hi", "", "ho"], "<|bos|>", "<|user_end|>")]),
        [[[258, 256, 259], [258, 259], [258, 257, 259]]],
        "prepend and append go around every text of a list, empty ones too",
    )
    wrong = [("encode", None, None, None), ("encode", 5, None, None), ("encode", ("hi",), None, None)]
    expect(answers, ([], chat, "<|bos|>", wrong), ["ValueError"] * 3, "only a string or a list of strings is encoded")
    expect(
        answers,
        (
            ["\u00c3\u00a9"],
            chat,
            "<|bos|>",
            [("decode", [104, 105]), ("decode", [257, 195, 33, 256, 258]), ("decode", [])],
        ),
        ["hi", "<|bos|>\ufffd!\u00e9<|user_end|>", ""],
        "half a character is no reason to fail; a special token decodes to its name",
    )
    counts = torch.ones(261, dtype=torch.int32)
    counts[256:] = torch.tensor([2, 3, 5, 0, 0])
    expect(
        answers,
        (["hi", "\u00c3\u00a9\u00c3", " hiho"], chat, "<|bos|>", [("bytes",)]),
        [counts],
        "count the bytes of a token, not the characters they decode to; special tokens stand for no text",
    )
    expect(answers, ([], chat, "<|endoftext|>", []), ValueError, "there is no such token to open documents with")

# %% graded="tokenizer"
# 15 points. The hidden tests are more of the same, with other vocabularies and texts; `--verify` runs them.
check.visible("tokenizer")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("07_sandbox_tokenizer", "tokenizer", answers)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 3 · A conversation, and what is learnt from it (20 points, 35 minutes)
#
# A conversation is a dict; its messages have a role and a content. What the assistant says is a text, or a list of parts
# in which it calls Python and reads what that answered:
#
# ```
# {"messages": [
#     {"role": "user", "content": "How much is 12*3?"},
#     {"role": "assistant", "content": [
#         {"type": "text", "text": "Let me see."},
#         {"type": "python", "text": "12*3"},
#         {"type": "python_output", "text": "36"},
#         {"type": "text", "text": "It is 36."}]}]}
# ```
#
# The model sees one row of tokens, and beside it a mask: 1 where it is trained, 0 where it only reads. The rule behind
# the table: **1 for everything that the model will have to produce by itself**.
#
# | | tokens | mask |
# |---|---|---|
# | start | `<\|bos\|>` | 0 |
# | user | `<\|user_start\|>` text `<\|user_end\|>` | 0 |
# | assistant | `<\|assistant_start\|>` | 0: the engine puts it there |
# | text | text | 1 |
# | python | `<\|python_start\|>` code `<\|python_end\|>` | 1: it decides when to call |
# | python_output | `<\|output_start\|>` text `<\|output_end\|>` | 0: the engine puts it there |
# | end of the turn | `<\|assistant_end\|>` | 1: it has to know when to stop |
#
# Forget the 1 on `<|assistant_end|>` and the model never stops. Put a 1 on the output and it learns to answer in the
# calculator's place.
#
# **A system message** may come first. There is no token for it: its text, an empty line (`\n\n`) and the first user
# message are rendered as one user message. The conversation belongs to whoever gave it to you and is rendered again in
# the next epoch: do not change it.
#
# **Contract.** `tokenizer` has `encode(text)`, `encode_special(name)`, `get_bos_token_id()`. Every text is encoded by
# itself (what is joined first may merge across the border). Returns `(ids, mask)`, two lists of ints of the same
# length, both cut to the first `max_tokens`. The conversation may end with either role. `ValueError` if
#
# - there is no message, or none after the system message;
# - the roles are not user, assistant, user, ... in turn (after the system message, if there is one);
# - the content of a user or system message is no string, or that of an assistant neither string nor list;
# - a part is of another type than the three.


# %% hole="render_conversation"
def render_conversation(tokenizer: Any, conversation: dict, max_tokens: int = 2048) -> tuple[list[int], list[int]]:
    """(ids, mask) of a conversation, at most `max_tokens` of each. The mask is 1 on what the model has to produce.

    Raises ValueError for what is no conversation. The conversation stays as it is.
    """
    ### BEGIN SOLUTION
    turns = list(conversation["messages"])
    if turns and turns[0]["role"] == "system":
        system = turns.pop(0)
        if not turns or not (isinstance(system["content"], str) and isinstance(turns[0]["content"], str)):
            raise ValueError("a system message is a text, and the user's text follows it")
        turns[0] = {**turns[0], "content": system["content"] + "\n\n" + turns[0]["content"]}
    if not turns:
        raise ValueError("there is no message")
    ids, mask = [tokenizer.get_bos_token_id()], [0]

    def add(tag: str, text: str, trained: int) -> None:
        tokens = tokenizer.encode(text)
        if tag:
            around = tokenizer.encode_special(f"<|{tag}_start|>"), tokenizer.encode_special(f"<|{tag}_end|>")
            tokens = [around[0], *tokens, around[1]]
        ids.extend(tokens)
        mask.extend([trained] * len(tokens))

    parts = {"text": ("", 1), "python": ("python", 1), "python_output": ("output", 0)}
    for i, message in enumerate(turns):
        role, content = message["role"], message["content"]
        if role != ("assistant" if i % 2 else "user"):
            raise ValueError(f"message {i} is out of turn: {role}")
        if role == "user":
            if not isinstance(content, str):
                raise ValueError("a user message is a text")
            add("user", content, 0)
            continue
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or any(part["type"] not in parts for part in content):
            raise ValueError("an assistant message is a text or a list of text, python and python_output")
        ids.append(tokenizer.encode_special("<|assistant_start|>"))
        mask.append(0)
        for part in content:
            tag, trained = parts[part["type"]]
            add(tag, part["text"], trained)
        ids.append(tokenizer.encode_special("<|assistant_end|>"))
        mask.append(1)
    return ids[:max_tokens], mask[:max_tokens]
    ### END SOLUTION


# %% given="check-render_conversation"
def rendered(conversation: dict, special: tuple = tuple(range(9)), first: int = 1000, max_tokens: int = 2048) -> dict:
    """What you make of a conversation: its tokens, each with its mask, and whether the conversation is as it was. The
    tokenizer is one of words, which numbers them as they come."""
    tokenizer = WordTokenizer(list(special), first)
    before = json.dumps(conversation)
    ids, mask = render_conversation(tokenizer, conversation, max_tokens)
    return {"tokens": tokenizer.show(ids), "mask": list(mask), "unchanged": json.dumps(conversation) == before}


def said(*contents: Any, system: Any = None) -> dict:
    """A conversation: user and assistant in turn, after a system message if there is one."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system is not None else messages}


def part(kind: str, text: str) -> dict:
    return {"type": kind, "text": text}


WITH_TOOL = said(
    "How much is 12*3?",
    [part("text", "Let me see."), part("python", "12*3"), part("python_output", "36"), part("text", "It is 36.")],
)
BOS, END = "<|bos|>", "<|assistant_end|>"
USER, USER_END, ASSISTANT = "<|user_start|>", "<|user_end|>", "<|assistant_start|>"
TOOL, TOOL_END, OUTPUT, OUTPUT_END = "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"


def shown(*pieces: Any) -> dict:
    """What `rendered` should give: tokens, a number before those that have this mask."""
    tokens, mask, trained = [], [], 0
    for piece in pieces:
        if isinstance(piece, int):
            trained = piece
        else:
            tokens.append(piece)
            mask.append(trained)
    return {"tokens": tokens, "mask": mask, "unchanged": True}


with check("render_conversation"):
    hello = shown(BOS, USER, "Hi", USER_END, ASSISTANT, 1, "Hello", " you", END)
    basic = "bos and all of the user's are 0, <|assistant_start|> too; the answer and <|assistant_end|> are 1"
    expect(rendered, (said("Hi", "Hello you"),), hello, basic)
    tool = shown(
        *(BOS, USER, "How", " much", " is", " 12", "*", "3", "?", USER_END, ASSISTANT),
        *(1, "Let", " me", " see", ".", TOOL, "12", "*", "3", TOOL_END, 0, OUTPUT, "36", OUTPUT_END),
        *(1, "It", " is", " 36", ".", END),
    )
    expect(rendered, (WITH_TOOL,), tool, "python is 1, tags and all; its output is 0, tags and all")
    expect(
        rendered,
        (said("Hi", "Ho", "Hm", system="Be kind"),),
        shown(BOS, USER, "Be", " kind", "\n", "\n", "Hi", USER_END, ASSISTANT, 1, "Ho", END, 0, USER, "Hm", USER_END),
        "the system message, an empty line and the first user message are one message; and nothing of yours may change",
    )
    expect(
        rendered,
        (said("", "<|bos|>", "", [part("text", "ab"), part("text", "cd")]),),
        shown(
            *(BOS, USER, USER_END, ASSISTANT, 1, "<", "|", "bos", "|", ">", END),
            *(0, USER, USER_END, ASSISTANT, 1, "ab", "cd", END),
        ),
        "each text is encoded by itself, and what looks like a command in it is none",
    )
    cut = {"tokens": hello["tokens"][:6], "mask": hello["mask"][:6], "unchanged": True}
    expect(rendered, (said("Hi", "Hello you"), tuple(range(9)), 1000, 6), cut, "ids and mask are cut to max_tokens")
    moved = (said("Hi", "Hello you"), (9, 8, 7, 6, 5, 4, 3, 2, 1), 20)
    expect(rendered, moved, hello, "ids come from the tokenizer, whatever they are")
    expect(rendered, (said("Hi", []),), shown(BOS, USER, "Hi", USER_END, ASSISTANT, 1, END), "an answer without parts")
    roles = "user and assistant take turns, and the user begins"
    expect(rendered, ({"messages": said("Hi", "Ho")["messages"][1:]},), ValueError, roles)
    expect(rendered, ({"messages": said("Hi")["messages"] * 2},), ValueError, roles)
    expect(rendered, ({"messages": [*said("a", "b", system="c")["messages"][::2]]},), ValueError, roles)
    expect(
        rendered,
        ({"messages": said("Hi", "Ho", system="x")["messages"][1:] + said(system="x")["messages"]},),
        ValueError,
        roles,
    )
    expect(rendered, (said(),), ValueError, "a conversation without messages")
    expect(rendered, (said(system="Be kind"),), ValueError, "nothing comes after the system message")
    expect(rendered, (said([part("text", "Hi")]),), ValueError, "a user's content is a string")
    expect(rendered, (said("Hi", system=["Be kind"]),), ValueError, "a system message is a string")
    expect(rendered, (said("Hi", None),), ValueError, "an assistant's content is a string or a list")
    expect(rendered, (said("Hi", [part("image", "x")]),), ValueError, "parts are text, python or python_output")

# %% graded="render_conversation"
# 20 points. The hidden tests are more of the same, with other conversations; `--verify` runs them.
check.visible("render_conversation")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("07_sandbox_tokenizer", "render_conversation", rendered)
### END HIDDEN TESTS


# %% given="plot-render_conversation" tags=["plot"]
def draw_tokens(axis: Any, tokens: list[str], mask: list[int], width: int = 86) -> None:
    """Tokens in boxes, from left to right: trained on (solid frame, a 1 below) or only read (hatched, a 0 below)."""
    at, line = 0.0, 0.0
    for token, trained in zip(tokens, mask, strict=False):
        label = token.replace("\n", "\\n").replace(" ", "·")
        wide = len(label) * 1.05 + 1.6
        if at + wide > width:
            at, line = 0.0, line - 3.4
        style = {"facecolor": SKY} if trained == 1 else {"facecolor": "white", "hatch": "////"}
        box = FancyBboxPatch(
            (at, line), wide - 0.4, 1.6, boxstyle="square,pad=0", edgecolor=GREY, linewidth=0.8, **style
        )
        axis.add_patch(box)
        text = {"ha": "center", "va": "center", "fontsize": 8}
        axis.text(
            at + wide / 2 - 0.2, line + 0.8, label, family="monospace", backgroundcolor=box.get_facecolor(), **text
        )
        axis.text(at + wide / 2 - 0.2, line - 0.7, str(trained), color=BLUE if trained == 1 else BLACK, **text)
        at += wide
    axis.set(xlim=(-1, width + 1), ylim=(line - 1.8, 2.4))
    axis.axis("off")


with picture(
    "What the model is trained on: solid boxes with a 1",
    alt="The tokens of a dialogue with a tool in boxes; solid with a 1 are the assistant's words and Python, the rest has a 0.",
    size=(11.0, 2.6),
) as p:
    made = rendered(WITH_TOOL)
    draw_tokens(p.axes[0], made["tokens"], made["mask"])
    p.caption = (
        f"{sum(made['mask'])} of {len(made['tokens'])} tokens are trained on (solid, 1); the others are read only "
        "(hatched, 0)."
    )

# %% [markdown]
# ## Part 4 · A prompt for the next answer (10 points, 10 minutes)
#
# For reinforcement learning and for evaluation the model is to answer by itself what a data set has an answer to. So the
# conversation is rendered *without* its last message, which is the assistant's, and the turn is handed over with
# `<|assistant_start|>`. One token more or less and the model is somewhere it has never been in training.
#
# You are given a function `render`, which does what part 3 asks for (tests bring their own).
#
# ```
# user: Hi    assistant: Hello you     ->   <|bos|> <|user_start|> Hi <|user_end|> <|assistant_start|>
# ```
#
# **Contract.** `render(conversation)` gives `(ids, mask)`; it may keep a list of ids for itself, so do not change the
# one you get. What you pass to it is the conversation without its last message; other keys of the conversation do not
# matter. The conversation stays as it is. `ValueError` if it has no message, or the last is not the assistant's. What
# `render` raises, goes through.


# %% hole="render_for_completion"
def render_for_completion(tokenizer: Any, conversation: dict, render: Callable[[dict], tuple[list, list]]) -> list[int]:
    """The prompt for the assistant to give the last answer itself: all before it, then <|assistant_start|>.

    Raises ValueError if the last message is not the assistant's.
    """
    ### BEGIN SOLUTION
    messages = conversation["messages"]
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last message must be the assistant's")
    ids, _ = render({"messages": messages[:-1]})
    return [*ids, tokenizer.encode_special("<|assistant_start|>")]
    ### END SOLUTION


# %% given="check-render_for_completion"
def prompted(conversation: dict, special: tuple = tuple(range(9))) -> dict:
    """Your prompt, as tokens; what `render` was asked to render; whether the conversation, and the
    list that `render` gave, are as they were. This `render` writes
    the letter of each role before its text."""
    tokenizer = WordTokenizer(list(special), 1000)
    before = json.dumps(conversation)
    asked: list = []
    kept: list = []

    def render(given: dict) -> tuple[list, list]:
        asked.append([[message["role"], message["content"]] for message in given["messages"]])
        text = "".join(f"[{message['role'][0]}]{message['content']}" for message in given["messages"])
        kept.append(tokenizer.encode(text))
        return kept[-1], [0] * len(kept[-1])

    ids = render_for_completion(tokenizer, conversation, render)
    return {
        "tokens": tokenizer.show(ids),
        "asked": asked,
        "unchanged": json.dumps(conversation) == before,
        "list unchanged": all(command not in kept[0] for command in special),
    }


TIDILY = {"unchanged": True, "list unchanged": True}


with check("render_for_completion"):
    expect(
        prompted,
        (said("Hi", "Hello you"),),
        {"tokens": ["[", "u", "]", "Hi", ASSISTANT], "asked": [[["user", "Hi"]]], **TIDILY},
        "the last message is left out, and <|assistant_start|> comes last",
    )
    expect(
        prompted,
        (said("a", "b", "c", "d", system="s"), (9, 8, 7, 6, 5, 4, 3, 2, 1)),
        {
            "tokens": [*"[s]s[u]a[a]b[u]c", ASSISTANT],
            "asked": [[["system", "s"], ["user", "a"], ["assistant", "b"], ["user", "c"]]],
            **TIDILY,
        },
        "only the last message is left out, and the conversation stays as it is",
    )
    last = "there is no answer of the assistant at the end"
    expect(prompted, (said("Hi"),), ValueError, last)
    expect(prompted, (said("a", "b", "c"),), ValueError, last)
    expect(prompted, (said(),), ValueError, last)

# %% graded="render_for_completion"
# 10 points. The hidden tests are more of the same, with other conversations; `--verify` runs them.
check.visible("render_for_completion")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("07_sandbox_tokenizer", "render_for_completion", prompted)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 5 · The walls: what a program may do (15 points, 35 minutes)
#
# Now the other border. Everybody's first sandbox looks like this:
#
# ```
# subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=5)
# ```
#
# It is a process of its own, so `exit()` and a crash are harmless. Nothing else is: the program has your files, your
# keys (in the environment), your network and your memory, and whatever it starts itself goes on after the five seconds.
# The three parts that follow build a better one: `start` puts up the walls, `supervise` keeps the clock, `execute_code`
# makes a place for it and sweeps up.
#
# **Where the walls are put up.** The kernel has all that is needed, and a process can only restrict *itself*, for good,
# and everything it starts inherits that. So between your notebook and the program there must be a moment in which code
# of yours runs in the new process. `subprocess` has `preexec_fn` for it, which runs in a *copy of your kernel*, between
# fork and exec, with the locks of threads that are not there: it works until it hangs. Better: start a fresh
# interpreter on a few lines of your own, which put up the walls and then run the program in the same process.
#
# **What walls there are.** `nanochat.isolation` calls the kernel for you; it is no secret, read it. In the new process:
#
# | call | after it |
# |---|---|
# | `isolation.limit_resources({"AS": n, "CPU": s, "FSIZE": n, "NOFILE": n, "CORE": 0})` | the process has at most so much address space (bytes), CPU time (seconds), bytes in any one file, open files, dump after a crash; soft and hard limit at once, so it cannot be undone |
# | `isolation.restrict_files(read_only, read_write)` | Landlock: below the paths of the one list it may read and execute, below those of the other do everything, and elsewhere open, make or delete nothing |
# | `isolation.deny_syscalls(rules)` | seccomp: these system calls fail |
#
# Sets of rules, to be joined: `NEW_PROCESSES`, `NEW_SOCKETS`, `OTHER_PROCESSES` (looking into them), `UNCOUNTED_MEMORY`
# (that `AS` does not see), `KERNEL_SURFACE` (calls with a history), `signals_beyond(pid)` (signals to anybody else).
#
# The order matters: each wall must leave you what the next one needs. What the memory limit leaves no room for, for
# example, cannot be imported any more.
#
# **Contract.** `start(code, workdir, maximum_memory_bytes, cpu_seconds)` returns the running `subprocess.Popen` at once.
#
# - *The interpreter*: a new `sys.executable`, isolated (`-I`), first process of a session (`start_new_session`). The
#   program runs as `__main__`, in `workdir`, which exists. Its code may be longer than a command line (128 KiB on
#   Linux); you may leave a file in `workdir`. An exception ends it as usual: traceback, exit code 1.
# - *What it can see*: stdin is at its end; stdout and stderr are pipes. No other file is open in it. Its environment
#   has `PATH=/usr/bin:/bin` and `LANG=C.UTF-8` and nothing of yours.
# - *What it can touch*: reading below `READABLE`, everything below `workdir` and `isolation.DEVICES`, no other file.
#   (A kernel before 5.13 has no Landlock, and `restrict_files` raises `OSError`: go on without.)
# - *What it can use*: `maximum_memory_bytes` of address space (`None`: no limit), `cpu_seconds`, files of up to
#   `FILE_BYTES` bytes, `OPEN_FILES` open ones, no core dump.
# - *What it can reach*: no new process, no socket, no signal to anybody else, no look into another process.
#
# Whether threads are allowed is up to you.
#
# **What this does not stop.** A program may still fill the disk with many files, read what is below `READABLE` (all
# packages you have installed), and see how busy the machine is. A hole in the kernel is a hole in the walls. nanochat
# adds what you can *not* have here, because the sandbox that grades you denies it: namespaces, in which there are no
# other processes, files or networks to begin with, a bounded disk in memory, and another user. On a Mac none of these
# calls exist.

# %% given="walls"
COURSE = str(Path(isolation.__file__).resolve().parents[1])  # where a new interpreter finds nanochat.isolation
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
READABLE = (*SYSTEM, str(Path(sys.executable).parents[1]), sys.base_prefix)  # and Python, its packages included
FILE_BYTES = 16 * 2**20
OPEN_FILES = 64


# %% hole="start"
def start(code: str, workdir: str, maximum_memory_bytes: int | None, cpu_seconds: int) -> subprocess.Popen:
    """Start a Python program behind walls, in `workdir`; returns its process at once, with pipes for stdout and stderr.

    It may use `maximum_memory_bytes` (None: no limit) and `cpu_seconds`, read below READABLE, do as it likes in
    `workdir`, and reach nothing else: no other file, process or network.
    """
    ### BEGIN SOLUTION
    Path(workdir, "program.py").write_text(code, "utf-8")
    limits = {"CPU": cpu_seconds, "FSIZE": FILE_BYTES, "NOFILE": OPEN_FILES, "CORE": 0}
    memory = {} if maximum_memory_bytes is None else {"AS": maximum_memory_bytes}
    walls = f"""
import os, sys
sys.path.insert(0, {COURSE!r})
from nanochat import isolation
del sys.path[0]
with open("program.py", encoding="utf-8") as file:
    code = file.read()
try:
    isolation.restrict_files({READABLE!r}, [os.getcwd(), *isolation.DEVICES])
except OSError:
    pass
isolation.limit_resources({limits!r})
isolation.deny_syscalls((
    *isolation.NEW_PROCESSES, *isolation.NEW_SOCKETS, *isolation.OTHER_PROCESSES, *isolation.UNCOUNTED_MEMORY,
    *isolation.KERNEL_SURFACE, *isolation.signals_beyond(os.getpid()),
))
isolation.limit_resources({memory!r})
exec(compile(code, "<program>", "exec"), {{"__name__": "__main__"}})"""
    return subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", "-c", walls],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=workdir,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        start_new_session=True,
    )
    ### END SOLUTION


# %% [markdown]
# **The bad actors.** Each tries something and says how it went. They are real, and run on your machine: so each does
# little harm where nothing stops it (a fork bomb of 20, which sleep for a second; a deletion of one file that was put
# there for it). In the graded run they are in a sandbox inside of a sandbox. A line in an actor:
# `attempt("memory", action)` prints `memory refused` if the action raises an exception, and `memory done` if not.

# %% given="actors"
ATTEMPT = """
def attempt(what, action):
    try:
        action()
    except Exception:
        print(what, "refused")
    else:
        print(what, "done")

"""
MIB = 2**20
ACTORS = {
    name: ATTEMPT + code.lstrip()
    for name, code in {
        "memory": """
attempt("memory", lambda: bytes(600 * 2**20))
""",
        "fork bomb": """
import os, time
def multiply():
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
attempt("process", multiply)
""",
        "a program": """
import subprocess
attempt("program", lambda: subprocess.run(["/bin/true"]))
""",
        "disk": """
def fill():
    with open("large", "wb") as file:
        for _ in range(40):
            file.write(bytes(2**20))
attempt("40 MiB in a file", fill)
""",
        "open files": """
hoard = []
attempt("100 open files", lambda: hoard.extend(open("/dev/null") for _ in range(100)))
""",
        "deletion": """
import os
attempt("outside: read", lambda: open("../canary.txt").read())
attempt("outside: write", lambda: open("../canary.txt", "r+").write("hacked"))
attempt("outside: move", lambda: os.rename("../canary.txt", "../new.txt"))
attempt("outside: delete", lambda: os.remove("../canary.txt"))
""",
        "a signal to the parent": """
import os, signal
attempt("signal", lambda: os.kill(os.getppid(), signal.SIGUSR1))
""",
        "the parent's secrets": """
import os
attempt("variable", lambda: os.environ["WITNESS_SECRET"])
attempt("outside: memory of the parent", lambda: open(f"/proc/{os.getppid()}/maps").read())
""",
        "network": """
import socket
attempt("socket", lambda: socket.socket())
""",
    }.items()
}

# %% given="check-start"
QUIET = {"last": "-", "exit": 0, "around": {"names": ["canary.txt", "work"], "canary": "precious"}, "signals": 0}


def says(*lines: str, **otherwise: Any) -> dict:
    """What `behind_walls` should report of a program that prints these lines."""
    return {"says": list(lines), **QUIET, **otherwise}


CENSUS = """
import os, sys
print(os.path.exists("here"), __name__, repr(sys.stdin.read()))
print(sys.flags.isolated, os.getpid() == os.getpgid(0) == os.getsid(0))
print(sorted(set(os.environ) - {"LC_CTYPE"}), os.environ["PATH"])
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
print([fd for fd in range(256) if is_open(fd)])
"""
LIMITS = """
import resource
for name in ("CPU", "FSIZE", "NOFILE", "CORE"):
    print(name, *resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
"""


def walled(code: str, memory: int | None, seconds: int) -> dict:
    """What becomes of a program that you start."""
    return behind_walls(start, code, memory, seconds)


with check("start"):
    room = 400 * MIB
    expect(
        walled,
        ("import sys\nprint('h\u00e9llo')\nprint('oh', file=sys.stderr)\nsys.exit(3)", room, 9),
        says("h\u00e9llo", last="oh", exit=3),
        "stdout and stderr are pipes, and the program leaves as it likes",
    )
    expect(walled, ("1/0", None, 9), says(last="ZeroDivisionError: division by zero", exit=1), "a traceback")
    long = "#" * 200_000 + "\nprint('end')"
    expect(walled, (long, room, 9), says("end"), "a command line has room for 128 KiB; use a file")
    expect(
        walled,
        (CENSUS, room, 9),
        says("True __main__ ''", "1 True", "['LANG', 'PATH'] /usr/bin:/bin", "[0, 1, 2]"),
        "a program is __main__, in workdir, isolated, in a session of its own, with nothing of yours",
    )
    expect(
        walled,
        (LIMITS, room, 7),
        says("CPU 7 7", f"FSIZE {FILE_BYTES} {FILE_BYTES}", f"NOFILE {OPEN_FILES} {OPEN_FILES}", "CORE 0 0"),
        "soft and hard limit at once",
    )
    fits = 'attempt("200 MiB", lambda: bytes(200 * 2**20))'
    expect(walled, (ACTORS["memory"] + fits, room, 9), says("memory refused", "200 MiB done"), "AS")
    expect(walled, (ACTORS["memory"], None, 9), says("memory done"), "None is no limit")
    walls = "this actor got through a wall, or into one that should not be there"
    expect(walled, (ACTORS["fork bomb"], room, 9), says("process refused"), walls)
    several = "".join(ACTORS[name] for name in ("a program", "disk", "network", "a signal to the parent", "open files"))
    refused = ("program refused", "40 MiB in a file refused", "socket refused", "signal refused")
    expect(walled, (several, room, 9), says(*refused, "100 open files refused"), walls)
    inside = 'open("own.txt", "w").write("x" * 1000)\nprint(len(open("own.txt").read()), os.listdir("/usr") != [])'
    outside = [f"outside: {what} refused" for what in ("read", "write", "move", "delete")]
    expect(walled, (ACTORS["deletion"] + inside, room, 9), says(*outside, "1000 True"), walls)
    secrets = says("variable refused", "outside: memory of the parent refused")
    expect(walled, (ACTORS["the parent's secrets"], room, 9), secrets, walls)

# %% graded="start"
# 15 points. The hidden tests are more of the same, with other programs and limits; `--verify` runs them.
check.visible("start")
### BEGIN HIDDEN TESTS
from puzzles import witness
from puzzles.submit import grade

grade("07_sandbox_tokenizer", "start", partial(witness.behind_walls, start))
### END HIDDEN TESTS

# %% [markdown]
# ## Part 6 · The clock: how long, how much, and who is left (15 points, 35 minutes)
#
# `subprocess` has this part too: `process.communicate(timeout=5)`. It fails at each of the four things it is needed for:
#
# - **Output.** It keeps all there is. `while True: print("x" * 10**6)` fills *your* memory.
# - **The end.** It waits until both pipes are closed, not until the program has ended. A child of the program that has
#   inherited them keeps you waiting, when the program itself has long returned.
# - **The children.** Killing the program leaves those alone. They go on, as children of nobody, with your files.
# - **Interrupts.** If you press Ctrl-C in the meantime, it is your wait that ends and not the program.
#
# The cure for the third is the **process group**: `start_new_session` made the program the first of one, everything it
# starts is in it too (unless it asks for another one, and part 5 lets nobody start anything: two walls are better than
# one), and `os.killpg(process.pid, ...)` ends all of it. Which signal? A program can ignore `SIGTERM`, it can even be
# stopped (`SIGSTOP`) and then notices none but `SIGKILL`.
#
# For the first, read from both pipes as something comes (`selectors`, non-blocking; two threads do as well). What is
# more than `max_bytes` must be read and thrown away: a pipe holds 64 KiB, and a program that writes into a full pipe
# waits. Reading one pipe to its end and then the other waits for a program that waits for you.
#
# ```
# the program                    supervise, timeout 5, max_bytes 4
# prints "hello", exits          (0, b"hell", b"", False)
# prints "hi", sleeps for ever   (-9, b"hi", b"", True)        after 5 s
# forks a sleeper, exits         (0, b"", b"", False)          at once, and the sleeper is dead
# kills itself with SIGSEGV      (-11, b"", b"", False)
# ```
#
# **Contract.** `process` is what `start` returns: the first process of its group, pipes in binary. It may have ended
# already. `supervise` returns when the program has ended or `timeout` seconds are over, whichever comes first, and does
# not wait for anybody else. The outcome has the exit code as `Popen` gives it (negative for a signal), the *first*
# `max_bytes` bytes of each stream, what was written just before the end included, and whether the time was up (and
# the program killed for it). On return, and also when an exception breaks into it, every process of the group is dead,
# `process` is reaped (`wait`), and both pipes are closed. The exception goes on its way.


# %% given="outcome"
class Outcome(NamedTuple):
    """How a program ended, with the beginning of what it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


# %% hole="supervise"
def supervise(process: subprocess.Popen, timeout: float, max_bytes: int) -> Outcome:
    """Wait until the program ends, at most `timeout` seconds, and keep the first `max_bytes` bytes of each stream.
    However this ends, the whole group of the process is killed, the process reaped, and its pipes are closed."""
    ### BEGIN SOLUTION
    deadline = time.monotonic() + timeout
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}

    def read(pipe: Any) -> bool:
        chunk = os.read(pipe.fileno(), 2**16)
        kept[pipe] += chunk[: max_bytes - len(kept[pipe])]
        return bool(chunk)

    try:
        with selectors.DefaultSelector() as selector:
            for pipe in kept:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ)
            while process.poll() is None and time.monotonic() < deadline:
                for key, _ in selector.select(0.01):
                    if not read(key.fileobj):
                        selector.unregister(key.fileobj)
        timed_out = process.poll() is None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in kept:
            with suppress(BlockingIOError):
                while len(kept[pipe]) < max_bytes and read(pipe):
                    pass
            pipe.close()
    stdout, stderr = (bytes(output) for output in kept.values())
    return Outcome(process.returncode, stdout, stderr, timed_out)
    ### END SOLUTION


# %% given="check-supervise"
TIDY = {"reaped": True, "closed": True, "group": "gone"}


def ends(exit_code: int, stdout: str = "", stderr: str = "", timed_out: bool = False) -> dict:
    """What `by_the_clock` should report."""
    return {"outcome": {"exit": exit_code, "stdout": stdout, "stderr": stderr, "timed out": timed_out}, **TIDY}


# your clock starts when a program has made this file
READY = "open('ready', 'w').close()\n"
SLEEP = "import time\ntime.sleep(3)\n"
CHILD = """
import os, time
if os.fork() == 0:
    time.sleep(3)
    os.write(1, b"late")
    os._exit(0)
"""


def watched(code: str, timeout: float, max_bytes: int, interrupt: bool = False) -> dict:
    """What becomes of a program that you supervise."""
    return by_the_clock(supervise, code, timeout, max_bytes, interrupt)


with check("supervise"):
    program = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)\n"
    expect(watched, (READY + program, 6, 100), ends(3, "out\n", "err\n"), "an ordinary program")
    killed = READY + "import os\nos.kill(os.getpid(), 9)\n"
    expect(watched, (killed, 6, 9), ends(-9), "killed, but by itself: its time was not up")
    flood = (
        READY + "import os\nfor _ in range(300):\n    os.write(1, b'abcde' * 200)\n    os.write(2, b'vwxyz' * 200)\n"
    )
    because = "read both pipes as they fill, keep the first bytes, throw the others away"
    expect(watched, (flood, 6, 7), ends(0, "abcdeab", "vwxyzvw"), because)
    soon = "import os\nos.write(1, b'x' * 40_000)\n" + READY
    last = "what is in the pipe when the program ends counts too"
    expect(watched, (soon, 6, 50_000), ends(0, "x" * 40_000), last)
    deaf = "import signal\nprint('before', flush=True)\nfor n in (2, 15):\n    signal.signal(n, signal.SIG_IGN)\n"
    because = "its time is up: kill it, by a signal that nobody can ignore, and keep what it wrote"
    expect(watched, (deaf + READY + SLEEP, 0.3, 100), ends(-9, "before\n", timed_out=True), because)
    closed = "import os\nos.close(1)\nos.close(2)\n" + READY
    because = "pipes that are closed do not mean that the program has ended"
    expect(watched, (closed + SLEEP, 0.3, 9), ends(-9, timed_out=True), because)
    expect(watched, (closed + "import time\ntime.sleep(0.2)\nos._exit(5)\n", 6, 9), ends(5), because)
    because = "the program has ended; do not wait for its child, which holds the pipe, but kill it with its group"
    expect(watched, (CHILD + "print('done')\n" + READY, 6, 9), ends(0, "done\n"), because)
    because = "the whole group is killed"
    expect(watched, (CHILD + READY + SLEEP, 0.3, 9), ends(-9, timed_out=True), because)
    endless = READY + "import os, time\nend = time.time() + 3\nwhile time.time() < end: os.write(1, b'y' * 1000)\n"
    because = "output without end is no reason to go on"
    expect(watched, (endless, 0.3, 5), ends(-9, "yyyyy", timed_out=True), because)
    because = "an exception broke in: clean up all the same, and let it go on its way"
    interrupted = {"outcome": "interrupted", **TIDY}
    expect(watched, (CHILD + READY + SLEEP, 6, 9, True), interrupted, because)

# %% graded="supervise"
# 15 points. The hidden tests are more of the same, with other programs and times; `--verify` runs them.
check.visible("supervise")
### BEGIN HIDDEN TESTS
from puzzles import witness
from puzzles.submit import grade

grade("07_sandbox_tokenizer", "supervise", partial(witness.by_the_clock, supervise))
### END HIDDEN TESTS

# %% [markdown]
# ## Part 7 · The whole: a place, a verdict, and nothing left (15 points, 20 minutes)
#
# `execute_code` is what the rest of nanochat calls. It makes a fresh directory, has the program started in it and
# supervised, removes the directory, and says in six words how it went:
#
# | field | |
# |---|---|
# | `success` | the program ended by itself, in time, with exit code 0 |
# | `stdout`, `stderr` | as text: UTF-8, what is not becomes `\ufffd` |
# | `error` | `None` for a success, else one line, see below |
# | `timeout` | its time was up |
# | `memory_exceeded` | `MemoryError` stands in stderr (also if the program has caught it and gone on) |
#
# `error` is the first of these that fits:
#
# 1. its time was up: `timed out after 0.5 s`, with the timeout as it was given;
# 2. it was killed by a signal: `killed by SIGSEGV`;
# 3. its exit code is not 0: the last line of stderr (after stripping white space around all of it), or, if stderr is
#    empty, `exited with status 3`.
#
# Output is no success: a program that prints the right answer and then crashes has failed, and one that writes to
# stderr and ends with 0 has not.
#
# **The directory** is new for every call, empty, made where `tempfile` makes its own, and yours alone (mode 700, which
# `tempfile` sees to). It is gone when `execute_code` returns *or raises*, whatever lies in it: files, trees, directories
# that were closed (mode 0), links to files and directories elsewhere, which stay as they are.
#
# **Contract.** `start(code, workdir, maximum_memory_bytes, cpu_seconds)` and `supervise(process, timeout, max_bytes)`
# are given to you (the tests bring actors, which only act as if). `workdir` is a string. The program may use as many
# seconds of CPU as the timeout is long, rounded up, and one more: the clock should stop it, not the kernel.
# `max_bytes` is `MAX_OUTPUT_BYTES`. What they raise goes through, when the directory is gone.

# %% given="result"
MAX_OUTPUT_BYTES = 2**20


@dataclass
class ExecutionResult:
    """How a program ended."""

    success: bool
    stdout: str
    stderr: str
    error: str | None = None
    timeout: bool = False
    memory_exceeded: bool = False


# %% hole="execute_code"
def execute_code(
    code: str, timeout: float, maximum_memory_bytes: int | None, start: Callable, supervise: Callable
) -> ExecutionResult:
    """Run a Python program for at most `timeout` seconds in a new directory, which is gone afterwards, and say how it
    ended. `start` and `supervise` do what parts 5 and 6 ask for."""
    ### BEGIN SOLUTION
    with tempfile.TemporaryDirectory(prefix="sandbox-") as workdir:
        process = start(code, workdir, maximum_memory_bytes, math.ceil(timeout) + 1)
        outcome = supervise(process, timeout, MAX_OUTPUT_BYTES)
    stdout, stderr = (output.decode("utf-8", "replace") for output in (outcome.stdout, outcome.stderr))
    error = None
    if outcome.timed_out:
        error = f"timed out after {timeout} s"
    elif outcome.exit_code < 0:
        error = f"killed by {signal.Signals(-outcome.exit_code).name}"
    elif outcome.exit_code > 0:
        error = (stderr.strip() or f"exited with status {outcome.exit_code}").splitlines()[-1]
    return ExecutionResult(error is None, stdout, stderr, error, outcome.timed_out, "MemoryError" in stderr)
    ### END SOLUTION


# %% given="check-execute_code"
def report(
    result: Any,
    code: str = "1",
    timeout: float = 0.5,
    memory: int | None = 9,
    cpu_seconds: int = 2,
    supervised: bool = True,
) -> dict:
    """What `played` should report."""
    asked = {"start": [code, memory, cpu_seconds]}
    if supervised:
        asked["supervise"] = [True, timeout, MAX_OUTPUT_BYTES, True]
    left = {"directories": 0, "names": ["canary.txt", "work"], "canary": "precious"}
    return {"result": result, "asked": asked, "directory": [[], "0o700", True], "left": left}


def fields(*values: Any) -> dict:
    """A result, field by field; the last two are False unless given."""
    names = ("success", "stdout", "stderr", "error", "timeout", "memory_exceeded")
    return dict(zip(names, (*values, False, False)[:6], strict=True))


def concluded(
    ending: tuple,
    leaves: list[str],
    breaks: str = "",
    code: str = "1",
    timeout: float = 0.5,
    maximum_memory_bytes: int | None = 9,
) -> dict:
    """What you make of an ending, and of what was left behind."""
    return played(execute_code, code, timeout, maximum_memory_bytes, ending, leaves, breaks)


with check("execute_code"):
    good = report(fields(True, "hi\n", "", None))
    asks = "start gets code, directory, memory and CPU seconds (the timeout rounded up, and 1); supervise the process"
    expect(concluded, ((0, "hi\n", "", False), []), good, asks)
    warned = report(fields(True, "", "careful\n", None), "é", 3, None, 4)
    expect(concluded, ((0, "", "careful\n", False), ["file"], "", "é", 3, None), warned, "stderr is no failure")
    crashed = report(fields(False, "42\n", "Trace\nValueError: x\n\n", "ValueError: x"))
    right = "42 or not, it did not end with 0"
    expect(concluded, ((1, "42\n", "Trace\nValueError: x\n\n", False), ["tree"]), crashed, right)
    quiet = report(fields(False, "", " \n", "exited with status 3"))
    expect(concluded, ((3, "", " \n", False), []), quiet, "there is no last line")
    signalled = report(fields(False, "", "Fatal\n", "killed by SIGSEGV"))
    expect(concluded, ((-11, "", "Fatal\n", False), []), signalled, "name the signal")
    late = report(fields(False, "so far\n", "", "timed out after 0.5 s", True))
    because = "a program that was killed because its time was up has a timeout, not a signal"
    expect(concluded, ((-9, "so far\n", "", True), ["file", "tree"]), late, because)
    hungry = report(fields(False, "", "x\nMemoryError\n", "MemoryError", False, True))
    expect(concluded, ((1, "", "x\nMemoryError\n", False), []), hungry, "memory was exceeded")
    caught = report(fields(True, "", "a MemoryError, caught\n", None, False, True))
    expect(concluded, ((0, "", "a MemoryError, caught\n", False), []), caught, "so it was here")
    broken = report(fields(True, "\u00e9\ufffd!", "", None))
    expect(concluded, ((0, "\u00c3\u00a9\u00ff!", "", False), []), broken, "UTF-8, with \\ufffd")
    rubbish = ["file", "tree", "closed", "link"]
    expect(concluded, ((0, "hi\n", "", False), rubbish), good, "nothing is left, links included")
    because = "the directory is removed also when something raises"
    for who in ("start", "supervise"):
        broke = report("broke", supervised=who == "supervise")
        expect(concluded, ((0, "", "", False), ["tree"], who), broke, because)

# %% graded="execute_code"
# 15 points. The hidden tests are more of the same, with other endings; `--verify` runs them.
check.visible("execute_code")
### BEGIN HIDDEN TESTS
from puzzles import witness
from puzzles.submit import grade

grade("07_sandbox_tokenizer", "execute_code", partial(witness.played, execute_code))
### END HIDDEN TESTS

# %% [markdown]
# ## All bad actors against all you have built
#
# Your three parts together, against everyone, and beside them everybody's first sandbox, `subprocess.run` with a
# timeout. Nobody gets points here; what counts is the column in the middle.

# %% given="plot-actors" tags=["plot"]
TROUPE = ACTORS | {
    "an endless loop": "import time\nend = time.time() + 3\nwhile time.time() < end: pass\nprint('loop done')",
    "endless output": "import time\nend = time.time() + 3\nwhile time.time() < end: print('y' * 1000)\nprint('output done')",
    "a child that stays": ATTEMPT + f"def stay():{CHILD.replace(chr(10), chr(10) + '    ')}\nattempt('child', stay)",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "no harm": "print(6 * 7)",
}


def first_sandbox(code: str) -> ExecutionResult:
    """What everybody writes first."""
    with tempfile.TemporaryDirectory() as workdir:
        try:
            run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=0.8, cwd=workdir)
        except subprocess.TimeoutExpired as expired:
            return ExecutionResult(False, (expired.stdout or b"").decode(), "", "timed out", True)
    return ExecutionResult(run.returncode == 0, run.stdout, run.stderr, f"ended with {run.returncode}")


def in_short(names: list[str]) -> str:
    """Two names, or how many there are."""
    return ", ".join(names) if len(names) < 3 else f"{len(names)} things"


def fate(run: Callable[[str], ExecutionResult], code: str) -> tuple[str, str]:
    """What an actor got, in a few words, and a sign: ✓ held, ✗ got through, ○ it meant no harm."""
    with tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        os.environ["WITNESS_SECRET"] = "precious"
        handler = signal.signal(signal.SIGUSR1, lambda *_: None)
        (canary := Path(folder, "canary.txt")).write_text("precious")
        try:
            result = run(code)
        finally:
            tempfile.tempdir = before
            del os.environ["WITNESS_SECRET"]
            signal.signal(signal.SIGUSR1, handler)
        safe = canary.exists() and canary.read_text() == "precious"
    through = [line.removesuffix(" done") for line in result.stdout.splitlines() if line.endswith(" done")]
    if through or not safe:
        return "✗", "got through: " + in_short(through or ["canary"])
    if len(result.stdout) > MAX_OUTPUT_BYTES:
        return "✗", f"{len(result.stdout) / MIB:.0f} MiB of output"
    if result.timeout:
        return "✓", f"stopped by the clock, {len(result.stdout):,} characters"
    refused = [line.removesuffix(" refused") for line in result.stdout.splitlines() if line.endswith(" refused")]
    if refused:
        return "✓", "refused: " + in_short(refused)
    return "○", result.error if not result.success and result.error else result.stdout.strip()


def draw_fates(axis: Any, columns: dict[str, list[tuple[str, str]]]) -> None:
    """A table: an actor a line, a sandbox a column. Sign and words say how it went, colour and weight repeat it."""
    cells = [[f"{sign} {text[:52]}" for sign, text in line] for line in zip(*columns.values(), strict=True)]
    table = axis.table(cells, rowLabels=list(TROUPE), colLabels=list(columns), loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.25)
    for cell in table.get_celld().values():
        cell.set_edgecolor("#d0d7de")
        sign = cell.get_text().get_text()[:1]
        cell.get_text().set(color=BLUE if sign == "✓" else BLACK, weight="bold" if sign == "✗" else "normal")
    axis.axis("off")


with picture(
    "What each bad actor got",
    alt="A table of bad actors against two sandboxes: subprocess.run lets most of them through, yours stops them.",
    size=(11.0, 4.6),
) as p:
    yours = partial(execute_code, timeout=0.8, maximum_memory_bytes=400 * MIB, start=start, supervise=supervise)
    fates = {
        "subprocess.run with a timeout": [fate(first_sandbox, code) for code in TROUPE.values()],
        "yours": [fate(yours, code) for code in TROUPE.values()],
    }
    draw_fates(p.axes[0], fates)
    through = {name: sum(sign == "✗" for sign, _ in column) for name, column in fates.items()}
    p.caption = f"Of {len(TROUPE)} actors got through: " + ", ".join(f"{n} {name}" for name, n in through.items()) + "."

# %% [markdown]
# ## What you have built
#
# **The tokenizer, in nanochat.** The toy world is written to disk as nanochat reads it. nanochat trains its tokenizer on
# the first shard; yours is trained on the same documents. Then real conversations of the toy world, arithmetic with the
# tool among them, are rendered by both. Ids and masks have to agree to the last one.

# %% given="what-you-have-built" tags=["oracle"]
import pyarrow.parquet as pq

from nanochat import toyworld
from nanochat.toyworld.tasks import ToyArithmetic, ToyChat


class Tokenizer(RustBPETokenizer):
    """Your parts, with the names nanochat knows them by."""

    def render_conversation(self, conversation: dict, max_tokens: int = 2048) -> tuple[list[int], list[int]]:
        return render_conversation(self, conversation, max_tokens)

    def render_for_completion(self, conversation: dict) -> list[int]:
        return render_for_completion(self, conversation, self.render_conversation)


def conversations() -> list[dict]:
    """Some of the toy world's, with and without the tool."""
    tasks = ToyChat("test"), ToyArithmetic("test")
    return [task[i] for task in tasks for i in range(min(100, len(task)))]


with attempt("Your tokenizer in nanochat"), tempfile.TemporaryDirectory() as folder:
    toyworld.write_world(folder)
    shard = sorted(Path(folder).rglob("*.parquet"))[0]
    corpus = pq.read_table(shard)["text"].to_pylist()

    from nanochat.tokenizer import RustBPETokenizer as NanochatTokenizer

    yours, theirs = (
        Tokenizer(train_tokenizer(iter(corpus), 640)),
        NanochatTokenizer.train_from_iterator(iter(corpus), 640),
    )
    same = sum(yours.encode(text) == theirs.encode(text) for text in corpus)
    print(f"{len(corpus):,} documents, {yours.get_vocab_size()} tokens: {same:,} documents are encoded the same.")
    chats = conversations()
    same = sum(yours.render_conversation(chat) == theirs.render_conversation(chat) for chat in chats)
    print(f"{same} of {len(chats)} conversations are rendered the same, ids and masks.")
    same = sum(yours.render_for_completion(chat) == theirs.render_for_completion(chat) for chat in chats)
    print(f"{same} of {len(chats)} prompts for completion are the same.")

# %% given="plot-real-tokens" tags=["oracle", "plot"]
with picture(
    "A sum of the toy world in your tokens: solid boxes with a 1 are trained on",
    alt="A dialogue with the calculator in boxes. The assistant's words and its Python are solid, the rest is hatched.",
    size=(11.0, 3.6),
) as p:
    chat = next(chat for chat in conversations() if not isinstance(chat["messages"][-1]["content"], str))
    ids, mask = yours.render_conversation(chat)
    draw_tokens(p.axes[0], [yours.decode([i]) for i in ids], mask)
    p.caption = f"{len(ids)} tokens, {sum(mask)} of them trained on."

# %% [markdown]
# **The sandbox, in nanochat.** HumanEval asks a sandbox whether a program passes its tests. It gets yours here, in the
# place of nanochat's. Then the bad actors once more, against nanochat's own sandbox and yours.

# %% given="sandbox-in-nanochat" tags=["oracle"]
from unittest.mock import patch

from nanochat import execution
from nanochat.tasks import humaneval

PROBLEM = {
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n",
    "messages": [{"role": "user", "content": "def add(a, b):\n"}, {"role": "assistant", "content": ""}],
}
ATTEMPTS = {
    "a right answer": "def add(a, b):\n    return a + b",
    "a wrong one": "def add(a, b):\n    return a - b",
    "one that never ends": "def add(a, b):\n    while True: pass",
    "one that leaves early": "import os\nos._exit(1)",
}


def your_sandbox(code: str, timeout: float = 1.0, maximum_memory_bytes: int | None = 256 * MIB) -> ExecutionResult:
    """execute_code as nanochat calls it."""
    return execute_code(code, min(timeout, 1.0), maximum_memory_bytes, start, supervise)


with attempt("Your sandbox in nanochat's HumanEval"), patch.object(execution, "execute_code", your_sandbox):
    task = object.__new__(humaneval.HumanEval)
    for name, answer in ATTEMPTS.items():
        print(f"{name}: {'passes' if task.evaluate(PROBLEM, answer) else 'fails'}")

# %% given="plot-three-sandboxes" tags=["oracle", "plot"]
with picture(
    "What each bad actor got, from three sandboxes",
    alt="A table of bad actors against three sandboxes: subprocess.run lets most through, yours and nanochat's stop them.",
    size=(13.0, 4.8),
) as p:
    theirs_run = partial(execution.execute_code, timeout=0.8, maximum_memory_bytes=400 * MIB)
    fates["nanochat"] = [fate(theirs_run, code) for code in TROUPE.values()]
    draw_fates(p.axes[0], fates)
    layers = execution.available_protections()
    p.caption = (
        f"Through nanochat's got {sum(sign == '✗' for sign, _ in fates['nanochat'])}. In force: "
        f"{', '.join(layers.in_force)}; missing: {', '.join(layers.missing) or 'none'}."
    )

# %% [markdown]
# ## In your own words
#
# You are asked to reward a model for programs that pass tests: 16 programs a problem, a few hundred problems a step,
# thousands of steps, on the machine that also holds the weights and the keys to your bucket. In about ten sentences:
# (a) name two attacks that your sandbox of parts 5 to 7 does not stop on an ordinary machine, and say for each which
# layer would; (b) a program may be harmless and still cheat. Where, in the way the tests and the program meet, could a
# model earn a reward without solving anything, and how would you close that? (c) your sandbox kills a program after 5
# seconds. What goes wrong with the *reward* when the machine is busy, and what do you do about it?

# %% [markdown] written="rewards_by_running"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) Two of, each with its layer: filling the disk with many files of allowed size, or with inodes (a quota; a file
# system in memory of bounded size in a mount namespace); reading all that lies below READABLE, configuration in /usr
# and private packages included (a private root that shows less; another user); learning about the machine through
# timing, or /proc where it is readable (pid namespace, own /proc); using the CPU for its whole limit on all cores with
# threads (cgroups); a kernel bug (a virtual machine, gVisor); a CPU side channel (another machine). Keys do not belong
# on that machine in the first place.
#
# (b) Program and tests run in one process: the program can leave with status 0 before the tests run (`os._exit(0)`),
# replace what they call (`assert` through the builtins, `__eq__` that is always true), read the expected values from
# frames or the file, or print what a parser takes for the verdict. Closed by running the tests in another process,
# which sends inputs and compares plain data itself; by a verdict that is a secret or comes over another channel;
# by hidden inputs; by trusting nothing the program says.
#
# (c) Right and wrong then depend on the load: correct programs time out, and the model is punished for what the
# scheduler did; the noise is worse for longer programs, so it drifts to short ones. Limit CPU seconds rather than wall
# time (and keep a generous clock against sleeping); bound how many run at once; run what timed out again, alone; report
# timeouts apart from failures and leave them out of the gradient when there are many.
# ### END SOLUTION
