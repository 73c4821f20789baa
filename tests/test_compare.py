"""The words a learner reads when an answer differs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puzzles.compare import FLOAT32, difference
from puzzles.wire import Opaque, Raised


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (3, 3.0, "expected an int 3, got a float 3.0"),
        (True, 1, "expected a bool True, got an int 1"),
        ([1, 2], [1, 3], "at [1]: expected 2, got 3"),
        ([1, 2], [1], "expected 2 items"),
        ({"a": 1}, {}, "missing key 'a'"),
        ({"a": 1}, {"a": 1, "b": 2}, "unexpected key 'b'"),
        ({"a": [0, [5]]}, {"a": [0, [6]]}, "at ['a'][1][0]: expected 5, got 6"),
        (1.0, 1.5, "expected 1.0, got 1.5"),
        (1, Opaque("Agreeable"), "got an object of type Agreeable"),
        (1, Raised("KeyError", "'x'"), "your code raised KeyError: 'x'"),
        (Raised("ValueError"), 4, "expected ValueError to be raised, got 4"),
        (Raised("ValueError"), Raised("TypeError", "no"), "expected ValueError to be raised, got TypeError: no"),
        (torch.zeros(2, 3), torch.zeros(3, 2), "expected shape (2, 3), got (3, 2)"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "expected dtype float32, got int64"),
        (torch.zeros(2), [0.0, 0.0], "expected a tensor of shape (2,), got a list"),
        (torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0]), "1 of 2 values differ (largest error 2); first at [1]"),
        (torch.tensor([[True, False]]), torch.tensor([[True, True]]), "first at [0, 1]: expected False, got True"),
    ],
)
def test_says_what_and_where(expected, got, words):
    assert words in (difference(expected, got) or "")


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (math.nan, math.nan),
        (math.inf, math.inf),
        (2.0, 2),
        (torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf])),
        (Raised("ValueError", "ours"), Raised("ValueError", "theirs")),
        (Raised("ValueError"), Raised.of(UnicodeError("a ValueError of its own kind"))),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
    ],
)
def test_equal(expected, got):
    assert difference(expected, got) is None


def test_tolerance_is_relative_to_the_expected_value():
    assert difference(1000.0, 1000.009, FLOAT32) is None
    assert difference(1000.0, 1000.02, FLOAT32)
    assert difference(torch.tensor(1000.0), torch.tensor(1000.02), FLOAT32)


@given(st.recursive(st.integers() | st.text() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_everything_equals_itself(value):
    assert difference(value, value) is None


@given(st.lists(st.integers(), min_size=1), st.data())
def test_any_change_is_found(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    changed = [*values]
    changed[index] += data.draw(st.integers(1, 9))
    assert f"at [{index}]" in (difference(values, changed) or "")
