"""Decoding with the KV cache (`Engine`) beside naive generation (`GPT.generate`), by prompt length.

    python -m benchmarks.decode --depth 4 --lengths 32 128 512

Both continue the same random prompts greedily; "same" says whether they gave the same tokens. Naive generation runs
the whole sequence again for every token, the engine only the new one, so the ratio grows with the length. The last
columns decode 8 rows at once: what a row's token costs against that of a single row.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nanochat import common, recipe
from nanochat.engine import Engine
from nanochat.gpt import GPT

ROWS = 8


class NoSpecialTokens:
    """A tokenizer whose special tokens are never generated, so that every run decodes to its full length."""

    def encode_special(self, text: str) -> int:
        return -1

    def get_bos_token_id(self) -> int:
        return -1


@dataclass(frozen=True)
class Timing:
    """Milliseconds per generated token, the prefill's share included."""

    prompt_length: int
    naive_ms: float
    engine_ms: float
    rows_ms: float  # per row and token, ROWS rows at once
    same_tokens: bool


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `run`, after one run to warm up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def measure(model: GPT, prompt_length: int, new_tokens: int, repeats: int) -> Timing:
    """Time the two ways to continue a random prompt by `new_tokens`."""
    rng = torch.Generator().manual_seed(prompt_length)
    prompt = torch.randint(model.config.vocab_size, (prompt_length,), generator=rng).tolist()
    engine = Engine(model, NoSpecialTokens())

    def naive() -> list[int]:
        return list(model.generate(prompt, new_tokens, temperature=0.0))

    def cached(rows: int = 1) -> list[int]:
        return [tokens[0] for tokens, _ in engine.generate(prompt, rows, new_tokens, temperature=0.0)]

    return Timing(
        prompt_length,
        naive_ms=milliseconds(naive, repeats) / new_tokens,
        engine_ms=milliseconds(cached, repeats) / new_tokens,
        rows_ms=milliseconds(lambda: cached(ROWS), repeats) / (new_tokens * ROWS),
        same_tokens=naive() == cached(),
    )


def random_model(depth: int, sequence_len: int, device: torch.device | str) -> GPT:
    """An untrained model whose blocks do something: what `init_weights` leaves at zero is filled too."""
    torch.manual_seed(0)
    model = recipe.build_model(recipe.config_from_depth(depth, sequence_len=sequence_len), device).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("c_proj.weight"):
                weight.normal_(std=0.02)
        model.lm_head.weight.normal_(std=0.1)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], help="prompt lengths in tokens")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens generated after each prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default=None, help="cpu, cuda or mps; the best there is by default")
    args = parser.parse_args()

    device = args.device or common.autodetect_device_type()
    model = random_model(args.depth, max(args.lengths) + args.new_tokens, device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    print(f"depth {args.depth}, {args.new_tokens} new tokens, {common.COMPUTE_DTYPE}, {name}; ms per token")
    print(f"{'prompt':>7} {'naive':>9} {'engine':>9} {'ratio':>7}  {'same':>5} {f'{ROWS} rows':>9} {'ratio':>7}")
    for length in args.lengths:
        t = measure(model, length, args.new_tokens, args.repeats)
        print(
            f"{length:>7} {t.naive_ms:>9.2f} {t.engine_ms:>9.2f} {t.naive_ms / t.engine_ms:>6.1f}x  "
            f"{'yes' if t.same_tokens else 'NO':>5} {t.rows_ms:>9.2f} {t.engine_ms / t.rows_ms:>6.1f}x"
        )


if __name__ == "__main__":
    main()
