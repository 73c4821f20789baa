"""HumanEval: complete a Python function from its signature and docstring, judged by unit tests (arXiv 2107.03374)."""

import re
from typing import Any

from nanochat.tasks.common import Conversation, Task, load_hub_dataset

CODE_BLOCK = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)


def extract_imports(prompt: str) -> str:
    """The import lines at the top of a prompt, unindented; comments and blank lines among them are skipped."""
    imports = []
    for line in map(str.strip, prompt.split("\n")):
        if line.startswith(("import ", "from ")):
            imports.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(imports)


def extract_program(completion: str) -> str:
    """The first fenced code block (bare or python) of an answer, or the whole answer if there is none; stripped."""
    match = CODE_BLOCK.search(completion)
    return (match[1] if match else completion).strip()


class HumanEval(Task):
    """A conversation also has the `entry_point` (name of the function) and the `test` that defines check(function)."""

    eval_type = "generative"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ds = load_hub_dataset("openai/openai_humaneval", "openai_humaneval", "test").shuffle(seed=42)

    def num_examples(self) -> int:
        return len(self.ds)

    def get_example(self, index: int) -> dict[str, Any]:
        row = self.ds[index]
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": f"{row['prompt']}\n{row['canonical_solution']}"},
        ]
        return {"messages": messages, "entry_point": row["entry_point"], "test": row["test"]}

    def evaluate(self, conversation: Conversation, assistant_response: str) -> bool:
        """Whether the answer's program passes the tests, run by `execute_code`.

        The prompt's imports come first: an answer often leaves them out.
        """
        from nanochat.execution import execute_code

        program = "\n\n".join(
            [
                extract_imports(conversation["messages"][0]["content"]),
                extract_program(assistant_response),
                conversation["test"],
                f"check({conversation['entry_point']})",
            ]
        )
        return execute_code(program).success
