"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path

from puzzles.catalog import UserError

REMEDY = "make room there, or make the folder writable (NANOCHAT_WORK can name another one), and do the same again."


def write(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, folders included: a reader sees the old file or the new one. UserError if the disk
    refuses; the old file is then still there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # whatever kept it from being written may keep it from being removed
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell a user whose disk is full or closed."""
    return UserError(f"{path} cannot be written ({error.strerror or error}): {REMEDY}")
