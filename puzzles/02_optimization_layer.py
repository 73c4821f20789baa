"""Puzzle 2, The Optimization Layer.

    python -m puzzles.02_optimization_layer            run your notebook, see the visible checks
    python -m puzzles.02_optimization_layer --verify   run the hidden tests
    python -m puzzles.02_optimization_layer --peek     read nanochat's own source

Goal, difficulty, time and parts: 02_optimization_layer.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
