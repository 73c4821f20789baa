"""The ledger: what is submitted once is judged once, and only right answers to all cases earn a part."""

import socket
import threading

import pytest
import torch

from autograder.exam import Exam, outcome
from autograder.judges import judges_of
from autograder.referee import Referee
from puzzles import catalog, submit, wire

PUZZLE = "01_transformer_blueprint"
PART = "window_sizes"
ORACLE = judges_of(catalog.puzzle(PUZZLE))[PART].oracle


@pytest.fixture
def exam() -> Exam:
    return Exam(PUZZLE, seed=11)


def answers(exam: Exam, change: dict | None = None) -> dict:
    """A request that answers every case rightly, but for `change` (case number -> answer)."""
    given = [
        {"case": number, "device": "cpu", "answer": (change or {}).get(number, outcome(ORACLE, case))}
        for number, (case, _) in enumerate(exam.paper(PART))
    ]
    return {"ask": "submit", "part": PART, "answers": given}


def test_right_answers_earn_the_part(exam):
    assert Referee(exam).handle(answers(exam))["status"] == "passed"


def test_one_wrong_answer_loses_it_and_is_shown_with_the_seed(exam):
    verdict = Referee(exam).handle(answers(exam, {3: [[1, 0]]}))
    assert (verdict["status"], verdict["score"]) == ("wrong", 0)
    assert "Case 4" in verdict["message"]
    assert "seed 11" in verdict["message"]


def test_an_answer_left_out_is_wrong(exam):
    request = answers(exam)
    del request["answers"][-1]
    assert "no answer was submitted" in Referee(exam).handle(request)["message"]


def test_no_answers_at_all_are_wrong(exam):
    verdict = Referee(exam).handle({"ask": "submit", "part": PART, "answers": []})
    assert verdict["status"] == "wrong"


def test_a_part_is_judged_once(exam):
    """A submission that learns from a verdict cannot try again; nor can it undo what it earned."""
    referee = Referee(exam)
    assert referee.handle(answers(exam, {0: None}))["status"] == "wrong"
    assert referee.handle(answers(exam))["status"] == "wrong"
    assert referee.ledger[PART].score == 0


def test_of_two_answers_to_a_case_the_first_counts(exam):
    request = answers(exam)
    request["answers"] = [{"case": 0, "device": "cpu", "answer": None}, *request["answers"]]
    assert Referee(exam).handle(request)["status"] == "wrong"


def test_every_device_must_be_right(exam):
    request = answers(exam)
    request["answers"].append({"case": 0, "device": "cuda", "answer": None})
    assert Referee(exam).handle(request)["status"] == "wrong"


def test_an_unfilled_hole_is_told_from_a_wrong_one(exam):
    unsolved = wire.Raised("NotImplementedError")
    change = dict.fromkeys(range(len(exam.paper(PART))), unsolved)
    assert Referee(exam).handle(answers(exam, change))["status"] == "unsolved"


def test_what_was_not_submitted_is_missing_for_the_reason_given(exam):
    referee = Referee(exam)
    referee.handle(answers(exam))
    verdicts = {verdict.part: verdict for verdict in referee.verdicts("The kernel died.")}
    assert verdicts[PART].status == "passed"
    assert verdicts["rotary"].message == "The kernel died."


def test_a_seed_draws_the_same_cases_and_another_seed_others(exam):
    def text(e: Exam) -> list[str]:
        return [str(case) for case, _ in e.paper(PART)]

    assert text(exam) == text(Exam(PUZZLE, seed=11))
    assert text(exam) != text(Exam(PUZZLE, seed=12))


def test_messages_carry_no_control_characters(exam):
    verdict = Referee(exam).handle(answers(exam, {0: wire.Raised("Evil\x1b[31m", "\x1b]0;title\x07")}))
    assert verdict["message"].isprintable()


@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        {"ask": "answers", "part": PART},
        {"ask": "submit", "part": PART, "answers": [1]},
        {"ask": "submit", "part": PART, "answers": [{"case": "0", "device": "cpu", "answer": 1}]},
        {"ask": "submit", "part": PART, "answers": [{"case": 0, "device": "cuda", "answer": 1}]},
        {"ask": "submit", "part": PART},
    ],
)
def test_a_malformed_request_awards_nothing(exam, request_):
    referee = Referee(exam)
    with pytest.raises(wire.WireError):
        referee.handle(request_)
    assert referee.ledger == {}


def test_over_the_socket(exam):
    """The real connection: cases out, answers back; garbage ends it and leaves the ledger as it is."""
    referee = Referee(exam)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=referee.serve, args=(ours,))
    thread.start()
    with theirs:
        ask = submit.over(theirs)
        assert len(ask({"ask": "cases", "part": PART})["cases"]) == len(exam.paper(PART))
        assert ask(answers(exam))["status"] == "passed"
        theirs.sendall(b"\x00" * 16)
        with pytest.raises(EOFError):
            wire.receive(theirs)
    thread.join(10)
    assert not thread.is_alive()
    assert referee.ledger[PART].score == 15


def test_the_client_grades_through_whatever_referee_is_connected(exam, monkeypatch, capsys):
    monkeypatch.setattr(submit, "_connected", None)
    submit.connect(Referee(exam).handle)

    def noisy(**case):
        print("100 of 100 points")
        return ORACLE(**case)

    assert submit.grade(PUZZLE, PART, noisy) == 15
    assert "100 of 100" not in capsys.readouterr().out


def test_the_client_hands_in_what_cannot_travel_as_a_wrong_answer(exam, monkeypatch):
    monkeypatch.setattr(submit, "_connected", None)
    submit.connect(Referee(exam).handle)
    assert submit.grade(PUZZLE, PART, lambda **case: torch.zeros(20 * 2**20)) == 0
