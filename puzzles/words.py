"""A tokenizer small enough to read with the eye: every word is a token, whatever it is numbered."""

import re

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)


class WordTokenizer:
    """Words with the space before them are tokens, and so is any other character. They are numbered from `first` on as
    they come; the special tokens have the ids they are given, in the order of SPECIAL_TOKENS."""

    def __init__(self, special: list[int], first: int = 1000) -> None:
        self.special = dict(zip(SPECIAL_TOKENS, special, strict=True))
        self.first = first
        self.words: list[str] = []

    def get_bos_token_id(self) -> int:
        return self.special["<|bos|>"]

    def encode_special(self, text: str) -> int:
        return self.special[text]

    def encode(self, text: str) -> list[int]:
        pieces = re.findall(r" ?\w+|.", text, re.DOTALL)
        self.words += [piece for piece in dict.fromkeys(pieces) if piece not in self.words]
        return [self.first + self.words.index(piece) for piece in pieces]

    def show(self, ids: list[int]) -> list[str]:
        """The token of every id; that of an id nobody was given is its number."""
        names = {token_id: name for name, token_id in self.special.items()}
        names |= {self.first + i: word for i, word in enumerate(self.words)}
        return [names.get(token_id, f"?{token_id}") for token_id in ids]
