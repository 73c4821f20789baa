"""microgpt.py: its numbers, its autograd, its command line, and that it stands on the standard library alone."""

import http.server
import inspect
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from benchmarks import microgpt as plain
from microgpt import Config, Tokenizer, Value
from tests.vectors_io import load

ROOT = Path(microgpt.__file__).parent
VECTORS = load("microgpt")
HYPER = VECTORS["hyper"]


def near(expected: Any) -> Any:
    """Within the 1e-9 that the vectors ask for."""
    return pytest.approx(expected, rel=0, abs=1e-9)


def new_model(docs: list[str], seed: int = 42, config: Config | None = None) -> SimpleNamespace:
    """The state of a training of `docs` before its first step, made as the command line makes it."""
    config = config or Config()
    rng = random.Random(seed)
    docs = list(docs)
    rng.shuffle(docs)
    tokenizer = Tokenizer(docs)
    params = microgpt.init_params(config, tokenizer.vocab_size, rng)
    weights = microgpt.all_weights(params)
    return SimpleNamespace(docs=docs, tokenizer=tokenizer, config=config, rng=rng, params=params, weights=weights)


def loss_of(model: SimpleNamespace, doc: str) -> Value:
    return microgpt.document_loss(model.tokenizer.encode_document(doc), model.params, model.config)


def draw(model: SimpleNamespace, **options: Any) -> str:
    return microgpt.sample(model.params, model.tokenizer, model.config, model.rng, **options)


# The vectors


@pytest.fixture(scope="module")
def start() -> SimpleNamespace:
    return new_model(VECTORS["names"], VECTORS["seed"])


@pytest.fixture(scope="module")
def trained() -> SimpleNamespace:
    model = new_model(VECTORS["names"], VECTORS["seed"])
    losses = microgpt.train(model.params, model.docs, model.tokenizer, model.config, VECTORS["num_steps"])
    model.losses = list(losses)
    model.samples = [draw(model) for _ in VECTORS["samples"]]
    return model


def test_dataset_and_tokenizer_match_the_vectors(start: SimpleNamespace) -> None:
    assert start.docs == VECTORS["docs_after_shuffle"]
    assert start.tokenizer.vocab == VECTORS["vocab"]
    assert start.tokenizer.bos == VECTORS["bos"]
    assert start.tokenizer.vocab_size == VECTORS["vocab_size"]


def test_defaults_are_the_vectors_hyperparameters() -> None:
    config = Config()
    assert config._asdict() == {key: HYPER[key] for key in config._fields}
    assert config.n_embd // config.n_head == HYPER["head_dim"]
    adam = microgpt.Adam([])
    assert (adam.beta1, adam.beta2, adam.eps) == (HYPER["beta1"], HYPER["beta2"], HYPER["eps"])
    assert default_of(microgpt.train, "lr") == HYPER["lr"]
    assert default_of(microgpt.init_params, "std") == HYPER["init_std"]
    assert default_of(microgpt.sample, "temperature") == HYPER["temperature"]


def default_of(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def test_initial_parameters_match_the_vectors(start: SimpleNamespace) -> None:
    assert list(start.params) == VECTORS["state_dict_order"]
    data = [weight.data for weight in start.weights]
    assert len(data) == VECTORS["num_params"]
    assert data[:8] == near(VECTORS["init_first"])
    assert data[-4:] == near(VECTORS["init_last"])
    assert sum(data) == near(VECTORS["init_sum"])


def test_first_gradients_match_the_vectors() -> None:
    model = new_model(VECTORS["names"], VECTORS["seed"])
    loss_of(model, model.docs[0]).backward()
    grads = [weight.grad for weight in model.weights]
    assert grads[:8] == near(VECTORS["step1_grad_first"])
    assert sum(map(abs, grads)) == near(VECTORS["step1_grad_abs_sum"])


def test_training_matches_the_vectors(trained: SimpleNamespace) -> None:
    assert trained.losses == near(VECTORS["losses"])
    assert sum(weight.data for weight in trained.weights) == near(VECTORS["final_param_sum"])
    assert sum(abs(weight.data) for weight in trained.weights) == near(VECTORS["final_param_abs_sum"])


def test_samples_are_the_vectors_strings(trained: SimpleNamespace) -> None:
    assert trained.samples == VECTORS["samples"]


# Autograd


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "add number": lambda a, b: 3 + a + 2.5,
    "sub": lambda a, b: a - b,
    "sub number": lambda a, b: (3 - a) - 2.5,
    "mul": lambda a, b: a * b,
    "mul number": lambda a, b: 3 * a * 2.5,
    "div": lambda a, b: a / b,
    "div number": lambda a, b: (3 / a) / 2.5,
    "neg": lambda a, b: -a,
    "pow": lambda a, b: a**2.5,
    "pow negative": lambda a, b: a**-2,
    "log": lambda a, b: a.log(),
    "exp": lambda a, b: a.exp(),
    "relu open": lambda a, b: a.relu(),
    "relu closed": lambda a, b: (-a).relu(),
    "shared": lambda a, b: (a * b + a) * (a * b) + b,
    "dot": lambda a, b: microgpt.dot([a, b, a], [b, b, a]),
    "mean": lambda a, b: microgpt.mean([a, b, a]),
    "softmax": lambda a, b: microgpt.softmax([a, b, a * b])[2],
    "cross entropy": lambda a, b: microgpt.cross_entropy([a, b, a * b], 1),
}

positive = st.floats(0.25, 3.0)


@pytest.mark.parametrize("name", OPERATIONS)
@given(x=positive, y=positive)
@settings(max_examples=25, deadline=None)
def test_gradients_equal_finite_differences(name: str, x: float, y: float) -> None:
    operation = OPERATIONS[name]
    a, b = Value(x), Value(y)
    operation(a, b).backward()
    h = 1e-6
    for node, plus, minus in ((a, (x + h, y), (x - h, y)), (b, (x, y + h), (x, y - h))):
        high, low = (operation(Value(p), Value(q)).data for p, q in (plus, minus))
        assert node.grad == pytest.approx((high - low) / (2 * h), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add number", 3 + 2 + 2.5),
        ("sub", 2 - 5),
        ("sub number", (3 - 2) - 2.5),
        ("div", 2 / 5),
        ("div number", (3 / 2) / 2.5),
        ("pow negative", 2**-2),
        ("log", math.log(2)),
        ("exp", math.exp(2)),
        ("relu closed", 0.0),
        ("dot", 2 * 5 + 5 * 5 + 2 * 2),
        ("mean", (2 + 5 + 2) / 3),
        ("softmax", math.exp(10) / (math.exp(2) + math.exp(5) + math.exp(10))),
        ("cross entropy", math.log(math.exp(2) + math.exp(5) + math.exp(10)) - 5),
    ],
)
def test_values_are_those_of_arithmetic(name: str, expected: float) -> None:
    assert OPERATIONS[name](Value(2.0), Value(5.0)).data == pytest.approx(expected, rel=1e-14)


def test_relu_passes_nothing_at_zero() -> None:
    x = Value(0.0)
    x.relu().backward()
    assert x.grad == 0.0


def test_backward_of_a_chain_deeper_than_the_recursion_limit() -> None:
    x = y = Value(1.0)
    for _ in range(50 * sys.getrecursionlimit()):
        y = y * 1.0
    y.backward()
    assert x.grad == 1.0


def test_backward_of_a_graph_with_exponentially_many_paths() -> None:
    """Each node is visited once, however many paths lead to it."""
    x = y = Value(1.0)
    for _ in range(64):
        y = y + y
    y.backward()
    assert x.grad == 2.0**64


def test_backward_again_adds_to_the_leaves_only() -> None:
    x = Value(3.0)
    square = x * x
    twice = square + square
    twice.backward()
    twice.backward()
    assert (x.grad, square.grad, twice.grad) == (24.0, 2.0, 1.0)


def test_backward_of_a_leaf_adds_one() -> None:
    x = Value(3.0)
    x.backward()
    x.backward()
    assert x.grad == 2.0


def test_huge_logits_do_not_overflow() -> None:
    logits = [Value(x) for x in (2000.0, 0.0, -2000.0)]
    loss = microgpt.cross_entropy(logits, 2)
    loss.backward()
    assert loss.data == 4000.0
    assert [logit.grad for logit in logits] == [1.0, 0.0, -1.0]
    assert [p.data for p in microgpt.softmax(logits)] == [1.0, 0.0, 0.0]


def test_a_fused_node_keeps_its_own_list_of_children() -> None:
    xs = [Value(1.0), Value(2.0)]
    results = [microgpt.mean(xs), microgpt.cross_entropy(xs, 0), microgpt.dot(xs, xs), *microgpt.softmax(xs)]
    xs.append(Value(3.0))
    for result in results:
        result.backward()


# Model


CONFIGS = [Config(), Config(n_layer=2, n_embd=6, block_size=4, n_head=3)]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_model_equals_torch(config: Config) -> None:
    """Loss and every gradient, against a whole-document float64 model with a causal mask."""
    model = new_model(["emil", "zoe", "alexandra"], config=config)
    loss = loss_of(model, "alexandra")
    loss.backward()
    weights = {
        name: torch.tensor([[w.data for w in row] for row in matrix], dtype=torch.float64, requires_grad=True)
        for name, matrix in model.params.items()
    }
    tokens = torch.tensor(model.tokenizer.encode_document("alexandra")[: config.block_size + 1])
    expected = F.cross_entropy(torch_logits(weights, tokens[:-1], config), tokens[1:])
    expected.backward()
    assert loss.data == pytest.approx(expected.item(), rel=1e-12)
    torch_grads = [g for weight in weights.values() if weight.grad is not None for g in weight.grad.flatten().tolist()]
    assert [weight.grad for weight in model.weights] == pytest.approx(torch_grads, rel=1e-9, abs=1e-13)


def torch_logits(weights: dict[str, torch.Tensor], tokens: torch.Tensor, config: Config) -> torch.Tensor:
    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (config.n_embd,), eps=1e-5)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(len(tokens), config.n_head, -1).transpose(0, 1)

    x = norm(weights["wte"][tokens] + weights["wpe"][: len(tokens)])
    for layer in range(config.n_layer):
        w = {name: weights[f"layer{layer}.{name}"] for name in microgpt.LAYER_WEIGHTS}
        q, k, v = (heads(norm(x) @ w[name].T) for name in ("attn_wq", "attn_wk", "attn_wv"))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attended.transpose(0, 1).flatten(1) @ w["attn_wo"].T
        x = x + F.relu(norm(x) @ w["mlp_fc1"].T) @ w["mlp_fc2"].T
    return x @ weights["lm_head"].T


@pytest.mark.parametrize("config", CONFIGS)
def test_fused_graph_equals_the_plain_scalar_graph(config: Config) -> None:
    """Loss and every gradient, against an engine where each add and each multiply is a node."""
    docs = ["emil", "zoe", "alexandra"]
    fused = new_model(docs, config=config)
    fused_loss = loss_of(fused, "alexandra")
    fused_loss.backward()
    with plain.plain_engine():
        scalar = new_model(docs, config=config)
        scalar_loss = loss_of(scalar, "alexandra")
        scalar_loss.backward()
    assert isinstance(scalar_loss, plain.PlainValue)
    assert fused_loss.data == pytest.approx(scalar_loss.data, rel=1e-12)
    assert [w.grad for w in fused.weights] == pytest.approx([w.grad for w in scalar.weights], rel=1e-10, abs=1e-14)


def test_a_position_sees_the_past_and_not_the_future() -> None:
    model = new_model(["abcd"])
    first, second, other_past = (logits_after(model, tokens) for tokens in ([4, 0, 1], [4, 0, 2], [4, 3, 1]))
    assert first[:2] == second[:2]
    assert first[2] != other_past[2]


def logits_after(model: SimpleNamespace, tokens: list[int]) -> list[list[float]]:
    cache = microgpt.new_cache(model.config)
    return [
        [logit.data for logit in microgpt.gpt(token, position, cache, model.params, model.config)]
        for position, token in enumerate(tokens)
    ]


def test_a_document_longer_than_the_block_counts_up_to_the_block() -> None:
    model = new_model(["abcdef"], config=Config(block_size=3))
    assert loss_of(model, "abcdef").data == loss_of(model, "abcfff").data
    assert loss_of(model, "abcdef").data != loss_of(model, "abfdef").data


def test_heads_must_share_the_embedding_evenly() -> None:
    with pytest.raises(ValueError, match="n_embd is 10 and n_head 4"):
        new_model(["ab"], config=Config(n_embd=10))


# Tokenizer


@given(st.lists(st.text(min_size=1), min_size=1))
@settings(max_examples=50, deadline=None)
def test_tokenizer_round_trip(docs: list[str]) -> None:
    tokenizer = Tokenizer(docs)
    for doc in docs:
        tokens = tokenizer.encode_document(doc)
        assert tokens[0] == tokens[-1] == tokenizer.bos
        assert tokenizer.decode(tokens[1:-1]) == doc
        assert all(0 <= token < tokenizer.vocab_size - 1 for token in tokens[1:-1])


def test_an_unseen_character_is_named() -> None:
    with pytest.raises(ValueError, match=r"'é' in 'zoé' is in no document: use only 'eoz'\."):
        Tokenizer(["zoe"]).encode("zoé")


# Inference


def test_samples_stay_within_the_block() -> None:
    model = new_model(["ab"], config=Config(block_size=5))
    lengths = {len(draw(model, temperature=5.0)) for _ in range(60)}
    assert max(lengths) == 5
    assert min(lengths) < 5


def test_samples_begin_with_the_prompt_and_go_on() -> None:
    model = new_model(["ab"], config=Config(block_size=5))
    samples = {draw(model, temperature=5.0, prompt="ba") for _ in range(30)}
    assert all(sample.startswith("ba") for sample in samples)
    assert len(samples) > 1


def test_a_prompt_that_fills_the_block_is_refused() -> None:
    model = new_model(["ab"], config=Config(block_size=3))
    assert draw(model, prompt="ab").startswith("ab")
    with pytest.raises(ValueError, match="'aba' is too long: use at most 2 characters"):
        draw(model, prompt="aba")


def test_a_low_temperature_takes_the_likeliest_with_or_without_a_prompt(trained: SimpleNamespace) -> None:
    likeliest = draw(trained, temperature=1e-6)
    assert len(likeliest) > 2
    assert {draw(trained, temperature=1e-6, prompt=likeliest[:n]) for n in range(len(likeliest))} == {likeliest}


# Dataset


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A real HTTP server in the place of the names' home, and an empty cache directory."""
    state = SimpleNamespace(body=b"", declared=None, hits=0, cached=tmp_path / "cache" / "microgpt" / "names.txt")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.hits += 1
            self.send_response(200)
            self.send_header("Content-Length", str(state.declared or len(state.body)))
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, *args: Any) -> None:
            del args

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(microgpt, "NAMES_URL", f"http://127.0.0.1:{httpd.server_address[1]}/names.txt")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "*")
        yield state
        httpd.shutdown()


PANGRAM = b"sphinx\nof\nblack\nquartz\njudge\nmy\nvow\n"
BUNDLED = microgpt.BUNDLED_NAMES.split()


def test_names_are_downloaded_once(server: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    server.body = PANGRAM
    names = PANGRAM.decode().split()
    assert microgpt.load_names() == names
    assert microgpt.load_names() == names
    assert server.hits == 1
    assert [path.name for path in server.cached.parent.iterdir()] == ["names.txt"]
    assert capsys.readouterr().err == ""


def test_the_command_line_trains_on_names_by_default(
    server: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    server.body = PANGRAM
    assert microgpt.main(["--steps", "1", "--samples", "4"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert captured.err.startswith("7 documents, 27 tokens, 4192 weights\nstep    1 of 1, loss ")


@pytest.mark.parametrize(
    ("body", "declared"),
    [
        (b"<html>Welcome to our hotel</html>", None),
        (b"", None),
        (b"\xff\xfe", None),
        (PANGRAM, 10_000),
    ],
    ids=["log-in page", "empty", "not UTF-8", "cut short"],
)
def test_a_bad_download_is_not_kept(
    server: SimpleNamespace, capsys: pytest.CaptureFixture[str], body: bytes, declared: int | None
) -> None:
    server.body, server.declared = body, declared
    assert microgpt.load_names() == BUNDLED
    assert server.hits == 1
    assert not server.cached.exists()
    assert f"using the {len(BUNDLED)} in this file" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_leaves_the_bundled_names(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.body = PANGRAM
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert microgpt.load_names() == BUNDLED


def test_a_rename_that_fails_leaves_no_partial_file(server: SimpleNamespace) -> None:
    server.body = PANGRAM
    server.cached.mkdir(parents=True)
    with pytest.raises(OSError, match=r"names\.txt"):
        microgpt.download_names(server.cached)
    assert list(server.cached.parent.iterdir()) == [server.cached]


def test_without_a_network_the_bundled_names_serve(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(microgpt, "NAMES_URL", "http://127.0.0.1:9/names.txt")
    assert microgpt.load_names() == BUNDLED
    assert capsys.readouterr().err.count("\n") == 1


def test_bundled_names_are_a_fit_dataset() -> None:
    assert len(BUNDLED) >= 200
    assert sorted(set(BUNDLED)) == BUNDLED
    assert len(Tokenizer(BUNDLED).vocab) == 26
    assert max(map(len, BUNDLED)) < Config().block_size


def test_documents_are_stripped_lines_and_blank_ones_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "docs.txt"
    file.write_bytes("\ufeff emil \r\n\r\n  \nzoë ann\n".encode())
    assert microgpt.read_documents(file) == ["emil", "zoë ann"]


# Command line


def run(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "microgpt.py", *args]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=60)


@pytest.fixture
def names_file(tmp_path: Path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(VECTORS["names"]))
    return file


def test_the_command_line_reproduces_the_vectors(names_file: Path) -> None:
    result = run("--data", names_file, "--steps", str(VECTORS["num_steps"]), "--seed", str(VECTORS["seed"]))
    assert result.returncode == 0
    assert result.stdout == "".join(f"{sample}\n" for sample in VECTORS["samples"])
    assert "69 documents, 27 tokens, 4192 weights" in result.stderr
    assert f"step   60 of 60, loss {VECTORS['losses'][-1]:.4f}" in result.stderr


def test_seed_samples_temperature_and_prompt_reach_the_samples(names_file: Path) -> None:
    def samples(*options: str) -> list[str]:
        result = run("--data", names_file, "--steps", "0", "--samples", "3", *options)
        assert result.returncode == 0, result.stderr
        assert "69 documents" in result.stderr
        return result.stdout.splitlines()

    base = samples()
    assert len(base) == 3
    assert samples() == base
    assert samples("--seed", "1") != base
    assert samples("--temperature", "50") != base
    assert all(sample.startswith("jo") for sample in samples("--prompt", "jo"))


BAD_INPUT: dict[str, tuple[bytes | None, list[str], str]] = {
    "missing": (
        None,
        [],
        "docs.txt cannot be read (No such file or directory): give a text file, one document a line.",
    ),
    "empty": (b" \n\n", [], "docs.txt holds no document: give a text file, one document a line."),
    "binary": (b"ab\xff", [], "docs.txt is not UTF-8 text (byte 2): give a text file, one document a line."),
    "unseen": (b"ab\n", ["--prompt", "aé"], "'é' in 'aé' is in no document: use only 'ab'."),
    "long": (b"ab\n", ["--prompt", "a" * 16], f"The prompt '{'a' * 16}' is too long: use at most 15 characters."),
    "cold": (b"ab\n", ["--temperature", "0"], "Give --steps and --samples of 0 or more and a --temperature above 0."),
    "nan": (b"ab\n", ["--temperature", "nan"], "Give --steps and --samples of 0 or more and a --temperature above 0."),
    "backwards": (b"ab\n", ["--steps", "-1"], "Give --steps and --samples of 0 or more and a --temperature above 0."),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, options, sentence = BAD_INPUT[case]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("docs.txt").write_bytes(content)
    assert microgpt.main(["--data", "docs.txt", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"microgpt: {sentence}\n"


def test_bad_input_ends_the_process_with_2(tmp_path: Path) -> None:
    result = run("--data", tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        f"microgpt: {tmp_path} cannot be read (Is a directory): give a text file, one document a line.\n"
    )


def test_import_has_no_side_effect_and_needs_the_standard_library_only(tmp_path: Path) -> None:
    """In an isolated interpreter without site-packages: no output, no file, the global generator untouched."""
    program = (
        "import random, sys; state = random.getstate(); before = set(sys.modules)\n"
        f"sys.path.insert(0, {str(ROOT)!r}); import microgpt\n"
        "assert random.getstate() == state\n"
        "foreign = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
        "assert foreign == {'microgpt'}, foreign\n"
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", program]
    env = {"HOME": str(tmp_path), "PATH": os.environ.get("PATH", "")}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# Benchmark


def test_the_benchmark_prints_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain.main(["--steps", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    nodes = {line.split()[0]: int(line.split()[3]) for line in lines[1:3]}
    assert nodes["plain"] > 10 * nodes["fused"]
    ratio = float(lines[3].split()[1])
    assert ratio > 4, "well below the 16 measured, to hold on a busy machine"


def test_the_benchmark_refuses_a_ratio_between_engines_that_disagree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plain, "plain_mean", lambda xs: plain.plain_sum(xs))
    assert plain.main(["--steps", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "disagree" in captured.err
