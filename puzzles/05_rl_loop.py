"""Puzzle 5, The RL Loop.

    python -m puzzles.05_rl_loop            run your notebook, see the visible checks
    python -m puzzles.05_rl_loop --verify   run the hidden tests
    python -m puzzles.05_rl_loop --peek     read nanochat's own source

Goal, difficulty, time and parts: 05_rl_loop.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
