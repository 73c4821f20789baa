"""Puzzle 9, The Batch Size.

    python -m puzzles.09_batch_size            run your notebook, see the visible checks
    python -m puzzles.09_batch_size --verify   run the hidden tests
    python -m puzzles.09_batch_size --peek     read nanochat's own source

Goal, difficulty, time and parts: 09_batch_size.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
