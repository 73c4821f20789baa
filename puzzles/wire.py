"""Plain data over a socket: how cases reach a submission and how its answers come back.

A frame is two big-endian 64-bit lengths, then a JSON document, then a safetensors blob holding the document's tensors.
Nothing that arrives is ever executed: there is no pickle, and what is not plain data travels as its type's name.
"""

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

MAX_FRAME_BYTES = 64 * 2**20
# JSON swells to many times its size when it is read
MAX_DOCUMENT_BYTES = 4 * 2**20
MAX_DEPTH = 32
_HEADER = struct.Struct(">QQ")


class WireError(Exception):
    """A frame that is malformed, too large or too deep."""


@dataclass(frozen=True)
class Opaque:
    """Stands for a value that is not plain data; holds only the name of its type."""

    type_name: str


@dataclass(frozen=True)
class Raised:
    """Stands for an exception: its type's name, its text (which is for people and never compared), and the names of the
    types it derives from."""

    type_name: str
    text: str = ""
    bases: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: Exception) -> "Raised":
        bases = (each.__name__ for each in type(error).__mro__[1:] if issubclass(each, Exception))
        return cls(type(error).__name__, str(error), tuple(bases)[:MAX_DEPTH])


def encode(value: Any) -> bytes:
    """`value` as one frame. None, bools, numbers, text, lists, tuples (as lists), dicts, tensors, arrays and dtypes are
    plain data; Raised stays itself; anything else becomes Opaque. Raises WireError if the frame would be too large."""
    tensors: dict[str, torch.Tensor] = {}
    document = json.dumps(_to_json(value, tensors, 0)).encode()
    blob = save_tensors(tensors)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise WireError(
            f"all but its tensors is {len(document) / 2**20:.0f} MiB; at most {MAX_DOCUMENT_BYTES // 2**20} travel"
        )
    if len(document) + len(blob) > MAX_FRAME_BYTES:
        size = (len(document) + len(blob)) / 2**20
        raise WireError(f"the message is {size:.0f} MiB; at most {MAX_FRAME_BYTES // 2**20} MiB travel")
    return _HEADER.pack(len(document), len(blob)) + document + blob


def decode(document: bytes, blob: bytes) -> Any:
    """The value that `encode` put into a frame. Raises WireError for anything that is not such a frame."""
    try:
        return _from_json(json.loads(document), load_tensors(blob), 0)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"the message cannot be read ({type(error).__name__})") from error


def send(connection: socket.socket, value: Any) -> None:
    """Send `value` as one frame."""
    connection.sendall(encode(value))


def receive(connection: socket.socket) -> Any:
    """The next frame's value. Raises EOFError when the other side has closed, WireError for a bad frame."""
    document_len, blob_len = _HEADER.unpack(_read(connection, _HEADER.size))
    if document_len > MAX_DOCUMENT_BYTES or document_len + blob_len > MAX_FRAME_BYTES:
        raise WireError("the message announces more bytes than may travel")
    return decode(_read(connection, document_len), _read(connection, blob_len))


def plain(value: Any) -> Any:
    """`value` as it looks after a round trip: tuples are lists, arrays tensors, objects Opaque."""
    frame = encode(value)
    document_len, blob_len = _HEADER.unpack(frame[: _HEADER.size])
    body = frame[_HEADER.size :]
    return decode(body[:document_len], body[document_len : document_len + blob_len])


def _read(connection: socket.socket, n: int) -> bytes:
    chunks = []
    while n > 0:
        chunk = connection.recv(min(n, 2**20))
        if not chunk:
            raise EOFError("the other side closed the connection")
        chunks.append(chunk)
        n -= len(chunk)
    return b"".join(chunks)


def _to_json(value: Any, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise WireError(f"the value is nested more than {MAX_DEPTH} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_to_json(item, tensors, depth + 1) for item in value]
    if isinstance(value, dict):
        return {"$dict": [[_to_json(k, tensors, depth + 1), _to_json(v, tensors, depth + 1)] for k, v in value.items()]}
    if isinstance(value, torch.Tensor) and value.device.type != "meta" and not value.is_complex():
        name = f"t{len(tensors)}"
        # clone: two views of one storage must not be refused, and a subclass must not travel
        tensors[name] = value.detach().cpu().as_subclass(torch.Tensor).contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Raised):
        return {"$raised": [value.type_name, value.text[:2000], list(value.bases)]}
    if isinstance(value, Opaque):
        return {"$opaque": value.type_name}
    return {"$opaque": type(value).__name__}


def _from_json(node: Any, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise WireError(f"the value is nested more than {MAX_DEPTH} deep")
    if isinstance(node, list):
        return [_from_json(item, tensors, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    ((tag, body),) = node.items()
    match tag:
        case "$dict":
            return {_from_json(k, tensors, depth + 1): _from_json(v, tensors, depth + 1) for k, v in body}
        case "$tensor":
            return tensors[body]
        case "$dtype":
            dtype = getattr(torch, body)
            if not isinstance(dtype, torch.dtype):
                raise WireError("no such dtype")
            return dtype
        case "$raised":
            return Raised(str(body[0]), str(body[1]), tuple(map(str, body[2])))
        case "$opaque":
            return Opaque(str(body))
        case _:
            raise WireError("an unknown tag")
