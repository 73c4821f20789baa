"""Whose is it? What an export says about a file's author, against the class list. Nobody is guessed: a clue fits one
student or it fits none."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autograder.roster import Student

# A shorter id in the middle of a file name is as likely a number of something else.
MIN_CHARACTERS = 3


@dataclass(frozen=True)
class Clue:
    """One thing that is said about an author. kind: id, LMS id, email, name, or "file name", which may hold any of
    them and more."""

    kind: str
    text: str


@dataclass(frozen=True)
class Fit:
    """The students a clue fits, in order of ids, and what they were recognised by."""

    students: tuple[str, ...]
    by: str


class People:
    """The class list, by everything a student may be known by."""

    def __init__(self, students: Sequence[Student]) -> None:
        self._ids = {each.id for each in students}
        self._known: dict[str, dict[str, set[str]]] = {"id": {}, "LMS id": {}, "email": {}, "name": {}}
        for each in students:
            self._add("id", each.id, each.id)
            self._add("LMS id", each.lms_user_id, each.id)
            self._add("email", each.email, each.id)
            if each.first_name and each.last_name:
                self._add("name", f"{each.first_name}{each.last_name}", each.id)
                self._add("name", f"{each.last_name}{each.first_name}", each.id)

    def _add(self, kind: str, text: str, student: str) -> None:
        if text:
            self._known[kind].setdefault(_plain(text), set()).add(student)

    def find(self, clues: Iterable[Clue]) -> Fit:
        """Whom the first clue that fits anybody fits; nobody if none does."""
        for clue in clues:
            kinds = list(self._known) if clue.kind == "file name" else [clue.kind]
            if "id" in kinds and clue.text in self._ids:
                return Fit((clue.text,), "id")
            for kind in kinds:
                if fits := self._known[kind].get(_plain(clue.text)):
                    return Fit(tuple(sorted(fits)), kind)
            if clue.kind == "file name":
                for kind in kinds:
                    if fits := self._within(kind, clue.text):
                        return Fit(tuple(sorted(fits)), f"{kind} in the file name")
        return Fit((), "")

    def _within(self, kind: str, text: str) -> set[str]:
        """The students of whom an identifier stands in a text as whole words."""
        words = [_plain(word) for word in re.split(r"[\W_]+", text) if word]
        runs = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, min(len(words), i + 8) + 1)}
        long_enough = [run for run in runs if len(run) >= MIN_CHARACTERS]
        return set().union(*(self._known[kind].get(run, set()) for run in long_enough))


def _plain(text: str) -> str:
    """Letters and digits only, without case and accents: how an LMS writes a name into a file name."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in folded if character.isalnum())
