import sys

from puzzles.cli import overview

sys.exit(overview())
