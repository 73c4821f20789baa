# %% [markdown]
# Lists and loops; walls put up between fork and exec; two threads that read; a directory removed by hand.


# %% hole="train_tokenizer"
def train_tokenizer(texts, vocab_size):
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError("too small")
    bpe = rustbpe.Tokenizer()
    bpe.train_from_iterator(texts, vocab_size - 9, pattern=SPLIT_PATTERN)
    ranks = {}
    for token, number in bpe.get_mergeable_ranks():
        ranks[bytes(token)] = number
    commands = {}
    for name in SPECIAL_TOKENS:
        commands[name] = len(ranks) + len(commands)
    return tiktoken.Encoding(name="mine", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=commands)


# %% hole="tokenizer"
class RustBPETokenizer:
    def __init__(self, encoding, bos_token="<|bos|>"):
        self.enc = encoding
        if bos_token not in encoding._special_tokens:
            raise ValueError("no such token")
        self.bos = bos_token

    def get_bos_token_id(self):
        return self.enc._special_tokens[self.bos]

    def get_vocab_size(self):
        return self.enc.max_token_value + 1

    def encode_special(self, name):
        return self.enc._special_tokens[name]

    def encode(self, text, prepend=None, append=None):
        if type(text) is list:
            return [self.encode(each, prepend, append) for each in text]
        if type(text) is not str:
            raise ValueError("text, please")
        ids = self.enc.encode(text, disallowed_special=())
        if prepend is not None:
            ids.insert(0, prepend if type(prepend) is int else self.enc.encode_single_token(prepend))
        if append is not None:
            ids.append(append if type(append) is int else self.enc.encode_single_token(append))
        return ids

    def decode(self, ids):
        return b"".join(self.enc.decode_tokens_bytes(ids)).decode("utf-8", errors="replace")

    def token_bytes(self):
        sizes = torch.zeros(self.get_vocab_size(), dtype=torch.int32)
        for token, number in self.enc._mergeable_ranks.items():
            sizes[number] = len(token)
        return sizes


# %% hole="render_conversation"
def render_conversation(tokenizer, conversation, max_tokens=2048):
    messages = [dict(message) for message in conversation["messages"]]
    if not messages:
        raise ValueError("empty")
    if messages[0]["role"] == "system":
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise ValueError("a system message wants a user's")
        if type(messages[0]["content"]) is not str or type(messages[1]["content"]) is not str:
            raise ValueError("text")
        messages[1]["content"] = "\n\n".join([messages[0]["content"], messages[1]["content"]])
        del messages[0]
    pairs = [(tokenizer.get_bos_token_id(), 0)]
    expected = "user"
    for message in messages:
        if message["role"] != expected:
            raise ValueError("out of turn")
        pairs += user(tokenizer, message["content"]) if expected == "user" else answer(tokenizer, message["content"])
        expected = "assistant" if expected == "user" else "user"
    pairs = pairs[:max_tokens]
    return [token for token, _ in pairs], [mask for _, mask in pairs]


def user(tokenizer, content):
    if type(content) is not str:
        raise ValueError("text")
    special = tokenizer.encode_special
    ids = [special("<|user_start|>")] + tokenizer.encode(content) + [special("<|user_end|>")]
    return [(token, 0) for token in ids]


def answer(tokenizer, content):
    special = tokenizer.encode_special
    pairs = [(special("<|assistant_start|>"), 0)]
    if type(content) is str:
        pairs += [(token, 1) for token in tokenizer.encode(content)]
    elif type(content) is list:
        for piece in content:
            ids = tokenizer.encode(piece["text"])
            if piece["type"] == "text":
                pairs += [(token, 1) for token in ids]
            elif piece["type"] == "python":
                pairs += [(token, 1) for token in [special("<|python_start|>"), *ids, special("<|python_end|>")]]
            elif piece["type"] == "python_output":
                pairs += [(token, 0) for token in [special("<|output_start|>"), *ids, special("<|output_end|>")]]
            else:
                raise ValueError("what is that?")
    else:
        raise ValueError("text or parts")
    return [*pairs, (special("<|assistant_end|>"), 1)]


# %% hole="render_for_completion"
def render_for_completion(tokenizer, conversation, render):
    *before, last = conversation["messages"] or [{"role": "nobody"}]
    if last["role"] != "assistant":
        raise ValueError("no answer")
    return render({**conversation, "messages": before})[0] + [tokenizer.encode_special("<|assistant_start|>")]


# %% hole="start"
def start(code, workdir, maximum_memory_bytes, cpu_seconds):
    program = os.path.join(workdir, "main.py")
    with open(program, "w", encoding="utf-8") as file:
        file.write(code)

    def walls():
        try:
            isolation.restrict_files(READABLE, [workdir, *isolation.DEVICES])
        except OSError:
            pass
        limits = {"CPU": cpu_seconds, "FSIZE": FILE_BYTES, "NOFILE": OPEN_FILES, "CORE": 0}
        isolation.deny_syscalls(
            isolation.NEW_PROCESSES
            + isolation.NEW_SOCKETS
            + isolation.OTHER_PROCESSES
            + isolation.UNCOUNTED_MEMORY
            + isolation.KERNEL_SURFACE
            + isolation.signals_beyond(os.getpid())
        )
        if maximum_memory_bytes is not None:
            limits["AS"] = maximum_memory_bytes
        isolation.limit_resources(limits)

    return subprocess.Popen(
        [sys.executable, "-I", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=workdir,
        env=dict(PATH="/usr/bin:/bin", LANG="C.UTF-8"),
        start_new_session=True,
        preexec_fn=walls,
    )


# %% hole="supervise"
def supervise(process, timeout, max_bytes):
    import threading

    outputs = [bytearray(), bytearray()]

    def collect(pipe, output):
        while chunk := os.read(pipe.fileno(), 4096):
            if len(output) < max_bytes:
                output += chunk

    readers = [
        threading.Thread(target=collect, args=pair, daemon=True)
        for pair in zip((process.stdout, process.stderr), outputs, strict=True)
    ]
    for reader in readers:
        reader.start()
    timed_out = False
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
        process.wait()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
    return Outcome(process.returncode, *(bytes(output[:max_bytes]) for output in outputs), timed_out)


# %% hole="execute_code"
def execute_code(code, timeout, maximum_memory_bytes, start, supervise):
    import shutil

    workdir = tempfile.mkdtemp()
    try:
        exit_code, stdout, stderr, late = supervise(
            start(code, workdir, maximum_memory_bytes, 1 - int(-timeout // 1)), timeout, MAX_OUTPUT_BYTES
        )
    finally:
        for _ in range(10):  # a closed directory hides others
            for folder, names, _ in os.walk(workdir):
                for name in names:
                    path = os.path.join(folder, name)
                    if not os.path.islink(path):
                        os.chmod(path, 0o700)
        shutil.rmtree(workdir)
    result = ExecutionResult(False, str(stdout, "utf-8", "replace"), str(stderr, "utf-8", "replace"))
    result.timeout = late
    result.memory_exceeded = result.stderr.find("MemoryError") >= 0
    if late:
        result.error = f"timed out after {timeout} s"
    elif exit_code == 0:
        result.success = True
    elif exit_code < 0:
        result.error = "killed by " + signal.Signals(abs(exit_code)).name
    else:
        lines = result.stderr.strip().split("\n")
        result.error = lines[-1] if lines[-1] else f"exited with status {exit_code}"
    return result
