"""The nanochat Transformer: a decoder-only GPT with today's small improvements, each a few lines.

Rotary positions (RoPE, arXiv 2104.09864), QK norm (arXiv 2010.04245), grouped-query attention (arXiv 2305.13245) with
sliding windows, squared-ReLU MLPs (Primer, arXiv 2109.08668), norms without parameters, value embeddings (ResFormer,
arXiv 2410.17897), untied unembedding, soft-capped logits (Gemma 2, arXiv 2408.00118), and learnt scalars that mix the
residual stream (modded-nanogpt's smear, x0 and backout). Shapes: B batch, T time, C = n_embd, H heads, D = head_dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from nanochat import common, counts
from nanochat.common import InputError, round_up
from nanochat.flash_attention import flash_attn

if TYPE_CHECKING:
    from nanochat.engine import KVCache
    from nanochat.optim import MuonAdamW

ROTARY_BASE = 100_000
ROTARY_OVERSIZE = 10  # the rotary table covers this many times sequence_len, for inference beyond the training length
VE_GATE_CHANNELS = 12
SMEAR_GATE_CHANNELS = 24
QK_SCALE = 1.2  # sharper attention: normed q and k alone bound a logit by sqrt(head_dim)
LOGIT_CAP = 15.0
IGNORE_INDEX = -1


@dataclass
class GPTConfig:
    """The shape of a model."""

    sequence_len: int = 2048  # training context length in tokens
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6  # query heads
    n_kv_head: int = 6  # key/value heads; must divide n_head
    n_embd: int = 768
    window_pattern: str = "SSSL"  # attention windows, tiled over the layers: S short, L long; the last layer is long


def compute_window_sizes(n_layer: int, sequence_len: int, window_pattern: str) -> list[tuple[int, int]]:
    """The attention window (left, right) of each layer, right always 0.

    The pattern is tiled over the layers, but the last one is always long, so that some layer sees everything.
    Long = sequence_len. Short = a quarter of it, rounded up to a multiple of 128 (a tile of the attention kernel).
    Raises InputError for an empty pattern, a letter other than S and L (either case), or no layer.
    """
    pattern = window_pattern.upper()
    if not pattern or set(pattern) - {"S", "L"}:
        raise InputError(
            f"window pattern {window_pattern!r} must be one or more of the letters S (short) and L (long)."
        )
    if n_layer < 1:
        raise InputError(f"a model needs at least one layer, but n_layer is {n_layer}.")
    long = sequence_len
    short = round_up(sequence_len, 4 * 128) // 4
    lefts = [short if pattern[i % len(pattern)] == "S" else long for i in range(n_layer)]
    lefts[-1] = long
    return [(left, 0) for left in lefts]


def has_ve(i: int, n_layer: int) -> bool:
    """Whether layer i has a value embedding: every other layer does, and the last one always."""
    return i % 2 == (n_layer - 1) % 2


def pad_vocab_size(vocab_size: int, multiple: int = 64) -> int:
    """Rows of the embedding tables: the vocabulary rounded up, because matmuls are fastest at round sizes."""
    return round_up(vocab_size, multiple)


def precompute_rotary(
    seq_len: int,
    head_dim: int,
    base: float = ROTARY_BASE,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position and frequency, each (1, seq_len, 1, head_dim / 2). RoPE, arXiv 2104.09864.

    Channel pair c turns by position * base^(-2c / head_dim) radians. Angles are computed in float32, whose error grows
    slowly enough with the position; only the result is cast to `dtype` (None: COMPUTE_DTYPE).
    """
    channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / base ** (channel / head_dim)
    position = torch.arange(seq_len, dtype=torch.float32, device=device)
    angle = torch.outer(position, frequency)[None, :, None, :]
    dtype = dtype or common.COMPUTE_DTYPE
    return angle.cos().to(dtype), angle.sin().to(dtype)


def norm(x: torch.Tensor) -> torch.Tensor:
    """RMSNorm over the last dimension, without learnable parameters (arXiv 1910.07467)."""
    return F.rms_norm(x, (x.size(-1),))


def apply_rotary_emb(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the channel pairs of x (B, T, H, D) by their position. cos and sin: (1, T, 1, D/2).

    Channel c is paired with channel c + D/2 (halves, not neighbours) and the pair is rotated by minus the angle.
    """
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)


def soft_cap(logits: torch.Tensor, cap: float = LOGIT_CAP) -> torch.Tensor:
    """Squash logits smoothly into (-cap, cap). Gemma 2, arXiv 2408.00118."""
    return cap * torch.tanh(logits / cap)


class Linear(nn.Linear):
    """nn.Linear which computes in the dtype of its input: the float32 master weight is cast in forward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in the input's dtype."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """A table without values: `nn.Embedding` draws some, which on meta makes PyTorch import its compiler."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class CausalSelfAttention(nn.Module):
    """Grouped-query attention with a sliding window, rotary positions, QK norm and an optional value embedding."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        C, H, H_kv = config.n_embd, config.n_head, config.n_kv_head
        if C % H or (C // H) % 2:
            raise InputError(f"n_embd {C} must be n_head {H} times an even head dimension.")
        if H_kv > H or H % H_kv:
            raise InputError(f"n_kv_head {H_kv} must divide n_head {H}.")
        self.layer_idx = layer_idx
        self.n_head, self.n_kv_head, self.head_dim = H, H_kv, C // H
        self.c_q = Linear(C, H * self.head_dim, bias=False)
        self.c_k = Linear(C, H_kv * self.head_dim, bias=False)
        self.c_v = Linear(C, H_kv * self.head_dim, bias=False)
        self.c_proj = Linear(C, C, bias=False)
        self.ve_gate = Linear(VE_GATE_CHANNELS, H_kv, bias=False) if has_ve(layer_idx, config.n_layer) else None

    def forward(
        self,
        x: torch.Tensor,
        ve: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        window_size: tuple[int, int],
        kv_cache: "KVCache | None" = None,
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C). ve: the tokens' value embeddings (B, T, H_kv * D), on layers that have them."""
        B, T, _ = x.shape
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)

        if self.ve_gate is not None and ve is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :VE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * ve.view_as(v)

        q = QK_SCALE * norm(apply_rotary_emb(q, cos, sin))
        k = QK_SCALE * norm(apply_rotary_emb(k, cos, sin))

        if kv_cache is None:
            y = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=window_size)
        else:
            k_cache, v_cache = kv_cache.get_layer_cache(self.layer_idx)
            y = flash_attn.flash_attn_with_kvcache(
                q,
                k_cache,
                v_cache,
                k=k,
                v=v,
                cache_seqlens=kv_cache.cache_seqlens,
                causal=True,
                window_size=window_size,
            )
        return self.c_proj(y.reshape(B, T, -1))


class MLP(nn.Module):
    """Two matrices around a squared ReLU. Primer, arXiv 2109.08668."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """One layer: attention and MLP, each reading the normed residual stream and adding to it."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config, layer_idx)
        self.mlp = MLP(config)

    def forward(
        self,
        x: torch.Tensor,
        ve: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        window_size: tuple[int, int],
        kv_cache: "KVCache | None" = None,
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); the arguments are those of CausalSelfAttention."""
        x = x + self.attn(norm(x), ve, cos, sin, window_size, kv_cache)
        return x + self.mlp(norm(x))


class Trunk(nn.ModuleDict):
    """The token embedding `wte` and the list of blocks `h`."""

    wte: nn.Embedding
    h: nn.ModuleList


class GPT(nn.Module):
    """The whole model. Build it on the meta device, then `to_empty(device=...)` and `init_weights()`.

    Raises InputError for a config that is no model.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: GPTConfig, pad_vocab_size_to: int = 64) -> None:
        super().__init__()
        self.config = config
        self.window_sizes = compute_window_sizes(config.n_layer, config.sequence_len, config.window_pattern)
        n_layer, C, rows = config.n_layer, config.n_embd, pad_vocab_size(config.vocab_size, pad_vocab_size_to)
        blocks = nn.ModuleList(Block(config, i) for i in range(n_layer))
        self.head_dim = C // config.n_head
        kv_width = config.n_kv_head * self.head_dim
        self.transformer = Trunk({"wte": empty_embedding(rows, C), "h": blocks})
        self.lm_head = Linear(C, rows, bias=False)
        self.resid_lambdas = nn.Parameter(torch.ones(n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(n_layer))
        self.smear_gate = Linear(SMEAR_GATE_CHANNELS, 1, bias=False)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.value_embeds = nn.ModuleDict(
            {str(i): empty_embedding(rows, kv_width) for i in range(n_layer) if has_ve(i, n_layer)}
        )
        # On the CPU first: for arithmetic on meta, PyTorch imports its compiler, which takes a second.
        tables = precompute_rotary(ROTARY_OVERSIZE * config.sequence_len, self.head_dim, device="cpu")
        cos, sin = (table.to(self.get_device()) for table in tables)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every parameter and buffer. Afterwards embedding tables are stored in COMPUTE_DTYPE, unless float16.

        The matrices that write to the residual stream start at zero, so that every block starts as the identity.
        """
        bound = (3 / self.config.n_embd) ** 0.5  # a uniform on ±bound has standard deviation 1/sqrt(n_embd)
        for name, weight in self.named_parameters():
            match name.removesuffix(".weight").split("."):
                case [*_, "wte"]:
                    weight.normal_(std=0.8)
                case ["lm_head"]:
                    weight.normal_(std=0.001)
                case [*_, "c_q" | "c_k" | "c_v"] | ["value_embeds", _]:
                    weight.uniform_(-bound, bound)
                case [*_, "c_fc"]:
                    weight.uniform_(-0.4 * bound, 0.4 * bound)
                case [*_, "c_proj"] | ["smear_lambda"]:
                    weight.zero_()
                case [*_, "ve_gate" | "smear_gate"]:
                    weight.uniform_(0, 0.02)
                case ["resid_lambdas"]:
                    weight.copy_(torch.linspace(1.15, 1.05, self.config.n_layer))
                case ["x0_lambdas"]:
                    weight.copy_(torch.linspace(0.20, 0.05, self.config.n_layer))
                case ["backout_lambda"]:
                    weight.fill_(0.2)
                case _:
                    raise RuntimeError(f"init_weights has no rule for the parameter {name}.")

        device = self.get_device()
        self.cos, self.sin = precompute_rotary(self.cos.size(1), self.head_dim, device=device)
        # bfloat16 halves the memory of the largest tensors; float16 has not the range for their updates.
        if common.COMPUTE_DTYPE is not torch.float16:
            self.transformer.wte.to(common.COMPUTE_DTYPE)
            self.value_embeds.to(common.COMPUTE_DTYPE)

    def get_device(self) -> torch.device:
        """The device the model is on."""
        return self.lm_head.weight.device

    def smear(self, x: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
        """Mix a gated share of the previous token's embedding into each token's. x (B, T, C) -> (B, T, C).

        `previous` (B, 1, C) is the embedding before x[:, 0]; None at the start of a sequence, which has none.
        """
        shifted = F.pad(x[:, :-1], (0, 0, 1, 0)) if previous is None else torch.cat([previous, x[:, :-1]], dim=1)
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))
        return x + self.smear_lambda.to(x.dtype) * gate * shifted

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        kv_cache: "KVCache | None" = None,
        loss_reduction: str = "mean",
    ) -> torch.Tensor:
        """Token ids (B, T) -> logits (B, T, vocab_size) float32, or with targets (B, T) their cross-entropy in nats.

        Targets of -1 are ignored. loss_reduction: "mean" or "sum" over the others, or "none" for all B*T losses, flat.
        kv_cache and the errors raised are those of `hidden_states`.
        """
        logits = self.unembed(self.hidden_states(idx, kv_cache))
        if targets is None:
            return logits
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction=loss_reduction
        )

    def hidden_states(self, idx: torch.Tensor, kv_cache: "KVCache | None" = None) -> torch.Tensor:
        """What the layers make of token ids (B, T): the residual stream at its end, normed, (B, T, C).

        With a kv_cache, idx continues what the cache holds, in pieces of any length; the result is that of one long
        forward. Raises InputError for a single token without a cache, and for more positions than the rotary table
        (10 * sequence_len) or the cache has.
        """
        T = idx.size(1)
        start = 0 if kv_cache is None else kv_cache.get_pos()
        if kv_cache is None and T == 1:
            raise InputError("forward needs more than one token when it has no kv_cache.")
        if start + T > self.cos.size(1):
            raise InputError(f"position {start + T - 1} is beyond the model's {self.cos.size(1)} rotary positions.")
        if kv_cache is not None and start + T > kv_cache.k_cache.size(2):
            raise InputError(f"position {start + T - 1} is beyond the KV cache's {kv_cache.k_cache.size(2)} positions.")
        cos, sin = self.cos[:, start : start + T], self.sin[:, start : start + T]

        x = norm(self.transformer.wte(idx).to(common.COMPUTE_DTYPE))
        previous = None
        if kv_cache is not None:
            previous, kv_cache.prev_embedding = kv_cache.prev_embedding, x[:, -1:]
        x = self.smear(x, previous)

        x0 = x
        x_middle = x
        for i, block in enumerate(self.transformer.h):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            ve = self.value_embeds[str(i)](idx).to(x.dtype) if str(i) in self.value_embeds else None
            x = block(x, ve, cos, sin, self.window_sizes[i], kv_cache)
            if i == self.config.n_layer // 2:
                x_middle = x
        x = norm(x - self.backout_lambda.to(x.dtype) * x_middle)
        if kv_cache is not None:
            kv_cache.advance(T)
        return x

    def unembed(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., C) -> logits (..., vocab_size) float32, of the token that follows each."""
        return soft_cap(self.lm_head(x)[..., : self.config.vocab_size].float())

    @torch.inference_mode()
    def generate(
        self, tokens: list[int], max_tokens: int, temperature: float = 1.0, top_k: int | None = None, seed: int = 42
    ) -> Iterator[int]:
        """Continue a list of at least two tokens, naively: the whole sequence goes through the model for each token.

        Yields max_tokens ids. temperature 0 takes the most likely; top_k samples among the k most likely. For real use
        see `nanochat.engine.Engine`. Raises InputError if `tokens` is not such a list.
        """
        if not isinstance(tokens, list):
            raise InputError(f"generate wants a list of token ids, not a {type(tokens).__name__}.")
        device = self.get_device()
        rng = torch.Generator(device=device).manual_seed(seed)
        idx = torch.tensor([tokens], dtype=torch.long, device=device)
        for _ in range(max_tokens):
            logits = self(idx)[:, -1]
            if top_k:
                threshold = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < threshold, -torch.inf)
            if temperature > 0:
                next_id = torch.multinomial(F.softmax(logits / temperature, dim=-1), num_samples=1, generator=rng)
            else:
                next_id = logits.argmax(dim=-1, keepdim=True)
            idx = torch.cat([idx, next_id], dim=1)
            yield int(next_id)

    num_scaling_params = counts.num_scaling_params
    num_matmul_params = counts.num_matmul_params
    estimate_flops = counts.estimate_flops
    estimate_decode_flops = counts.estimate_decode_flops
    estimate_prefill_flops = counts.estimate_prefill_flops
    kv_bytes_per_token = counts.kv_bytes_per_token
    kv_read_bytes = counts.kv_read_bytes

    def setup_optimizer(
        self,
        unembedding_lr: float = 0.004,
        embedding_lr: float = 0.2,
        matrix_lr: float = 0.02,
        weight_decay: float = 0.0,
        scalar_lr: float = 0.5,
    ) -> "MuonAdamW":
        """The optimizer over all parameters; see `nanochat.param_groups.build_param_groups`."""
        from nanochat.optim import MuonAdamW
        from nanochat.param_groups import build_param_groups

        groups = build_param_groups(
            self,
            unembedding_lr=unembedding_lr,
            embedding_lr=embedding_lr,
            matrix_lr=matrix_lr,
            weight_decay=weight_decay,
            scalar_lr=scalar_lr,
        )
        return MuonAdamW(groups)
