"""Fast generation: a KV cache, one prefill for many samples, and the tool state machine of each row."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from nanochat import common
from nanochat.calculator import use_calculator
from nanochat.common import InputError


class KVCache:
    """Keys and values of the tokens seen so far, for every layer and row.

    Layout (n_layers, batch_size, max_seq_len, n_heads, head_dim), the one FlashAttention reads. Attention writes new
    keys and values in place at `cache_seqlens` (int32, one length a row, all equal here); the model calls `advance`
    once a forward, after its last layer. `prev_embedding` (B, 1, n_embd) is the embedding of the last token before
    the smear, which the next token needs.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        seq_len: int,
        head_dim: int,
        num_layers: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self.batch_size = batch_size
        self.max_seq_len = seq_len
        self.n_layers = num_layers
        self.n_heads = num_heads
        self.head_dim = head_dim
        shape = (num_layers, batch_size, seq_len, num_heads, head_dim)
        self.k_cache = torch.zeros(shape, device=device, dtype=dtype)
        self.v_cache = torch.zeros(shape, device=device, dtype=dtype)
        self.cache_seqlens = torch.zeros(batch_size, device=device, dtype=torch.int32)
        self.prev_embedding: torch.Tensor | None = None

    def reset(self) -> None:
        """Empty the cache. Old keys and values stay in memory, out of sight behind a length of zero."""
        self.cache_seqlens.zero_()
        self.prev_embedding = None

    def get_pos(self) -> int:
        """The number of tokens cached, which is the position of the next one."""
        return int(self.cache_seqlens[0].item())

    def get_layer_cache(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's keys and values, each (B, T, H, D)."""
        return self.k_cache[layer_idx], self.v_cache[layer_idx]

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` more tokens in every row."""
        self.cache_seqlens += num_tokens

    def prefill(self, other: "KVCache") -> None:
        """Copy the one row of `other` into every row of this empty cache.

        Raises:
            InputError: this cache is not empty, is shorter than `other`, or has another shape a token.
        """
        if self.get_pos() != 0:
            raise InputError(
                f"prefill needs an empty cache, but this one holds {self.get_pos()} tokens: reset it first."
            )
        if other.batch_size != 1:
            raise InputError(f"prefill copies a cache of one row, but the other has {other.batch_size}.")
        shape = (self.n_layers, self.n_heads, self.head_dim)
        other_shape = (other.n_layers, other.n_heads, other.head_dim)
        if shape != other_shape:
            raise InputError(
                f"the caches differ in (layers, heads, head_dim): {shape} here, {other_shape} in the other."
            )
        if self.max_seq_len < other.max_seq_len:
            raise InputError(f"this cache has room for {self.max_seq_len} tokens, the other for {other.max_seq_len}.")
        pos = other.get_pos()
        self.k_cache[:, :, :pos] = other.k_cache[:, :, :pos]
        self.v_cache[:, :, :pos] = other.v_cache[:, :, :pos]
        self.cache_seqlens.fill_(pos)
        if other.prev_embedding is not None:
            self.prev_embedding = other.prev_embedding.expand(self.batch_size, -1, -1).clone()


def make_cache(model: Any, batch_size: int, seq_len: int) -> KVCache:
    """An empty cache of `batch_size` rows of `seq_len` tokens that fits a `GPT`."""
    config = model.config
    return KVCache(
        batch_size=batch_size,
        num_heads=config.n_kv_head,
        seq_len=seq_len,
        head_dim=config.n_embd // config.n_head,
        num_layers=config.n_layer,
        device=model.get_device(),
        dtype=common.COMPUTE_DTYPE,
    )


@torch.inference_mode()
def sample_next_token(
    logits: torch.Tensor, rng: torch.Generator, temperature: float = 1.0, top_k: int | None = None
) -> torch.Tensor:
    """Draw one token a row from logits (B, V): (B, 1) int64.

    Temperature 0 takes the most likely token and leaves `rng` alone. `top_k` (None or 0: all) keeps the k largest
    logits and renormalises over them.

    Raises:
        InputError: the temperature is negative.
    """
    if temperature < 0:
        raise InputError(f"temperature must be 0 (greedy) or more, got {temperature}.")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if not top_k:
        return torch.multinomial(F.softmax(logits / temperature, dim=-1), num_samples=1, generator=rng)
    top_logits, top_tokens = logits.topk(min(top_k, logits.size(-1)), dim=-1)
    choice = torch.multinomial(F.softmax(top_logits / temperature, dim=-1), num_samples=1, generator=rng)
    return top_tokens.gather(-1, choice)


@dataclass
class Row:
    """What the tool state machine remembers of one sample."""

    forced: deque[int] = field(default_factory=deque)  # tokens to emit before anything sampled counts again
    python_tokens: list[int] | None = None  # tokens since <|python_start|>, None outside a block
    completed: bool = False


class Engine:
    """Generates with a KV cache, many samples of one prompt at once, each with its own calculator.

    `model` is a `GPT`, or anything with its `config`, `get_device()` and forward(ids, kv_cache=); `tokenizer` is the
    one it was trained with.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        special = tokenizer.encode_special
        self.python_start, self.python_end = special("<|python_start|>"), special("<|python_end|>")
        self.output_start, self.output_end = special("<|output_start|>"), special("<|output_end|>")
        self.terminal = {special("<|assistant_end|>"), tokenizer.get_bos_token_id()}

    @torch.inference_mode()
    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Continue the prompt `tokens` in `num_samples` rows: yields (token_column, mask_column), an entry a row.

        Mask 1 marks a sampled token, 0 one forced by the calculator. Ends after `max_tokens` columns (None: when the
        context of `sequence_len` is full), or when every row has emitted <|assistant_end|> or BOS. Rows that are
        done go on emitting until then: `generate_batch` cuts them off.

        Raises:
            InputError: the prompt is not a list of ints, or is longer than the context and max_tokens is None.
            IndexError: the prompt is empty.
        """
        if not (isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)):
            raise InputError("the prompt must be a list of token ids: encode text, turn tuples and tensors into lists.")
        if not tokens:
            raise IndexError("the prompt is empty: generation needs at least one token, such as BOS.")
        if max_tokens is None:
            context = self.model.config.sequence_len
            if len(tokens) > context:
                raise InputError(f"the prompt's {len(tokens)} tokens exceed the context of {context}: pass max_tokens.")
            max_tokens = context - len(tokens)
        device = self.model.get_device()
        rng = torch.Generator(device=device).manual_seed(seed)
        rows = [Row() for _ in range(num_samples)]

        prompt_cache = self.new_cache(1, len(tokens))
        logits = self.model.forward(torch.tensor([tokens], device=device), kv_cache=prompt_cache)[:, -1]
        logits = logits.expand(num_samples, -1)
        cache = self.new_cache(num_samples, len(tokens) + max_tokens)
        cache.prefill(prompt_cache)
        del prompt_cache

        for columns_left in reversed(range(max_tokens)):
            sampled = sample_next_token(logits, rng, temperature, top_k)[:, 0].tolist()
            emitted = [self.emit(row, token) for row, token in zip(rows, sampled, strict=True)]
            token_column, mask_column = map(list, zip(*emitted, strict=True))
            yield token_column, mask_column
            if columns_left == 0 or all(row.completed for row in rows):
                return
            column = torch.tensor(token_column, device=device).unsqueeze(1)
            logits = self.model.forward(column, kv_cache=cache)[:, -1]

    def new_cache(self, batch_size: int, seq_len: int) -> KVCache:
        """An empty cache that fits the model."""
        return make_cache(self.model, batch_size, seq_len)

    def emit(self, row: Row, sampled: int) -> tuple[int, int]:
        """The next (token, mask) of `row`: a forced token if one is waiting, and then `sampled` is thrown away."""
        is_forced = bool(row.forced)
        token = row.forced.popleft() if is_forced else sampled
        self.track(row, token)
        return token, int(not is_forced)

    def track(self, row: Row, token: int) -> None:
        """Follow the row into and out of python blocks; a result is queued, in output tags, as forced tokens."""
        if token in self.terminal:
            row.completed = True
        if token == self.python_start:
            row.python_tokens = []
        elif row.python_tokens is None:
            return
        elif token == self.python_end:
            result = use_calculator(self.tokenizer.decode(row.python_tokens))
            row.python_tokens = None
            if result is not None:
                row.forced.extend([self.output_start, *self.tokenizer.encode(str(result)), self.output_end])
        else:
            row.python_tokens.append(token)

    def generate_batch(
        self, tokens: list[int], num_samples: int = 1, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Run `generate` to its end: (sequences, masks), a list a row, prompt included (mask 0).

        A sequence stops before its <|assistant_end|> or BOS. `kwargs` are those of `generate`.
        """
        sequences = [list(tokens) for _ in range(num_samples)]
        masks = [[0] * len(tokens) for _ in range(num_samples)]
        completed = [False] * num_samples
        for token_column, mask_column in self.generate(tokens, num_samples, **kwargs):
            for i, (token, mask) in enumerate(zip(token_column, mask_column, strict=True)):
                completed[i] = completed[i] or token in self.terminal
                if not completed[i]:
                    sequences[i].append(token)
                    masks[i].append(mask)
        return sequences, masks
