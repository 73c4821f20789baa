"""Puzzle 8, Mini GPT.

    python -m puzzles.08_mini_gpt            run your notebook, see the visible checks
    python -m puzzles.08_mini_gpt --verify   run the hidden tests
    python -m puzzles.08_mini_gpt --peek     read nanochat's own source

Goal, difficulty, time and parts: 08_mini_gpt.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
