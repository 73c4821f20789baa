"""How long it takes until a shipped toy model can answer: in a process that has PyTorch, and from nothing.

python -m benchmarks.toy_load [--repeat 5]
"""

import argparse
import statistics
import subprocess
import sys
import time

from nanochat.checkpoint_manager import SOURCE_DIRS
from nanochat.toyworld import load_toy

FROM_NOTHING = {
    "import torch": "import torch",
    "import torch, load the SFT model": "from nanochat.toyworld import load_toy; load_toy('sft')",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    for source in SOURCE_DIRS:
        times = []
        for _ in range(1 + repeat):
            begin = time.perf_counter()
            load_toy(source)
            times.append(time.perf_counter() - begin)
        first, *others = times
        print(f"load_toy({source!r}): {statistics.median(others):.3f} s, the first time {first:.3f} s")
    for name, program in FROM_NOTHING.items():
        times = []
        for _ in range(repeat):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            times.append(time.perf_counter() - begin)
        print(f"a process that does {name}: {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main()
