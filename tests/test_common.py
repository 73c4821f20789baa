"""nanochat.common: compute dtype, base directory, downloads, ranks and devices, hardware peaks."""

import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat import common
from tests.vectors_io import load

VECTORS = load("common")


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("case", VECTORS["compute_dtype"])
def test_compute_dtype_follows_the_environment(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if case["NANOCHAT_DTYPE"] is None:
        monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    else:
        monkeypatch.setenv("NANOCHAT_DTYPE", case["NANOCHAT_DTYPE"])
    if case["on_cpu"] == "KeyError":  # where the original trips over its own table, we say what is wrong
        with pytest.raises(common.InputError, match="NANOCHAT_DTYPE"):
            common.detect_compute_dtype()
    else:
        assert common.detect_compute_dtype()[0] == getattr(torch, case["on_cpu"])


@pytest.mark.parametrize(
    "capability, dtype", [((7, 0), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), None)]
)
def test_compute_dtype_by_cuda_capability(
    capability: tuple[int, int], dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V100 and T4 have no fast bf16; from Ampere on it is the default; the reason names what was found."""
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found, reason = common.detect_compute_dtype()
    assert found == (dtype or torch.bfloat16)
    assert ".".join(map(str, capability)) in reason


def test_compute_dtype_is_resolved_once_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMPUTE_DTYPE", "COMPUTE_DTYPE_REASON"):
        monkeypatch.setitem(vars(common), name, None)  # undoing this removes what the test makes common keep
        monkeypatch.delitem(vars(common), name)
    monkeypatch.setenv("NANOCHAT_DTYPE", "float16")
    assert common.COMPUTE_DTYPE_REASON == "NANOCHAT_DTYPE"
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    assert torch.float16 == common.COMPUTE_DTYPE
    with pytest.raises(AttributeError, match="no_such_name"):
        common.no_such_name  # noqa: B018


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_round_up(n: int, multiple: int) -> None:
    result = common.round_up(n, multiple)
    assert result % multiple == 0 and 0 <= result - n < multiple


def test_base_dir_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "a" / "b"))
    assert common.get_base_dir() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert common.get_base_dir() == tmp_path / ".cache" / "nanochat"


class _Server(ThreadingHTTPServer):
    requests = 0


class _Handler(BaseHTTPRequestHandler):
    """/good sends ten bytes; /short promises twenty and sends ten."""

    server: _Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", "10" if self.path == "/good" else "20")
        self.end_headers()
        self.wfile.write(b"0123456789")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_download_happens_once_for_many_callers(server: _Server, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.server_port}/good"
    processed: list[Path] = []
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: common.download_file_with_lock(url, "x.bin", processed.append), range(4)))
    assert set(paths) == {tmp_path / "x.bin"} and paths[0].read_bytes() == b"0123456789"
    assert server.requests == 1 and processed == [tmp_path / "x.bin"]


def test_download_cut_short_leaves_no_file(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="10 of 20 bytes"):
        common.download_file_with_lock(f"http://127.0.0.1:{server.server_port}/short", "x.bin")
    assert not (tmp_path / "x.bin").exists()


def test_failed_postprocessing_is_done_again(server: _Server, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.server_port}/good"

    def fail(path: Path) -> None:
        raise RuntimeError("not a zip file")

    with pytest.raises(RuntimeError, match="not a zip file"):
        common.download_file_with_lock(url, "x.bin", fail)
    assert not (tmp_path / "x.bin").exists()
    assert common.download_file_with_lock(url, "x.bin").exists()
    assert server.requests == 2


@pytest.mark.parametrize("case", VECTORS["dist_info"])
def test_dist_info_needs_all_three_variables(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (case["env"] or {}).items():
        monkeypatch.setenv(name, value)
    assert common.is_ddp_requested() == case["requested"]
    assert list(common.get_dist_info()) == case["info"]
    assert common.is_ddp_initialized() is False


def test_print0_prints_on_rank_0_only(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    common.print0("zero", end="!")
    monkeypatch.setenv("RANK", "2")
    common.print0("two")
    assert capsys.readouterr().out == "zero!" and VECTORS["print0_with_RANK_2_prints"] is False


def test_compute_init_on_cpu() -> None:
    torch.manual_seed(7)
    *info, device = common.compute_init("cpu")
    assert [*info, str(device)] == VECTORS["compute_init_cpu"]
    assert torch.initial_seed() == VECTORS["compute_init_leaves_torch_seed"]
    common.compute_cleanup()  # nothing to leave


def test_compute_init_refuses_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VECTORS["compute_init_bad_device"] == "AssertionError"
    with pytest.raises(AssertionError, match="tpu"):
        common.compute_init("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device_type in ("cuda", "mps"):
        with pytest.raises(common.InputError, match=device_type):
            common.compute_init(device_type)


def test_autodetect_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: found["mps"])
    assert common.autodetect_device_type() == VECTORS["autodetect_on_cpu"]
    found["mps"] = True
    assert common.autodetect_device_type() == "mps"
    found["cuda"] = True
    assert common.autodetect_device_type() == "cuda"


def test_two_cpu_processes_meet_over_gloo() -> None:
    """Under torchrun's environment, compute_init on CPU starts a process group that really adds up numbers."""
    script = (
        "import torch, torch.distributed as dist\n"
        "from nanochat.common import compute_cleanup, compute_init, is_ddp_initialized\n"
        "ddp, rank, _, world_size, device = compute_init('cpu')\n"
        "x = torch.tensor([10.0 + rank]); dist.all_reduce(x)\n"
        "compute_cleanup()\n"
        "print(ddp, world_size, device, x.item(), is_ddp_initialized())\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    assert [p.communicate(timeout=60)[0].split() for p in processes] == [["True", "2", "cpu", "21.0", "False"]] * 2


def test_dummy_wandb_takes_what_wandb_takes() -> None:
    run = common.DummyWandb()
    assert all(callable(getattr(run, method)) for method in VECTORS["dummy_wandb_methods"])
    run.log({"loss": 1.0}, step=3)
    run.finish()


@pytest.mark.parametrize("case", VECTORS["peaks"], ids=lambda case: case["name"])
def test_peaks(case: dict) -> None:
    assert common.get_peak_flops(case["name"]) == float(case["peak_flops"])
    assert common.get_peak_bandwidth(case["name"]) == float(case["peak_bandwidth"])


def test_peaks_match_whole_words() -> None:
    """An L40 is no L4: better no number than a wrong one."""
    assert common.get_peak_flops("NVIDIA L40") == math.inf
