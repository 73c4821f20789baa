"""Byte-pair-encoding tokenizer: trained by rustbpe, served by tiktoken.

Text is first split into word-like chunks by `SPLIT_PATTERN`; merges never cross a chunk. Ids 0..255 are the single
bytes, then come the merges in the order they were learnt, then the special tokens. Text is always encoded as ordinary
bytes: a user who types <|bos|> gets seven harmless tokens, and only `encode_special` makes a special one.
"""

import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import overload

import rustbpe
import tiktoken
import torch

from nanochat import rendering, tokenizer_files
from nanochat.common import InputError, get_base_dir, write_atomically

SPECIAL_TOKENS = [
    "<|bos|>",  # opens every document
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the Python tool
    "<|python_end|>",
    "<|output_start|>",  # what the tool answered
    "<|output_end|>",
]

# GPT-4's pattern, but with numbers cut into groups of at most two digits (there: three), which spends fewer of a small
# vocabulary's tokens on numbers.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

TOKEN_BYTES_NAME = "token_bytes.pt"

MIN_CHARS_FOR_THREADS = 50_000  # shorter batches are encoded sooner than threads have started


class RustBPETokenizer:
    """A tiktoken encoding with nanochat's special tokens and the rendering of conversations.

    Attributes:
        enc: the `tiktoken.Encoding` that does the work.
        bos_token_id: id of the token that opens every document.
    """

    def __init__(self, enc: tiktoken.Encoding, bos_token: str) -> None:
        if bos_token not in enc.special_tokens_set:
            raise ValueError(f"the tokenizer {enc.name!r} has no special token {bos_token} to open documents with")
        self.enc = enc
        self.bos_token_id = self.encode_special(bos_token)

    @classmethod
    def train_from_iterator(cls, text_iterator: Iterable[str], vocab_size: int) -> "RustBPETokenizer":
        """Learn merges from texts until the vocabulary, special tokens included, has `vocab_size` tokens.

        Of the most frequent pairs the smallest (left id, right id) is merged first. When no pair is left to merge the
        vocabulary stays smaller than asked for.

        Raises:
            InputError: `vocab_size` has no room for the 256 bytes and the special tokens.
        """
        ordinary_size = vocab_size - len(SPECIAL_TOKENS)
        if ordinary_size < 256:
            raise InputError(
                f"vocab_size is {vocab_size}: it needs room for 256 bytes and {len(SPECIAL_TOKENS)} specials"
            )
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(text_iterator), ordinary_size, pattern=SPLIT_PATTERN)
        ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
        specials = {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
        enc = tiktoken.Encoding("rustbpe", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=specials)
        return cls(enc, "<|bos|>")

    @classmethod
    def from_directory(cls, tokenizer_dir: str | os.PathLike[str]) -> "RustBPETokenizer":
        """The tokenizer saved in a directory. For what it reads and refuses see `tokenizer_files.load_encoding`."""
        return cls(tokenizer_files.load_encoding(tokenizer_dir), "<|bos|>")

    @classmethod
    def from_pretrained(cls, tiktoken_name: str) -> "RustBPETokenizer":
        """One of OpenAI's tokenizers by its tiktoken name ("gpt2", "cl100k_base"), which has no chat tokens."""
        return cls(tiktoken.get_encoding(tiktoken_name), "<|endoftext|>")

    def save(self, tokenizer_dir: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer.pkl."""
        tokenizer_files.save_encoding(self.enc, tokenizer_dir)

    @overload
    def encode(
        self, text: str, prepend: int | str | None = None, append: int | str | None = None, num_threads: int = 8
    ) -> list[int]: ...
    @overload
    def encode(
        self, text: list[str], prepend: int | str | None = None, append: int | str | None = None, num_threads: int = 8
    ) -> list[list[int]]: ...
    def encode(
        self,
        text: str | list[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 8,
    ) -> list[int] | list[list[int]]:
        """Token ids of a text, or of each text of a list (in `num_threads` threads if it is long).

        `prepend` and `append` (a token id, or the name of a special token) go around every text. Nothing inside a text
        becomes a special token.

        Raises:
            ValueError: `text` is neither a string nor a list.
        """
        before, after = self._one_token(prepend), self._one_token(append)
        if isinstance(text, str):
            return [*before, *self.enc.encode_ordinary(text), *after]
        if isinstance(text, list):
            if sum(map(len, text)) < MIN_CHARS_FOR_THREADS:
                batch = [self.enc.encode_ordinary(each) for each in text]
            else:
                batch = self.enc.encode_ordinary_batch(text, num_threads=num_threads)
            return [[*before, *ids, *after] for ids in batch]
        raise ValueError(f"encode takes a string or a list of strings, not {type(text).__name__}")

    __call__ = encode

    def _one_token(self, token: int | str | None) -> list[int]:
        if token is None:
            return []
        return [token if isinstance(token, int) else self.encode_special(token)]

    def encode_special(self, text: str) -> int:
        """Id of a special token (or of a text that is exactly one token). KeyError if there is no such token."""
        return self.enc.encode_single_token(text)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; bytes that are not valid UTF-8 become U+FFFD. KeyError on an unknown id."""
        return self.enc.decode(ids)

    def id_to_token(self, id: int) -> str:
        """The text of one token id."""
        return self.decode([id])

    def decode_single_token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token id, which need not be valid UTF-8 on their own."""
        return self.enc.decode_single_token_bytes(token_id)

    def get_bos_token_id(self) -> int:
        return self.bos_token_id

    def get_vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return self.enc.n_vocab

    def get_special_tokens(self) -> set[str]:
        return self.enc.special_tokens_set

    def render_conversation(
        self, conversation: rendering.Conversation, max_tokens: int = 2048
    ) -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation for training, see `rendering.render_conversation`."""
        return rendering.render_conversation(self, conversation, max_tokens)

    def render_for_completion(self, conversation: rendering.Conversation) -> list[int]:
        """Prompt for the assistant's next answer, see `rendering.render_for_completion`."""
        return rendering.render_for_completion(self, conversation)

    def visualize_tokenization(self, ids: list[int], mask: list[int], with_token_id: bool = False) -> str:
        """Tokens coloured by mask for a terminal, see `rendering.visualize_tokenization`."""
        return rendering.visualize_tokenization(self, ids, mask, with_token_id)


def text_iterator(documents: Iterable[str], max_chars: int = 2_000_000_000, doc_cap: int = 10_000) -> Iterator[str]:
    """The documents to train a tokenizer on: each cut to `doc_cap` characters, ending with the one that takes the
    number of characters past `max_chars`."""
    characters = 0
    for document in documents:
        text = document[:doc_cap]
        yield text
        characters += len(text)
        if characters > max_chars:
            return


def compute_token_bytes(tokenizer: RustBPETokenizer) -> torch.Tensor:
    """Number of bytes that each token id stands for, (vocab_size,) int32, 0 for special tokens.

    Bits per byte divides by these (see `loss_eval.evaluate_bpb`), which makes vocabularies comparable.
    """
    specials = {tokenizer.encode_special(token) for token in tokenizer.get_special_tokens()}
    counts = [
        0 if token_id in specials else len(tokenizer.decode_single_token_bytes(token_id))
        for token_id in range(tokenizer.get_vocab_size())
    ]
    return torch.tensor(counts, dtype=torch.int32)


def save_token_bytes(token_bytes: torch.Tensor, tokenizer_dir: str | os.PathLike[str]) -> None:
    """Write `compute_token_bytes` of a tokenizer as token_bytes.pt beside it."""
    path = Path(tokenizer_dir, TOKEN_BYTES_NAME)
    write_atomically(path, lambda temporary: torch.save(token_bytes, temporary))


def get_tokenizer() -> RustBPETokenizer:
    """The tokenizer trained into the base directory. FileNotFoundError if there is none yet."""
    return RustBPETokenizer.from_directory(_default_dir())


def get_token_bytes(device: torch.device | str = "cpu") -> torch.Tensor:
    """`compute_token_bytes` of that tokenizer as saved beside it, on `device`. FileNotFoundError if it isn't there."""
    path = _default_dir() / TOKEN_BYTES_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: `python -m nanochat.scripts.tok_train` writes it with the tokenizer"
        )
    try:
        token_bytes = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a saved tensor: `python -m nanochat.scripts.tok_train` writes it again"
        ) from error
    return token_bytes.to(device)


def _default_dir() -> Path:
    return Path(get_base_dir()) / "tokenizer"
