"""Judge of `tool_state_machine`: rows side by side on a tokenizer of bytes, against `Engine.emit`.

Tokens are written as signs: { } [ ] $ ^ for the special ones, else the character whose number is the byte's.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat.engine import Engine, Row

SIGNS = {
    "<|python_start|>": "{",
    "<|python_end|>": "}",
    "<|output_start|>": "[",
    "<|output_end|>": "]",
    "<|assistant_end|>": "$",
    "<|bos|>": "^",
}
EXPRESSIONS = (
    *("12*3", "5-5", "7/2", "0*8", "(1+2)*3", "1,000+1", "-4+1", "9", "0/3", "-1/4", "10//4"),  # have a value
    *(
        "'abcab'.count('a')",
        "'xyz'.count('q')",
        "'B\u00c3\u00a9b\u00c3\u00a9'.lower().count('b')",
    ),  # the last is refused
    *("1/0", "2**3", "6/", "x+1", "", " ", "()", "hello"),  # most have none
)
PLAIN = "abcXYZ 019+-"


class SignTokenizer:
    """A token a byte from `first` on, and the special ones; notes what it decodes, which is what is computed."""

    def __init__(self, special: list[int], first: int) -> None:
        self.first, self.special = first, dict(zip(SIGNS.values(), special, strict=True))
        self.signs = {token: sign for sign, token in self.special.items()}
        self.decoded: list[str] = []

    def encode_special(self, name: str) -> int:
        return self.special[SIGNS[name]]

    def get_bos_token_id(self) -> int:
        return self.special["^"]

    def encode(self, text: str) -> list[int]:
        return [self.first + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        text = self.show(ids).encode("latin-1").decode(errors="replace")
        self.decoded.extend([text] if text else [])
        return text

    def read(self, signs: str) -> list[int]:
        return [self.special.get(sign, self.first + ord(sign)) for sign in signs]

    def show(self, ids: list[int]) -> str:
        return "".join(self.signs.get(token) or chr(token - self.first) for token in ids)


# cases


def some_signs(rng: Random, length: int, alphabet: str = PLAIN) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


def some_row(rng: Random, length: int) -> str:
    """Signs of one row: words, blocks that are computed, and all that may go wrong with them."""
    signs = ""
    while len(signs) < length:
        kind = rng.random()
        if kind < 0.6:
            # while a result is being forced, anything may be sampled
            signs += "{" + rng.choice(EXPRESSIONS) + "}" + some_signs(rng, rng.randint(0, 6), PLAIN + "{}$^[")
        elif kind < 0.75:
            signs += "{" + some_signs(rng, rng.randint(1, 3)) + rng.choice("{$^[]")
        else:
            signs += some_signs(rng, rng.randint(1, 3), PLAIN + "}[]$^")
    return signs[:length]


def some_ids(rng: Random) -> tuple[list[int], int]:
    """Ids of the special tokens, below and above the bytes, and of the first byte."""
    first = rng.randint(0, 40)
    free = [*range(first), *range(first + 256, first + 300)]
    return rng.sample(free, len(SIGNS)), first


def row_cases(rng: Random) -> list[Case]:
    usual = [300, 301, 302, 303, 304, 305], 0
    fixed = [
        ["Hi$"],
        ["ok^"],
        ["{1+1}abcZ$"],
        ["{3-3}abcd"],
        ["{0/3}abcdefg"],
        ["{1/3}abcdefghijklmnopqrstuvwxy"],
        ["{1/0}a{x}b{}{2**3}cd"],
        ["}x}{2}abc}x"],
        ["{4}{1}ab{2}def"],
        ["{9{9}abc{2+{3+4}abcd"],
        ["{1+1}$^$y"],
        ["{5+5}}abcd}"],
        ["{1$+1}abcde}x"],
        ["{1[+]2}abcde{3}fgh"],
        ["$Z{1}abc^Z$"],
        ["{6*7", "}abcde", "{9*9", "4}abcd"],
        ["{1,000*2}abcdef{'x\u00c3\u00a9x'}ghijkl"],
        ["{'banana'.count('a')}abcd"],
    ]
    equal = [[row.ljust(max(map(len, rows)), ".") for row in rows] for rows in fixed]
    cases = [(rows, *(usual if i < 3 else some_ids(rng))) for i, rows in enumerate(equal)]
    for _ in range(10):
        length = rng.randint(10, 60)
        cases.append(([some_row(rng, length) for _ in range(rng.randint(1, 4))], *some_ids(rng)))
    return asked("sampled special first", *cases)


# the oracle, and engines that make a mistake


def emitted_by(make: type[Engine] = Engine, own_rows: bool = True) -> Callable[..., Case]:
    """What the graded cell reports of rows that an engine of the class `make` keeps."""

    def emit_all(sampled: list[str], special: list[int], first: int) -> Case:
        tokenizer = SignTokenizer(special, first)
        engine = make(None, tokenizer)
        rows = [Row() for _ in sampled] if own_rows else [Row()] * len(sampled)
        told = [{"emitted": "", "mask": "", "completed": ""} for _ in sampled]
        for column in zip(*map(tokenizer.read, sampled), strict=True):
            for row, so_far, offered in zip(rows, told, column, strict=True):
                token, mask = engine.emit(row, offered)
                so_far["emitted"] += tokenizer.show([token])
                so_far["mask"] += str(mask)
                so_far["completed"] += str(int(row.completed))
        return {"rows": told, "asked": tokenizer.decoded}

    return emit_all


def result_as(change: Callable[[Any, list[int]], list[int]]) -> type[Engine]:
    """An engine that forces `change(engine, forced)` where nanochat's would force `forced` (maybe nothing)."""

    class Changed(Engine):
        def track(self, row: Row, token: int) -> None:
            closes = row.python_tokens is not None and token == self.python_end
            super().track(row, token)
            if closes:
                row.forced = deque(change(self, list(row.forced)))

    return Changed


def forced_none(engine: Any, forced: list[int]) -> list[int]:
    return forced or [engine.output_start, *engine.tokenizer.encode("None"), engine.output_end]


def without_zero(engine: Any, forced: list[int]) -> list[int]:
    is_zero = engine.tokenizer.show(forced[1:-1]) in ("0", "0.0", "-0.0")
    return [] if is_zero else forced


class MaskedOne(Engine):
    def emit(self, row: Row, sampled: int) -> tuple[int, int]:
        return super().emit(row, sampled)[0], 1


class Delaying(Engine):
    """What is sampled while a token is forced comes later."""

    def emit(self, row: Row, sampled: int) -> tuple[int, int]:
        waiting = row.__dict__.setdefault("waiting", deque())
        waiting.append(sampled)
        if row.forced:
            return super().emit(row, sampled)
        return super().emit(row, waiting.popleft())


class NoticingTheDropped(Engine):
    def emit(self, row: Row, sampled: int) -> tuple[int, int]:
        if row.forced:
            row.completed = row.completed or sampled in self.terminal
        return super().emit(row, sampled)


class NeverReopening(Engine):
    """A second { inside a block is ignored."""

    def track(self, row: Row, token: int) -> None:
        if token != self.python_start or row.python_tokens is None:
            super().track(row, token)


class Hoarding(Engine):
    """What a block has collected is still there in the next."""

    def track(self, row: Row, token: int) -> None:
        before = row.__dict__.get("hoard", [])
        if row.python_tokens is not None and token not in (self.python_start, self.python_end):
            row.__dict__["hoard"] = [*before, token]
        super().track(row, token)
        if token == self.python_start:
            row.python_tokens = list(before)


class StoppingAtTheEnd(Engine):
    def emit(self, row: Row, sampled: int) -> tuple[int, int]:
        return (sampled, 1) if row.completed else super().emit(row, sampled)


class WithoutBos(Engine):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.terminal -= {tokenizer.get_bos_token_id()}


class OnlyBos(Engine):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.terminal = {tokenizer.get_bos_token_id()}


class Resuming(Engine):
    """Any token after a terminal one makes the row incomplete again."""

    def track(self, row: Row, token: int) -> None:
        row.completed = False
        super().track(row, token)


TOOL_STATE_MACHINE = Judge(
    row_cases,
    emitted_by(),
    mistakes={
        "<|assistant_end|> does not complete the row; it does, as BOS does": emitted_by(OnlyBos),
        "BOS does not complete the row; it does, as <|assistant_end|> does": emitted_by(WithoutBos),
        "the result is forced without <|output_start|> and <|output_end|> around it": (
            emitted_by(result_as(lambda engine, forced: forced[1:-1]))
        ),
        "forced tokens have mask 1; it is 0, for the model did not choose them": emitted_by(MaskedOne),
        "a value of 0 is taken for none; only None is none": emitted_by(result_as(without_zero)),
        "nothing is forced: the calculator's value must be queued": emitted_by(result_as(lambda engine, forced: [])),
        "what is sampled while a token is forced is kept for later; it must be thrown away": emitted_by(Delaying),
        "None is forced as a text; where there is no value nothing is forced": emitted_by(result_as(forced_none)),
        "a { inside of a block is ignored; it starts the block afresh": emitted_by(NeverReopening),
        "a block still holds what an earlier one has collected": emitted_by(Hoarding),
        "a terminal token that was thrown away completes the row; only what is emitted counts": (
            emitted_by(NoticingTheDropped)
        ),
        "a completed row stops computing; it goes on as before": emitted_by(StoppingAtTheEnd),
        "a completed row becomes incomplete again": emitted_by(Resuming),
        "rows share their state; each has a queue, a block and a flag of its own": emitted_by(own_rows=False),
    },
)
