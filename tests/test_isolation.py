"""The isolation primitives one by one; `test_execution_attacks` tests them together, against attacks."""

import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import isolation
from nanochat.execution import available_protections
from nanochat.execution_child import SYSTEM_PATHS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is the Linux kernel's")

PYTHON_PATHS = (*SYSTEM_PATHS, sys.prefix, sys.base_prefix, str(Path(isolation.__file__).parents[1]))


def run_apart(code: str) -> str:
    """Run `code` in a process of its own, since primitives change it for good; what it printed."""
    code = f"import os\nfrom nanochat import isolation\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(layer: str) -> None:
    if layer not in available_protections().in_force:
        pytest.skip(available_protections().missing[layer])


# Namespaces and the private root


def test_user_namespace_keeps_ids_and_gives_capabilities_inside() -> None:
    needs("namespaces")
    output = run_apart(
        "before = os.getuid(), os.getgid()\nisolation.unshare('user', 'net')\n"
        "print(before == (os.getuid(), os.getgid()))\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')][0])\n"
        "print(*(l.split(':')[0].strip() for l in open('/proc/net/dev') if ':' in l))"
    )
    same_ids, capabilities, interfaces = output.splitlines()
    assert same_ids == "True" and int(capabilities, 16) > 2**30 and interfaces == "lo"


def test_pid_namespace_dies_with_its_first_process() -> None:
    """`sleep` is left running by a pid 1 that ends: the kernel takes it along, and closes its end of the pipe."""
    needs("namespaces")
    output = run_apart(
        "import subprocess\nisolation.unshare('user', 'pid')\nread_end, write_end = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.write(write_end, str(os.getpid()).encode())\n"
        "    subprocess.Popen(['sleep', '100'], pass_fds=[write_end], start_new_session=True)\n"
        "    os._exit(0)\n"
        "os.close(write_end)\nprint(os.read(read_end, 9), os.read(read_end, 9))"
    )
    assert output == "b'1' b''\n"


def test_private_root_shows_only_what_was_asked_for(tmp_path: Path) -> None:
    needs("private root")
    shown, link = tmp_path / "shown", tmp_path / "link"
    shown.mkdir()
    (shown / "file").write_text("hello")
    link.symlink_to(shown)
    (tmp_path / "hidden").write_text("x")
    root = tmp_path / "root"
    root.mkdir()
    output = run_apart(
        "isolation.unshare('user', 'pid')\n"
        "if os.fork():\n    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        f"isolation.enter_private_root({str(root)!r}, ['/usr', {str(link)!r}, '/does/not/exist'], 2**20)\n"
        f"print(os.getcwd(), os.listdir('.'), sorted(os.listdir({str(tmp_path)!r})))\n"
        f"print(open({str(link / 'file')!r}).read(), os.access('/', os.W_OK), os.listdir('/dev'))\n"
        "print(*(line.split()[4] for line in open('/proc/self/mountinfo')))\n"
        "open('own', 'w').write('x')\n"
        f"for path in ('/x', '/usr/x', {str(shown / 'file')!r}):\n"
        "    try: open(path, 'a')\n"
        "    except OSError as error: print(error.errno)\n",
    )
    lines = output.splitlines()
    assert lines[0] == "/tmp/home [] ['link', 'shown']"  # wherever the tests live, maybe under the machine's /tmp
    assert lines[1].startswith("hello False") and "null" in lines[1]
    mount_points = lines[2].split()
    assert mount_points.count("/") == 1, "the machine's own tree is still there"
    expected = ("/tmp", "/proc", "/usr", "/dev/")
    assert all(point == "/" or point.startswith(expected) for point in mount_points)
    assert lines[3:] == [str(errno.EROFS)] * 3
    assert list(root.iterdir()) == [] and (shown / "file").read_text() == "hello"


# Limits, capabilities, Landlock


def test_limits_are_set_and_never_raised() -> None:
    output = run_apart(
        "import resource\nisolation.limit_resources({'NOFILE': 50, 'NO_SUCH_LIMIT': 1})\n"
        "isolation.limit_resources({'NOFILE': 60})\nprint(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert output == "(50, 50)\n"


def test_capabilities_are_gone_for_executed_programs_too() -> None:
    output = run_apart("isolation.drop_capabilities()\nos.execv('/bin/cat', ['cat', '/proc/self/status'])")
    status = dict(line.split(":\t") for line in output.splitlines())
    assert status["CapEff"] == status["CapPrm"] == "0" * 16
    assert status["NoNewPrivs"] == "1"


def test_landlock_allows_what_it_lists_and_no_more(tmp_path: Path) -> None:
    needs("Landlock")
    for name in ("readable", "writable", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    output = run_apart(
        f"base = {str(tmp_path)!r}\n"
        "isolation.restrict_files([base + '/readable', '/does/not/exist'], [base + '/writable', '/dev/null'])\n"
        "for name in ('readable', 'writable', 'closed'):\n"
        "    for mode in 'ra':\n"
        "        try: open(f'{base}/{name}/file', mode).close()\n"
        "        except OSError as error: print(name, mode, error.errno)\n"
        "open('/dev/null', 'w').write('x')\n"
    )
    assert output.splitlines() == [f"readable a {errno.EACCES}", f"closed r {errno.EACCES}", f"closed a {errno.EACCES}"]


def test_landlock_keeps_signals_and_abstract_sockets_inside() -> None:
    needs("Landlock")
    if isolation._libc("syscall", 444, None, 0, 1) < 6:
        pytest.skip("from Linux 6.12")
    output = run_apart(
        "import socket, subprocess\nserver = socket.socket(socket.AF_UNIX)\n"
        "server.bind('\\0' + str(os.getpid()))\nserver.listen()\n"
        "outside = subprocess.Popen(['sleep', '100'])\n"
        "if os.fork():\n    os.wait()\n    outside.kill()\n    os._exit(0)\n"
        "isolation.restrict_files(['/'], [])\n"
        "for reach in (lambda: os.kill(outside.pid, 0),\n"
        "              lambda: socket.socket(socket.AF_UNIX).connect('\\0' + str(os.getppid()))):\n"
        "    try: print('reached', reach(), flush=True)\n"
        "    except PermissionError: print('refused', flush=True)\n"
    )
    assert output == "refused\nrefused\n"


# seccomp

ALL_RULES: tuple[isolation.Rule, ...] = (
    *isolation.NEW_PROCESSES,
    *isolation.NEW_SOCKETS,
    *isolation.UNCOUNTED_MEMORY,
    *isolation.OTHER_PROCESSES,
    *isolation.KERNEL_SURFACE,
    *isolation.FIRST_PROCESS,
    *isolation.signals_beyond(1234),
)
MACHINES = sorted(isolation._ARCHITECTURES)
ALLOWED, KILLED = "allowed", "killed"


def verdict(program: bytes, machine_code: int, number: int, arguments: list[int]) -> str | int:
    """What the kernel would do with a system call: an interpreter for the few BPF instructions we use."""
    data = struct.pack("<IIQ6Q", number, machine_code, 0, *(arguments + [0] * 6)[:6])
    instructions = list(struct.iter_unpack("HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            action = value & 0xFFFF0000
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050000: value & 0xFFFF}[action]
        else:
            met = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += if_true if met else if_false


def program_for(machine: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "", "", machine)))
    return isolation._filter_program(ALL_RULES)


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_decides_as_the_rules_say(machine: str) -> None:
    column, audit_arch = isolation._ARCHITECTURES[machine]
    with pytest.MonkeyPatch.context() as patch:
        program = program_for(machine, patch)

    def decide(name: str, *arguments: int) -> str | int:
        number = isolation._SYSCALLS[name][column]
        assert number is not None
        return verdict(program, audit_arch, number, list(arguments))

    thread = 0x10000
    assert decide("clone", thread | 0x100) == ALLOWED
    assert decide("clone", 17) == errno.EPERM
    assert decide("clone3") == errno.ENOSYS
    assert decide("socket", 2, 1, 0) == errno.EPERM
    assert decide("kill", 1234, 9) == ALLOWED and decide("kill", 1, 9) == errno.EPERM
    assert decide("kill", 2**64 - 1, 9) == errno.EPERM  # -1: everybody
    assert decide("tgkill", 1234, 1240, 6) == ALLOWED
    assert decide("prctl", 15) == ALLOWED and decide("prctl", 1) == errno.EPERM
    assert decide("ioctl", 0, 0x5401) == ALLOWED and decide("ioctl", 0, 0x5412) == errno.EPERM
    assert decide("prlimit64", 0, 7) == ALLOWED and decide("prlimit64", 1, 7) == errno.EPERM
    for name in ("ptrace", "unshare", "memfd_create", "io_uring_setup", "pidfd_send_signal"):
        assert decide(name) == errno.EPERM
    assert verdict(program, 0x40000003, 1, []) == KILLED  # 32-bit x86
    if machine == "x86_64":
        assert verdict(program, audit_arch, 0x40000000 | 57, []) == KILLED  # x32's fork


@pytest.mark.parametrize("machine", MACHINES)
def test_processes_may_be_allowed_but_for_those_in_new_namespaces(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "", "", machine)))
    program = isolation._filter_program(isolation.NEW_NAMESPACES)
    column, audit_arch = isolation._ARCHITECTURES[machine]
    clone, clone3 = isolation._SYSCALLS["clone"][column], isolation._SYSCALLS["clone3"][column]
    assert clone and clone3
    for flags in (17, 0x4111, 0x3D0F00, 0x1200011):  # fork, vfork, a thread, libc's fork
        assert verdict(program, audit_arch, clone, [flags]) == ALLOWED
    for kind in isolation._CLONE_FLAGS.values():
        assert verdict(program, audit_arch, clone, [17 | kind]) == errno.EPERM
    assert verdict(program, audit_arch, clone3, []) == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(0, 1000), arguments=st.lists(st.integers(0, 2**64 - 1), max_size=6))
def test_filter_lets_every_other_call_through(machine: str, number: int, arguments: list[int]) -> None:
    column, audit_arch = isolation._ARCHITECTURES[machine]
    with pytest.MonkeyPatch.context() as patch:
        program = program_for(machine, patch)
    if number not in {isolation._SYSCALLS[rule[0]][column] for rule in ALL_RULES}:
        assert verdict(program, audit_arch, number, arguments) == ALLOWED


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
    ids=["x86_64", "aarch64"],
)
def test_system_call_numbers_agree_with_the_kernel_headers(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"no {header}")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    for name, numbers in isolation._SYSCALLS.items():
        expected = int(defined[name]) if name in defined else None
        assert numbers[column] == expected or (expected is None and name == "memfd_secret"), name


def test_seccomp_names_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="no table of system calls for vax"):
        program_for("vax", monkeypatch)


def test_denied_calls_fail_and_threads_still_start() -> None:
    needs("seccomp")
    output = run_apart(
        "import threading\nisolation.deny_syscalls(isolation.NEW_PROCESSES)\n"
        "t = threading.Thread(target=print, args=('thread',))\nt.start()\nt.join()\n"
        "try: os.fork()\nexcept PermissionError: print('no fork')"
    )
    assert output == "thread\nno fork\n"


# Descendants


def test_kill_descendants_reaches_orphans_in_other_sessions() -> None:
    output = run_apart(
        "import subprocess, time\nisolation.adopt_orphans()\n"
        "if os.fork() == 0:\n"
        "    subprocess.Popen(['sleep', '100'], start_new_session=True)\n"
        "    subprocess.Popen(['sh', '-c', 'sleep 100 & sleep 100'], start_new_session=True)\n"
        "    os._exit(0)\n"
        "time.sleep(0.3)\nisolation.kill_descendants()\n"
        "try: os.wait()\nexcept ChildProcessError: print('none left')"
    )
    assert output == "none left\n"


def test_off_linux_every_primitive_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for refuse in (
        lambda: isolation.unshare("net"),
        lambda: isolation.restrict_files([], []),
        lambda: isolation.deny_syscalls([]),
        isolation.drop_capabilities,
        isolation.adopt_orphans,
    ):
        with pytest.raises(OSError, match="only on Linux"):
            refuse()
