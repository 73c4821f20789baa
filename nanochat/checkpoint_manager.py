"""Checkpoints on disk: a directory with model_<step>.pt, meta_<step>.json and one optim_<step>_rank<r>.pt a rank."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat import recipe
from nanochat.common import InputError, get_base_dir, write_atomically
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import get_tokenizer

logger = logging.getLogger(__name__)

# Where under the base directory each stage of training keeps its models, one directory a tag (such as d12).
SOURCE_DIRS = {"base": "base_checkpoints", "sft": "chatsft_checkpoints", "rl": "chatrl_checkpoints"}


class WeightsError(InputError, RuntimeError):
    """Weights that do not fit their model. Also a RuntimeError, which is what PyTorch raises for them."""


def save_checkpoint(
    checkpoint_dir: str | Path,
    step: int,
    model_data: Mapping[str, torch.Tensor],
    optimizer_data: Mapping[str, Any] | None,
    meta_data: Mapping[str, Any],
    rank: int = 0,
) -> None:
    """Write the checkpoint of `step`: every rank its optimizer state (if any), rank 0 also the model and the meta.

    Each file appears complete or not at all, and the model, by which a checkpoint is found, comes last: a run killed
    while saving leaves nothing that would be loaded. `meta_data` must be JSON, with the model's configuration under
    "model_config".
    """
    checkpoint_dir = Path(checkpoint_dir)
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    if optimizer_data is not None:
        write_atomically(optimizer_path(checkpoint_dir, step, rank), lambda path: torch.save(optimizer_data, path))
    if rank == 0:
        meta_json = json.dumps(meta_data, indent=2)
        write_atomically(meta_path(checkpoint_dir, step), lambda path: path.write_text(meta_json, encoding="utf-8"))
        write_atomically(model_path(checkpoint_dir, step), lambda path: torch.save(model_data, path))


def load_checkpoint(
    checkpoint_dir: str | Path, step: int, device: torch.device | str, load_optimizer: bool = False, rank: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None, dict[str, Any]]:
    """Read (model state dict, optimizer state or None, meta) of `step`, tensors on `device`.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        InputError: a file is damaged, or holds more than tensors and plain data.
    """
    checkpoint_dir = Path(checkpoint_dir)
    model_data = read_tensors(model_path(checkpoint_dir, step), device)
    optimizer_data = read_tensors(optimizer_path(checkpoint_dir, step, rank), device) if load_optimizer else None
    return model_data, optimizer_data, read_meta(meta_path(checkpoint_dir, step))


def build_model(
    checkpoint_dir: str | Path, step: int, device: torch.device | str, phase: str, tokenizer: Any = None
) -> tuple[GPT, Any, dict[str, Any]]:
    """Build the model of a checkpoint: (model, tokenizer, meta), in "train" or "eval" mode, on `device`.

    Without a `tokenizer` it is the base directory's.

    Weights are copied into the dtypes this machine computes in, whatever they were stored in (a bf16 embedding
    becomes float32 where there is no bf16). Older checkpoints load as what they were: see `upgrade_config` and
    `upgrade_state`.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        InputError: a file is damaged, the phase is unknown, or the tokenizer has another vocabulary than the model.
        WeightsError: the weights do not fit the configuration, such as a missing key.
    """
    if phase not in ("train", "eval"):
        raise InputError(f'phase must be "train" or "eval", got "{phase}".')
    model_data, _, meta_data = load_checkpoint(checkpoint_dir, step, "cpu")
    if "model_config" not in meta_data:
        raise InputError(f'{meta_path(Path(checkpoint_dir), step)} has no "model_config": add it to the meta you save.')
    config = GPTConfig(**upgrade_config(meta_data["model_config"]))
    tokenizer = tokenizer or get_tokenizer()
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens but the model in {checkpoint_dir} has "
            f"{config.vocab_size}: use the tokenizer the model was trained with."
        )
    model = recipe.build_model(config, device)  # initialised, for the rotary tables (not stored) and the dtypes
    load_weights(model, model_data, model_path(Path(checkpoint_dir), step))
    return model.train(phase == "train"), tokenizer, meta_data


def load_weights(model: GPT, model_data: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy the weights read from `path` into `model`. Raises WeightsError with the first that is missing or misfit."""
    try:
        model.load_state_dict(upgrade_state(model_data, model.config), strict=True)
    except RuntimeError as error:
        first_problem = str(error).splitlines()[1].strip()
        raise WeightsError(
            f"the weights in {path} do not fit the model ({first_problem[:300]}): "
            "the file belongs to another model than the meta file or the command line say."
        ) from error


def upgrade_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Configurations from before sliding windows have no pattern: every layer was long."""
    return {"window_pattern": "L", **model_config}


def upgrade_state(model_data: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Drop the prefix torch.compile puts on names, and give residual scalars that came later their neutral values."""
    return {
        "resid_lambdas": torch.ones(config.n_layer),
        "x0_lambdas": torch.zeros(config.n_layer),
        **{name.removeprefix("_orig_mod."): tensor for name, tensor in model_data.items()},
    }


def load_model(
    source: str, device: torch.device | str, phase: str, model_tag: str | None = None, step: int | None = None
) -> tuple[GPT, Any, dict[str, Any]]:
    """Build a model of the stage `source` ("base", "sft" or "rl"); by default the largest one at its last step."""
    return load_model_from_dir(source_dir(source), device, phase, model_tag, step)


def load_model_from_dir(
    checkpoints_dir: str | Path,
    device: torch.device | str,
    phase: str,
    model_tag: str | None = None,
    step: int | None = None,
) -> tuple[GPT, Any, dict[str, Any]]:
    """Build a model from a directory of tagged checkpoint directories; what is not given is guessed and logged."""
    checkpoint_dir, step = locate(checkpoints_dir, model_tag, step)
    logger.info("loading the model of step %d in %s", step, checkpoint_dir)
    return build_model(checkpoint_dir, step, device, phase)


def load_optimizer_state(
    source: str, device: torch.device | str, rank: int, model_tag: str | None = None, step: int | None = None
) -> dict[str, Any] | None:
    """The optimizer state saved with a model of `source` by `rank`, or None if none was saved."""
    checkpoint_dir, step = locate(source_dir(source), model_tag, step)
    path = optimizer_path(checkpoint_dir, step, rank)
    return read_tensors(path, device) if path.exists() else None


def find_largest_model(checkpoints_dir: str | Path) -> str:
    """The tag d<depth> (anything may follow) of the largest depth; without any, the directory changed last.

    Raises:
        FileNotFoundError: there is no directory in `checkpoints_dir`.
    """
    checkpoints_dir = Path(checkpoints_dir)
    tags = sorted(path.name for path in checkpoints_dir.iterdir() if path.is_dir()) if checkpoints_dir.is_dir() else []
    if not tags:
        raise FileNotFoundError(f"no model in {checkpoints_dir}: train one first, or check the base directory.")
    depths = {tag: int(match[1]) for tag in tags if (match := re.match(r"d(\d+)", tag))}
    if depths:
        return max(depths, key=depths.__getitem__)
    return max(tags, key=lambda tag: (checkpoints_dir / tag).stat().st_mtime)


def find_last_step(checkpoint_dir: str | Path) -> int:
    """The largest step a model was saved at.

    Raises:
        FileNotFoundError: there is no model file in `checkpoint_dir`.
    """
    names = [path.name for path in Path(checkpoint_dir).glob("model_*.pt")]
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"model_(\d+)\.pt", name))]
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {checkpoint_dir}: check the model tag, or train the model first.")
    return max(steps)


def locate(checkpoints_dir: str | Path, model_tag: str | None, step: int | None) -> tuple[Path, int]:
    """The checkpoint directory and step meant, guessing what is None."""
    checkpoint_dir = Path(checkpoints_dir) / (find_largest_model(checkpoints_dir) if model_tag is None else model_tag)
    return checkpoint_dir, find_last_step(checkpoint_dir) if step is None else step


def source_dir(source: str) -> Path:
    if source not in SOURCE_DIRS:
        raise InputError(f'unknown model source "{source}": choose one of {", ".join(SOURCE_DIRS)}.')
    return get_base_dir() / SOURCE_DIRS[source]


def model_path(checkpoint_dir: Path, step: int) -> Path:
    return checkpoint_dir / f"model_{step:06d}.pt"


def meta_path(checkpoint_dir: Path, step: int) -> Path:
    return checkpoint_dir / f"meta_{step:06d}.json"


def optimizer_path(checkpoint_dir: Path, step: int, rank: int) -> Path:
    return checkpoint_dir / f"optim_{step:06d}_rank{rank}.pt"


def read_tensors(path: Path, device: torch.device | str) -> dict[str, Any]:
    check_exists(path)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file can break the unpickler anywhere: KeyError, UnicodeDecodeError...
        raise InputError(
            f"{path} is truncated or damaged, or holds more than tensors and plain data: "
            "copy it again or load another step."
        ) from error


def read_meta(path: Path) -> dict[str, Any]:
    check_exists(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is truncated or damaged: copy it again or load another step.") from error


def check_exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: check the directory, the model tag and the step.")
