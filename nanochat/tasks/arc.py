"""ARC: multiple-choice questions from grade-school science exams (arXiv 1803.05457)."""

from typing import Any

from nanochat.tasks.common import Conversation, Task, check_one_of, is_right_letter, load_hub_dataset, render_mc

SUBSETS, SPLITS = ("ARC-Easy", "ARC-Challenge"), ("train", "validation", "test")


class ARC(Task):
    """Three to five choices, with letters (or digits) of their own in each question: a conversation's `letters`."""

    eval_type = "categorical"

    def __init__(self, subset: str, split: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_one_of("ARC subset", subset, SUBSETS)
        check_one_of("ARC split", split, SPLITS)
        self.ds = load_hub_dataset("allenai/ai2_arc", subset, split).shuffle(seed=42)

    def num_examples(self) -> int:
        return len(self.ds)

    def get_example(self, index: int) -> dict[str, Any]:
        row = self.ds[index]
        letters, answer = row["choices"]["label"], row["answerKey"]
        check_one_of("answer of an ARC question", answer, letters)
        messages = [
            {"role": "user", "content": render_mc(row["question"], letters, row["choices"]["text"])},
            {"role": "assistant", "content": answer},
        ]
        return {"messages": messages, "letters": letters}

    def evaluate(self, conversation: Conversation, assistant_response: str) -> bool:
        """Whether the letter is the right one. InputError if it is none of the question's letters."""
        return is_right_letter(conversation, assistant_response)
