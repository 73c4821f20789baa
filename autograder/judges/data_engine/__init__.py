"""Judges of puzzle 3, the data engine. The oracle is nanochat's dataset, dataloader, packing, sft and tasks.common."""

from autograder.judges.data_engine.bookmark import RESUME_STATE
from autograder.judges.data_engine.buffer import BEST_FIT_BUFFER
from autograder.judges.data_engine.dealing import DEAL_DOCUMENTS
from autograder.judges.data_engine.fine_tuning import PACK_SFT, SFT_PROGRESS
from autograder.judges.data_engine.mixing import TASK_MIXTURE
from autograder.judges.data_engine.pretraining import PACK_PRETRAINING
from autograder.judges.data_engine.splits import SPLIT_SHARDS

JUDGES = {
    "split_shards": SPLIT_SHARDS,
    "deal_documents": DEAL_DOCUMENTS,
    "resume_state": RESUME_STATE,
    "best_fit_buffer": BEST_FIT_BUFFER,
    "pack_pretraining": PACK_PRETRAINING,
    "task_mixture": TASK_MIXTURE,
    "pack_sft": PACK_SFT,
    "sft_progress": SFT_PROGRESS,
}
