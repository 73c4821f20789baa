"""A chat: what the model is given to read, and what the user gets to see of its answer."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.chat import Chat, Readable, complete
from nanochat.common import InputError
from nanochat.engine import Engine
from nanochat.tokenizer import RustBPETokenizer

TOKENIZER = RustBPETokenizer.train_from_iterator([""], 265)  # every byte is a token


def special(name: str) -> int:
    return TOKENIZER.encode_special(f"<|{name}|>")


def turn(role: str, *content: int | str) -> list[int]:
    tokens = [token for part in content for token in ([part] if isinstance(part, int) else TOKENIZER.encode(part))]
    return [special(f"{role}_start"), *tokens, special(f"{role}_end")]


class Scripted(Engine):
    """An engine that says what it was told to, whatever it is asked."""

    def __init__(self, *tokens: int, context: int = 64) -> None:
        super().__init__(SimpleNamespace(config=SimpleNamespace(sequence_len=context)), TOKENIZER)
        self.script = tokens
        self.asked: list[tuple[list[int], dict[str, Any]]] = []

    def generate(self, tokens: list[int], num_samples: int = 1, **kwargs: Any) -> Iterator[Any]:  # type: ignore[override]
        self.asked.append((tokens, kwargs))
        for token in self.script[: kwargs["max_tokens"]]:
            yield [token], [1]


def test_the_model_reads_the_whole_conversation_in_its_training_format() -> None:
    engine = Scripted(*TOKENIZER.encode("hi"), special("assistant_end"), *TOKENIZER.encode("never seen"))
    chat = Chat(engine)
    assert "".join(chat.reply("one")) == "hi"
    assert "".join(chat.reply("two")) == "hi"
    bos = TOKENIZER.get_bos_token_id()
    prompt = [bos, *turn("user", "one"), special("assistant_start")]
    assert engine.asked[0][0] == prompt
    second = [bos, *turn("user", "one"), *turn("assistant", "hi"), *turn("user", "two"), special("assistant_start")]
    assert engine.asked[1][0] == second
    assert chat.tokens == [*second, *TOKENIZER.encode("hi"), special("assistant_end")]
    chat.clear()
    assert chat.tokens == [bos]


def test_a_call_of_the_calculator_is_shown() -> None:
    call = [special("python_start"), *TOKENIZER.encode("3*4"), special("python_end")]
    output = [special("output_start"), *TOKENIZER.encode("12"), special("output_end")]
    chat = Chat(Scripted(*call, *output, *TOKENIZER.encode("That makes 12."), special("assistant_end")))
    assert "".join(chat.reply("3*4?")) == "[calculator: 3*4] [= 12] That makes 12."


def test_an_answer_cut_short_by_the_reader_or_by_the_limit_is_closed_all_the_same() -> None:
    chat = Chat(Scripted(*TOKENIZER.encode("abcdef")), max_tokens=4)
    assert "".join(chat.reply("x")) == "abcd"
    assert chat.tokens[-2:] == [*TOKENIZER.encode("d"), special("assistant_end")]
    reply = chat.reply("y")
    assert next(reply) == "a"
    reply.close()
    assert chat.tokens[-2:] == [*TOKENIZER.encode("a"), special("assistant_end")]


def test_a_conversation_longer_than_the_context_is_refused_and_left_as_it_was() -> None:
    engine = Scripted(*TOKENIZER.encode("abcdefgh"), context=20)
    chat = Chat(engine)
    list(chat.reply("12345678"))  # 12 tokens, then the answer of 8
    before = chat.tokens.copy()
    with pytest.raises(InputError, match=r"the conversation has \d+ tokens and the model reads 20: start a new one"):
        next(chat.reply("more"))
    assert chat.tokens == before
    assert engine.asked[0][1]["max_tokens"] == 8


@given(st.text())
def test_text_comes_out_as_it_went_in_however_its_bytes_are_spread_over_tokens(text: str) -> None:
    """A character is shown with its last byte, never in pieces."""
    readable = Readable(TOKENIZER)
    pieces = [readable.feed(token) for token in TOKENIZER.encode(text)]
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)


def test_half_a_character_before_a_tool_call_is_not_lost() -> None:
    readable = Readable(TOKENIZER)
    first_byte, *_ = TOKENIZER.encode("é")
    assert readable.feed(first_byte) + readable.feed(special("python_start")) == "\ufffd[calculator: "


def test_complete_gives_prompt_and_continuation() -> None:
    engine = Scripted(*TOKENIZER.encode(" there"), TOKENIZER.get_bos_token_id())
    assert complete(engine, "hello", max_tokens=9) == "hello there"
    assert engine.asked[0][0] == [TOKENIZER.get_bos_token_id(), *TOKENIZER.encode("hello")]
