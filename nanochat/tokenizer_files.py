"""Tokenizers on disk: plain JSON that we prefer, and the original's pickle read without running anything in it.

A pickle is a program: loading one may call any function it names. `tokenizer.pkl`, a pickled `tiktoken.Encoding`, is
kept so that tokenizers move freely to and from the original nanochat, but it is read by an unpickler that knows a
single name, stands a lifeless class in for it, and hands back four plain values. `tokenizer.json` holds the same four.
"""

import base64
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import tiktoken

from nanochat.common import write_atomically

JSON_NAME, PICKLE_NAME = "tokenizer.json", "tokenizer.pkl"
JSON_FORMAT = "nanochat-tokenizer-1"
FIELDS = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}


def save_encoding(encoding: tiktoken.Encoding, tokenizer_dir: str | os.PathLike[str]) -> None:
    """Write tokenizer.json (ours) and tokenizer.pkl (the original's) into `tokenizer_dir`, made if missing."""
    folder = Path(tokenizer_dir)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {base64.b64encode(token).decode("ascii"): rank for token, rank in encoding._mergeable_ranks.items()}
    document = {
        "format": JSON_FORMAT,
        "name": encoding.name,
        "pat_str": encoding._pat_str,
        "mergeable_ranks": ranks,
        "special_tokens": encoding._special_tokens,
    }
    write_atomically(folder / PICKLE_NAME, lambda path: path.write_bytes(pickle.dumps(encoding)))
    write_atomically(folder / JSON_NAME, lambda path: path.write_text(json.dumps(document, indent=0), "utf-8"))


def load_encoding(tokenizer_dir: str | os.PathLike[str]) -> tiktoken.Encoding:
    """The encoding saved in `tokenizer_dir`, from tokenizer.json where there is one, else from tokenizer.pkl.

    Raises:
        FileNotFoundError: the directory holds neither file.
        ValueError: the file is damaged, or holds anything else than a tokenizer.
    """
    json_path, pickle_path = Path(tokenizer_dir, JSON_NAME), Path(tokenizer_dir, PICKLE_NAME)
    if json_path.exists():
        return _build(_read_json(json_path), json_path)
    if pickle_path.exists():
        return _build(_read_pickle(pickle_path), pickle_path)
    raise FileNotFoundError(
        f"there is no tokenizer in {tokenizer_dir} ({JSON_NAME} or {PICKLE_NAME}): train one with "
        "`python -m nanochat.scripts.tok_train`"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        if document.pop("format") != JSON_FORMAT:
            raise ValueError("unknown format")
        ranks = {base64.b64decode(token, validate=True): rank for token, rank in document["mergeable_ranks"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a nanochat tokenizer ({JSON_FORMAT}): train or copy it again") from error
    return {**document, "mergeable_ranks": ranks}


class _PickledEncoding:
    """Stands in for `tiktoken.Encoding` while unpickling: keeps the pickled state and does nothing with it."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _EncodingUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_PickledEncoding]:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _PickledEncoding


def _read_pickle(path: Path) -> dict[str, Any]:
    refusal = f"{path} is refused because it is not just a pickled tiktoken Encoding: train the tokenizer again"
    unpickler = _EncodingUnpickler(io.BytesIO(path.read_bytes()))
    try:
        content = unpickler.load()
    except Exception as error:  # a damaged or hostile pickle may raise nearly anything
        raise ValueError(f"{refusal} ({error})") from error
    state = getattr(content, "state", None) if type(content) is _PickledEncoding else None
    if not isinstance(state, dict):
        raise ValueError(refusal)
    return state


def _build(state: dict[str, Any], path: Path) -> tiktoken.Encoding:
    """The encoding of a state just read, checked first: tiktoken's native code panics on an inconsistent vocabulary."""
    try:
        _check(state)
        return tiktoken.Encoding(**state)
    except ValueError as error:
        raise ValueError(f"{path} does not hold a usable tokenizer ({error}): train or copy it again") from error


def _check(state: dict[str, Any]) -> None:
    if {name: type(value) for name, value in state.items()} != FIELDS:
        raise ValueError(f"its fields must be {', '.join(FIELDS)}")
    ranks, specials = state["mergeable_ranks"], state["special_tokens"]
    ids = [*ranks.values(), *specials.values()]
    if not all(type(token) is bytes for token in ranks) or not all(type(token) is str for token in specials):
        raise ValueError("tokens must be bytes, and special tokens text")
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids) or len(set(ids)) != len(ids):
        raise ValueError("token ids must be distinct non-negative integers")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("every single byte must be a token")
