"""Whatever is done to a submission, the rebuilt notebook has the instructor's tests and the learner's code."""

import json
from copy import deepcopy
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from autograder.rebuild import Refused, rebuild


def cell(name: str, kind: str, source: str, solution: bool = False, grade: bool = False) -> NotebookNode:
    make = new_code_cell if kind == "code" else new_markdown_cell
    nbgrader = {"grade_id": name, "solution": solution, "grade": grade, "locked": not solution, "schema_version": 3}
    return make(source=source, id=name, metadata={"nbgrader": nbgrader})


TEMPLATE = new_notebook(
    cells=[
        new_markdown_cell("# Title", id="text-0"),
        cell("imports", "code", "import torch"),
        cell("first", "code", "stub 1", solution=True),
        cell("test-first", "code", "test 1", grade=True),
        cell("second", "code", "stub 2", solution=True),
        cell("test-second", "code", "test 2", grade=True),
        cell("words", "markdown", "your answer", solution=True, grade=True),
    ]
)
LOCKED = ["text-0", "imports", "test-first", "test-second"]


def filled() -> dict[str, Any]:
    """A submission as a learner leaves it: both holes and the written answer filled."""
    document = json.loads(nbformat.writes(TEMPLATE))
    for each in document["cells"]:
        if each["id"] in ("first", "second", "words"):
            each["source"] = [f"mine {each['id']}"]
    return document


def rebuilt(document: Any) -> tuple[dict[str, str], list[str]]:
    notebook, notes = rebuild(TEMPLATE, json.dumps(document).encode())
    nbformat.validate(notebook)
    return {each.id: each.source for each in notebook.cells}, notes


def test_a_clean_submission_keeps_every_answer():
    sources, notes = rebuilt(filled())
    assert [sources["first"], sources["second"], sources["words"]] == ["mine first", "mine second", "mine words"]
    assert [sources[name] for name in LOCKED] == ["# Title", "import torch", "test 1", "test 2"]
    assert notes == []


def test_rewritten_tests_points_and_outputs_are_without_effect():
    document = filled()
    for each in document["cells"]:
        if each["id"].startswith("test"):
            each["source"] = "100.0"
            each["metadata"]["nbgrader"]["points"] = 1000
            each["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "100"}]
    document["metadata"] = {"kernelspec": {"name": "evil", "display_name": "x"}}
    notebook, _ = rebuild(TEMPLATE, json.dumps(document).encode())
    assert notebook.cells[3] == TEMPLATE.cells[3]
    assert notebook.metadata == TEMPLATE.metadata


def test_a_deleted_hole_comes_back_empty_and_is_named():
    document = filled()
    document["cells"] = [each for each in document["cells"] if each["id"] != "first"]
    sources, notes = rebuilt(document)
    assert sources["first"] == "stub 1"
    assert "first" in notes[0]


def test_of_a_doubled_hole_the_first_counts_and_the_second_is_an_ordinary_cell():
    document = filled()
    copy = deepcopy(document["cells"][2])
    copy["source"], copy["id"] = "again", "abcdef"
    document["cells"].insert(3, copy)
    notebook, notes = rebuild(TEMPLATE, json.dumps(document).encode())
    assert notebook.cells[2].source == "mine first"
    assert notebook.cells[3].source == "again"
    assert "nbgrader" not in notebook.cells[3].metadata
    assert "first" in notes[0]


def test_stripped_metadata_is_found_by_cell_id():
    document = filled()
    for each in document["cells"]:
        each["metadata"] = {}
    sources, notes = rebuilt(document)
    assert sources["second"] == "mine second"
    assert notes == []


def test_added_cells_keep_their_place():
    document = filled()
    document["cells"].insert(2, {"cell_type": "code", "source": "helper = 1", "metadata": {}, "outputs": []})
    document["cells"].insert(0, {"cell_type": "markdown", "source": "hello", "metadata": {}})
    notebook, _ = rebuild(TEMPLATE, json.dumps(document).encode())
    assert [each.source for each in notebook.cells[:4]] == ["hello", "# Title", "import torch", "helper = 1"]


def test_a_hole_turned_into_text_does_not_count():
    document = filled()
    document["cells"][2] = {"cell_type": "markdown", "id": "first", "metadata": {}, "source": "x"}
    sources, notes = rebuilt(document)
    assert sources["first"] == "stub 1"
    assert "first" in notes[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\x00\xff\x00", "not JSON"),
        (b'{"cells": [{"cell_type"', "not JSON"),
        (b"[1, 2]", "no list of cells"),
        (b'{"cells": 3}', "no list of cells"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (65 * 2**20), "65 MiB"),
        (json.dumps({"cells": [{"cell_type": "code", "source": "x" * 2**21}]}).encode(), "characters"),
    ],
)
def test_what_is_no_notebook_is_refused_in_one_sentence(content, words):
    with pytest.raises(Refused, match=words) as refusal:
        rebuild(TEMPLATE, content)
    assert "\n" not in str(refusal.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([each.id for each in TEMPLATE.cells] + ["other"])
CELLS = st.fixed_dictionaries(
    {},
    optional={
        "cell_type": st.sampled_from(["code", "markdown", "raw", "x"]) | JSON,
        "source": st.text(st.characters(), max_size=20) | st.lists(st.text(max_size=5), max_size=3) | JSON,
        "id": NAMES | JSON,
        "metadata": JSON
        | st.fixed_dictionaries({"nbgrader": JSON | st.fixed_dictionaries({"grade_id": NAMES | JSON})}),
        "outputs": JSON,
    },
)


@settings(max_examples=1000, deadline=None)
@given(st.fixed_dictionaries({"cells": st.lists(CELLS | JSON, max_size=8)}))
def test_damaged_notebooks_never_break_the_grader(document):
    """The result is a valid notebook whose locked cells are the instructor's, in the instructor's order."""
    notebook, _ = rebuild(TEMPLATE, json.dumps(document).encode())
    nbformat.validate(notebook)
    kept = [each for each in notebook.cells if not each.id.startswith("added-")]
    assert [each.id for each in kept] == [each.id for each in TEMPLATE.cells]
    for ours, theirs in zip(TEMPLATE.cells, kept, strict=True):
        assert theirs.metadata == ours.metadata
        if ours.id in LOCKED:
            assert theirs.source == ours.source
    assert all("nbgrader" not in each.metadata for each in notebook.cells if each.id.startswith("added-"))
    nbformat.writes(notebook).encode()
