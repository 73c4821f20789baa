"""Judges of puzzle 4, the inference engine. The oracle is nanochat.engine.

It runs on toys that do what those in the notebook do, so that all it does is plain data: what a cache holds after every
step, the signs a row emits, a log of every forward pass, draw and column.
"""

from autograder.judges.inference_engine.cache import KV_CACHE
from autograder.judges.inference_engine.loop import GENERATE, GENERATE_BATCH
from autograder.judges.inference_engine.rows import TOOL_STATE_MACHINE
from autograder.judges.inference_engine.sampling import SAMPLE_NEXT_TOKEN

JUDGES = {
    "sample_next_token": SAMPLE_NEXT_TOKEN,
    "kv_cache": KV_CACHE,
    "tool_state_machine": TOOL_STATE_MACHINE,
    "generate": GENERATE,
    "generate_batch": GENERATE_BATCH,
}
