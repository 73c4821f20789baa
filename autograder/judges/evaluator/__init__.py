"""Judges of puzzle 6, the evaluator. The oracle is nanochat.core_eval and nanochat.base_eval.

What is inside of a larger function there (the cut to the context, the score of one option, the accuracy over ranks) is
asked of that function, with stand-ins for what it is not asked about.
"""

from autograder.judges.evaluator.batching import BATCH_OPTIONS, CROP_TO_CONTEXT
from autograder.judges.evaluator.metric import CORE_METRIC, REDUCE_ACCURACY
from autograder.judges.evaluator.prompts import CHOOSE_FEWSHOT, RENDER_PROMPTS
from autograder.judges.evaluator.spans import ANSWER_SPANS
from autograder.judges.evaluator.verdicts import LOSS_CHOICE

JUDGES = {
    "choose_fewshot": CHOOSE_FEWSHOT,
    "render_prompts": RENDER_PROMPTS,
    "answer_spans": ANSWER_SPANS,
    "crop_to_context": CROP_TO_CONTEXT,
    "batch_options": BATCH_OPTIONS,
    "loss_choice": LOSS_CHOICE,
    "reduce_accuracy": REDUCE_ACCURACY,
    "core_metric": CORE_METRIC,
}
