"""Using up the machine, or outliving the run."""

from tests.attacks import STUB, Attack

ATTACKS = [
    Attack("a fork bomb", f"import os\nwhile True: os.fork()\n{STUB}"),
    Attack(
        "a fork bomb that minds no error",
        f"{STUB}\nimport os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ),
    Attack(
        "programs by other doors",
        f"""
import ctypes, os, subprocess
for start in (lambda: subprocess.run(["/bin/true"]), lambda: os.posix_spawn("/bin/true", ["true"], {{}}),
              lambda: os.forkpty(), lambda: os.popen("true").read()):
    try:
        start()
        print("LOOT")
    except OSError as error: print(error)
libc = ctypes.CDLL(None, use_errno=True)
for number, *arguments in ((57,), (58,), (56, 17, 0, 0, 0, 0), (435, 0, 0)):
    if libc.syscall(number, *arguments) >= 0: print("LOOT", number)
{STUB}
""",
    ),
    Attack(
        "threads without end",
        f"""
import threading, time
while True: threading.Thread(target=time.sleep, args=(1000,)).start()
{STUB}
""",
    ),
    Attack("memory", f"{STUB}\nhoard = []\nwhile True: hoard.append(bytearray(2**28))"),
    Attack("memory in one tensor", f"{STUB}\nimport torch\ntorch.ones(2**36)"),
    Attack(
        "memory outside the limit",
        f"""
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: os.memfd_create("x"), lambda: os.open("/dev/shm/x", os.O_CREAT | os.O_RDWR)):
    try:
        call()
        print("LOOT")
    except OSError as error: print(error)
if libc.shmget(0, 2**30, 0o1600) >= 0: print("LOOT")
{STUB}
""",
    ),
    Attack(
        "disk",
        f"""
for n in range(1000):
    with open(f"/tmp/{{n}}", "wb") as file:
        while True: file.write(bytes(2**20))
{STUB}
""",
    ),
    Attack("files without end", f"n = 0\nwhile True:\n    open(f'/tmp/{{n}}', 'w').close()\n    n += 1\n{STUB}"),
    Attack("output without end", f"{STUB}\nwhile True: print('x' * 100_000)"),
    Attack(
        "displays without end",
        f"{STUB}\nfrom IPython.display import display, HTML\nwhile True: display(HTML('x' * 10_000))",
    ),
    Attack(
        "output past the collector",
        f"{STUB}\nimport os\nfor fd in (1, 2):\n    for n in range(300): os.write(fd, bytes(2**20))",
    ),
    Attack(
        "an image of a gigabyte",
        f"{STUB}\nfrom IPython.display import display\ndisplay({{'image/png': 'A' * 2**27}}, raw=True)",
    ),
    Attack("an endless loop", f"{STUB}\nwhile True: pass"),
    Attack(
        "an endless loop that catches everything",
        f"{STUB}\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ),
    Attack(
        "an endless loop deaf to signals",
        f"""
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: pass
{STUB}
""",
    ),
    Attack(
        "a stopped process", f"{STUB}\nimport os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(1000)"
    ),
    Attack("a hole that never answers", STUB.replace("return {}", "\n    while True: pass")),
    Attack(
        "limits raised",
        f"""
import resource
for name in ("AS", "NPROC", "CPU", "NOFILE", "FSIZE"):
    try:
        resource.setrlimit(getattr(resource, f"RLIMIT_{{name}}"), (resource.RLIM_INFINITY,) * 2)
        print("LOOT", name)
    except (ValueError, OSError) as error: print(error)
{STUB}
""",
    ),
    Attack("a crash of the interpreter", f"{STUB}\nimport ctypes\nctypes.string_at(0)"),
    Attack("recursion without end", f"{STUB}\nimport sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()"),
    Attack(
        "a thread that acts later",
        f"""
import threading, time
def later():
    time.sleep(0.2)
    import puzzles.submit
    puzzles.submit.grade = lambda *a: 10.0
    while True: print("25 of 25 points")
threading.Thread(target=later, daemon=True).start()
{STUB}
""",
    ),
    Attack(
        "a thread that will not let the process end",
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(10**6,)).start()\n{STUB}",
    ),
    Attack(
        "exit handlers",
        f"import atexit, time\natexit.register(time.sleep, 10**6)\natexit.register(print, 'LOOT')\n{STUB}",
    ),
]
