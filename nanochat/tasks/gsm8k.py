r"""GSM8K: grade-school word problems whose solutions call a calculator (arXiv 2110.14168).

A solution reads "3+4 = <<3+4=7>>7 boats.\n#### 7": between double angle brackets an expression and its value, which
become a Python call and its output, and after #### the final answer.
"""

import re
from typing import Any

from nanochat.common import InputError
from nanochat.tasks.common import Conversation, Task, check_one_of, load_hub_dataset

SUBSETS, SPLITS = ("main", "socratic"), ("train", "test")
CALCULATION = re.compile(r"<<([^>]+)>>")
FINAL_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def extract_answer(completion: str) -> str | None:
    """The number after the first "#### " without its commas, as text; None if there is none."""
    match = FINAL_ANSWER.search(completion)
    return match[1].replace(",", "") if match else None


def split_solution(solution: str) -> list[dict[str, str]]:
    """The parts of a solution: text, and for every <<expression=value>> a python and a python_output part."""
    parts = []
    # With a group in the pattern, re.split alternates what is outside (even places) and the group (odd places).
    for i, piece in enumerate(CALCULATION.split(solution)):
        if i % 2 == 0:
            parts.append({"type": "text", "text": piece})
        else:
            expression, equals, value = piece.rpartition("=")
            parts.append({"type": "python", "text": expression if equals else piece})
            parts.append({"type": "python_output", "text": value if equals else ""})
    return parts


class GSM8K(Task):
    """Answers count as right when the number after #### is the same text as in the solution, commas aside."""

    eval_type = "generative"

    def __init__(self, subset: str, split: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_one_of("GSM8K subset", subset, SUBSETS)
        check_one_of("GSM8K split", split, SPLITS)
        self.ds = load_hub_dataset("openai/gsm8k", subset, split).shuffle(seed=42)

    def num_examples(self) -> int:
        return len(self.ds)

    def get_example(self, index: int) -> dict[str, Any]:
        row = self.ds[index]
        messages = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": split_solution(row["answer"])},
        ]
        return {"messages": messages}

    def evaluate(self, conversation: Conversation, assistant_response: str) -> int:
        """1 if the final answers are equal, also if neither has one; else 0."""
        if not isinstance(assistant_response, str):
            raise InputError(f"the answer must be text, not {type(assistant_response).__name__}")
        solution = conversation["messages"][-1]["content"][-1]["text"]
        return int(extract_answer(assistant_response) == extract_answer(solution))

    def reward(self, conversation: Conversation, assistant_response: str) -> float:
        """Reward of an answer in reinforcement learning: 1.0 if it is right, else 0.0."""
        return float(self.evaluate(conversation, assistant_response))
