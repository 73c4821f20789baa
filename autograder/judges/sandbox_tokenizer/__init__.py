"""Judges of puzzle 7, the sandbox and the tokenizer.

The oracle of the tokenizer's parts and of the verdict on a program is nanochat. What a program gets from a sandbox is
written down beside the program: no exam runs a hostile program outside of a submission's own sandbox. A test sees to it
that nanochat's sandbox gives these programs the same.
"""

from autograder.judges.sandbox_tokenizer.clock import SUPERVISE
from autograder.judges.sandbox_tokenizer.conversations import RENDER_CONVERSATION, RENDER_FOR_COMPLETION
from autograder.judges.sandbox_tokenizer.verdicts import EXECUTE_CODE
from autograder.judges.sandbox_tokenizer.vocabularies import TOKENIZER, TRAIN_TOKENIZER
from autograder.judges.sandbox_tokenizer.walls import START

JUDGES = {
    "train_tokenizer": TRAIN_TOKENIZER,
    "tokenizer": TOKENIZER,
    "render_conversation": RENDER_CONVERSATION,
    "render_for_completion": RENDER_FOR_COMPLETION,
    "start": START,
    "supervise": SUPERVISE,
    "execute_code": EXECUTE_CODE,
}
