"""The cells that open a puzzle's notebook on Google Colab: a badge that leads there, code that fetches the course."""

import json

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

GITHUB = "https://github.com/"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
NAME = "colab"

_FETCH = '''\
# On Google Colab this fetches the course and installs what it needs. Anywhere else it does nothing.
import sys


def fetch_course(repository, branch):
    """Clone the course unless it is there, and make it importable."""
    import subprocess
    from pathlib import Path

    course = Path.home() / "nanochat-puzzles"
    if not course.exists():
        clone = ["git", "clone", "--quiet", "--depth=1", f"--branch={branch}", repository, str(course)]
        done = subprocess.run(clone, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "git failed").splitlines()[0]
            error = OSError(f"The course cannot be fetched ({reason}): check the network, then run this cell again.")
            error._render_traceback_ = lambda: [str(error)]  # the sentence alone, without a traceback
            raise error
    if str(course) not in sys.path:
        sys.path.insert(0, str(course))
'''


def badge_cell(puzzle_id: str, repository: str, branch: str) -> NotebookNode | None:
    """The badge, or None for a repository that is not on GitHub: Colab opens notebooks from nowhere else."""
    if not repository.startswith(GITHUB):
        return None
    place = repository.removeprefix(GITHUB).removesuffix("/").removesuffix(".git")
    link = f"https://colab.research.google.com/github/{place}/blob/{branch}/release/{puzzle_id}/{puzzle_id}.ipynb"
    return new_markdown_cell(f"[![Open in Colab]({BADGE})]({link})", id=f"{NAME}-badge")


def code_cell(puzzle_id: str, repository: str, branch: str) -> NotebookNode:
    """The code, read-only. nbgrader does not hear of it: its gradebook refuses a new locked cell once there are
    submissions."""
    address = ", ".join(json.dumps(value, ensure_ascii=False) for value in (repository, branch))
    code = f"""{_FETCH}

if "google.colab" in sys.modules:
    fetch_course({address})
    from puzzles.colab import bootstrap

    bootstrap("{puzzle_id}")"""
    return new_code_cell(code, metadata={"deletable": False, "editable": False}, id=NAME)
