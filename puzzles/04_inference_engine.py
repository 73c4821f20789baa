"""Puzzle 4, The Inference Engine.

    python -m puzzles.04_inference_engine            run your notebook, see the visible checks
    python -m puzzles.04_inference_engine --verify   run the hidden tests
    python -m puzzles.04_inference_engine --peek     read nanochat's own source

Goal, difficulty, time and parts: 04_inference_engine.toml beside this file.
"""

import sys
from pathlib import Path

from puzzles.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem))
