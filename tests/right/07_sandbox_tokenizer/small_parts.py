# %% [markdown]
# Small functions and generators; the walls are a program that is sent through a file; poll and read in turns.


# %% hole="train_tokenizer"
def train_tokenizer(texts, vocab_size):
    room = vocab_size - 256 - len(SPECIAL_TOKENS)
    if room < 0:
        raise ValueError("no room")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator((text for text in list(texts)), 256 + room, pattern=SPLIT_PATTERN)
    learnt = trainer.get_mergeable_ranks()
    ranks = dict(zip((bytes(token) for token, _ in learnt), (rank for _, rank in learnt), strict=True))
    special = dict(zip(SPECIAL_TOKENS, range(max(ranks.values()) + 1, vocab_size + 1), strict=False))
    return tiktoken.Encoding("small", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)


# %% hole="tokenizer"
class RustBPETokenizer:
    def __init__(self, encoding, bos_token="<|bos|>"):
        self.encoding = encoding
        self.names = {name: encoding.encode_single_token(name) for name in encoding.special_tokens_set}
        try:
            self.bos = self.names[bos_token]
        except KeyError:
            raise ValueError(f"no {bos_token}") from None

    get_bos_token_id = lambda self: self.bos
    get_vocab_size = lambda self: self.encoding.n_vocab
    encode_special = lambda self, name: self.names[name]
    decode = lambda self, ids: self.encoding.decode(list(ids))

    def encode(self, text, prepend=None, append=None):
        match text:
            case str():
                return self._around(self.encoding.encode_ordinary(text), prepend, append)
            case list():
                rows = self.encoding.encode_ordinary_batch(text, num_threads=2)
                return [self._around(ids, prepend, append) for ids in rows]
        raise ValueError("neither text nor texts")

    def _around(self, ids, before, after):
        number = lambda token: self.encoding.encode_single_token(token) if isinstance(token, str) else token
        edges = [[] if token is None else [number(token)] for token in (before, after)]
        return edges[0] + ids + edges[1]

    def token_bytes(self):
        values = self.encoding.decode_tokens_bytes(range(self.get_vocab_size() - len(self.names)))
        counts = [len(value) for value in values] + [0] * len(self.names)
        return torch.tensor(counts).to(torch.int32)


# %% hole="render_conversation"
def render_conversation(tokenizer, conversation, max_tokens=2048):
    def special(name):
        return [tokenizer.encode_special(f"<|{name}|>")]

    def text(value):
        if not isinstance(value, str):
            raise ValueError("a text is wanted")
        return tokenizer.encode(value)

    def runs():
        yield [tokenizer.get_bos_token_id()], 0
        messages = list(conversation["messages"])
        head = []
        if messages and messages[0]["role"] == "system":
            head = [messages.pop(0)["content"]]
        if not messages:
            raise ValueError("nobody speaks")
        for turn, message in enumerate(messages):
            content = message["content"]
            if message["role"] != ["user", "assistant"][turn % 2]:
                raise ValueError("out of turn")
            if turn % 2 == 0:
                if turn == 0 and head:
                    if not isinstance(content, str) or not isinstance(head[0], str):
                        raise ValueError("a text is wanted")
                    content = f"{head[0]}\n\n{content}"
                yield special("user_start") + text(content) + special("user_end"), 0
                continue
            yield special("assistant_start"), 0
            if isinstance(content, list):
                for piece in content:
                    match piece:
                        case {"type": "text", "text": words}:
                            yield text(words), 1
                        case {"type": "python", "text": words}:
                            yield special("python_start") + text(words) + special("python_end"), 1
                        case {"type": "python_output", "text": words}:
                            yield special("output_start") + text(words) + special("output_end"), 0
                        case _:
                            raise ValueError("an unknown part")
            else:
                yield text(content), 1
            yield special("assistant_end"), 1

    flat = [(token, trained) for tokens, trained in runs() for token in tokens][:max_tokens]
    return [token for token, _ in flat], [trained for _, trained in flat]


# %% hole="render_for_completion"
def render_for_completion(tokenizer, conversation, render):
    roles = [message["role"] for message in conversation["messages"]]
    if roles[-1:] != ["assistant"]:
        raise ValueError("the last word is not the assistant's")
    before = {"messages": conversation["messages"][: len(roles) - 1]}
    prompt = list(render(before)[0])
    prompt.append(tokenizer.encode_special("<|assistant_start|>"))
    return prompt


# %% hole="start"
WALLS = """
import json, os, runpy, sys
course, readable, limits, memory = json.loads(sys.argv[1])
sys.path.append(course)
from nanochat import isolation as wall
sys.path.remove(course)
import resource
for name, value in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
try:
    wall.restrict_files(readable, [".", *wall.DEVICES])
except OSError:
    pass
wall.deny_syscalls([*wall.NEW_PROCESSES, *wall.NEW_SOCKETS, *wall.OTHER_PROCESSES, *wall.UNCOUNTED_MEMORY])
wall.deny_syscalls([*wall.KERNEL_SURFACE, *wall.signals_beyond(os.getpid())])
if memory is not None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
runpy.run_path("code.py", run_name="__main__")
"""


def start(code, workdir, maximum_memory_bytes, cpu_seconds):
    Path(workdir, "code.py").write_bytes(code.encode())
    limits = {"CPU": cpu_seconds, "FSIZE": FILE_BYTES, "NOFILE": OPEN_FILES, "CORE": 0}
    settings = json.dumps([COURSE, READABLE, limits, maximum_memory_bytes])
    pipe = subprocess.PIPE
    return subprocess.Popen(
        (sys.executable, "-I", "-c", WALLS, settings),
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        cwd=workdir,
        env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )


# %% hole="supervise"
def supervise(process, timeout, max_bytes):
    end = time.monotonic() + timeout
    pipes = {process.stdout: b"", process.stderr: b""}
    for pipe in pipes:
        os.set_blocking(pipe.fileno(), False)

    def gulp():
        got = 0
        for pipe in pipes:
            chunk = pipe.read(2**16) or b""
            pipes[pipe] = (pipes[pipe] + chunk)[:max_bytes]
            got += len(chunk)
        return got

    try:
        while process.poll() is None and time.monotonic() < end:
            gulp() or time.sleep(0.005)
        late = process.poll() is None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(os.getpgid(process.pid) if process.returncode is None else process.pid, signal.SIGKILL)
        process.wait()
        for _ in range(10_000):
            if not gulp():
                break
        for pipe in pipes:
            pipe.close()
    return Outcome(process.returncode, *pipes.values(), late)


# %% hole="execute_code"
def execute_code(code, timeout, maximum_memory_bytes, start, supervise):
    place = tempfile.TemporaryDirectory()
    try:
        process = start(code, place.name, maximum_memory_bytes, math.ceil(timeout + 1))
        outcome = supervise(process, timeout, MAX_OUTPUT_BYTES)
    finally:
        place.cleanup()
    stdout = outcome.stdout.decode(errors="replace")
    stderr = outcome.stderr.decode(errors="replace")
    error = why(outcome.exit_code, stderr, f"timed out after {timeout} s" if outcome.timed_out else None)
    return ExecutionResult(
        success=not error,
        stdout=stdout,
        stderr=stderr,
        error=error,
        timeout=outcome.timed_out,
        memory_exceeded="MemoryError" in stderr,
    )


def why(exit_code, stderr, late):
    if late or exit_code == 0:
        return late
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    lines = stderr.strip().splitlines()
    return lines.pop() if lines else f"exited with status {exit_code}"
