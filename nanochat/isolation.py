# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH110, PTH112, PTH120, PTH123, PTH211
"""Linux isolation primitives through ctypes: namespaces, a private root, Landlock, seccomp, rlimits, capabilities.

No package and no helper program is needed, and nothing here needs root: an ordinary user may do all of it where the
kernel allows unprivileged user namespaces. Each function changes the calling process for good, wants a process with one
thread, and raises OSError with the kernel's own reason when it is refused; what to do then is the caller's choice.
A sandbox calls them in the order of this file; the manual pages are namespaces(7), pivot_root(2), setrlimit(2),
capabilities(7), landlock(7) and seccomp(2).
"""

# A sandbox starts for every program it runs: pathlib and typing take longer to import than all of this.
from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NOBODY = 65534
"""The user and group id that owns nothing: what root becomes in a sandbox."""

_CLONE_FLAGS = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000}
_CLONE_THREAD = 0x10000
_CLONE_NEW_ANYTHING = 0x7E020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_TIOCSTI = 0x5412
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# System calls younger than 2019 have one number on every architecture.
_MOUNT_SETATTR, _LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 442, 444, 445, 446


def _libc(function: str, *arguments: int | bytes | None) -> int:
    """Call a libc function; -1 becomes an OSError that names it."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, f"{function}: only on Linux")
    call = getattr(ctypes.CDLL(None, use_errno=True), function)
    # prctl and syscall are variadic and read whole registers: a plain int would leave the upper half undefined.
    result: int = call(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


# Processes


def die_with_parent(signal_number: int) -> None:
    """Get this signal when the thread that started this process ends. A change of user or capabilities undoes it."""
    _libc("prctl", _PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that `kill_descendants` finds them all."""
    _libc("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> None:
    """Kill and reap until this process has no child left. Needs `adopt_orphans`, before the first child."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = file.read().split()
        if not children:
            return
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        os.waitpid(-1, 0)


# Namespaces


def unshare(*kinds: str) -> None:
    """Move into new namespaces: "user", "mount", "pid" (from the next fork on), "net" (no interface up), "ipc".

    With "user" this process keeps its ids and gains every capability over the new namespaces, none outside; root finds
    `NOBODY` mapped beside itself, where its own capabilities allow. A process that was refused "user" may be left
    without ids: end it.
    """
    flags = sum(_CLONE_FLAGS[kind] for kind in kinds)
    if "user" not in kinds:
        _libc("unshare", flags)
        return
    # Only a process left outside may map ids other than the caller's own.
    wait_end, go_end = os.pipe()
    pid, ids = os.getpid(), (os.geteuid(), os.getegid())
    mapper = os.fork()
    if mapper == 0:
        os.close(go_end)
        os._exit(_map_ids(pid, *ids) if os.read(wait_end, 1) else 0)
    os.close(wait_end)
    try:
        _libc("unshare", flags)
        os.write(go_end, b"!")
    finally:
        os.close(go_end)
        refusal = os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1])
    if refusal:
        raise OSError(refusal, f"uid_map: {os.strerror(refusal)}")


def unshare_user_alone() -> None:
    """Move into a new user namespace that maps no ids: for limits that are counted by user namespace, as that on
    processes. Gains capabilities over nothing but the namespace; give them up with `drop_capabilities`."""
    _libc("unshare", _CLONE_FLAGS["user"])


def enter_namespace(descriptor: int) -> None:
    """Move into the namespace that an open file of /proc/<pid>/ns names."""
    _libc("setns", descriptor, 0)


def _map_ids(pid: int, uid: int, gid: int) -> int:
    """Write the id maps of `pid`'s user namespace; 0, or the errno of the refusal."""
    refusal = 0
    for more in (f"\n{NOBODY} {NOBODY} 1", "") if uid == 0 else ("",):
        try:
            if not more:
                _write(f"/proc/{pid}/setgroups", "deny")  # what the kernel asks of those who map their own ids only
            _write(f"/proc/{pid}/gid_map", f"{gid} {gid} 1{more}")
            _write(f"/proc/{pid}/uid_map", f"{uid} {uid} 1{more}")
            return 0
        except OSError as error:
            refusal = error.errno or errno.EPERM
    return refusal


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# Files


def enter_private_root(root: str, read_only: Iterable[str], tmp_bytes: int) -> None:
    """Leave the machine's file tree for one that holds only: the paths in `read_only`, under their own names and not
    writable; five harmless devices; the /proc of this pid namespace, where the kernel lets it be mounted; and a /tmp of
    at most `tmp_bytes` (in memory), which is gone with the last process. Goes to the empty directory /tmp/home.

    `root` is an empty directory to build it on. Moves into a new "mount" namespace, so that only this process and its
    children change trees. Needs the capabilities over a new "pid" namespace, as its first process. Paths that do not
    exist are left out.
    """
    unshare("mount")
    _libc("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    _mount_tmpfs(root, "size=1m,mode=755")
    for directory in ("/proc", "/tmp"):
        os.mkdir(root + directory)
    _mount_tmpfs(root + "/tmp", f"size={tmp_bytes},nr_inodes=4096,mode=1777")
    os.mkdir(root + "/tmp/home")
    os.chmod(root + "/tmp/home", 0o777)
    shown: list[str] = []
    for real in sorted({os.path.realpath(path) for path in read_only if os.path.exists(path)}):
        if not _is_under(real, shown):
            _bind(real, root + real)
            _make_read_only(root + real)
            shown.append(real)
    for path in read_only:
        real = os.path.realpath(path)
        if path != real and _is_under(real, shown) and not os.path.lexists(root + path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(real, root + path)
    for device in filter(os.path.exists, DEVICES):
        _bind(device, root + device)
    try:
        flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        _libc("mount", b"proc", os.fsencode(root + "/proc"), b"proc", flags, None)
    except PermissionError:  # a container that hides parts of its /proc may not show a new one
        os.rmdir(root + "/proc")
    os.chdir(root)
    # With both arguments the same, the old tree ends up stacked on the new one, and is taken off from there.
    _libc("pivot_root", b".", b".")
    _libc("umount2", b".", _MNT_DETACH)
    _libc("mount", None, b"/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, None)
    os.chdir("/tmp/home")


def _mount_tmpfs(target: str, options: str) -> None:
    _libc("mount", b"tmpfs", os.fsencode(target), b"tmpfs", _MS_NOSUID | _MS_NODEV, options.encode())


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _libc("mount", os.fsencode(source), os.fsencode(target), None, _MS_BIND | _MS_REC, None)


def _make_read_only(target: str) -> None:
    attributes = struct.pack("QQQQ", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)
    _libc("syscall", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes))


def _is_under(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


# Limits and privileges


def limit_resources(limits: dict[str, int]) -> None:
    """Set rlimits, soft and hard at once, by name without the prefix: {"CPU": 5, "AS": 2**28}. Never raises a limit.
    Names that this platform does not have are passed over."""
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is None:
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (value, value))
        except ValueError as error:
            raise OSError(errno.EINVAL, f"setrlimit: {name}: {error}") from error


def become_nobody() -> None:
    """Give up root for `NOBODY`, with no supplementary groups. Capabilities go with it."""
    if os.geteuid() != 0:
        raise PermissionError(errno.EPERM, "only root can become another user")
    _empty_bounding_set()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """Give up every capability, and for good: no program executed from here on can gain any (no_new_privs)."""
    _empty_bounding_set()
    version_3, this_process = 0x20080522, 0
    _libc("capset", struct.pack("Ii", version_3, this_process), bytes(24))
    _no_new_privs()


def _empty_bounding_set() -> None:
    """No executed program may hold a capability. Without the right to say so, no_new_privs has to do."""
    capability = 0
    try:
        while True:
            _libc("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
            capability += 1
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):  # past the last one; not ours to drop
            raise


def _no_new_privs() -> None:
    _libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def landlock_version() -> int:
    """Which version of Landlock this kernel speaks; OSError if none."""
    return _libc("syscall", _LANDLOCK_CREATE_RULESET, None, 0, 1)


def restrict_files(read_only: Iterable[str], read_write: Iterable[str]) -> None:
    """Landlock: beneath `read_only` this process may read and execute, beneath `read_write` do everything, elsewhere
    open nothing. Where the kernel knows how, also no TCP (6.7) and no signal or abstract socket to processes outside
    (6.12). Neither may it look into other processes. Sets no_new_privs."""
    _no_new_privs()
    abi = landlock_version()
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    execute, write_file, read_file, read_directory = 1, 2, 4, 8
    on_a_file = execute | write_file | read_file | everything & (1 << 14 | 1 << 15)  # truncate, ioctl
    ruleset_of = struct.pack("QQQ", everything, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    ruleset = _libc("syscall", _LANDLOCK_CREATE_RULESET, ruleset_of, len(ruleset_of), 0)
    allowed = [(path, execute | read_file | read_directory) for path in read_only]
    allowed += [(path, everything) for path in read_write]
    for path, access in allowed:
        if os.path.exists(path):
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                access &= on_a_file
            _libc("syscall", _LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, beneath), 0)
            os.close(beneath)
    _libc("syscall", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


# System calls

Rule = tuple[str] | tuple[str, str, int, int]
"""What `deny_syscalls` refuses: (name,) always, or (name, condition, argument number, value) with the condition
"if equal", "unless equal", "if bits" or "unless bits" (any bit of value set), on the low 32 bits of the argument."""

NEW_PROCESSES: tuple[Rule, ...] = (("fork",), ("vfork",), ("clone", "unless bits", 0, _CLONE_THREAD), ("clone3",))
NEW_NAMESPACES: tuple[Rule, ...] = (("clone", "if bits", 0, _CLONE_NEW_ANYTHING), ("clone3",))  # by a new process
NEW_SOCKETS: tuple[Rule, ...] = (("socket",),)  # socketpair stays: it reaches nobody
UNCOUNTED_MEMORY: tuple[Rule, ...] = (("memfd_create",), ("memfd_secret",), ("shmget",), ("msgget",))  # by RLIMIT_AS
OTHER_PROCESSES: tuple[Rule, ...] = tuple(
    (name,) for name in ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "kcmp")
)
FIRST_PROCESS: tuple[Rule, ...] = (  # hampering it, where it watches over others of its user
    *((name, "if equal", 0, 1) for name in ("prlimit64", "sched_setaffinity", "sched_setattr")),
    *((name, "if equal", 0, 1) for name in ("sched_setparam", "sched_setscheduler")),
    ("setpriority",),
)
KERNEL_SURFACE: tuple[Rule, ...] = (
    *((name,) for name in ("unshare", "setns", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup")),
    *((name,) for name in ("add_key", "request_key", "keyctl")),
    ("ioctl", "if equal", 1, _TIOCSTI),
    ("prctl", "if equal", 0, _PR_SET_PDEATHSIG),  # it would outlive its supervisor
)


def signals_beyond(pid: int) -> tuple[Rule, ...]:
    """Rules against a signal to any process but `pid` (and to process groups)."""
    by_pid: tuple[Rule, ...] = tuple((name, "unless equal", 0, pid) for name in ("kill", "tgkill"))
    return (*by_pid, *((name,) for name in ("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")))


# name: (x86_64, aarch64), None where there is no such call.
_SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "msgget": (68, 186),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "shmget": (29, 194),
    "socket": (41, 198),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
_X32_BIT = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def deny_syscalls(rules: Iterable[Rule]) -> None:
    """seccomp: from here on these system calls fail with EPERM, in this process and all it starts. clone3 fails with
    ENOSYS, so that libc falls back to clone, whose flags a filter can read. Sets no_new_privs."""
    _no_new_privs()
    program = _filter_program(rules)
    instructions = ctypes.create_string_buffer(program)
    _libc("prctl", _PR_SET_SECCOMP, 2, struct.pack("HP", len(program) // 8, ctypes.addressof(instructions)), 0, 0)


def _filter_program(rules: Iterable[Rule]) -> bytes:
    """The classic BPF program of `deny_syscalls`."""
    machine = os.uname().machine if sys.platform == "linux" else sys.platform
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"seccomp: no table of system calls for {machine}")
    column, audit_arch = _ARCHITECTURES[machine]

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value & 0xFFFFFFFF)

    program = [
        instruction(_LOAD, _ARCHITECTURE),
        instruction(_JUMP_EQUAL, audit_arch, if_true=1),
        instruction(_RETURN, _KILL),  # 32-bit calls have other numbers
    ]
    if machine == "x86_64":
        program += [
            instruction(_LOAD, _NUMBER),
            instruction(_JUMP_GREATER_EQUAL, _X32_BIT, if_false=1),
            instruction(_RETURN, _KILL),
        ]
    for rule in rules:
        number = _SYSCALLS[rule[0]][column]
        if number is None:
            continue
        block = [instruction(_RETURN, _FAIL | (errno.ENOSYS if rule[0] == "clone3" else errno.EPERM))]
        if len(rule) == 4:
            _, condition, argument, value = rule
            jump = _JUMP_BITS if condition.endswith("bits") else _JUMP_EQUAL
            met, unmet = (0, 1) if condition.startswith("if") else (1, 0)
            block = [instruction(_LOAD, _ARGUMENTS + 8 * argument), instruction(jump, value, met, unmet), *block]
        program += [instruction(_LOAD, _NUMBER), instruction(_JUMP_EQUAL, number, if_false=len(block)), *block]
    program.append(instruction(_RETURN, _ALLOW))
    return b"".join(program)
