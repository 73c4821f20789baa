"""Judge of `answer_spans`: which tokens are the answer, found with tokenizers whose pieces are longer than a letter."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat import core_eval

Spans = tuple[list[list[int]], list[int], list[int]]


class PieceTokenizer:
    """What the notebook's is: the longest piece first, any other character on its own. Ids: bos, pieces, characters."""

    def __init__(self, pieces: Sequence[str], bos: int) -> None:
        self.bos = bos
        self.ids = {piece: bos + 1 + i for i, piece in reversed(list(enumerate(pieces)))}
        self.characters = bos + 1 + len(pieces)
        self.by_length = sorted(pieces, key=len, reverse=True)

    def get_bos_token_id(self) -> int:
        return self.bos

    def __call__(self, prompts: list[str], prepend: int | None = None) -> list[list[int]]:
        return [[*([] if prepend is None else [prepend]), *self.encode(prompt)] for prompt in prompts]

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            piece = next((piece for piece in self.by_length if text.startswith(piece)), text[0])
            ids.append(self.ids[piece] if piece in self.ids else self.characters + ord(piece))
            text = text[len(piece) :]
        return ids


WORDS = (
    " red",
    " reddish",
    " redder",
    " rose",
    " rosy",
    " is",
    " the",
    " a",
    " he",
    " she",
    " they",
    "ish",
    "er",
    "sy",
)


def some_pieces(rng: Random) -> list[str]:
    letters = "abc"
    drawn = ("".join(rng.choice(letters) for _ in range(rng.randint(2, 4))) for _ in range(rng.randint(3, 9)))
    return sorted(set(drawn))


def some_text(rng: Random, most: int) -> str:
    return "".join(rng.choice("abc") for _ in range(rng.randint(1, most)))


def random_prompts(rng: Random, task_type: str) -> list[str]:
    """Texts of a, b and c that share their beginning or end, more letters of it than tokens now and then."""
    if task_type == "language_modeling":
        begun = some_text(rng, 8)
        return [begun, begun + some_text(rng, 4)]
    shared, own = some_text(rng, 8), [some_text(rng, 6) for _ in range(rng.randint(2, 5))]
    return [shared + each if task_type == "multiple_choice" else each + shared for each in own]


def span_cases(rng: Random) -> list[Case]:
    mc, schema, lm = "multiple_choice", "schema", "language_modeling"
    fixed: list[tuple[str, list[str]]] = [
        (mc, ["x=10", "x=2"]),
        (mc, ["it is red", "it is blue"]),
        (mc, ["it is reddish", "it is redder"]),
        (mc, ["it is rose red", "it is rosy", "it is rose"]),
        (mc, ["it is", "it is", "it is a rose"]),
        (mc, ["it is a rose", "it is a rosy", "it was a rose"]),
        (mc, ["ab"]),
        (mc, ["rosy", "a"]),
        (schema, ["if he is red", "if she is red"]),
        (schema, ["as he is a rose", "as they is a rose", "x a rose"]),
        (schema, ["a redder rose is", "the rose is"]),
        (schema, ["the reddish", "the fish"]),
        (schema, ["ish", "ish"]),
        (schema, ["q", "ab"]),
        (lm, ["the rose is", "the rose is red"]),
        (lm, ["the rose is", "the rose is reddish rose"]),
        (lm, ["a rose is red", "a rose is reddish"]),
        (lm, ["a rose is red", "a rose is redder rose"]),
        (lm, ["a rose", "the rose is"]),
        (lm, ["a rose is", "a rose is"]),
        (lm, ["a rose is red", "a rose is"]),
        (lm, ["the", "the a"]),
        ("cloze", ["the rose", "the rose is"]),
    ]
    cases: list[tuple] = [(task_type, prompts, WORDS, i % 3 * 17) for i, (task_type, prompts) in enumerate(fixed)]
    for number in range(18):
        task_type = (mc, schema, lm)[number % 3]
        cases.append((task_type, random_prompts(rng, task_type), some_pieces(rng), rng.choice((0, 5, 900))))
    return asked("task_type prompts pieces bos", *cases)


Find = Callable[[str, list[str], PieceTokenizer], Spans]


def nanochat_spans(task_type: str, prompts: list[str], tokenizer: Any) -> Spans:
    if task_type not in core_eval.TASK_TYPES:
        raise ValueError(task_type)
    return core_eval.TASK_TYPES[task_type][1](tokenizer, prompts)


def spans_by(find: Find = nanochat_spans) -> Callable[..., Case]:
    """What the graded cell reports of a way to find spans."""

    @plain_value_error
    def spans(task_type: str, prompts: list[str], pieces: list[str], bos: int) -> Case:
        return dict(
            zip(("sequences", "starts", "ends"), find(task_type, prompts, PieceTokenizer(pieces, bos)), strict=True)
        )

    return spans


class WithoutBos(PieceTokenizer):
    def __call__(self, prompts: list[str], prepend: int | None = None) -> list[list[int]]:
        return super().__call__(prompts)


def moved(starts: int, ends: int) -> Callable[..., Case]:
    def find(task_type: str, prompts: list[str], tokenizer: PieceTokenizer) -> Spans:
        sequences, own_starts, own_ends = nanochat_spans(task_type, prompts, tokenizer)
        return sequences, [start + starts for start in own_starts], [end + ends for end in own_ends]

    return spans_by(find)


def found_on_text(task_type: str, prompts: list[str], tokenizer: PieceTokenizer) -> Spans:
    sequences, starts, ends = nanochat_spans(task_type, prompts, tokenizer)
    texts = [list(prompt.encode()) for prompt in prompts]
    if task_type == "multiple_choice":
        letters = core_eval.find_common_length(texts)
        starts = [1 + len(tokenizer.encode(prompts[0][:letters]))] * len(prompts)
    if task_type == "schema":
        letters = core_eval.find_common_length(texts, "right")
        suffix = prompts[0][len(prompts[0]) - letters :]
        starts = [end - len(tokenizer.encode(suffix)) for end in ends]
    return sequences, starts, ends


def of_the_first_two(task_type: str, prompts: list[str], tokenizer: PieceTokenizer) -> Spans:
    sequences, starts, ends = nanochat_spans(task_type, prompts, tokenizer)
    if task_type != "language_modeling":
        first, *_ = nanochat_spans(task_type, prompts[:2], tokenizer)[1]
        shared = first if task_type == "multiple_choice" else ends[0] - first
        starts = [shared if task_type == "multiple_choice" else end - shared for end in ends]
    return sequences, starts, ends


def trusting(task_type: str, prompts: list[str], tokenizer: PieceTokenizer) -> Spans:
    """Language modeling without a look at the tokens."""
    if task_type != "language_modeling":
        return nanochat_spans(task_type, prompts, tokenizer)
    without, complete = tokenizer(prompts, prepend=tokenizer.bos)
    return [complete], [len(without)], [len(complete)]


def both_prompts(task_type: str, prompts: list[str], tokenizer: PieceTokenizer) -> Spans:
    sequences, starts, ends = nanochat_spans(task_type, prompts, tokenizer)
    if task_type == "language_modeling":
        sequences = tokenizer(prompts, prepend=tokenizer.bos)
        starts, ends = starts * 2, [len(sequence) for sequence in sequences]
    return sequences, starts, ends


def one_start(task_type: str, prompts: list[str], tokenizer: PieceTokenizer) -> Spans:
    sequences, starts, ends = nanochat_spans(task_type, prompts, tokenizer)
    return sequences, [starts[0]] * len(starts), ends


def swapped(task_type: str, prompts: list[str], tokenizer: PieceTokenizer) -> Spans:
    """The common part of a multiple choice is taken from the end, that of a schema from the beginning."""
    other = {"multiple_choice": "schema", "schema": "multiple_choice"}
    return nanochat_spans(other.get(task_type, task_type), prompts, tokenizer)


ANSWER_SPANS = Judge(
    span_cases,
    spans_by(),
    mistakes={
        "BOS is missing at the beginning of the sequences": spans_by(
            lambda task_type, prompts, tokenizer: nanochat_spans(
                task_type, prompts, WithoutBos(list(tokenizer.ids)[::-1], tokenizer.bos)
            )
        ),
        "what is common is looked for in the text; it must be looked for among the tokens": spans_by(found_on_text),
        "start is one too early": moved(-1, 0),
        "start is one too late": moved(1, 0),
        "end is the last position of the answer; it is the one after it": moved(0, -1),
        "only the first two options are compared; all must agree": spans_by(of_the_first_two),
        "all options have the start of the first; a common suffix starts elsewhere in each": spans_by(one_start),
        "multiple choice shares its beginning and schema its end, not the other way round": spans_by(swapped),
        "language modeling has both prompts as options; only the complete one is scored": spans_by(both_prompts),
        "in language modeling, tokens that are no shorter beginning of the other prompt's must raise ValueError": (
            spans_by(trusting)
        ),
    },
)
