"""What crosses between a submission and its referee: plain data survives, anything else is named, nothing is run."""

import socket
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puzzles import wire

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner), max_leaves=20
)


@given(DATA)
def test_plain_data_survives(value):
    assert wire.plain(value) == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 5)])
def test_tensors_keep_dtype_and_shape(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    back = wire.plain({"x": tensor})["x"]
    assert back.dtype == dtype
    assert back.shape == shape
    assert torch.equal(back, tensor)


def test_views_subclasses_and_gradients_arrive_as_plain_tensors():
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base)
    first, second, third = wire.plain([base.T, base[:, 1:3], parameter])
    assert torch.equal(first, base.T)
    assert torch.equal(second, base[:, 1:3])
    assert type(third) is torch.Tensor
    assert not third.requires_grad


def test_numpy_becomes_torch_and_python():
    array, integer, number, flag = wire.plain([np.arange(3), np.int64(4), np.float32(0.5), np.bool_(True)])
    assert torch.equal(array, torch.arange(3))
    assert (integer, number, flag) == (4, 0.5, True)
    assert type(flag) is bool


def test_tuples_are_lists_and_dtypes_stay():
    assert wire.plain((1, (2, torch.bfloat16))) == [1, [2, torch.bfloat16]]


def test_an_object_travels_as_the_name_of_its_type():
    class Agreeable:
        def __eq__(self, other):
            return True

    (value,) = wire.plain([Agreeable()])
    assert value == wire.Opaque("Agreeable")
    assert value != 1


def test_too_large_and_too_deep_is_refused():
    with pytest.raises(wire.WireError, match="at most 64 MiB"):
        wire.encode(torch.zeros(17 * 2**20))
    nested: list = []
    for _ in range(wire.MAX_DEPTH + 2):
        nested = [nested]
    with pytest.raises(wire.WireError, match="deep"):
        wire.encode(nested)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_is_an_error_and_never_more(document, blob):
    """Whatever bytes arrive, decoding gives plain data or WireError."""
    try:
        wire.decode(document, blob)
    except wire.WireError:
        return


@pytest.mark.parametrize(
    "document",
    [b'{"$dtype": "save"}', b'{"$tensor": "t9"}', b'{"$call": 1}', b'{"a": 1, "b": 2}', b"[" * 5000, b'{"$dict": 1}'],
)
def test_forged_documents_are_refused(document):
    with pytest.raises(wire.WireError):
        wire.decode(document, b"\x02\x00\x00\x00\x00\x00\x00\x00{}")


def test_frames_over_a_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, {"x": torch.arange(3), "n": 1})
        received = wire.receive(theirs)
        assert received["n"] == 1
        ours.sendall(struct.pack(">QQ", 2**40, 0))
        with pytest.raises(wire.WireError, match="announces"):
            wire.receive(theirs)
        ours.close()
        with pytest.raises(EOFError):
            wire.receive(theirs)
