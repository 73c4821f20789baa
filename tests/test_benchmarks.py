"""The benchmarks of nanochat still run, in small, and find the results of both ways equal."""

import importlib
import re
import sys

import pytest

# name -> (arguments, what it prints)
SMALL = {
    "core_eval": (
        ["--items", "6", "--shots", "2", "--repeat", "1"],
        r"(?s)(identical.*){3}geometric mean of the ratios",
    ),
    "optim": (["--depth", "2", "--widths", "32", "--repeats", "1"], r"\d\.\d\dx"),
    "decode": (["--depth", "1", "--lengths", "8", "--new-tokens", "2", "--repeats", "1"], r"\d\.\dx +yes"),
    "toy_load": (["--repeat", "1"], r"load_toy\('rl'\): \d\.\d+ s"),
}


@pytest.mark.parametrize("name", SMALL)
def test_benchmark(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = SMALL[name]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(f"benchmarks.{name}").main()
    printed = capsys.readouterr().out
    assert re.search(expected, printed), printed
    assert "DIFFERENT" not in printed
