"""`execute_code`: what the original does (golden vectors), ordinary programs, and which protections are in force."""

import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nanochat import execution
from nanochat.execution import ExecutionResult, available_protections, execute_code
from tests.code_runs import CLOSED_TREE, linux_only
from tests.vectors_io import load

# The vectors

CASES = load("execution")["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_matches_the_original(case: dict[str, Any]) -> None:
    result = execute_code(case["code"], **case["kwargs"])
    if case["name"] == "infinite_loop":
        assert result.stdout == "partial\n"  # ours: what was printed before the timeout is kept
    elif case["name"] == "env":
        assert set(eval(result.stdout)) <= {"LC_CTYPE", "OMP_NUM_THREADS", "PATH"}
    else:
        assert result.stdout == case["stdout"]
    assert result.success == case["success"]
    assert result.timeout == case["timeout"]
    assert result.memory_exceeded == case["memory_exceeded"]
    assert (result.error is None) == case["error_is_none"]
    assert (result.stderr == "") == case["stderr_empty"]
    if case.get("error_type"):
        assert result.error is not None and result.error.startswith(case["error_type"])
    if "error" in case:
        assert result.error == case["error"]


def test_result_fields_and_defaults() -> None:
    vector = load("execution")
    result = ExecutionResult(True, "", "")
    assert list(vars(result)) == vector["fields"]
    assert {name: getattr(result, name) for name in vector["defaults"]} == vector["defaults"]


# Ordinary programs


def test_traceback_shows_the_program_and_nothing_of_ours() -> None:
    result = execute_code("def f():\n    raise ValueError('x')\n\nf()\n")
    assert 'File "<program>", line 2, in f' in result.stderr
    assert "nanochat" not in result.stderr


def test_programs_that_cannot_be_compiled_fail_like_others() -> None:
    for code, error in (("x = '\ud800'", "UnicodeEncodeError"), ("x = 1\0", "SyntaxError"), ("'" * 3, "SyntaxError")):
        result = execute_code(code)
        assert not result.success and result.error is not None
        assert result.error.startswith(error) or (error == "SyntaxError" and "null bytes" in result.error)


def test_output_that_is_not_text_is_replaced() -> None:
    assert execute_code("import os\nos.write(1, bytes([65, 255, 66]))").stdout == "A\ufffdB"


def test_a_signal_is_named_in_the_error() -> None:
    result = execute_code("import ctypes\nctypes.string_at(0)")
    assert not result.success
    assert result.error == "killed by SIGSEGV"


def test_packages_of_this_environment_can_be_imported() -> None:
    result = execute_code("import numpy\nprint(numpy.arange(4).sum())", timeout=30)
    assert result.stdout == "6\n", result.stderr


def test_dataclasses_and_pickle_find_main() -> None:
    code = "import dataclasses, pickle\n@dataclasses.dataclass\nclass A:\n    x: int\n"
    result = execute_code(code + "print(pickle.loads(pickle.dumps(A(3))))")
    assert result.stdout == "A(x=3)\n", result.stderr


def test_a_long_program_and_long_output_pass_through_whole() -> None:
    assert execute_code(f"x = {'a' * 300_000!r}\nprint(len(x))").stdout == "300000\n"
    assert len(execute_code("print('é' * 400_000)").stdout) == 400_001


def test_asyncio_works_without_sockets() -> None:
    result = execute_code("import asyncio\nasync def f(): return 5\nprint(asyncio.run(f()))")
    assert result.stdout == "5\n", result.stderr


def test_calls_from_many_threads_do_not_mix() -> None:
    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(lambda i: execute_code(f"print({i})", timeout=20).stdout, range(18)))
    assert outputs == [f"{i}\n" for i in range(18)]


def test_starting_costs_little() -> None:
    """Less than 150 ms of CPU a call, whatever else the machine is doing."""
    execute_code("")

    def cpu_seconds() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before = cpu_seconds()
    for _ in range(5):
        execute_code("print(1)")
    assert (cpu_seconds() - before) / 5 < 0.15


# What is in force


@linux_only
def test_protections_are_named_and_partition() -> None:
    protections = available_protections()
    assert not protections.in_force.keys() & protections.missing.keys()
    assert protections.in_force.keys() | protections.missing.keys() == execution.LAYERS.keys()
    assert all(protections.missing.values())


@linux_only
def test_no_privilege_is_left() -> None:
    status = dict(
        line.split(":\t")
        for line in execute_code("print(open('/proc/self/status').read())").stdout.splitlines()
        if line
    )
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Pid"]) == ("1", "2", "1")
    assert "0" not in status["Uid"].split()
    if os.geteuid() == 0:
        assert status["CapBnd"] == "0" * 16


DENY_UNSHARE = "from nanochat import isolation\nisolation.deny_syscalls([('unshare',), ('setns',)])\n"


def run_driver(code: str) -> str:
    """Run `code` in a process of its own that can import nanochat, since it changes that process for good."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux_only
def test_degrades_where_the_kernel_refuses_namespaces_and_says_so() -> None:
    output = run_driver(
        DENY_UNSHARE
        + "from nanochat.execution import *\n"
        + "print(execute_code('print(6 * 7)'))\n"
        + "print(sorted(available_protections().missing.items()))\n"
    )
    assert "stdout='42\\n'" in output
    assert "('namespaces', '[Errno 1] unshare: Operation not permitted')" in output


@linux_only
def test_runs_nothing_when_a_protection_in_force_is_suddenly_refused() -> None:
    """Fail closed: never with less than `available_protections` promised."""
    if "namespaces" not in available_protections().in_force:
        pytest.skip("no namespaces here")
    output = run_driver(
        "from nanochat.execution import *\navailable_protections()\n"
        + DENY_UNSHARE
        + "try:\n    print('ran', execute_code('print(1)'))\nexcept RuntimeError as error:\n    print(error)\n"
    )
    assert output.startswith("the sandbox could not start: namespaces:")


def test_an_interpreter_that_does_not_start_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a failure of the program, which a reward would take for a wrong answer."""
    available_protections()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="could not start: launcher"):
        execute_code("print(1)" + " " * 2**20)
    assert list(tmp_path.iterdir()) == []


@linux_only
def test_works_inside_another_user_namespace() -> None:
    """Nested sandboxes: a grader's around ours."""
    if "namespaces" not in available_protections().in_force:
        pytest.skip("no namespaces here")
    output = run_driver(
        "import os\nfrom nanochat import isolation\nisolation.unshare('user', 'mount', 'net', 'ipc')\n"
        "from nanochat.execution import *\n"
        "print(execute_code('print(6 * 7)'))\nprint(*available_protections().in_force, sep=',')\n"
    )
    assert "stdout='42\\n'" in output
    assert "namespaces" in output and "private root" in output


# An ordinary user


AS_ORDINARY_USER = """
import os, sys
from nanochat import isolation
from nanochat.execution_child import SYSTEM_PATHS
# A tree in which the interpreter can be read by everybody, wherever it lives; then not root any more.
isolation.enter_private_root({root!r}, [*SYSTEM_PATHS, sys.prefix, sys.base_prefix, {repository!r}], 2**26)
isolation._libc("mount", b"proc", b"/proc", b"proc", 0, None)
os.setgroups([])
os.setresgid(12345, 12345, 12345)
os.setresuid(12345, 12345, 12345)
os.execv(sys.executable, [sys.executable, "-c", {code!r}])
"""


@linux_only
@pytest.mark.skipif(os.geteuid() != 0, reason="the tests run as an ordinary user already")
@pytest.mark.parametrize("refuse", ["", DENY_UNSHARE], ids=["namespaces", "no namespaces"])
def test_works_as_an_ordinary_user(refuse: str, tmp_path: Path) -> None:
    repository = str(Path(execution.__file__).parents[1])
    code = (
        refuse
        + "import os\nfrom nanochat.execution import *\n"
        + "print(os.getuid(), execute_code('import os; print(os.getuid())').stdout, *available_protections().missing)\n"
        + f"print(execute_code({CLOSED_TREE!r}).stdout, end='')\n"
        + "print(execute_code('import posix; posix.fork()').error)\n"
        + "print([name for name in os.listdir('/tmp') if name.startswith('nanochat-')])\n"
    )
    output = run_driver(AS_ORDINARY_USER.format(root=str(tmp_path), repository=repository, code=code))
    first, second, third, fourth, left_over = output.splitlines()
    assert first == "12345 12345"
    assert "other user" in second and ("namespaces" in second) == bool(refuse)
    assert third == "closed"
    assert fourth == "PermissionError: [Errno 1] Operation not permitted"
    assert left_over == "[]"
