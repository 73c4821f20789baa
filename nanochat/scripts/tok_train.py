"""Train the tokenizer on the pretraining documents and write it, with its token byte counts, to the base directory."""

import argparse
import logging
import re
import time
from collections.abc import Iterator, Sequence

from nanochat import command
from nanochat.common import get_base_dir
from nanochat.dataset import read_row_groups, split_files
from nanochat.progress import Progress
from nanochat.tokenizer import RustBPETokenizer, compute_token_bytes, save_token_bytes, text_iterator


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("tok_train", __doc__)
    parser.add_argument("--max-chars", type=int, default=2_000_000_000, help="characters to train on")
    parser.add_argument("--doc-cap", type=int, default=10_000, help="characters taken of a document")
    parser.add_argument("--vocab-size", type=int, default=32768, help="tokens, special tokens included")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = command.parse(build_parser(), argv)
    if args.toy:
        command.use_toy_world()
    # The trainer logs every percent of its merges: every ten are enough.
    logging.getLogger("rustbpe").addFilter(lambda record: not re.search(r"Progress: \d?[1-9]%", record.getMessage()))
    started = time.monotonic()
    tokenizer = RustBPETokenizer.train_from_iterator(read_texts(args), args.vocab_size)
    print(f"Trained {tokenizer.get_vocab_size():,} tokens in {time.monotonic() - started:.1f} s")

    folder = get_base_dir() / "tokenizer"
    tokenizer.save(folder)
    token_bytes = compute_token_bytes(tokenizer)
    save_token_bytes(token_bytes, folder)
    ordinary = token_bytes[token_bytes > 0].float()
    print(f"A token is {ordinary.mean():.2f} bytes on average, {ordinary.max():.0f} at most. Saved in {folder}")


def read_texts(args: argparse.Namespace) -> Iterator[str]:
    """The texts to train on, with progress: they end with the characters asked for or with the last shard."""
    shards = split_files("train")
    shards_read = characters = 0

    def documents() -> Iterator[str]:
        nonlocal shards_read
        for path in shards:
            for _, texts in read_row_groups(path):
                yield from texts
            shards_read += 1

    with Progress("reading") as progress:
        for text in text_iterator(documents(), args.max_chars, args.doc_cap):
            yield text
            characters += len(text)
            done = min(1.0, max(characters / args.max_chars, shards_read / len(shards)))
            progress.update(done, f"{characters:,} characters")


if __name__ == "__main__":
    command.run(main)
