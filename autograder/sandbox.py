"""Warm, isolated processes for untrusted notebooks: one zygote a puzzle, one forked child a submission.

The other side of this is `autograder.guest`. docs/security.md says what is promised.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.shown import lay_out, secret_places
from puzzles.catalog import Puzzle, UserError

# What a child takes on, and what is lost where the kernel refuses it. All but Landlock, the second wall around the
# files, must be there for a run to be called isolated.
LAYERS = {
    "namespaces": "a submission can reach the network, and what it starts may outlive it",
    "private root": "other files of this machine may be read, and the disk be filled",
    "other user": "the code runs as root",
    "own user namespace": "the number of threads is not bounded",
    "limits": "CPU time and file sizes are not bounded",
    "no capabilities": "privileges remain",
    "Landlock": "files are protected by the private root alone",
    "seccomp": "dangerous system calls are open",
    "memory limit": "memory is not bounded",
}
START_SECONDS = 120.0
FOLDER_PREFIX = "nanochat-puzzles-"
# A folder that is older and not locked has no owner any more; a younger one may be about to be locked.
CLAIM_SECONDS = 60.0
_SYSTEM_PATHS = (
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/fonts",
    "/sys/devices/system/cpu",
)


@dataclass(frozen=True)
class Limits:
    """What a submission may use: wall-clock seconds of a cell and of the whole notebook, threads of torch and of all,
    bytes of memory and of disk. A cell that does not stop when it is told to is killed `grace_seconds` later."""

    cell_seconds: float = 20.0
    notebook_seconds: float = 180.0
    grace_seconds: float = 3.0
    threads: int = 1
    max_threads: int = 64
    memory_bytes: int = 4 * 2**30
    disk_bytes: int = 256 * 2**20


@dataclass
class Process:
    """A confined child: `link` carries cells in and outputs out, `life` its end."""

    link: socket.socket
    referee: socket.socket
    life: socket.socket
    exit: dict[str, Any] | None = None

    def interrupt(self) -> None:
        """Ask the cell that is running to stop."""
        with contextlib.suppress(OSError):
            self.life.send(b"i")

    def end(self) -> dict[str, Any]:
        """Kill it and all it started, if it still runs. How it ended: {"exit_code", "cpu_seconds", "peak_kib"}."""
        if self.exit is None:
            with contextlib.suppress(OSError):
                self.life.shutdown(socket.SHUT_WR)
            said = _lines(self.life)
            self.exit = said[-1] if said and "exit_code" in said[-1] else {"exit_code": -9, "cpu_seconds": 0.0}
            for connection in (self.link, self.referee, self.life):
                connection.close()
        return self.exit


class Sandbox:
    """The warm process of one puzzle. Safe to use from several threads; close it, or use it in a `with`.

    `imports`: names of modules to have ready. `without`: layers to do without, to see what happens then.
    """

    def __init__(self, puzzle: Puzzle, imports: Iterable[str] = (), without: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._folder, self._claim = _claimed_folder()
        self._closed = False
        self.missing = dict.fromkeys(without, "left out")
        if os.geteuid() != 0:
            self._not_needed = {"other user"}
        else:
            self._not_needed = set()
        try:
            self._folder.chmod(0o755)
            (self._folder / "course").mkdir()
            (self._folder / "root").mkdir()
            lay_out(self._folder / "course", puzzle)
            self._processes = puzzle.processes
            self._imports = [name for name in dict.fromkeys(imports) if not _hidden(name, puzzle)]
            self._launch()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process that started the zygote, or, without namespaces, the zygote itself."""
        return self._process.pid

    @property
    def isolated(self) -> bool:
        """Whether every protection that docs/security.md promises is in force."""
        self.ready()
        return isolated(self.missing)

    def _layers(self) -> list[str]:
        return [layer for layer in LAYERS if layer not in self.missing and layer not in self._not_needed]

    def _launch(self) -> None:
        """Start the zygote; `ready` waits for it."""
        course = self._folder / "course"
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path[:0] = [{str(course)!r}]; sys.path += {_site_packages()!r}; "
        code += f"from guest.zygote import main; main({theirs.fileno()})"
        with theirs, (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=_environment(),
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        readable = [*_SYSTEM_PATHS, sys.prefix, sys.base_prefix, *_site_packages(), str(course)]
        settings = {
            "layers": self._layers(),
            "imports": self._imports,
            "readable": readable,
            "devices": [str(path) for path in Path("/dev").glob("nvidia*")],
            "root": str(self._folder / "root"),
            "folder": str(self._folder),
            "processes": self._processes,
        }
        if places := secret_places(readable):
            self.missing.setdefault("private root", f"{places[0]} lies where submissions must be able to read")
        self._control.sendall(json.dumps(settings).encode())
        self._ready = False

    def ready(self) -> None:
        """Wait until submissions can run; find out which layers the kernel grants. RuntimeError if none can run."""
        with self._lock:
            while not self._ready:
                said = self._first_word() or self._refusal_of_a_child()
                if "refused" in said:
                    layer, reason = said["refused"]
                    if layer in self.missing:
                        raise RuntimeError(f"The sandbox cannot start: {layer}: {reason}.")
                    self.missing[layer] = reason
                    self._kill()
                    self._launch()
                else:
                    self._ready = True

    def _first_word(self) -> dict[str, Any] | None:
        """What the zygote says when it has started: a refusal, or None when it is ready."""
        self._control.settimeout(START_SECONDS)
        with contextlib.suppress(OSError):
            lines = _one_line(self._control)
            if lines:
                self.threads = lines.get("threads", 1)
                return lines if "refused" in lines else None
        log = (self._folder / "log").read_text(errors="replace").strip()
        raise RuntimeError(f"The sandbox cannot start: {log.splitlines()[-1] if log else 'it gave no reason'}.")

    def _refusal_of_a_child(self) -> dict[str, Any]:
        with self._start(Limits()) as process:
            return read_frame(process.link, 2**16) or {"refused": ["set-up", "the process died in it"]}

    @contextlib.contextmanager
    def start(self, limits: Limits) -> Iterator[Process]:
        """A confined child waiting for cells; it is gone, with all it started, when the block ends."""
        self.ready()
        with self._lock:
            if self._process.poll() is not None:
                self._launch_again()
        with self._start(limits, self._lock) as process:
            said = read_frame(process.link, 2**16) or {}
            if "confined" not in said:
                raise RuntimeError(f"A sandbox could not be closed around a submission: {said.get('refused')}.")
            yield process

    def _launch_again(self) -> None:
        self._control.close()
        self._launch()
        self._first_word()

    @contextlib.contextmanager
    def _start(self, limits: Limits, lock: Any = contextlib.nullcontext()) -> Iterator[Process]:  # noqa: B008
        pairs = [socket.socketpair() for _ in range(3)]
        process = Process(pairs[0][0], pairs[1][0], pairs[2][0])
        workdir = tempfile.mkdtemp(prefix="work-", dir=self._folder)
        request = {
            "cell_seconds": limits.cell_seconds,
            "notebook_seconds": limits.notebook_seconds,
            "threads": limits.threads,
            "max_threads": limits.max_threads,
            "memory_bytes": limits.memory_bytes,
            "disk_bytes": limits.disk_bytes,
            "workdir": workdir,
        }
        try:
            with lock:
                theirs = [there for _, there in pairs]
                socket.send_fds(self._control, [json.dumps(request).encode()], [each.fileno() for each in theirs])
                for each in theirs:
                    each.close()
                _one_line(process.life)
            yield process
        finally:
            process.end()
            shutil.rmtree(workdir, ignore_errors=True)

    def _kill(self) -> None:
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the zygote and everything below it."""
        if hasattr(self, "_process"):
            self._control.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        if not self._closed:
            os.close(self._claim)
            self._closed = True

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _claimed_folder() -> tuple[Path, int]:
    """A new folder, and the descriptor of a lock on it that dies with this process, however that dies. Removes the
    folders of graders that were killed before there was a zygote to do so."""
    for old in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or gone by now
            about = old.lstat()
            if about.st_uid == os.geteuid() and time.time() - about.st_mtime > CLAIM_SECONDS:
                claim = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(old, ignore_errors=True)
                finally:
                    os.close(claim)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX)).resolve()
    claim = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(claim, fcntl.LOCK_EX)
    return folder, claim


def isolated(missing: Iterable[str]) -> bool:
    """Whether enough is in force without these layers: Landlock is a second wall around what the private root hides."""
    return set(missing) <= {"Landlock"}


def losses(missing: Iterable[str]) -> str:
    """What is lost without these layers, in a phrase."""
    return "; ".join(f"no {layer}: {LAYERS[layer]}" for layer in missing)


def require_isolation(sandbox: Sandbox) -> None:
    """UserError naming what is missing, unless runs are isolated."""
    if not sandbox.isolated:
        reasons = "; ".join(f"{layer} ({reason}): {LAYERS[layer]}" for layer, reason in sandbox.missing.items())
        raise UserError(f"This machine does not allow full isolation: {reasons}. Grade without --strict to go on.")


def read_frame(link: socket.socket, most: int) -> dict[str, Any] | None:
    """The next frame of a child, at most `most` bytes long, or None if it is none or there will be no more."""
    header = _exactly(link, 4)
    if header is None or (size := int.from_bytes(header, "big")) > most:
        return None
    body = _exactly(link, size)
    try:
        frame = json.loads(body) if body is not None else None
    except (ValueError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


def _exactly(link: socket.socket, n: int) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < n:
        try:
            chunk = link.recv(min(n - len(chunks), 2**20))
        except ConnectionResetError:
            return None
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)


def _one_line(connection: socket.socket) -> dict[str, Any]:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return {}
        line += byte
    return json.loads(line)


def _lines(connection: socket.socket) -> list[dict[str, Any]]:
    """All that is still to come."""
    text = bytearray()
    with contextlib.suppress(OSError):
        connection.settimeout(30)
        while chunk := connection.recv(4096):
            text += chunk
    return [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]


def _hidden(module: str, puzzle: Puzzle) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in puzzle.hides)


def _site_packages() -> list[str]:
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return [path for path in dict.fromkeys(places) if Path(path).is_dir()]


def _environment() -> dict[str, str]:
    """The whole environment of a submission: nothing of the grader's but where its libraries are."""
    import matplotlib

    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return kept | {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/tmp/home",
        "TMPDIR": "/tmp/home",
        "IPYTHONDIR": "/tmp/home/.ipython",
        "MPLCONFIGDIR": matplotlib.get_configdir(),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }
