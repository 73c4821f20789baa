"""Talking to a model: completing a text, and a chat that shows its answers as they are written."""

import codecs
from collections.abc import Generator
from typing import Any

from nanochat.common import InputError
from nanochat.engine import Engine

MARKS = {
    "<|python_start|>": "[calculator: ",
    "<|python_end|>": "]",
    "<|output_start|>": " [= ",
    "<|output_end|>": "] ",
}


def complete(engine: Engine, prompt: str, **kwargs: Any) -> str:
    """The text `prompt` and how the model continues it; `kwargs` are those of `Engine.generate`."""
    tokenizer = engine.tokenizer
    sequences, _ = engine.generate_batch(tokenizer.encode(prompt, prepend="<|bos|>"), **kwargs)
    return tokenizer.decode(sequences[0][1:])


class Chat:
    """A conversation: what was said so far, as `tokens`."""

    def __init__(self, engine: Engine, max_tokens: int = 256, temperature: float = 0.6, top_k: int | None = 50) -> None:
        self.engine = engine
        self.max_tokens, self.temperature, self.top_k = max_tokens, temperature, top_k
        self.clear()

    def clear(self) -> None:
        """Forget everything that was said."""
        self.tokens = [self.engine.tokenizer.get_bos_token_id()]

    def reply(self, message: str, seed: int = 42) -> Generator[str, None, None]:
        """Say `message` and yield the answer in pieces of text. The calculator shows as [calculator: 3*4] [= 12].

        Raises InputError if the conversation is longer than the model can read. It is then as it was before.
        """
        tokenizer, config = self.engine.tokenizer, self.engine.model.config
        special = tokenizer.encode_special
        tokens = [*self.tokens, special("<|user_start|>"), *tokenizer.encode(message), special("<|user_end|>")]
        tokens.append(special("<|assistant_start|>"))
        room = config.sequence_len - len(tokens)
        if room < 1:
            raise InputError(
                f"the conversation has {len(tokens)} tokens and the model reads {config.sequence_len}: "
                "start a new one, or say it in fewer words."
            )
        self.tokens = tokens
        readable = Readable(tokenizer)
        generated = self.engine.generate(
            self.tokens.copy(),
            max_tokens=min(self.max_tokens, room),
            temperature=self.temperature,
            top_k=self.top_k,
            seed=seed,
        )
        try:
            for (token,), _ in generated:
                if token in self.engine.terminal:
                    break
                self.tokens.append(token)
                yield readable.feed(token)
        finally:  # also if the reader has had enough
            self.tokens.append(special("<|assistant_end|>"))


class Readable:
    """Turns tokens into text one by one. A character may be spread over several tokens: it comes with the last."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.marks = {tokenizer.encode_special(name): mark for name, mark in MARKS.items()}

    def feed(self, token: int) -> str:
        """The text that is complete with `token`."""
        if token in self.marks:
            return self.decoder.decode(b"", final=True) + self.marks[token]
        return self.decoder.decode(self.tokenizer.decode_single_token_bytes(token))
