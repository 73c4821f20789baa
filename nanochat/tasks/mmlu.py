"""MMLU: multiple-choice questions on 57 school and university subjects (arXiv 2009.03300)."""

from typing import Any

from nanochat.tasks.common import Conversation, Task, check_one_of, is_right_letter, load_hub_dataset, render_mc

SPLITS = {"all": ("auxiliary_train", "dev", "validation", "test"), "auxiliary_train": ("train",)}


class MMLU(Task):
    """Four choices, lettered A to D. A conversation also has its `subject` and `letters`."""

    letters = ("A", "B", "C", "D")
    eval_type = "categorical"

    def __init__(self, subset: str, split: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_one_of("MMLU subset", subset, SPLITS)
        check_one_of(f"split of MMLU {subset}", split, SPLITS[subset])
        self.ds = load_hub_dataset("cais/mmlu", subset, split).shuffle(seed=42)

    def num_examples(self) -> int:
        return len(self.ds)

    def get_example(self, index: int) -> dict[str, Any]:
        row = self.ds[index]
        row = row.get("train", row)  # the subset auxiliary_train wraps its rows
        messages = [
            {"role": "user", "content": render_mc(row["question"], self.letters, row["choices"])},
            {"role": "assistant", "content": self.letters[row["answer"]]},
        ]
        return {"messages": messages, "subject": row["subject"], "letters": self.letters}

    def evaluate(self, conversation: Conversation, assistant_response: str) -> bool:
        """Whether the letter is the right one. InputError if it is none of the question's letters."""
        return is_right_letter(conversation, assistant_response)
