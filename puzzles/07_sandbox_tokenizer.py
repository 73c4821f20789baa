"""Puzzle 7, The Sandbox and the Tokenizer.

    python -m puzzles.07_sandbox_tokenizer            run your notebook, see the visible checks
    python -m puzzles.07_sandbox_tokenizer --verify   run the hidden tests
    python -m puzzles.07_sandbox_tokenizer --peek     read nanochat's own source

Goal, difficulty, time and parts: 07_sandbox_tokenizer.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
