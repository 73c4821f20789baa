"""The tokenizer: vectors of the original, files that cannot run code, text that cannot become a special token."""

import base64
import copy
import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import tokenizer as tokenizer_module
from nanochat.tokenizer import MIN_CHARS_FOR_THREADS, SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer
from tests.vectors_io import load

VECTORS = load("tokenizer")
SIZES = sorted(VECTORS["corpora"])


@pytest.fixture(scope="module", params=SIZES)
def trained(request: pytest.FixtureRequest) -> tuple[RustBPETokenizer, dict[str, Any]]:
    """A tokenizer trained on the corpus of the vectors, and what the original's does."""
    expected = VECTORS["corpora"][request.param]
    return RustBPETokenizer.train_from_iterator(iter(VECTORS["corpus"]), expected["vocab_size_requested"]), expected


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(iter(VECTORS["corpus"]), 300)


def error_name(call: Callable[[], object]) -> str | None:
    """The class of the error a call raises, None for none. InputError counts as the AssertionError that it is."""
    try:
        call()
    except Exception as error:
        assert str(error), "an error must say something"
        return "AssertionError" if isinstance(error, AssertionError) else type(error).__name__
    return None


# Training


def test_format_facts() -> None:
    assert VECTORS["special_tokens"] == SPECIAL_TOKENS
    assert VECTORS["split_pattern"] == SPLIT_PATTERN


def test_training_learns_the_same_merges(trained: tuple[RustBPETokenizer, dict[str, Any]]) -> None:
    tokenizer, expected = trained
    assert tokenizer.get_vocab_size() == expected["n_vocab"]
    specials = expected["special_ids"]
    learnt = [tokenizer.decode_single_token_bytes(i).hex() for i in range(256, expected["n_vocab"] - len(specials))]
    assert learnt == expected["mergeable_ranks_hex_from_256"]
    assert expected["first_256_are_single_bytes_in_order"]
    assert [tokenizer.decode_single_token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert {token: tokenizer.encode_special(token) for token in SPECIAL_TOKENS} == specials
    assert tokenizer.get_bos_token_id() == expected["bos_token_id"]
    assert sorted(tokenizer.get_special_tokens()) == expected["special_token_set"]


def test_training_is_deterministic() -> None:
    assert VECTORS["train_deterministic_5_runs"]
    runs = [RustBPETokenizer.train_from_iterator(iter(VECTORS["corpus"]), 320).enc._mergeable_ranks for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("case", VECTORS["small_corpora"], ids=lambda case: f"{case['texts']}-{case['vocab_size']}")
def test_training_that_runs_out_of_merges(case: dict[str, Any]) -> None:
    """The vocabulary stays small and the special tokens follow the last merge directly; ties go to the smaller pair."""
    tokenizer = RustBPETokenizer.train_from_iterator(iter(case["texts"]), case["vocab_size"])
    merges = [tokenizer.decode_single_token_bytes(i).hex() for i in range(256, case["bos"])]
    assert (tokenizer.get_vocab_size(), merges, tokenizer.get_bos_token_id()) == (
        case["n_vocab"],
        case["merges_hex"],
        case["bos"],
    )


@pytest.mark.parametrize(("vocab_size", "error"), VECTORS["vocab_too_small"].items())
def test_vocabulary_needs_room_for_bytes_and_specials(vocab_size: str, error: str | None) -> None:
    assert error_name(lambda: RustBPETokenizer.train_from_iterator(iter(["hello"]), int(vocab_size))) == error


@pytest.mark.parametrize("case", VECTORS["text_iterator"], ids=lambda case: f"{case['max_chars']}-{case['doc_cap']}")
def test_text_iterator(case: dict[str, Any]) -> None:
    texts = tokenizer_module.text_iterator(iter(case["docs"]), max_chars=case["max_chars"], doc_cap=case["doc_cap"])
    assert list(texts) == case["yielded"]


def test_token_bytes(trained: tuple[RustBPETokenizer, dict[str, Any]]) -> None:
    """Raw bytes, so that half a UTF-8 character counts 1 and not the 3 bytes of U+FFFD."""
    tokenizer, expected = trained
    token_bytes = tokenizer_module.compute_token_bytes(tokenizer)
    assert token_bytes.dtype == torch.int32
    assert token_bytes.tolist() == expected["token_bytes"]


# Encoding


def test_encodings(trained: tuple[RustBPETokenizer, dict[str, Any]]) -> None:
    tokenizer, expected = trained
    texts = [case["text"] for case in expected["encodings"]]
    ids = [case["ids"] for case in expected["encodings"]]
    assert [tokenizer.encode(text) for text in texts] == ids
    assert tokenizer.encode(texts, num_threads=2) == ids
    assert [tokenizer(text) for text in texts] == ids
    assert [tokenizer.decode(i) for i in ids] == texts


def test_long_batches_are_encoded_like_short_ones(tokenizer: RustBPETokenizer) -> None:
    """In threads from a certain length on, in the order given."""
    texts = [f"text number {i}, which is {'very ' * (i % 7)}long" for i in range(3000)]
    assert sum(map(len, texts)) > MIN_CHARS_FOR_THREADS
    assert tokenizer.encode(texts, prepend="<|bos|>") == [tokenizer.encode(text, prepend="<|bos|>") for text in texts]


def test_prepend_and_append(trained: tuple[RustBPETokenizer, dict[str, Any]]) -> None:
    tokenizer, expected = trained
    expected = expected["prepend_append"]
    text = expected["text"]
    assert tokenizer.encode(text, prepend="<|bos|>") == expected["prepend_str"]
    assert tokenizer.encode(text, prepend=7) == expected["prepend_int"]
    assert tokenizer.encode(text, append="<|assistant_end|>") == expected["append_str"]
    assert tokenizer.encode(["the", "", "boats"], prepend="<|bos|>", append=3) == expected["both_batch"]
    assert tokenizer.encode("the", prepend=0) == expected["prepend_0"]


def test_single_tokens(trained: tuple[RustBPETokenizer, dict[str, Any]]) -> None:
    tokenizer, expected = trained
    assert tokenizer.encode_special("a") == expected["encode_special_ordinary_single_token_a"]
    assert {i: tokenizer.id_to_token(int(i)) for i in expected["id_to_token"]} == expected["id_to_token"]
    hexes = expected["decode_single_token_bytes_hex"]
    assert {i: tokenizer.decode_single_token_bytes(int(i)).hex() for i in hexes} == hexes


def test_errors(trained: tuple[RustBPETokenizer, dict[str, Any]]) -> None:
    tokenizer, expected = trained
    calls: dict[str, Callable[[], object]] = {
        "encode_int": lambda: tokenizer.encode(5),  # type: ignore[call-overload]
        "encode_tuple": lambda: tokenizer.encode(("a", "b")),  # type: ignore[call-overload]
        "encode_special_unknown": lambda: tokenizer.encode_special("<|nope|>"),
        "decode_out_of_range": lambda: tokenizer.decode([100_000]),
        "completion_only_user": lambda: tokenizer.render_for_completion(
            {"messages": [{"role": "user", "content": "x"}]}
        ),
    }
    for name, conversation in VECTORS["bad_conversations"].items():
        calls[name] = lambda conversation=conversation: tokenizer.render_conversation(conversation)  # type: ignore[misc]
    assert {name: error_name(call) for name, call in calls.items()} == expected["errors"]


@given(st.text())
def test_decode_undoes_encode(tokenizer: RustBPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode([text, text]) == [ids, ids]


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "bos", " ", "a", "é"])).map("".join))
def test_text_never_becomes_a_special_token(tokenizer: RustBPETokenizer, text: str) -> None:
    """Whoever types <|assistant_end|> must not be able to end the assistant's turn."""
    ids = tokenizer.encode(text)
    assert all(i < tokenizer.get_bos_token_id() for i in ids)
    assert tokenizer.decode(ids) == text


# Conversations


def test_conversations(trained: tuple[RustBPETokenizer, dict[str, Any]]) -> None:
    tokenizer, expected = trained
    for conversation, want in zip(VECTORS["conversations"], expected["conversations"], strict=True):
        assert tokenizer.render_conversation(conversation) == (want["ids"], want["mask"])
    for case in expected["truncated"]:
        conversation = VECTORS["conversations"][case["conversation"]]
        assert tokenizer.render_conversation(conversation, max_tokens=case["max_tokens"]) == (case["ids"], case["mask"])
    for conversation, want in zip(VECTORS["conversations"], expected["completion"], strict=True):
        if isinstance(want, str):
            assert error_name(lambda c=conversation: tokenizer.render_for_completion(c)) == want  # type: ignore[misc]
        else:
            assert tokenizer.render_for_completion(conversation) == want


texts = st.text(max_size=12) | st.sampled_from(SPECIAL_TOKENS)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "python", "python_output"]), "text": texts})
turns = st.tuples(
    st.fixed_dictionaries({"role": st.just("user"), "content": texts}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": texts | st.lists(parts, max_size=4)}),
)
systems = st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": texts}), max_size=1)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    pairs = draw(st.lists(turns, min_size=1, max_size=3))
    return {"messages": [*draw(systems), *[message for pair in pairs for message in pair]]}


@settings(max_examples=60)
@given(conversation=conversations(), max_tokens=st.integers(0, 80))
def test_rendering_rules(tokenizer: RustBPETokenizer, conversation: dict[str, Any], max_tokens: int) -> None:
    """One mask value a token, a cut is a prefix, the caller's conversation is left alone, turns cannot be forged."""
    before = copy.deepcopy(conversation)
    ids, mask = tokenizer.render_conversation(conversation)
    prompt = tokenizer.render_for_completion(conversation)
    assert conversation == before
    assert len(ids) == len(mask)
    assert set(mask) <= {0, 1}
    assert tokenizer.render_conversation(conversation, max_tokens) == (ids[:max_tokens], mask[:max_tokens])
    assert ids[: len(prompt)] == prompt
    num_turns = sum(message["role"] == "assistant" for message in conversation["messages"])
    for token in ("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"):
        assert ids.count(tokenizer.encode_special(token)) == num_turns
    assert ids.count(tokenizer.get_bos_token_id()) == 1


@given(conversation=conversations())
def test_mask_covers_what_the_assistant_says(tokenizer: RustBPETokenizer, conversation: dict[str, Any]) -> None:
    """Trained on are the assistant's text, its python with the tags, and the end of its turn; nothing else."""
    ids, mask = tokenizer.render_conversation(conversation)
    spoken = []
    for message in conversation["messages"]:
        if message["role"] == "assistant":
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                tags = ("<|python_start|>", "<|python_end|>") if part["type"] == "python" else ("", "")
                spoken.append("" if part["type"] == "python_output" else tags[0] + part["text"] + tags[1])
            spoken.append("<|assistant_end|>")
    trained = [i for i, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(trained) == "".join(spoken)


def test_visualization_shows_every_token_and_its_mask(tokenizer: RustBPETokenizer) -> None:
    ids, mask = tokenizer.render_conversation(VECTORS["conversations"][1])
    plain, numbered = (tokenizer.visualize_tokenization(ids, mask, with_token_id=flag) for flag in (False, True))
    pieces = plain.split("|\033")
    assert len(pieces) == len(ids)
    assert [int("[92m" in piece) for piece in pieces] == mask
    assert all(f"({i})" in numbered and f"({i})" not in plain for i in ids)


# Files


RANKS = {bytes([i]): i for i in range(256)}
STATE = {
    "name": "rustbpe",
    "pat_str": SPLIT_PATTERN,
    "mergeable_ranks": RANKS,
    "special_tokens": {token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)},
}


def encoding_pickle(state: Any) -> bytes:
    """What pickling a `tiktoken.Encoding` with that state gives: the class, a new instance of it, its state."""
    return b"\x80\x04ctiktoken.core\nEncoding\n)\x81" + pickle.dumps(state, 4)[2:-1] + b"b."


def encoding_json(state: dict[str, Any]) -> bytes:
    ranks = {base64.b64encode(token).decode(): rank for token, rank in state["mergeable_ranks"].items()}
    return json.dumps({"format": "nanochat-tokenizer-1", **state, "mergeable_ranks": ranks}).encode()


def same(a: RustBPETokenizer, b: RustBPETokenizer) -> bool:
    return a.enc.__getstate__() == b.enc.__getstate__() and a.bos_token_id == b.bos_token_id


def test_save_and_load(trained: tuple[RustBPETokenizer, dict[str, Any]], tmp_path: Path) -> None:
    tokenizer, expected = trained
    folder = tmp_path / "new" / "tokenizer"
    tokenizer.save(folder)
    assert {path.name for path in folder.iterdir()} == {*expected["saved_files"], "tokenizer.json"}
    assert same(RustBPETokenizer.from_directory(folder), tokenizer)
    (folder / "tokenizer.json").unlink()
    assert same(RustBPETokenizer.from_directory(str(folder)), tokenizer)


def test_pickle_is_the_originals_format(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    """Both ways: the original unpickles ours to a working Encoding, and we read what pickle.dump of one gives."""
    tokenizer.save(tmp_path)
    encoding = pickle.loads((tmp_path / "tokenizer.pkl").read_bytes())
    assert encoding.encode_ordinary("the boats") == tokenizer.encode("the boats")
    for protocol in (4, 5):
        folder = tmp_path / f"protocol{protocol}"
        folder.mkdir()
        (folder / "tokenizer.pkl").write_bytes(pickle.dumps(tokenizer.enc, protocol))
        assert same(RustBPETokenizer.from_directory(folder), tokenizer)


def test_json_is_preferred_and_the_pickle_left_unread(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.pkl").write_bytes(b"not a pickle")
    assert same(RustBPETokenizer.from_directory(tmp_path), tokenizer)


class Reducing:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that make the directory `marker` when they are loaded."""
    return {
        "runs a program": pickle.dumps(Reducing(os.mkdir, str(marker))),
        "runs a program in plain data": pickle.dumps({**STATE, "name": Reducing(os.mkdir, str(marker))}),
        "runs a program in an encoding": encoding_pickle({**STATE, "name": Reducing(os.mkdir, str(marker))}),
        "evaluates": pickle.dumps(Reducing(eval, f"__import__('os').mkdir({str(marker)!r})")),
    }


def foreign_pickles(marker: Path) -> dict[str, bytes]:
    encoding_class = b"ctiktoken.core\nEncoding\n"
    return {
        **programs(marker),
        "is another class of tiktoken": encoding_pickle(STATE).replace(b"core\nEncoding", b"core\nPartial"),
        "is another module's encoding": encoding_pickle(STATE).replace(b"tiktoken.core", b"tiktoken.fake"),
        "asks through an attribute": b"\x80\x04\x8c\x0dtiktoken.core\x8c\x11Encoding.__init__\x93.",
        "is the class": encoding_class + b".",
        "changes the class": encoding_class + b"}b.",
        "is an encoding by name": encoding_pickle("gpt2"),
        "is an encoding without state": encoding_class + b")\x81.",
        "is called": encoding_class + b"(S'gpt2'\ntR.",
        "is plain data": pickle.dumps(STATE),
        "persistent id": b"Ptokenizer\n.",
        "is empty": b"",
        "is cut short": encoding_pickle(STATE)[:1000],
        "is text": b"hello",
    }


@pytest.mark.parametrize("name", foreign_pickles(Path("marker")))
def test_foreign_pickles_are_refused_and_never_run(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "tokenizer.pkl").write_bytes(foreign_pickles(marker)[name])
    with pytest.raises(ValueError, match=r"tokenizer\.pkl is refused .* train the tokenizer again"):
        RustBPETokenizer.from_directory(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("name", programs(Path("marker")))
def test_the_programs_do_run_in_a_plain_unpickler(name: str, tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    marker = tmp_path / "marker"
    with suppress(TypeError):
        pickle.loads(programs(marker)[name])
    assert marker.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mergeable_ranks": {**RANKS, b"th": 5}}, "distinct"),
        ({"mergeable_ranks": {**RANKS, b"th": 256}}, "distinct"),
        ({"mergeable_ranks": {**RANKS, b"th": -1}}, "non-negative"),
        ({"mergeable_ranks": {**RANKS, b"th": 2**40}}, "non-negative"),
        ({"mergeable_ranks": {**RANKS, b"th": "300"}}, "integers"),
        ({"mergeable_ranks": {**RANKS, b"th": True}}, "integers"),
        ({"mergeable_ranks": {b"t": 0}}, "single byte"),
        ({"special_tokens": {"<|bos|>": 256, "<|eos|>": 256}}, "distinct"),
        ({"special_tokens": {"<|bos|>": 7}}, "distinct"),
        ({"special_tokens": {"<|eos|>": 256}}, "no special token"),
        ({"special_tokens": []}, "fields"),
        ({"pat_str": 5}, "fields"),
        ({"pat_str": "("}, "parenthesis"),
        ({"more": 1}, "fields"),
    ],
)
@pytest.mark.parametrize(("name", "dump"), [("tokenizer.json", encoding_json), ("tokenizer.pkl", encoding_pickle)])
def test_inconsistent_vocabularies_are_refused(
    name: str, dump: Callable[[Any], bytes], changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """tiktoken's native code would panic on them, on some only when the first text is encoded."""
    (tmp_path / name).write_bytes(dump(STATE))
    assert RustBPETokenizer.from_directory(tmp_path).decode([104, 105]) == "hi"
    (tmp_path / name).write_bytes(dump({**STATE, **changes}))
    with pytest.raises(ValueError, match=reason):
        RustBPETokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"format": "nanochat-tokenizer-2"}',
        b'{"format": "nanochat-tokenizer-1"}',
        encoding_json(STATE)[:1000],
        encoding_json(STATE).replace(b'"AA=="', b'"A"'),
    ],
)
def test_foreign_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a nanochat tokenizer"):
        RustBPETokenizer.from_directory(tmp_path)


def test_pretrained_tokenizers_open_with_endoftext(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ones need the network: one put into tiktoken's registry stands for them."""
    encoding = tiktoken.Encoding(
        "toy", pat_str=SPLIT_PATTERN, mergeable_ranks=RANKS, special_tokens={"<|endoftext|>": 256}
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "toy", encoding)
    tokenizer = RustBPETokenizer.from_pretrained("toy")
    assert tokenizer.get_bos_token_id() == 256
    assert tokenizer.encode("hi<|endoftext|>", prepend="<|endoftext|>")[:3] == [256, 104, 105]
    assert 256 not in tokenizer.encode("hi<|endoftext|>")


# The tokenizer of the base directory


def test_base_directory(tokenizer: RustBPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tok_train"):
        tokenizer_module.get_tokenizer()
    with pytest.raises(FileNotFoundError, match="tok_train"):
        tokenizer_module.get_token_bytes()
    tokenizer.save(tmp_path / "tokenizer")
    token_bytes = tokenizer_module.compute_token_bytes(tokenizer)
    tokenizer_module.save_token_bytes(token_bytes, tmp_path / "tokenizer")
    assert same(tokenizer_module.get_tokenizer(), tokenizer)
    loaded = tokenizer_module.get_token_bytes(device="cpu")
    assert torch.equal(loaded, token_bytes)
    assert loaded.dtype == token_bytes.dtype
    names = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer.pkl", "token_bytes.pt"}


def test_token_bytes_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    (tmp_path / "tokenizer").mkdir()
    torch.save(Reducing(os.mkdir, str(tmp_path / "marker")), tmp_path / "tokenizer" / "token_bytes.pt")
    with pytest.raises(ValueError, match=r"token_bytes\.pt .*tok_train"):
        tokenizer_module.get_token_bytes()
    assert not (tmp_path / "marker").exists()
