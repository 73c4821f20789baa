"""Attacks on `execute_code` that must hurt nothing.

An attack is run by a plain interpreter, to show that it works on an unguarded machine, and in the sandbox: behind all
protections, and again with single ones left out, since kernels differ in what they grant. Attacks go past the removed
functions (`posix.fork`, ctypes), as somebody who means it would.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat import execution
from nanochat.execution import available_protections, execute_code
from tests.code_runs import CLOSED_TREE, layers_without, linux_only, run, run_plainly


def everything_but_one() -> list[tuple[str, ...]]:
    return [(), ("namespaces",), ("Landlock",), ("seccomp",)]


each_fence = pytest.mark.parametrize("left_out", everything_but_one(), ids=lambda names: "without " + "".join(names))


# Attacks: files


@linux_only
@each_fence
def test_cannot_read_home_or_the_rest_of_the_machine(left_out: tuple[str, ...], tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the answer key")
    code = f"print(open({str(secret)!r}).read())"
    assert run_plainly(code) == "the answer key\n"
    result = run(code, *left_out)
    assert not result.success and result.stdout == ""
    home = str(Path.home())
    listing = run(f"import os\nprint(os.listdir({home!r}))", *left_out)
    pythons = [Path(prefix).relative_to(home).parts[0] for prefix in (sys.prefix, sys.base_prefix) if home in prefix]
    assert listing.stdout in ("", f"{pythons}\n")


@linux_only
@each_fence
def test_cannot_delete_or_write_outside(left_out: tuple[str, ...], tmp_path: Path) -> None:
    victim = tmp_path / "precious.txt"
    code = f"import posix\nposix.unlink({str(victim)!r})\nprint('deleted')"
    tmp_path.chmod(0o777)
    victim.write_text("x")
    assert run_plainly(code) == "deleted\n" and not victim.exists()
    victim.write_text("x")
    result = run(code, *left_out)
    assert not result.success and victim.exists()
    for directory in (str(tmp_path), "/usr", "/etc", "/dev", sys.prefix, "/proc/sys/kernel"):
        target = Path(directory) / "planted.txt"
        assert not run(f"open({str(target)!r}, 'w').write('x')", *left_out).success
        assert not target.exists()


@linux_only
def test_cannot_fill_the_disk() -> None:
    """Neither with one file, nor with many, nor with many empty ones."""
    if "private root" not in available_protections().in_force:
        pytest.skip("no private root here")
    one = execute_code("f = open('big', 'wb', buffering=0)\nwhile True: print(f.write(bytes(2**20)))")
    assert "File too large" in one.stderr and one.stdout.count("\n") <= 32
    many = execute_code(
        "i = 0\nwhile True:\n  i += 1\n  with open(str(i), 'wb', buffering=0) as f: print(f.write(bytes(2**20)))"
    )
    assert "No space left" in many.stderr and 32 < many.stdout.count("\n") <= 64
    empty = execute_code("i = 0\nwhile True:\n  i += 1\n  open(str(i), 'w').close()\n  print(i)")
    assert "No space left" in empty.stderr and empty.stdout.count("\n") <= 4096


@linux_only
@pytest.mark.parametrize("left_out", [(), ("namespaces",)], ids=["all", "without namespaces"])
def test_leaves_no_file_behind(left_out: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a tree too deep for any path, or one that its owner may not enter."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nest = "import posix, os\nfor _ in range(40):\n    os.mkdir('d' * 200)\n    posix.chdir('d' * 200)\nprint('nested')"
    assert run(nest, *left_out).stdout == "nested\n"
    assert run(CLOSED_TREE, *left_out).stdout == "closed\n"
    assert run("open('f', 'w').write('x')\nwhile True: pass", *left_out, timeout=0.5).timeout
    assert list(tmp_path.iterdir()) == []


# Attacks: other processes


SECRET = f"open sesame {os.getpid()}"


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a secret in its environment, to be signalled and spied on in place of the test's own."""
    with subprocess.Popen(["sleep", "120"], env={"SECRET": SECRET}) as process:
        yield process
        process.kill()


READ_ENVIRONMENTS = f"""
import glob
found = 0
for path in glob.glob('/proc/[0-9]*/environ'):
    try:
        found += {SECRET.encode()!r} in open(path, 'rb').read()
    except OSError:
        pass
print(found)
"""


@linux_only
@each_fence
def test_cannot_read_environments(left_out: tuple[str, ...], victim: subprocess.Popen[bytes]) -> None:
    assert run_plainly(READ_ENVIRONMENTS) == "1\n"
    assert run(READ_ENVIRONMENTS, *left_out).stdout == "0\n"


READ_MEMORY = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
print('attached' if libc.ptrace(PTRACE_SEIZE, {pid}, None, None) == 0 else 'refused')
"""


@linux_only
@each_fence
def test_cannot_trace_processes(left_out: tuple[str, ...], victim: subprocess.Popen[bytes]) -> None:
    code = READ_MEMORY.format(pid=victim.pid)
    if run_plainly(code) != "attached\n":
        pytest.skip("tracing a sibling is refused here anyway")
    assert run(code, *left_out).stdout == "refused\n"


@linux_only
@each_fence
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_cannot_signal_others(left_out: tuple[str, ...], number: int) -> None:
    for attack in (
        "import posix; posix.kill({pid}, {number})",
        "import signal; signal.pidfd_send_signal({fd}, {number})",
    ):
        attack = attack.replace("{fd}", "__import__('os').pidfd_open({pid})").replace("{number}", str(int(number)))
        with subprocess.Popen(["sleep", "120"]) as control:
            run_plainly(attack.replace("{pid}", str(control.pid)))
            assert control.wait(10) == -number
        with subprocess.Popen(["sleep", "120"]) as target:
            assert not run(attack.replace("{pid}", str(target.pid)), *left_out).success
            assert target.poll() is None
            target.kill()


@linux_only
@each_fence
def test_cannot_kill_its_supervisor(left_out: tuple[str, ...]) -> None:
    code = (
        "import posix, time\nprint('alive', flush=True)\nposix.kill(posix.getppid(), 9)\ntime.sleep(1)\nprint('still')"
    )
    result = run(code, *left_out)
    assert result.stdout.startswith("alive")
    assert not result.timeout


# Attacks: processes that stay


def processes_named(name: str) -> list[int]:
    """Pids, anywhere on the machine, of processes that gave themselves this name."""
    pids = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (directory / "comm").read_text().strip() == name:
                pids.append(int(directory.name))
    return pids


def call_myself(name: str) -> str:
    return f"import ctypes, os, posix, signal, time\nctypes.CDLL(None).prctl(15, b{name!r}, 0, 0, 0)\n"


def wait_until(condition: Any, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


GRANDCHILD = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if posix.fork() == 0:
    os.setsid()
    if posix.fork() == 0:
        time.sleep(60)
    os._exit(0)
time.sleep(0.5)
print('started')
"""


@linux_only
@pytest.mark.parametrize("left_out", [("seccomp",), ("seccomp", "namespaces")], ids=lambda names: " ".join(names))
def test_a_grandchild_in_its_own_session_does_not_outlive_the_call(left_out: tuple[str, ...]) -> None:
    name = f"gc{os.getpid()}"
    code = call_myself(name) + GRANDCHILD
    assert run_plainly_and_kill(code, name), "unguarded, the grandchild survives"
    begin = time.monotonic()
    result = run(code, *left_out)
    assert result.stdout == "started\n", result
    assert time.monotonic() - begin < 10, "the grandchild holds stdout open: that must not be waited for"
    assert wait_until(lambda: not processes_named(name), 2)


def run_plainly_and_kill(code: str, name: str) -> list[int]:
    """Run an attack unguarded with its output thrown away, and then kill what it left; the pids of that."""
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=30, check=False)
    left = processes_named(name)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


@linux_only
def test_no_process_can_be_started_at_all() -> None:
    attacks = (
        "import posix; posix.fork()",
        "import ctypes\nif ctypes.CDLL(None).vfork() < 0: raise PermissionError",
        "import posix; posix.posix_spawn('/bin/true', ['true'], {})",
    )
    for attack in attacks:
        result = execute_code(attack)
        assert not result.success and "PermissionError" in result.stderr + str(result.error), result


@linux_only
def test_fork_bomb_stays_small_and_ends_with_the_call() -> None:
    """Without seccomp, which stops it at the first fork, the limit and the namespace have to hold it."""
    if "namespaces" not in available_protections().in_force:
        pytest.skip("no namespaces here")
    name = f"fb{os.getpid()}"
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(processes_named(name)))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    bomb = call_myself(name) + "while True:\n    try: posix.fork()\n    except OSError: time.sleep(0.01)\n"
    result = run(bomb, "seccomp", timeout=2.0)
    done.set()
    watcher.join()
    assert result.timeout
    assert 10 < most <= 64
    assert not processes_named(name)
    assert (
        execute_code("import posix\nwhile True: posix.fork()").error
        == "PermissionError: [Errno 1] Operation not permitted"
    )


@linux_only
@each_fence
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_a_caller_that_is_killed(left_out: tuple[str, ...], number: int, tmp_path: Path) -> None:
    """Even if the program refuses to be killed with its parent."""
    name = f"kc{os.getpid()}"
    code = call_myself(name) + "print(ctypes.CDLL(None).prctl(1, 0, 0, 0, 0))\nwhile True: time.sleep(1)"
    layers = layers_without(*left_out)
    driver = f"from nanochat.execution import _launch\n_launch({code!r}, 60, None, {layers!r})"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", driver], env=env, stderr=subprocess.DEVNULL) as caller:
        assert wait_until(lambda: processes_named(name), 30)
        assert list(tmp_path.iterdir())
        caller.send_signal(number)
    assert wait_until(lambda: not processes_named(name) and not list(tmp_path.iterdir()), 5)


def test_a_program_ends_when_its_lifeline_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the caller has died, on systems that do not tell children so."""
    converse = execution._converse

    def cutting_converse(process: subprocess.Popen[bytes], *args: Any) -> tuple[bytes, bytes, bytes]:
        assert process.stdin is not None
        threading.Timer(0.5, process.stdin.close).start()
        return converse(process, *args)

    available_protections()
    monkeypatch.setattr(execution, "_converse", cutting_converse)
    begin = time.monotonic()
    execute_code("while True: pass", timeout=60)
    assert time.monotonic() - begin < 15


@linux_only
def test_a_program_ends_with_a_killed_caller_whose_fork_lives_on() -> None:
    """The fork inherits the lifeline and keeps it whole: the kernel's word of the caller's death must do."""
    name, fork_name = f"lf{os.getpid()}", f"fk{os.getpid()}"
    program = call_myself(name) + "while True: time.sleep(1)"
    driver = (
        "import threading\nfrom nanochat.execution import *\navailable_protections()\n"
        f"threading.Thread(target=execute_code, args=({program!r}, 60)).start()\n"
        "import time\ntime.sleep(1)\nimport os\nif os.fork() == 0:\n"
        + textwrap.indent(call_myself(fork_name) + "time.sleep(60)", "    ")
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", driver]) as caller:
        assert wait_until(lambda: processes_named(name) and processes_named(fork_name), 30)
        caller.kill()
    try:
        assert wait_until(lambda: not processes_named(name), 5)
    finally:
        for pid in processes_named(fork_name):
            os.kill(pid, signal.SIGKILL)


def test_ignoring_sigterm_does_not_help() -> None:
    code = "import signal, time\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
    begin = time.monotonic()
    result = execute_code(code + "print('armoured')\nwhile True: pass", timeout=1.0)
    assert result.timeout and not result.success and result.stdout == "armoured\n"
    assert time.monotonic() - begin < 5


def test_threads_on_many_cores_run_out_of_cpu_time() -> None:
    """One second more than the timeout, over all threads; on one core the clock is first. Either is a timeout."""
    code = (
        "import hashlib, threading\ndata = bytes(10**6)\ndef burn():\n    while True: hashlib.sha256(data)\n"
        "for _ in range(3): threading.Thread(target=burn).start()\n"
    )
    result = execute_code(code, timeout=3.0)
    assert result.timeout and result.stderr == ""


# Attacks: memory and output


@linux_only
def test_memory_bombs() -> None:
    bombs = {
        "list": "x = []\nwhile True: x.append(bytearray(10**7))",
        "mmap": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 10**7))",
    }
    for name, bomb in bombs.items():
        result = execute_code(bomb)
        assert not result.success and not result.timeout, (name, result)
    assert execute_code(bombs["list"]).memory_exceeded


@linux_only
def test_memory_cannot_be_had_past_the_limit() -> None:
    """Memory that no address space counts: anonymous files, System V segments, /dev/shm."""
    shared = Path(f"/dev/shm/nanochat-{os.getpid()}")
    for attack in (
        "import os; os.memfd_create('x')",
        "import ctypes\nlibc = ctypes.CDLL(None)\nsegment = libc.shmget(0, 2**20, 0o1600)\n"
        "if segment < 0: raise PermissionError\nlibc.shmctl(segment, 0, None)",
        f"open({str(shared)!r}, 'w')",
    ):
        control = subprocess.run([sys.executable, "-c", attack], check=False)
        shared.unlink(missing_ok=True)
        assert control.returncode == 0
        assert not execute_code(attack).success, attack
        assert not shared.exists()


def test_endless_output_is_bounded_and_does_not_delay() -> None:
    for stream in ("stdout", "stderr"):
        begin = time.monotonic()
        result = execute_code(f"import sys\nwhile True: sys.{stream}.write('x' * 10000)", timeout=1.0)
        assert result.timeout
        assert len(getattr(result, stream)) == execution.MAX_OUTPUT_BYTES
        assert time.monotonic() - begin < 5


def test_finite_output_past_the_bound_is_cut_and_the_program_still_succeeds() -> None:
    result = execute_code("print('x' * 3_000_000)")
    assert result.success and len(result.stdout) == execution.MAX_OUTPUT_BYTES


# Attacks: network


@pytest.fixture
def tcp_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@linux_only
@pytest.mark.parametrize(
    "left_out",
    [(), ("namespaces",), ("seccomp",), ("seccomp", "Landlock"), ("seccomp", "namespaces")],
    ids=lambda names: "without " + " ".join(names),
)
def test_no_network(left_out: tuple[str, ...], tcp_server: int) -> None:
    """The network namespace, seccomp and Landlock would each do (the last for TCP, from Linux 6.7)."""
    code = f"import socket\nsocket.create_connection(('127.0.0.1', {tcp_server}), 2)\nprint('connected')"
    assert run_plainly(code) == "connected\n"
    result = run(code, *left_out)
    assert not result.success and result.stdout == ""


@linux_only
@each_fence
def test_no_abstract_sockets_of_the_machine(left_out: tuple[str, ...]) -> None:
    name = f"\0nanochat-{os.getpid()}"
    code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})\nprint('connected')"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert run_plainly(code) == "connected\n"
        assert run(code, *left_out).stdout == ""


# Attacks: what the caller holds


@linux_only
def test_inherits_no_descriptor_and_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "hunter2")
    secret = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    code = "import os\nprint(sorted(int(n) for n in os.listdir('/proc/self/fd')), os.environ.get('API_TOKEN'))"
    try:
        assert execute_code(code).stdout == "[0, 1, 2, 3] None\n"  # 3 is the listing's own
    finally:
        os.close(secret)


@linux_only
def test_no_new_namespace_to_regain_privileges_in() -> None:
    code = "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000))"
    assert run_plainly(code) == "0\n"
    assert execute_code(code).stdout == "-1\n"
