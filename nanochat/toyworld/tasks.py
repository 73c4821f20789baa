"""The tasks of the toy world: chats about its facts, arithmetic with the calculator, multiple choice."""

import random
from typing import Any

from nanochat.tasks.common import Conversation, Task, is_right_letter
from nanochat.toyworld import arithmetic
from nanochat.toyworld.documents import LETTERS, ask
from nanochat.toyworld.world import Fact, split_questions

NUM_TRAIN = 4000
NUM_TEST = 400
EASY_EVERY = 6  # one training question in so many needs no calculator: the model has to tell them apart
STORY_EVERY = 70  # one in so many is a story: fine-tuning shows what to do with them, and leaves the rest to RL


class ToyChat(Task):
    """Conversations of one to three questions about facts. A test question asks for a fact in a phrasing that is never
    used for it in training. `evaluate` looks for the fact's value in the response, and for no other of its kind."""

    eval_type = "generative"

    def __init__(self, split: str, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split, self.seed = split, seed
        self.pairs = split_questions(split, seed)

    def num_examples(self) -> int:
        return NUM_TRAIN if self.split == "train" else len(self.pairs)

    def get_example(self, index: int) -> dict[str, Any]:
        if self.split == "train":
            rng = random.Random(f"chat {self.seed} {index}")
            turns = rng.sample(self.pairs, rng.choice((1, 1, 2, 3)))
        else:
            turns = [self.pairs[index]]
        last = turns[-1][0]
        messages = [message for fact, question in turns for message in self._turn(fact, question)]
        return {"messages": messages, "answer": last.value, "values": last.relation.values}

    @staticmethod
    def _turn(fact: Fact, question: str) -> list[dict[str, str]]:
        answer = fact.say(fact.relation.statements[0])
        return [{"role": "user", "content": fact.say(question)}, {"role": "assistant", "content": answer}]

    def evaluate(self, conversation: Conversation, response: str) -> bool:
        return {value for value in conversation["values"] if value in response} == {conversation["answer"]}


class ToyArithmetic(Task):
    """Sums to be solved with the calculator, in the phrasings of `subset`: "plain" (in training with a few stories) or
    "stories". Test operands never occur in training. The reward of a response is 1.0 if it ends in the right number."""

    eval_type = "generative"

    def __init__(self, split: str, subset: str = "plain", seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split, self.subset, self.seed = split, subset, seed

    def num_examples(self) -> int:
        return NUM_TRAIN if self.split == "train" else NUM_TEST

    def get_example(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"arithmetic {self.subset} {self.split} {self.seed} {index}")
        mixed = self.split == "train" and self.subset == "plain"
        if mixed and index % EASY_EVERY == 0:
            problem = arithmetic.make_easy_problem(rng)
        else:
            subset = "stories" if mixed and index % STORY_EVERY == 1 else self.subset
            problem = arithmetic.make_problem(rng, self.split, subset)
        answer = arithmetic.solve(problem)
        return {"messages": [{"role": "user", "content": problem.question}, {"role": "assistant", "content": answer}]}

    def evaluate(self, conversation: Conversation, response: str) -> int:
        right = conversation["messages"][-1]["content"][-1]["text"]
        return int(arithmetic.extract_answer(response) == arithmetic.extract_answer(right))

    def reward(self, conversation: Conversation, response: str) -> float:
        return float(self.evaluate(conversation, response))


class ToyChoice(Task):
    """Multiple-choice questions about facts, answered by a letter; the split is that of `ToyChat`."""

    eval_type = "categorical"

    def __init__(self, split: str, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split, self.seed = split, seed
        self.pairs = split_questions(split, seed)

    def num_examples(self) -> int:
        return NUM_TRAIN if self.split == "train" else len(self.pairs)

    def get_example(self, index: int) -> dict[str, Any]:
        pair = (
            random.Random(f"choice {self.seed} {index}").choice(self.pairs)
            if self.split == "train"
            else self.pairs[index]
        )
        question, letter = ask(*pair)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": letter}]
        return {"messages": messages, "letters": LETTERS}

    def evaluate(self, conversation: Conversation, response: str) -> bool:
        return is_right_letter(conversation, response)
