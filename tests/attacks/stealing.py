"""Getting at what is hidden: the oracle, the tests, the gradebook, the machine."""

from tests.attacks import STUB, Attack


def reading(path: str) -> str:
    return f"""
from pathlib import Path
try: print("LOOT", Path({path}).read_bytes()[:100])
except OSError as error: print(error)
{STUB}
"""


ATTACKS = [
    Attack(
        "importing the oracle and the grader",
        f"""
import importlib
for name in ("nanochat.gpt", "nanochat.recipe", "nanochat.counts", "nanochat.flash_attention", "autograder",
             "autograder.judges.transformer_blueprint", "autograder.exam", "nbgrader.api_course", "microgpt"):
    try:
        importlib.import_module(name)
        print("LOOT", name)
    except ImportError as error: print(error)
{STUB}
""",
    ),
    Attack(
        "importing the grader from where the repository is",
        f"""
import sys
sys.path.insert(0, ROOT)
for name in [n for n in sys.modules if n.split(".")[0] in ("nanochat", "puzzles")]: del sys.modules[name]
try:
    import nanochat.recipe
    print("LOOT")
except ImportError as error: print(error)
{STUB}
""",
    ),
    Attack("the oracle's source", reading("ROOT + '/nanochat/recipe.py'")),
    Attack(
        "the instructor's notebook", reading("ROOT + '/source/01_transformer_blueprint/01_transformer_blueprint.ipynb'")
    ),
    Attack("the judges", reading("ROOT + '/autograder/judges/transformer_blueprint.py'")),
    Attack("the gradebook", reading("COURSE + '/gradebook.db'")),
    Attack(
        "another submission",
        reading("COURSE + '/submitted/other/01_transformer_blueprint/01_transformer_blueprint.ipynb'"),
    ),
    Attack("the grader's home", reading("HOME + '/secret.txt'")),
    Attack("the system's passwords", reading("'/etc/shadow'")),
    Attack("the grader's memory", reading("f'/proc/{GRADER}/environ'")),
    Attack("its own disk, as a block device", reading("'/dev/vda'")),
    Attack(
        "compiled files and anything else called like the oracle, anywhere on disk",
        f"""
import os
for folder, _, files in os.walk("/"):
    if folder.startswith(("/proc", "/sys")) or "site-packages" in folder: continue
    if folder.endswith("/toyworld"): continue  # its recipe is the toy world's, which every puzzle may see
    for file in files:
        if file.startswith(("recipe.", "counts.", "flash_attention.", "transformer_blueprint.")):
            print("LOOT", folder, file)
        if file in ("gradebook.db", "secret.txt"): print("LOOT", folder, file)
{STUB}
""",
    ),
    Attack(
        "every object in memory",
        f"""
import gc, sys, types
for thing in gc.get_objects():
    if isinstance(thing, types.FunctionType) and str(thing.__module__).startswith(("autograder", "nbgrader")):
        print("LOOT", thing)
    if isinstance(thing, types.FunctionType) and thing.__name__ in ("config_from_depth", "compute_window_sizes"):
        print("LOOT", thing)
    if type(thing).__name__ in ("Exam", "Referee", "Gradebook", "Judge"): print("LOOT", thing)
{STUB}
""",
    ),
    Attack(
        "the frames below",
        f"""
import sys
frame = sys._getframe()
while frame:
    for name, value in {{**frame.f_globals, **frame.f_locals}}.items():
        if type(value).__name__ in ("Exam", "Referee", "Judge") or "SECRET" in str(name): print("LOOT", name)
    frame = frame.f_back
{STUB}
""",
    ),
    Attack(
        "the environment",
        f"""
import os, subprocess
if "SECRET" in str(dict(os.environ)) or HOME in str({{k: v for k, v in os.environ.items()}}): print("LOOT", os.environ)
from pathlib import Path
try:
    if b"SECRET" in Path("/proc/1/environ").read_bytes(): print("LOOT")
except OSError as error: print(error)
{STUB}
""",
    ),
    Attack(
        "other processes",
        f"""
import ctypes, os, signal
others = [p for p in os.listdir("/proc") if p.isdigit() and p != str(os.getpid())]
if others or os.getppid(): print("LOOT", others, os.getppid())
for call in (lambda: os.kill(GRADER, 0), lambda: os.kill(-1, 0), lambda: os.pidfd_open(GRADER)):
    try:
        call()
        print("LOOT")
    except OSError as error: print(error)
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(16, GRADER, 0, 0) == 0: print("LOOT ptrace")
{STUB}
""",
    ),
    Attack(
        "descriptors left open",
        f"""
import os, stat
for fd in range(3, 4096):
    try: kind = os.fstat(fd).st_mode
    except OSError: continue
    target = os.readlink(f"/proc/self/fd/{{fd}}")
    if not (stat.S_ISSOCK(kind) or "eventpoll" in target or "pipe" in target): print("LOOT", fd, target)
{STUB}
""",
    ),
    Attack(
        "leaving the namespaces, or gaining rights",
        f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for name, call in dict(
    unshare=lambda: libc.unshare(0x10000000), mount=lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
    chroot=lambda: libc.chroot(b"/tmp"), setuid=lambda: libc.setuid(0), bpf=lambda: libc.syscall(321, 0, 0, 0),
    keyctl=lambda: libc.syscall(250, 0, 0), io_uring=lambda: libc.syscall(425, 1, 0),
    userfaultfd=lambda: libc.syscall(323, 0), umount=lambda: libc.umount2(b"/proc", 2),
    mknod=lambda: libc.mknod(b"/tmp/home/sda", 0o60666, 0xfe00),
).items():
    if call() >= 0: print("LOOT", name)
{STUB}
""",
    ),
    Attack(
        "what the client would do without a referee",
        f"""
import puzzles.submit
puzzles.submit._connected = None
try:
    print("LOOT", puzzles.submit._in_process("01_transformer_blueprint"))
except ImportError as error: print(error)
{STUB}
""",
    ),
    Attack(
        "writing where it matters",
        f"""
import os, sys, torch, puzzles, guest
for path in (ROOT + "/README.md", COURSE + "/gradebook.db", COURSE + "/source/x", HOME + "/secret.txt", "/etc/passwd",
             os.path.dirname(torch.__file__) + "/__init__.py", os.path.dirname(puzzles.__file__) + "/submit.py",
             os.path.dirname(guest.__file__) + "/shell.py", os.path.dirname(puzzles.__file__) + "/new.py",
             sys.prefix + "/lib/sitecustomize.py", "/etc/x", "/x", "/dev/x", "/proc/sys/kernel/core_pattern"):
    try:
        open(path, "a").close()
        print("LOOT", path)
    except OSError as error: print(error)
{STUB}
""",
    ),
    Attack(
        "the network",
        f"""
import ctypes, socket, urllib.request
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
    try:
        socket.socket(family)
        print("LOOT", family)
    except OSError as error: print(error)
try:
    urllib.request.urlopen("http://1.1.1.1", timeout=1)
    print("LOOT")
except OSError as error: print(error)
if ctypes.CDLL(None, use_errno=True).syscall(41, 2, 1, 0) >= 0: print("LOOT")
{STUB}
""",
    ),
]
