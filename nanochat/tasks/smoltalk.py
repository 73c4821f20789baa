"""SmolTalk: general conversations for fine-tuning, the small-model edition (arXiv 2502.02737)."""

from typing import Any

from nanochat.common import InputError
from nanochat.tasks.common import Task, check_one_of, load_hub_dataset

SPLITS = ("train", "test")


class SmolTalk(Task):
    """An optional system message, then user and assistant in turn, all of them text. For training only."""

    def __init__(self, split: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_one_of("SmolTalk split", split, SPLITS)
        self.ds = load_hub_dataset("HuggingFaceTB/smol-smoltalk", "default", split).shuffle(seed=42)

    def num_examples(self) -> int:
        return len(self.ds)

    def get_example(self, index: int) -> dict[str, Any]:
        messages = self.ds[index]["messages"]
        has_system = bool(messages) and messages[0]["role"] == "system"
        turns = messages[1:] if has_system else messages
        if len(turns) < 2:
            raise InputError(f"SmolTalk conversation {index} has no question and answer")
        for i, message in enumerate(turns):
            role = "assistant" if i % 2 else "user"
            if message["role"] != role or not isinstance(message["content"], str):
                raise InputError(f"turn {i} of SmolTalk conversation {index} must be text of the {role}")
        return {"messages": messages}
