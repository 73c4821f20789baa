"""What every module shares: compute dtype, devices and ranks, the base directory, downloads, hardware peaks."""

import math
import os
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock

# Resolved on first use by `__getattr__` below, because asking CUDA creates a context and a process may still fork.
# Read them as `common.COMPUTE_DTYPE`: `from nanochat.common import COMPUTE_DTYPE` would resolve them at import.
COMPUTE_DTYPE: torch.dtype
COMPUTE_DTYPE_REASON: str

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class InputError(ValueError, AssertionError):
    """A bad argument, said in one sentence. Also an AssertionError, which is what nanochat raises for one."""


def __getattr__(name: str) -> Any:
    """Resolve COMPUTE_DTYPE and COMPUTE_DTYPE_REASON when they are first read (PEP 562)."""
    if name not in ("COMPUTE_DTYPE", "COMPUTE_DTYPE_REASON"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    dtype, reason = detect_compute_dtype()
    globals().update(COMPUTE_DTYPE=dtype, COMPUTE_DTYPE_REASON=reason)
    return globals()[name]


def detect_compute_dtype() -> tuple[torch.dtype, str]:
    """The dtype of activations and matmuls, and why.

    NANOCHAT_DTYPE (bfloat16, float16 or float32) wins. Otherwise bfloat16 on CUDA with compute capability >= 8.0,
    and float32 on older cards, CPU and MPS. Master weights stay float32 whatever this is.
    Raises InputError for any other value of NANOCHAT_DTYPE.
    """
    wanted = os.environ.get("NANOCHAT_DTYPE")
    if wanted is not None:
        if wanted not in _DTYPES:
            raise InputError(f"NANOCHAT_DTYPE is {wanted!r}: set it to one of {', '.join(_DTYPES)}, or unset it.")
        return _DTYPES[wanted], "NANOCHAT_DTYPE"
    if not torch.cuda.is_available():
        return torch.float32, "no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major >= 8:
        return torch.bfloat16, f"CUDA compute capability {major}.{minor}"
    return torch.float32, f"CUDA compute capability {major}.{minor}: no fast bfloat16 below 8.0"


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is >= n."""
    return math.ceil(n / multiple) * multiple


def get_base_dir() -> Path:
    """Where data, tokenizers and checkpoints live: NANOCHAT_BASE_DIR, else ~/.cache/nanochat. Created if missing."""
    path = Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file that appears at `path` only when complete: a reader sees the old one or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def download(url: str, path: Path, timeout: float = 60.0) -> None:
    """Write the body of `url` to `path`, complete or not at all. `timeout` is in seconds, per network wait.

    Raises OSError if the download fails or ends early.
    """

    def receive(temporary: Path) -> None:
        with urllib.request.urlopen(url, timeout=timeout) as response, temporary.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
            size, expected = file.tell(), response.headers["Content-Length"]
        # A connection closed early ends the body without an error.
        if expected is not None and size != int(expected):
            raise ConnectionError(f"received {size} of {expected} bytes from {url}: try again")

    write_atomically(path, receive)


def download_file_with_lock(
    url: str, filename: str, postprocess_fn: Callable[[Path], object] | None = None, timeout: float = 60.0
) -> Path:
    """Download `url` to `filename` in the base directory unless it is there; return its path.

    Safe when many processes ask at once: one downloads under a file lock, the others wait and find the file. It appears
    under its name only when complete. `postprocess_fn(path)` runs once, after the download and still under the lock;
    if it fails the file is removed, so that the next call starts afresh. `timeout` is in seconds, per network wait.
    Raises OSError if the download fails or ends early.
    """
    path = get_base_dir() / filename
    with FileLock(f"{path}.lock"):
        if path.exists():
            return path
        download(url, path, timeout)
        if postprocess_fn is not None:
            try:
                postprocess_fn(path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    return path


def is_ddp_requested() -> bool:
    """Whether torchrun started this process: RANK, LOCAL_RANK and WORLD_SIZE are all in the environment."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def is_ddp_initialized() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def get_dist_info() -> tuple[bool, int, int, int]:
    """(ddp, rank, local_rank, world_size) from torchrun's environment; (False, 0, 0, 1) without it."""
    if not is_ddp_requested():
        return False, 0, 0, 1
    return True, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])


def print0(*args: Any, **kwargs: Any) -> None:
    """`print`, on rank 0 only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*args, **kwargs)


def autodetect_device_type() -> str:
    """The best device there is: "cuda", else "mps", else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def compute_init(device_type: str = "cuda") -> tuple[bool, int, int, int, torch.device]:
    """Start a run: seed torch with 42, pick the device, and under torchrun join the process group.

    The process group is NCCL on CUDA and gloo on CPU. Float32 matmuls on CUDA use TF32 ("high" precision).
    Returns (ddp, rank, local_rank, world_size, device).
    Raises InputError for a device type that is unknown or not available here.
    """
    if device_type not in ("cuda", "mps", "cpu"):
        raise InputError(f"device type {device_type!r} is unknown: use cuda, mps or cpu.")
    if device_type == "cuda" and not torch.cuda.is_available():
        raise InputError("device type cuda was asked for, but PyTorch finds no CUDA device here: use cpu or mps.")
    if device_type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device type mps was asked for, but PyTorch finds no Apple GPU here: use cpu or cuda.")

    torch.manual_seed(42)
    ddp, rank, local_rank, world_size = get_dist_info()
    device = torch.device(device_type)
    if device_type == "cuda":
        torch.set_float32_matmul_precision("high")
        if ddp:
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
            dist.barrier()
    elif device_type == "cpu" and ddp:
        dist.init_process_group("gloo")
        dist.barrier()
    return ddp, rank, local_rank, world_size, device


def compute_cleanup() -> None:
    """Leave the process group, if there is one."""
    if is_ddp_initialized():
        dist.destroy_process_group()


class DummyWandb:
    """Stands in for a wandb run where nothing should be logged."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the metrics."""

    def finish(self) -> None:
        """Nothing to finish."""


# A row applies to a device whose name has all its words; the first such row wins. Dense bf16 FLOP/s and
# bytes/s of device memory, from the vendors' data sheets.

_PEAKS: list[tuple[str, float, float]] = [
    ("gb200", 2500e12, 8.0e12),
    ("b200", 2250e12, 8.0e12),
    ("h200 nvl", 836e12, 4.8e12),
    ("h200", 989e12, 4.8e12),
    ("h100 nvl", 835e12, 3.9e12),
    ("h100 pcie", 756e12, 2.0e12),
    ("h100", 989e12, 3.35e12),
    ("h800", 756e12, 3.35e12),
    ("a100", 312e12, 2.0e12),
    ("a800", 312e12, 2.0e12),
    ("a40", 149.7e12, 696e9),
    ("a30", 165e12, 933e9),
    ("l40s", 362e12, 864e9),
    ("l4", 121e12, 300e9),
    ("5090", 209.5e12, 1.79e12),
    ("4090", 165.2e12, 1.01e12),
    ("3090", 71e12, 936e9),
    ("mi325x", 1307.4e12, 6.0e12),
    ("mi300x", 1307.4e12, 5.3e12),
    ("mi250x", 383e12, 3.28e12),
]


def _get_peaks(device_name: str) -> tuple[float, float]:
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    for model, flops, bandwidth in _PEAKS:
        if words.issuperset(model.split()):
            return flops, bandwidth
    return math.inf, math.inf


def get_peak_flops(device_name: str) -> float:
    """Peak dense bf16 FLOP/s of a GPU by its `torch.cuda.get_device_name()`; inf if unknown, so that MFU reads 0."""
    return _get_peaks(device_name)[0]


def get_peak_bandwidth(device_name: str) -> float:
    """Peak memory bandwidth of a GPU in bytes/s by its name; inf if unknown."""
    return _get_peaks(device_name)[1]
