"""Programs in `execute_code`, behind all protections or some, and in an unguarded interpreter."""

import subprocess
import sys

import pytest

from nanochat import execution
from nanochat.execution import ExecutionResult, Protections, available_protections, execute_code

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="isolation is the Linux kernel's")

NEED_NAMESPACES = {"namespaces", "private root", "other user"}

# a program that leaves a tree its owner may not enter
CLOSED_TREE = """
import os, posix
os.makedirs('d/e')
open('d/e/f', 'w').close()
os.symlink('/usr', 'd/e/link')
posix.chmod('d/e', 0)
posix.chmod('d', 0)
print('closed')
"""


def layers_without(*left_out: str) -> tuple[str, ...]:
    """What `available_protections` has in force, less some; a private root needs the namespaces."""
    gone = NEED_NAMESPACES if "namespaces" in left_out else set()
    return tuple(layer for layer in available_protections().in_force if layer not in gone | set(left_out))


def run(code: str, *left_out: str, timeout: float = 5.0) -> ExecutionResult:
    """`execute_code` with some protections left out."""
    protections = Protections(dict.fromkeys(layers_without(*left_out), ""), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "available_protections", lambda: protections)
        return execute_code(code, timeout)


def run_plainly(code: str) -> str:
    """The same program in an unguarded interpreter: the stdout of the attack when nothing stops it."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout
