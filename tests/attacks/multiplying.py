"""Harm by processes, in a puzzle whose submissions may start them. These stand in the hole `train_tokenizer` of puzzle
7, and know no right answer either."""

from tests.attacks import Attack

STUB = "def train_tokenizer(texts, vocab_size): return None"

ATTACKS = [
    Attack("a fork bomb", f"{STUB}\nimport os\nwhile True: os.fork()"),
    Attack(
        "a fork bomb that minds no error",
        f"{STUB}\nimport os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ),
    Attack(
        "a fork bomb of programs",
        f"""
{STUB}
import os, subprocess, sys
again = "import subprocess, sys\\nwhile True:\\n    try: subprocess.Popen([sys.executable, '-c', *2 * sys.argv[1:]])\\n"
again += "    except OSError: pass"
subprocess.Popen([sys.executable, "-c", again, again])
""",
    ),
    Attack(
        "a daemon",
        f"""
{STUB}
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(1000)
    os._exit(0)
""",
    ),
    Attack(
        "a daemon that is stopped",
        f"{STUB}\nimport os, signal\nif os.fork() == 0:\n    os.setsid()\n    os.kill(os.getpid(), signal.SIGSTOP)",
    ),
    Attack(
        "a child that plays the notebook",
        f"""
{STUB}
import os
os.fork()
import puzzles.submit
puzzles.submit.grade = lambda *a: 10.0
""",
    ),
    Attack(
        "a child that answers the referee",
        f"""
{STUB}
import os, time
from puzzles import submit
if os.fork() == 0:
    while True:
        for part in ("train_tokenizer", "start"):
            try:
                cases = submit._connected({{"ask": "cases", "part": part}})["cases"]
                answers = [dict(case=i, device="cpu", answer=case) for i, case in enumerate(cases)]
                print(submit._connected({{"ask": "submit", "part": part, "answers": answers}}))
            except Exception: os._exit(0)
time.sleep(0.5)
""",
    ),
    Attack(
        "a program that inherits the way to the referee",
        f"""
{STUB}
import subprocess, sys
look = "import os\\nfor fd in range(3, 1024):\\n    try: print('LOOT', fd, os.fstat(fd))\\n    except OSError: pass"
print(subprocess.run([sys.executable, "-I", "-c", look], close_fds=False, capture_output=True, text=True).stdout)
""",
    ),
    Attack(
        "memory by many processes",
        f"""
{STUB}
import os, time
children = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        hoard = bytearray(200 * 2**20)
        time.sleep(1000)
    children.append(child)
time.sleep(1.2)
if sum(os.waitpid(child, os.WNOHANG)[0] == 0 for child in children) > 10: print("LOOT")
""",
    ),
    Attack(
        "an end to the first process",
        f"""
{STUB}
import os, signal, time
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGHUP): os.kill(1, number)
for path in ("/proc/1/mem", "/proc/1/environ"):
    try: print("LOOT", open(path, "r+b" if path.endswith("mem") else "rb"))
    except OSError as error: print(error)
os.kill(-1, signal.SIGKILL)
os.kill(1, signal.SIGTERM)
time.sleep(1000)
""",
    ),
    Attack(
        "namespaces",
        f"""
{STUB}
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    child = libc.syscall(56, flag | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0: os._exit(0)
    if child > 0 or libc.unshare(flag) == 0: print("LOOT", hex(flag))
""",
    ),
    Attack(
        "a network, a look into others, another limit",
        f"""
{STUB}
import ctypes, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0: os.execv("/bin/sleep", ["sleep", "1000"])
for reach in (lambda: socket.socket(), lambda: os.pidfd_open(child), lambda: os.memfd_create("x"),
              lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)), lambda: os.sched_setaffinity(1, [0]),
              lambda: os.setpriority(os.PRIO_PROCESS, 1, 19), lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19),
              lambda: resource.setrlimit(resource.RLIMIT_NPROC, (10**4, 10**4))):
    try: print("LOOT", reach())
    except (OSError, ValueError) as error: print(error)
for pid in (1, child):
    if libc.ptrace(16, pid, 0, 0) == 0: print("LOOT")
""",
    ),
]
