# %% [markdown]
# Tensors for masks, a recursive tokenizer; a launcher written beside the program; blocking reads with a selector.


# %% hole="train_tokenizer"
def train_tokenizer(texts, vocab_size):
    count = len(SPECIAL_TOKENS)
    if vocab_size - count not in range(256, 2**31):
        raise ValueError(vocab_size)
    bpe = rustbpe.Tokenizer()
    bpe.train_from_iterator(iter(list(texts)), vocab_size - count, pattern=SPLIT_PATTERN)
    by_rank = sorted((rank, bytes(token)) for token, rank in bpe.get_mergeable_ranks())
    ranks = {token: rank for rank, token in by_rank}
    first = by_rank[-1][0] + 1
    return tiktoken.Encoding(
        "n",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={SPECIAL_TOKENS[i]: first + i for i in range(count)},
        explicit_n_vocab=first + count,
    )


# %% hole="tokenizer"
class RustBPETokenizer:
    def __init__(self, encoding, bos_token="<|bos|>"):
        if (
            not encoding.is_special_token(encoding.encode_single_token(bos_token))
            if bos_token in encoding.special_tokens_set
            else True
        ):
            raise ValueError(bos_token)
        self.inner, self.bos_token_id = encoding, encoding.encode_single_token(bos_token)

    def get_bos_token_id(self):
        return self.bos_token_id

    def get_vocab_size(self):
        return len(self.inner._mergeable_ranks) + len(self.inner._special_tokens)

    def encode_special(self, name):
        if name not in self.inner.special_tokens_set:
            raise KeyError(name)
        return self.inner.encode_single_token(name)

    def encode(self, text, prepend=None, append=None):
        if isinstance(text, str):
            before = [] if prepend is None else [self._id(prepend)]
            after = [] if append is None else [self._id(append)]
            return before + list(self.inner.encode_ordinary(text)) + after
        if not isinstance(text, list):
            raise ValueError(type(text))
        for edge in (prepend, append):
            edge is None or self._id(edge)
        return [self.encode(each, prepend, append) for each in text]

    def _id(self, token):
        return token if isinstance(token, int) else self.inner.encode_single_token(token)

    def decode(self, ids):
        return b"".join(map(self.inner.decode_single_token_bytes, ids)).decode(errors="replace")

    def token_bytes(self):
        ids = torch.arange(self.get_vocab_size())
        sizes = torch.tensor([len(self.inner.decode_single_token_bytes(i)) for i in ids.tolist()], dtype=torch.int32)
        sizes[list(self.inner._special_tokens.values())] = 0
        return sizes


# %% hole="render_conversation"
def render_conversation(tokenizer, conversation, max_tokens=2048):
    messages = conversation["messages"]
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    turns = messages if system is None else messages[1:]
    if not turns or any(m["role"] != ("user", "assistant")[i & 1] for i, m in enumerate(turns)):
        raise ValueError("turns")
    ids, spans = [tokenizer.get_bos_token_id()], []
    for i, message in enumerate(turns):
        content = message["content"]
        if i % 2 == 0:
            if not isinstance(content, str) or not isinstance(system or "", str):
                raise ValueError("text")
            if i == 0 and system is not None:
                content = system + "\n\n" + content
            ids += [tokenizer.encode_special("<|user_start|>"), *tokenizer.encode(content)]
            ids += [tokenizer.encode_special("<|user_end|>")]
            continue
        ids.append(tokenizer.encode_special("<|assistant_start|>"))
        if not isinstance(content, (str, list)):
            raise ValueError("answer")
        for piece in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if piece["type"] not in ("text", "python", "python_output"):
                raise ValueError(piece["type"])
            begin = len(ids)
            tag = {"python": "python", "python_output": "output"}.get(piece["type"])
            ids += [tokenizer.encode_special(f"<|{tag}_start|>")] if tag else []
            ids += tokenizer.encode(piece["text"])
            ids += [tokenizer.encode_special(f"<|{tag}_end|>")] if tag else []
            if piece["type"] != "python_output":
                spans.append((begin, len(ids)))
        spans.append((len(ids), len(ids) + 1))
        ids.append(tokenizer.encode_special("<|assistant_end|>"))
    mask = torch.zeros(len(ids), dtype=torch.long)
    for begin, end in spans:
        mask[begin:end] = 1
    return ids[:max_tokens], mask.tolist()[:max_tokens]


# %% hole="render_for_completion"
def render_for_completion(tokenizer, conversation, render):
    import copy

    shortened = copy.deepcopy(conversation)
    if not shortened["messages"] or shortened["messages"].pop()["role"] != "assistant":
        raise ValueError("no answer to replace")
    ids, _ = render(shortened)
    return ids + [tokenizer.encode_special("<|assistant_start|>")]


# %% hole="start"
def start(code, workdir, maximum_memory_bytes, cpu_seconds):
    launcher = Path(workdir) / "launcher"
    lines = [
        "import os, sys",
        f"sys.path.insert(0, {COURSE!r})",
        "import nanochat.isolation as i",
        "sys.path.pop(0)",
        f"i.deny_syscalls(i.NEW_PROCESSES + i.NEW_SOCKETS + i.OTHER_PROCESSES + i.UNCOUNTED_MEMORY)",
        f"i.deny_syscalls(i.KERNEL_SURFACE + i.signals_beyond(os.getpid()))",
        f"i.limit_resources(dict(CPU={cpu_seconds}, FSIZE={FILE_BYTES}, NOFILE={OPEN_FILES}, CORE=0))",
        "try:",
        f"    i.restrict_files({READABLE!r}, ({workdir!r}, *i.DEVICES))",
        "except OSError as refusal:",
        "    pass",
        f"{maximum_memory_bytes} and i.limit_resources(dict(AS={maximum_memory_bytes}))",
        f"exec(compile({code!r}, 'program', 'exec'), dict(__name__='__main__'))",
    ]
    launcher.write_text("\n".join(lines), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-I", str(launcher)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=workdir,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        start_new_session=True,
        close_fds=True,
    )


# %% hole="supervise"
def supervise(process, timeout, max_bytes):
    import select

    deadline, open_pipes = time.time() + timeout, [process.stdout, process.stderr]
    kept = {pipe.fileno(): b"" for pipe in open_pipes}

    def take(wait):
        ready, _, _ = select.select(open_pipes, [], [], wait)
        for pipe in ready:
            chunk = os.read(pipe.fileno(), 8192)
            if not chunk:
                open_pipes.remove(pipe)
            kept[pipe.fileno()] = (kept[pipe.fileno()] + chunk)[:max_bytes]
        return ready

    try:
        while process.poll() is None and time.time() < deadline:
            take(0.01)
    except BaseException:
        end(process)
        raise
    late = process.poll() is None
    end(process, close=False)
    while take(0):
        pass
    numbers = process.stdout.fileno(), process.stderr.fileno()
    process.stdout.close()
    process.stderr.close()
    return Outcome(process.returncode, kept[numbers[0]], kept[numbers[1]], late)


def end(process, close=True):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    if close:
        process.stdout.close()
        process.stderr.close()


# %% hole="execute_code"
def execute_code(code, timeout, maximum_memory_bytes, start, supervise):
    import shutil

    def reopen(function, path, information):
        for each in (os.path.dirname(path), path):
            os.chmod(each, 0o700)
        if os.path.isdir(path):
            shutil.rmtree(path, onerror=reopen)
        else:
            function(path)

    workdir = tempfile.mkdtemp()
    try:
        seconds = int(timeout) + (timeout > int(timeout)) + 1
        outcome = supervise(start(code, workdir, maximum_memory_bytes, seconds), timeout, MAX_OUTPUT_BYTES)
    finally:
        shutil.rmtree(workdir, onerror=reopen)
    texts = [bytes(stream).decode(errors="replace") for stream in (outcome.stdout, outcome.stderr)]
    code = outcome.exit_code
    stripped = texts[1].strip()
    answers = [
        (outcome.timed_out, f"timed out after {timeout} s"),
        (code < 0, f"killed by {signal.Signals(abs(code) or 1).name if code < 0 else ''}"),
        (code > 0 and stripped, stripped.split("\n")[-1]),
        (code > 0, f"exited with status {code}"),
        (True, None),
    ]
    error = next(text for met, text in answers if met)
    return ExecutionResult(error is None, *texts, error, outcome.timed_out, "MemoryError" in texts[1])
