"""Puzzle 6, The Evaluator.

    python -m puzzles.06_evaluator            run your notebook, see the visible checks
    python -m puzzles.06_evaluator --verify   run the hidden tests
    python -m puzzles.06_evaluator --peek     read nanochat's own source

Goal, difficulty, time and parts: 06_evaluator.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
