"""Checkpoints that a run continues from exactly: it has the losses of a run that was never stopped.

They hold everything that decides the next step: weights, optimizer, data loader, loss scaling, random numbers.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from nanochat.checkpoint_manager import (
    find_last_step,
    load_checkpoint,
    load_weights,
    meta_path,
    model_path,
    read_meta,
    read_tensors,
    save_checkpoint,
    upgrade_config,
)
from nanochat.common import InputError, get_dist_info, print0, write_atomically
from nanochat.gpt import GPT


def save_run(
    checkpoint_dir: Path,
    step: int,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: Any,
    meta: Mapping[str, Any],
) -> None:
    """Save a checkpoint from which `resume_run` goes on exactly. Every rank calls this.

    Beside the files of `save_checkpoint`, to whose meta the model and the number of ranks are added here, a rank writes
    train_<step>_rank<r>.pt: the state of its `loader` (None if there is none), of loss scaling and of random numbers.
    """
    _, rank, _, world_size = get_dist_info()
    state = {
        "loader": None if loader is None else loader.state_dict(),
        "scaler": scaler.state_dict(),
        "random": torch.get_rng_state(),
    }
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(state_path(checkpoint_dir, step, rank), lambda path: torch.save(state, path))
    meta = {"step": step, "model_config": asdict(model.config), "world_size": world_size, **meta}
    # Rank 0 writes the model, by which a checkpoint is found, when all other ranks have written their files.
    if world_size > 1 and rank == 0:
        dist.barrier()
    save_checkpoint(checkpoint_dir, step, model.state_dict(), optimizer.state_dict(), meta, rank)
    if world_size > 1 and rank != 0:
        dist.barrier()
    print0(f"Saved step {step} in {checkpoint_dir}")
    if rank == 0 and (last_step := find_last_step(checkpoint_dir)) > step:
        print0(f"It also holds step {last_step}, of an earlier run, which is what the next stage takes unless told.")


def resume_run(
    checkpoint_dir: Path,
    step: int,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: Any,
) -> None:
    """Restore what `save_run` saved. A checkpoint of the original has no train_ files: `loader` is then left as it is.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        InputError: one is damaged, or the checkpoint is of another model or another number of ranks.
    """
    _, rank, _, world_size = get_dist_info()
    meta = read_meta(meta_path(checkpoint_dir, step))
    config = asdict(model.config)
    if differing := [name for name in config if upgrade_config(meta["model_config"])[name] != config[name]]:
        saved = {name: meta["model_config"].get(name) for name in differing}
        raise InputError(
            f"step {step} in {checkpoint_dir} is of another model, with {saved} where this run has "
            f"{ {name: config[name] for name in differing} }: resume with the settings it was started with."
        )
    if meta.get("world_size", world_size) != world_size:
        raise InputError(
            f"step {step} in {checkpoint_dir} was saved by {meta['world_size']} ranks and this run has {world_size}: "
            "resume with the same number."
        )
    model_data, optimizer_data, _ = load_checkpoint(checkpoint_dir, step, model.get_device(), True, rank)
    load_weights(model, model_data, model_path(checkpoint_dir, step))
    optimizer.load_state_dict(cast(dict[str, Any], optimizer_data))
    if "world_size" in meta:
        state = read_tensors(state_path(checkpoint_dir, step, rank), "cpu")
        if loader is not None:
            loader.load_state_dict(state["loader"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])


def state_path(checkpoint_dir: Path, step: int, rank: int) -> Path:
    return checkpoint_dir / f"train_{step:06d}_rank{rank}.pt"
