"""Puzzle 1, The Transformer Blueprint.

    python -m puzzles.01_transformer_blueprint            run your notebook, see the visible checks
    python -m puzzles.01_transformer_blueprint --verify   run the hidden tests
    python -m puzzles.01_transformer_blueprint --peek     read nanochat's own source

Goal, difficulty, time and parts: 01_transformer_blueprint.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
