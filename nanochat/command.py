"""What the commands share: flags, start-up, and errors that are one sentence and exit code 2."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from filelock import FileLock

from nanochat import checkpoint_manager
from nanochat.common import (
    autodetect_device_type,
    compute_cleanup,
    compute_init,
    get_base_dir,
    get_dist_info,
)
from nanochat.curriculum import REAL, TOY, Curriculum
from nanochat.gpt import GPT
from nanochat.toyworld import load_toy, write_world
from nanochat.toyworld.recipe import RECIPE

BAD_INPUT, INTERRUPTED = 2, 130


# Flags


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command, with the flag all of them have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m nanochat.scripts.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=name)
    parser.add_argument(
        "--toy",
        action="store_true",
        help="use the toy world, which needs no download, and its settings; "
        "everything is in NANOCHAT_BASE_DIR if that is set, else in `toy` under the usual base directory",
    )
    return parser


def add_device_type(parser: argparse.ArgumentParser, choices: Sequence[str] | None = None) -> None:
    parser.add_argument("--device-type", default="", choices=choices, help="cuda, mps or cpu; empty: the best there is")


def add_model_choice(parser: argparse.ArgumentParser, **source: Any) -> None:
    """The flags that choose a checkpoint; `source` are the options of --source."""
    parser.add_argument("-i", "--source", help="stage of training: base, sft or rl", **source)
    parser.add_argument("-g", "--model-tag", help="directory of the checkpoint, such as d12; none: the largest model")
    parser.add_argument("-s", "--step", type=int, help="step of the checkpoint; none: the last one")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; with --toy the defaults are those of `nanochat.toyworld.recipe`."""
    if parser.parse_known_args(argv)[0].toy:
        parser.set_defaults(**RECIPE.get(parser.get_default("command"), {}))
    return parser.parse_args(argv)


# Start-up


def start(args: argparse.Namespace, needs_data: bool = True) -> torch.device:
    """Prepare a run: the toy world if asked for, then seed, device and process group; returns the device."""
    if args.toy:
        use_toy_world(needs_data)
    return compute_init(args.device_type or autodetect_device_type())[-1]


def use_toy_world(needs_data: bool = True) -> None:
    """Make the toy world's directory the base directory and, if its data are needed, write the world into it.

    The directory is NANOCHAT_BASE_DIR if that is set, else `toy` under the usual base directory.
    """
    os.environ.setdefault("NANOCHAT_BASE_DIR", str(get_base_dir() / "toy"))
    base_dir = get_base_dir()
    if needs_data:
        with FileLock(base_dir / "toyworld.lock"):
            write_world(base_dir)


def curriculum(args: argparse.Namespace) -> Curriculum:
    """The tasks of the chat stages."""
    return TOY if args.toy else REAL


def load_model(args: argparse.Namespace, device: torch.device) -> tuple[GPT, Any, dict[str, Any]]:
    """The (model, tokenizer, meta) that the flags of `add_model_choice` choose, for evaluation.

    With --toy the model that comes with the package stands in where none has been trained.
    """
    trained = get_base_dir() / checkpoint_manager.SOURCE_DIRS.get(args.source, "")
    if args.toy and not trained.exists():
        return load_toy(args.source, device)
    return checkpoint_manager.load_model(args.source, device, "eval", args.model_tag, args.step)


# Errors


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit: 0, what it returns, 2 for bad input, 130 for Ctrl-C.

    An error that this package raises is a sentence for the user and is shown alone, as is one of the file system;
    any other is a bug, and keeps its traceback.
    """
    _, rank, _, world_size = get_dist_info()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
    try:
        code = main() or 0
        compute_cleanup()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error{f' on rank {rank}' if world_size > 1 else ''}: {message}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)


def explain(error: Exception) -> str | None:
    """The sentence to show for an error, None if it is a bug."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}: check the path, its permissions and the space left (NANOCHAT_BASE_DIR)."
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = (frames[-1] if frames else "").partition(".")[0]
    return str(error) if isinstance(error, OSError) or package == "nanochat" else None
