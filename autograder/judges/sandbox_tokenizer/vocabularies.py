"""Judges of `train_tokenizer` and `tokenizer`, against nanochat.tokenizer."""

from collections.abc import Callable
from random import Random
from typing import Any

import rustbpe
import tiktoken

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer, compute_token_bytes

SYLLABLES = ("ba", "ke", "lo", "mi", "nu", "ra", "sté", "to", "wi", "zy", "ü", "日本")
BYTES = {bytes([i]): i for i in range(256)}


def some_word(rng: Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3)))


def some_text(rng: Random, length: int) -> str:
    """Words, numbers, contractions and what looks like a command."""
    words = []
    for _ in range(length):
        kind = rng.random()
        words.append(
            str(rng.randint(0, 99999))
            if kind < 0.15
            else rng.choice(SPECIAL_TOKENS)
            if kind < 0.25
            else some_word(rng) + rng.choice(["", "", "'s", "!", ".\n", "..."])
        )
    return " ".join(words)


# train_tokenizer


def corpora(rng: Random) -> list[Case]:
    rows: list[tuple] = [
        ([], 265, ["a"]),
        (["abab"], 266, ["abab"]),
        (["abab"], 264, ["abab"]),
        (["aaaa aaaa"], 100, []),
        (["abab", "abab"], 400, ["abababab", "<|user_start|>"]),
        (["", "3333 3333 33", "it's, it's"], 275, ["33333", "that's"]),
    ]
    for _ in range(5):
        texts = [some_text(rng, rng.randint(3, 40)) for _ in range(rng.randint(1, 6))]
        samples = [*(some_text(rng, 8) for _ in range(2)), texts[0]]
        rows.append((texts, rng.choice([265, rng.randint(266, 330), 600]), samples))
    return asked("corpus vocab_size samples", *rows)


def token_text(encoding: tiktoken.Encoding, token_id: int) -> str | None:
    try:
        return encoding.decode_single_token_bytes(token_id).decode("latin-1")
    except KeyError:
        return None


def learnt_by(make: Callable[[list[str], int], tiktoken.Encoding]) -> Callable[..., Case]:
    """What the graded cell reports of a vocabulary."""

    def learn(corpus: list[str], vocab_size: int, samples: list[str]) -> Case:
        encoding = make(corpus, vocab_size)
        merges = range(256, encoding.n_vocab - len(SPECIAL_TOKENS))
        ids = [encoding.encode_ordinary(sample) for sample in samples]
        return {
            "size": encoding.n_vocab,
            "merges": [token_text(encoding, i) for i in merges],
            "special": {name: encoding.encode_single_token(name) for name in SPECIAL_TOKENS},
            "ids": ids,
            "texts": [encoding.decode(each) for each in ids],
        }

    return learn


def nanochat(corpus: list[str], vocab_size: int) -> tiktoken.Encoding:
    return RustBPETokenizer.train_from_iterator(iter(corpus), vocab_size).enc


def renumbered(encoding: tiktoken.Encoding, special: dict[str, int], pattern: str = SPLIT_PATTERN) -> tiktoken.Encoding:
    return tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=encoding._mergeable_ranks, special_tokens=special)


def specials_uncounted(corpus: list[str], vocab_size: int) -> tiktoken.Encoding:
    return nanochat(corpus, vocab_size + len(SPECIAL_TOKENS))


def specials_at_the_top(corpus: list[str], vocab_size: int) -> tiktoken.Encoding:
    encoding = nanochat(corpus, vocab_size)
    first = vocab_size - len(SPECIAL_TOKENS)
    return renumbered(encoding, {name: first + i for i, name in enumerate(SPECIAL_TOKENS)})


def specials_sorted(corpus: list[str], vocab_size: int) -> tiktoken.Encoding:
    encoding = nanochat(corpus, vocab_size)
    first = encoding.n_vocab - len(SPECIAL_TOKENS)
    return renumbered(encoding, {name: first + i for i, name in enumerate(sorted(SPECIAL_TOKENS))})


def other_pattern(corpus: list[str], vocab_size: int) -> tiktoken.Encoding:
    nanochat(corpus, vocab_size)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(corpus), vocab_size - len(SPECIAL_TOKENS))
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)


TRAIN_TOKENIZER = Judge(
    corpora,
    plain_value_error(learnt_by(nanochat)),
    mistakes={
        "vocab_size counts the special tokens too, so that many fewer are to be learnt": learnt_by(specials_uncounted),
        "where a corpus has too little to merge, the special tokens still come right after the last merge": (
            learnt_by(specials_at_the_top)
        ),
        "the special tokens are in the order of SPECIAL_TOKENS": learnt_by(specials_sorted),
        "the trainer was not given SPLIT_PATTERN": learnt_by(other_pattern),
    },
)


# tokenizer


def questions(rng: Random) -> list[Case]:
    chat = ["<|bos|>", "<|user_end|>", "<|z|>"]
    everything = [("numbers",), ("bytes",)]
    rows: list[tuple] = [
        ([], ["<|bos|>"], "<|bos|>", everything),
        ([], chat, "<|eos|>", everything),
        ([], chat, "<|z|>", [("numbers",), ("special", "<|user_end|>"), ("special", "no such token"), ("special", "")]),
        ([], chat, "<|bos|>", [("encode", text, None, None) for text in (*chat, "", "a<|bos|>b", chat, [])]),
        ([], chat, "<|bos|>", [("encode", text, None, None) for text in (None, 3, {"a": 1}, True)]),
        (
            ["hi"],
            chat,
            "<|bos|>",
            [("encode", "hi", 0, 0), ("encode", ["hi", ""], 0, "<|z|>"), ("encode", "", 1, None)],
        ),
        (["hi"], chat, "<|bos|>", [("encode", "hi", "<|none|>", None), ("encode", ["hi"], None, "hi there")]),
        (["é", "日"], chat, "<|bos|>", [("decode", [233, 256, 256 + 2, 200]), ("decode", list(range(250, 261)))]),
    ]
    rows = [([merge.encode().decode("latin-1") for merge in row[0]], *row[1:]) for row in rows]
    for _ in range(6):
        merges = list(dict.fromkeys(some_word(rng) for _ in range(rng.randint(0, 6))))
        merges = [merge.encode().decode("latin-1") for merge in merges if len(merge.encode()) > 1]
        special = rng.sample([f"<|{some_word(rng)}{i}|>" for i in range(6)], rng.randint(2, 5))
        edges: list = [None, 0, rng.randint(1, 255), *special]
        size = 256 + len(merges) + len(special)
        row: list[tuple] = [("numbers",), ("bytes",), ("special", rng.choice(special))]
        for _ in range(3):
            text = some_text(rng, 3) + rng.choice(special) + some_word(rng)
            row.append(("encode", rng.choice([text, [text, "", some_word(rng)]]), rng.choice(edges), rng.choice(edges)))
        row.append(("decode", [rng.randrange(size) for _ in range(8)]))
        rows.append((merges, special, rng.choice(special), row))
    return asked("merges special bos_token questions", *rows)


def answered_by(make: type[RustBPETokenizer] = RustBPETokenizer) -> Callable[..., list]:
    """What the graded cell reports of a tokenizer of the class `make`."""

    def answers(merges: list[str], special: list[str], bos_token: str, questions: list) -> list:
        ranks = dict(BYTES)
        for merge in merges:
            ranks[merge.encode("latin-1")] = len(ranks)
        numbered = {name: len(ranks) + i for i, name in enumerate(special)}
        encoding = tiktoken.Encoding("toy", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=numbered)
        tokenizer = make(encoding, bos_token)
        return [_answer(tokenizer, *question) for question in questions]

    return answers


def _answer(tokenizer: RustBPETokenizer, what: str, *arguments: Any) -> Any:
    try:
        match what, arguments:
            case "encode", (text, prepend, append):
                return tokenizer.encode(text, prepend=prepend, append=append)
            case "special", (name,):
                return tokenizer.encode_special(name)
            case "decode", (ids,):
                return tokenizer.decode(ids)
            case "bytes", ():
                return compute_token_bytes(tokenizer)
        return [tokenizer.get_bos_token_id(), tokenizer.get_vocab_size()]
    except (ValueError, KeyError) as error:
        return type(error).__name__


class Obedient(RustBPETokenizer):
    """Texts may hold special tokens."""

    def encode(self, text: Any, prepend: Any = None, append: Any = None, num_threads: int = 8) -> Any:
        around = [self._one_token(edge) for edge in (prepend, append)]
        if isinstance(text, str):
            return [*around[0], *self.enc.encode(text, allowed_special="all"), *around[1]]
        if isinstance(text, list):
            return [self.encode(each, prepend, append) for each in text]
        return super().encode(text)


class Alarmed(RustBPETokenizer):
    """tiktoken's own way: an error where a text holds a special token."""

    def encode(self, text: Any, prepend: Any = None, append: Any = None, num_threads: int = 8) -> Any:
        for each in text if isinstance(text, list) else [text] if isinstance(text, str) else []:
            self.enc.encode(each)
        return super().encode(text, prepend, append)


class FalsyEdges(RustBPETokenizer):
    def encode(self, text: Any, prepend: Any = None, append: Any = None, num_threads: int = 8) -> Any:
        return super().encode(text, prepend or None, append or None)


class EdgesAroundTheList(RustBPETokenizer):
    """A list's first text gets what is prepended, its last what is appended."""

    def encode(self, text: Any, prepend: Any = None, append: Any = None, num_threads: int = 8) -> Any:
        if not isinstance(text, list):
            return super().encode(text, prepend, append)
        rows = super().encode(text)
        if rows:
            rows[0] = [*self._one_token(prepend), *rows[0]]
            rows[-1] = [*rows[-1], *self._one_token(append)]
        return rows


def counting(count: Callable[[RustBPETokenizer, int], int]) -> Callable[..., list]:
    """Answers in which `token_bytes` is `count` of every id."""

    def answers(**case: Any) -> list:
        told = answered_by()(**case)
        for i, question in enumerate(case["questions"]):
            if question[0] == "bytes":
                tokenizer = _tokenizer_of(case)
                sizes = [count(tokenizer, token) for token in range(tokenizer.get_vocab_size())]
                told[i] = told[i].new_tensor(sizes)
        return told

    return answers


def _tokenizer_of(case: Case) -> RustBPETokenizer:
    """The tokenizer that a case asks about."""
    kept: list[RustBPETokenizer] = []

    class Kept(RustBPETokenizer):
        def __init__(self, enc: tiktoken.Encoding, bos_token: str) -> None:
            super().__init__(enc, bos_token)
            kept.append(self)

    answered_by(Kept)(**case | {"questions": []})
    return kept[0]


def characters(tokenizer: RustBPETokenizer, token: int) -> int:
    special = tokenizer.decode([token]) in tokenizer.get_special_tokens()
    return 0 if special else len(tokenizer.decode([token]).encode())


TOKENIZER = Judge(
    questions,
    answered_by(),
    mistakes={
        "special tokens in a text become commands; encode_ordinary leaves them text": answered_by(Obedient),
        "a text with the name of a special token in it is refused; encode_ordinary takes it as text": (
            answered_by(Alarmed)
        ),
        "an id of 0 to prepend or append is taken for none; compare with `is None`": answered_by(FalsyEdges),
        "prepend and append go around the list; they go around every text of it": answered_by(EdgesAroundTheList),
        "bytes are counted after decoding, which turns half a character into U+FFFD; count the token's own": (
            counting(characters)
        ),
        "special tokens stand for no bytes of text; they count 0": (
            counting(lambda tokenizer, token: len(tokenizer.decode_single_token_bytes(token)))
        ),
    },
)
