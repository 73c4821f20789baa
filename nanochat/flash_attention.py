"""Causal sliding-window attention behind FlashAttention-3's two functions.

`flash_attn.flash_attn_func` is for training, `flash_attn.flash_attn_with_kvcache` for inference. On a Hopper GPU with
bf16 tensors they call FlashAttention-3 (arXiv 2407.08608), if the optional `kernels` package can provide it; everywhere
else PyTorch's scaled_dot_product_attention (SDPA). Tensors are (B, T, H, D); k and v may have fewer heads than q (GQA).
A window (left, 0) lets a query see itself and the `left` keys before it; left < 0 means all earlier keys.
"""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from nanochat.common import InputError

logger = logging.getLogger(__name__)

HAS_FA3: bool  # this and the next are resolved when they are used, by `__getattr__`
USE_FA3: bool  # assign it, or `_override_impl`, to force a choice
_override_impl: str | None = None  # None: FA3 where it can be had; "fa3" or "sdpa": that one always
_this_module = sys.modules[__name__]  # reading a lazy name through the module runs `__getattr__`


def __getattr__(name: str) -> Any:
    """Resolve what depends on FA3 when it is first needed (PEP 562): it asks CUDA and the network."""
    if name == "_fa3":
        globals()["_fa3"] = _load_fa3()
        return globals()["_fa3"]
    if name == "HAS_FA3":
        return _this_module._fa3 is not None
    if name == "USE_FA3":
        return _resolve_use_fa3()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _resolve_use_fa3() -> bool:
    return _this_module.HAS_FA3 if _override_impl is None else _override_impl == "fa3"


def _load_fa3() -> Any:
    """FlashAttention-3's Python interface, or None where there is no Hopper GPU or no such kernel."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return None
    try:
        from kernels import get_kernel

        return get_kernel("kernels-community/flash-attn3")
    except Exception as error:  # the package, the hub and the network fail in many ways; SDPA serves for all of them
        logger.warning("FlashAttention-3 is not available (%s): using PyTorch SDPA.", error)
        return None


def _use_fa3(q: torch.Tensor) -> bool:
    if _override_impl is None:
        return q.is_cuda and q.dtype == torch.bfloat16 and _this_module.USE_FA3
    if _override_impl == "fa3" and _this_module._fa3 is None:
        raise RuntimeError("FlashAttention-3 was forced but is not available: set _override_impl to None.")
    return _override_impl == "fa3"


def visible_mask(Tq: int, Tk: int, left: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Which keys each query may see: bool (Tq, Tk), True = visible.

    The Tq queries are the last Tq of the Tk positions (as when the first Tk - Tq keys come from a cache), so query i is
    at position p = i + Tk - Tq and sees key j if p - left <= j <= p. With left < 0 there is no lower limit.
    """
    query = torch.arange(Tk - Tq, Tk, device=device).unsqueeze(1)
    key = torch.arange(Tk, device=device).unsqueeze(0)
    mask = key <= query
    if left >= 0:
        mask &= key >= query - left
    return mask


def _sdpa_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, left: int) -> torch.Tensor:
    """Windowed causal attention of Tq queries over Tk >= Tq keys, the queries last; q, k, v are (B, T, H, D)."""
    Tq, Tk = q.size(1), k.size(1)
    mask = None
    is_causal = False
    if Tq == 1:
        # The one query is the last position: what it sees is a slice, and no mask is needed.
        first = max(0, Tk - 1 - left) if left >= 0 else 0
        k, v = k[:, first:], v[:, first:]
    elif Tq == Tk and (left < 0 or left >= Tk - 1):
        is_causal = True  # SDPA's own causal flag has faster kernels than a mask
    else:
        mask = visible_mask(Tq, Tk, left, q.device)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    enable_gqa = q.size(1) != k.size(1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=enable_gqa)
    return y.transpose(1, 2)


def _output(result: Any) -> torch.Tensor:
    """FA3 releases differ in whether they return the log-sum-exp beside the output."""
    return result[0] if isinstance(result, tuple) else result


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Attention without a cache, for training. q (B, Tq, H, D), k and v (B, Tk, H_kv, D) -> (B, Tq, H, D).

    The SDPA path is always causal: it ignores `causal` and the right side of `window_size`.
    """
    if _use_fa3(q):
        return _output(_this_module._fa3.flash_attn_func(q, k, v, causal=causal, window_size=window_size))
    return _sdpa_attention(q, k, v, window_size[0])


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    cache_seqlens: torch.Tensor | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Attention of the T new positions over the cache and themselves. q (B, T, H, D) -> (B, T, H, D).

    k and v (B, T, H_kv, D) are first written into k_cache and v_cache (B, T_max, H_kv, D), in place, at position
    `cache_seqlens` (int32, (B,): filled positions of each row); the caller advances cache_seqlens after the last layer.
    With k = v = None nothing is written and the T positions are taken from the cache.
    The SDPA path is always causal and puts every row at the position of row 0.
    Raises InputError if the new positions do not fit the cache.
    """
    if _use_fa3(q):
        return _output(
            _this_module._fa3.flash_attn_with_kvcache(
                q, k_cache, v_cache, k=k, v=v, cache_seqlens=cache_seqlens, causal=causal, window_size=window_size
            )
        )
    start = 0 if cache_seqlens is None else int(cache_seqlens[0])
    end = start + q.size(1)
    if end > k_cache.size(1):
        raise InputError(f"positions {start} to {end - 1} do not fit a KV cache of {k_cache.size(1)}: make it longer.")
    if k is not None and v is not None:
        k_cache[:, start:end] = k
        v_cache[:, start:end] = v
    return _sdpa_attention(q, k_cache[:, :end], v_cache[:, :end], window_size[0])


flash_attn = SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_with_kvcache=flash_attn_with_kvcache)
