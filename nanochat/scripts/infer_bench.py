"""Measure inference: prefill, then decoding by batch size, beside what the hardware could do.

On a GPU of known peaks MFU is the share of its FLOPs, and bandwidth the share of its memory bandwidth: decoding has to
read every weight and the KV cache for each token, so that is what limits it.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanochat import command, common
from nanochat.common import InputError, get_peak_bandwidth, get_peak_flops
from nanochat.engine import Engine, sample_next_token
from nanochat.gpt import GPT


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("infer_bench", __doc__)
    command.add_model_choice(parser, default="base")
    command.add_device_type(parser)
    parser.add_argument("--prompt-tokens", type=int, default=2048, help="length of the prompt")
    parser.add_argument("--decode-tokens", type=int, default=256, help="tokens to generate after it")
    parser.add_argument("--batch-sizes", default="1,8,32,128", help="samples at once, joined by commas")
    parser.add_argument("-t", "--temperature", type=float, default=0.0)
    return parser


@dataclass(frozen=True)
class Timing:
    """Seconds for the prompt, and for decoding so many tokens in each of the rows."""

    batch_size: int
    prefill_seconds: float
    decode_seconds: float
    decode_tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.batch_size * self.decode_tokens / self.decode_seconds


def measure(
    engine: Engine, prompt_tokens: int, decode_tokens: int, batch_size: int, temperature: float = 0.0
) -> Timing:
    """Prefill a random prompt once and decode `batch_size` rows from it, stopping at no token."""
    model: GPT = engine.model
    device = model.get_device()
    rng = torch.Generator(device=device).manual_seed(42)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=rng, device=device)
    with torch.inference_mode():
        synchronize(device)
        started = time.perf_counter()
        prompt_cache = engine.new_cache(1, prompt_tokens)
        logits = model(prompt, kv_cache=prompt_cache)[:, -1]
        synchronize(device)
        prefilled = time.perf_counter()

        cache = engine.new_cache(batch_size, prompt_tokens + decode_tokens)
        cache.prefill(prompt_cache)
        logits = logits.expand(batch_size, -1)
        synchronize(device)
        decoding = time.perf_counter()
        for _ in range(decode_tokens):
            tokens = sample_next_token(logits, rng, temperature)
            logits = model(tokens, kv_cache=cache)[:, -1]
        synchronize(device)
    return Timing(batch_size, prefilled - started, time.perf_counter() - decoding, decode_tokens)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(model: GPT, timing: Timing, prompt_tokens: int, device_name: str) -> str:
    """A line of the table."""
    context = prompt_tokens + timing.decode_tokens // 2  # of the average token
    prefill_flops = model.estimate_prefill_flops(prompt_tokens) / timing.prefill_seconds
    decode_flops = model.estimate_decode_flops(context) * timing.tokens_per_second
    weight_bytes = model.num_matmul_params() * common.COMPUTE_DTYPE.itemsize
    bytes_per_step = weight_bytes + timing.batch_size * model.kv_read_bytes(context)
    bandwidth = bytes_per_step * timing.decode_tokens / timing.decode_seconds
    peak_flops, peak_bandwidth = get_peak_flops(device_name), get_peak_bandwidth(device_name)
    return (
        f"{timing.batch_size:5} {prompt_tokens / timing.prefill_seconds:15,.0f} {share(prefill_flops, peak_flops):>6} "
        f"{timing.tokens_per_second:14,.0f} {timing.decode_seconds / timing.decode_tokens * 1000:8.2f} "
        f"{share(decode_flops, peak_flops):>6} {share(bandwidth, peak_bandwidth):>9}"
    )


def share(value: float, peak: float) -> str:
    return "-" if math.isinf(peak) else f"{value / peak:.1%}"


def main(argv: Sequence[str] | None = None) -> None:
    args = command.parse(build_parser(), argv)
    try:
        batch_sizes = [int(size) for size in args.batch_sizes.split(",")]
    except ValueError as error:
        raise InputError(f"--batch-sizes {args.batch_sizes!r} must be whole numbers, joined by commas.") from error
    if min(*batch_sizes, args.prompt_tokens, args.decode_tokens) < 1:
        raise InputError("batch sizes, prompt tokens and decode tokens must be at least 1.")
    device = command.start(args, needs_data=False)
    model, tokenizer, _ = command.load_model(args, device)
    engine = Engine(model, tokenizer)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{args.prompt_tokens} prompt tokens, {args.decode_tokens} decoded, {common.COMPUTE_DTYPE} on {device_name}")
    print(" rows  prefill tok/s    MFU   decode tok/s  ms/step    MFU bandwidth")
    measure(engine, args.prompt_tokens, 1, 1)  # warm up
    for batch_size in batch_sizes:
        timing = measure(engine, args.prompt_tokens, args.decode_tokens, batch_size, args.temperature)
        print(describe(model, timing, args.prompt_tokens, device_name), flush=True)


if __name__ == "__main__":
    command.run(main)
