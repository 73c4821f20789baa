"""The labs as tests run them."""

from pathlib import Path

from nbformat import NotebookNode

from autograder.source import lab_from_script
from puzzles import catalog

ROOT = Path(__file__).parent.parent
LABS = tuple(path.stem for path in catalog.labs())


def lab(name: str, **parameters: object) -> NotebookNode:
    """The notebook of a lab, with other values for names that its cell tagged `parameters` sets."""
    notebook = lab_from_script(ROOT / "notebooks" / f"{name}.py")
    if parameters:
        [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        for parameter, value in parameters.items():
            assert parameter in cell.source, f"{name} has no parameter {parameter}"
            cell.source += f"\n{parameter} = {value!r}"
    return notebook
