"""Puzzle 7's judges: the oracle agrees with the golden vectors, and every mistake they know is caught and told; bad
sandboxes lose their part in the real one, and hurt nobody."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from autograder.exam import Exam
from autograder.judges import sandbox_tokenizer
from autograder.judges.sandbox_tokenizer import conversations, walls
from autograder.sandbox import Limits
from autograder.variants import Variant, source, try_all
from autograder.warmth import sandbox_for
from nanochat.execution import execute_code
from nanochat.rendering import PARTS
from nanochat.tokenizer import SPECIAL_TOKENS
from puzzles import words
from tests import vectors_io

PUZZLE = "07_sandbox_tokenizer"
JUDGES = sandbox_tokenizer.JUDGES
VECTOR = vectors_io.load("tokenizer")


# the oracle against the golden vectors, and against what nanochat has


def test_the_words_of_the_course_are_nanochats():
    assert list(words.SPECIAL_TOKENS) == SPECIAL_TOKENS
    assert tuple(PARTS) == conversations.KINDS


def test_training_agrees_with_the_vectors():
    for case in VECTOR["small_corpora"]:
        told = JUDGES["train_tokenizer"].oracle(corpus=case["texts"], vocab_size=case["vocab_size"], samples=[])
        merges = [bytes.fromhex(token).decode("latin-1") for token in case["merges_hex"]]
        assert (told["size"], told["merges"]) == (case["n_vocab"], merges)


@pytest.mark.parametrize("seed", range(2))
def test_nanochats_own_sandbox_gives_the_programs_of_the_exam_what_is_written_there(seed):
    """But for those that ask for the limits of the puzzle, or for its scene."""
    asked = 0
    for case, answer in walls.programs(random.Random(seed)):
        if "RLIMIT" in case["code"] or "here" in case["code"]:
            continue
        result = execute_code(case["code"], PATIENT, case["maximum_memory_bytes"])
        told, wanted = (
            [line for line in lines if not line.startswith("outside")]  # outside of it is a /tmp of its own
            for lines in (result.stdout.splitlines(), answer["says"])
        )
        assert told == wanted, (case["code"], result)
        assert result.success == (answer["exit"] == 0)
        asked += 1
    assert asked > 8


PATIENT = 30.0

# bad sandboxes, inside the real one

UNGUARDED = """
def start(code, workdir, maximum_memory_bytes, cpu_seconds):
    return subprocess.Popen([sys.executable, "-c", code], cwd=workdir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
"""
IN_PROCESS = """
def start(code, workdir, maximum_memory_bytes, cpu_seconds):
    exec(code, {"__name__": "__main__"})
"""
FORGETFUL = """
def supervise(process, timeout, max_bytes):
    try:
        return Outcome(0, *process.communicate(timeout=timeout), False)
    except subprocess.TimeoutExpired:
        return Outcome(-9, b"", b"", True)
"""
DELETING = """
def execute_code(code, timeout, maximum_memory_bytes, start, supervise):
    exec(code, {})
    shutil = __import__("shutil")
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
    shutil.rmtree("/", ignore_errors=True)
    return ExecutionResult(True, "", "")
"""
BAD = {
    "no walls": ("start", UNGUARDED),
    "in the process itself": ("start", IN_PROCESS),
    "no end": ("supervise", FORGETFUL),
    "deletes everything": ("execute_code", DELETING),
}


def test_bad_sandboxes_lose_their_part_and_their_neighbours_keep_theirs():
    """All at once, beside the reference solution; afterwards nothing of them is left."""
    variants = [Variant(name, {part: code}, frozenset([part])) for name, (part, code) in BAD.items()]
    for variant, result in try_all(source(PUZZLE), Exam(PUZZLE, 5), [*variants, Variant("honest", {}, frozenset())]):
        assert result.lost == variant.loses, (variant.name, result.lost)


def test_the_hidden_modules_are_hidden_and_isolation_is_not():
    notebook = source(PUZZLE)
    code = """
import importlib.util, subprocess, sys
hidden = ("tokenizer", "rendering", "tokenizer_files", "execution", "execution_child")
print([name for name in hidden if importlib.util.find_spec(f"nanochat.{name}")])
look = f"import sys; sys.path.insert(0, {COURSE!r})\\nfor n in {hidden!r}:\\n"
look += "    try: __import__('nanochat.' + n); print('found', n)\\n    except ImportError: pass"
print(subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stdout)
"""
    from autograder.execute import execute

    notebook.cells = [cell for cell in notebook.cells if cell.id in ("imports", "walls", "start")]
    notebook.cells[-1].source = code
    with sandbox_for(PUZZLE) as sandbox:
        run = execute(notebook, Limits(cell_seconds=60.0), sandbox)
    assert [output.get("text") for output in run.notebook.cells[-1].outputs] == ["[]\n\n"]


def test_two_exams_at_once_agree():
    """The oracle of `execute_code` stands in for a part of nanochat while it answers; exams are made on threads."""
    with ThreadPoolExecutor(4) as pool:
        papers = list(pool.map(lambda _: Exam(PUZZLE, 7).paper("execute_code"), range(8)))
    assert all(repr(paper) == repr(papers[0]) for paper in papers)
