"""Importing a module of nanochat only defines things, and the model stands apart from its optimizer and engine."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import nanochat

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(nanochat.__path__, "nanochat.") if "__main__" not in module.name
)

# In a fresh interpreter: what is different after each import?
PROBE = """
import json, logging, os, random, signal, sys, threading
import torch, numpy, rich.progress  # what these do themselves is not ours

def state():
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("nanochat")]
    ours = [logging.getLogger(), *loggers]
    return {
        "logging handlers": sum(len(logger.handlers) for logger in ours),
        "log levels": [logger.level for logger in ours if logger.level],
        "CUDA": torch.cuda.is_initialized(),
        "process group": torch.distributed.is_initialized(),
        "environment": dict(os.environ),
        "torch's random state": torch.get_rng_state().sum().item(),
        "Python's random state": hash(random.getstate()),
        "numpy's random state": int(numpy.random.get_state()[1].sum()),
        "signal handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": threading.active_count(),
        "default dtype": str(torch.get_default_dtype()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "directory": os.getcwd(),
    }

changed, pulled_in = {}, {}
before = state()
for name in json.loads(sys.argv[1]):
    __import__(name)
    after = state()
    if different := [key for key in after if after[key] != before[key]]:
        changed[name] = different
    before = after
    pulled_in[name] = sorted(module for module in sys.modules if module.startswith("nanochat."))
print(json.dumps({"changed": changed, "pulled_in": pulled_in}))
"""


def import_in_a_fresh_process(names: list[str], home: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    environment = {name: value for name, value in os.environ.items() if name != "NANOCHAT_BASE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(names)],
        capture_output=True,
        text=True,
        env=environment | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    assert result.stderr == ""
    *printed, report = result.stdout.splitlines()
    assert printed == [], "importing prints"
    return json.loads(report)["changed"], json.loads(report)["pulled_in"]


def test_importing_everything_has_no_side_effect(tmp_path: Path) -> None:
    assert len(MODULES) > 40
    changed, _ = import_in_a_fresh_process(MODULES, tmp_path)
    assert changed == {}
    assert list(tmp_path.iterdir()) == [], "importing makes files or directories"


def test_the_model_pulls_in_neither_optimizer_nor_engine(tmp_path: Path) -> None:
    """A puzzle that hides one of them can show the model."""
    _, pulled_in = import_in_a_fresh_process(["nanochat.gpt"], tmp_path)
    assert set(pulled_in["nanochat.gpt"]) == {
        f"nanochat.{name}" for name in ("common", "counts", "flash_attention", "gpt")
    }


def test_a_model_is_loaded_without_the_compiler() -> None:
    """PyTorch imports it, which takes longer than all the rest, for a sum or a random number on the meta device."""
    program = "import sys; from nanochat.toyworld import load_toy; load_toy(); print('torch._dynamo' in sys.modules)"
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout == "False\n"
