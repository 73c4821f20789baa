"""Which tasks the chat stages train and are judged on: the real data sets, or the toy world's."""

from collections.abc import Callable
from dataclasses import dataclass

from nanochat.chat_eval import CHAT_TASKS
from nanochat.tasks.common import Task, TaskMixture
from nanochat.tasks.gsm8k import GSM8K
from nanochat.tasks.mmlu import MMLU
from nanochat.tasks.smoltalk import SmolTalk
from nanochat.toyworld.tasks import ToyArithmetic, ToyChat, ToyChoice


@dataclass(frozen=True)
class Curriculum:
    """The tasks of each stage, made when asked for: making a real one may download it.

    `sft_train(choice_epochs, arithmetic_epochs)` oversamples multiple choice and arithmetic.
    `chat_tasks`: name -> (makes the task, accuracy of a random guess).
    """

    sft_train: Callable[[int, int], Task]
    sft_val: Callable[[], Task]
    rl_train: Callable[[], Task]
    rl_val: Callable[[], Task]
    chat_tasks: dict[str, tuple[Callable[[], Task], float]]
    prompts: tuple[str, ...]  # to sample from while pretraining


def repeat(times: int, make_task: Callable[[], Task]) -> list[Task]:
    """One task several times over; it is not even made (downloaded) for zero times."""
    return [make_task()] * times if times > 0 else []


REAL = Curriculum(
    sft_train=lambda choice_epochs, arithmetic_epochs: TaskMixture(
        [
            SmolTalk("train"),
            *repeat(choice_epochs, lambda: MMLU("all", "auxiliary_train")),
            *repeat(arithmetic_epochs, lambda: GSM8K("main", "train")),
        ]
    ),
    sft_val=lambda: TaskMixture([SmolTalk("test"), MMLU("all", "test"), GSM8K("main", "test")]),
    rl_train=lambda: GSM8K("main", "train"),
    rl_val=lambda: GSM8K("main", "test"),
    chat_tasks=CHAT_TASKS,
    prompts=(
        "The largest planet of the solar system is",
        "Water is made of hydrogen and",
        "The opposite of big is",
        "Three times four is",
        "In spring, the trees",
        "My favourite book is about",
    ),
)

TOY = Curriculum(
    sft_train=lambda choice_epochs, arithmetic_epochs: TaskMixture(
        [
            ToyChat("train"),
            *repeat(choice_epochs, lambda: ToyChoice("train")),
            *repeat(arithmetic_epochs, lambda: ToyArithmetic("train")),
        ]
    ),
    sft_val=lambda: TaskMixture([ToyChat("test"), ToyChoice("test"), ToyArithmetic("test")]),
    rl_train=lambda: ToyArithmetic("train", "stories"),  # fine-tuning has not seen such questions
    rl_val=lambda: ToyArithmetic("test", "stories"),
    chat_tasks={
        "ToyChat": (lambda: ToyChat("test"), 0.1),
        "ToyChoice": (lambda: ToyChoice("test"), 0.25),
        "ToyArithmetic": (lambda: ToyArithmetic("test"), 0.0),
    },
    prompts=("Ada lives in", "The colour of the drogo is", "3 plus 4 is", "People visit Elmford for"),
)
