"""What an LMS exports, or a folder somebody has filled: the files in it, read without trusting a name or a size.

Nothing is unpacked: a file is read where it lies, and whoever reads it decides where it goes. So a name like
`../../x` leads nowhere; it is turned down all the same, because no LMS writes one.
"""

import contextlib
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autograder.rebuild import MAX_BYTES
from puzzles.catalog import UserError

MAX_FILES = 100_000
MAX_TOTAL_BYTES = 16 * 2**30
_UTF8_NAME, _ENCRYPTED = 0x800, 0x1


@dataclass(frozen=True)
class File:
    """A file of an export. `trouble` says why it is not to be read, "" if it may be."""

    path: PurePosixPath
    trouble: str
    content: Callable[[], bytes]

    def read(self) -> bytes:
        """What is in it. UserError if it is damaged or has gone."""
        try:
            return self.content()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise UserError(f"it cannot be read ({error})") from None


@contextlib.contextmanager
def opened(source: Path) -> Iterator[list[File]]:
    """The files of a zip or a folder, in the order of their names, readable while the block runs. Files that an
    operating system adds are left out. UserError if it is neither, damaged, or absurdly large."""
    if source.is_dir():
        yield _checked(source, [_of_folder(source, path) for path in _walk(source)])
        return
    try:
        with zipfile.ZipFile(source) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if sum(info.file_size for info in members) > MAX_TOTAL_BYTES:
                raise UserError(
                    f"{source} unpacks to more than {MAX_TOTAL_BYTES // 2**30} GiB: that is no class's notebooks."
                )
            yield _checked(source, [_of_zip(archive, info) for info in members])
    except zipfile.BadZipFile as error:
        raise UserError(f"{source} is no zip that can be read ({error}): download it again.") from None
    except OSError as error:
        if error.filename is None or Path(error.filename) != source:
            raise
        raise UserError(f"{source} cannot be read ({error.strerror}): name a zip or a folder.") from None


def _checked(source: Path, files: list[File]) -> list[File]:
    if len(files) > MAX_FILES:
        raise UserError(f"{source} holds {len(files):,} files: that is no class's notebooks.")
    return sorted((file for file in files if not _of_the_system(file.path)), key=lambda file: file.path)


def _of_the_system(path: PurePosixPath) -> bool:
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name in (".DS_Store", "Thumbs.db")


def _walk(folder: Path) -> Iterator[Path]:
    for here, _, names in os.walk(folder):
        yield from (Path(here, name) for name in names)


def _of_folder(source: Path, path: Path) -> File:
    trouble = ""
    if path.is_symlink():
        trouble = "it is a link: put the file itself there"
    elif not path.is_file():
        trouble = "it is no ordinary file"
    elif path.stat().st_size > MAX_BYTES:
        trouble = _too_large(path.stat().st_size)
    name = path.relative_to(source).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        name, trouble = name.encode(errors="replace").decode(), "its name is not UTF-8: rename it"
    return File(PurePosixPath(name), trouble, path.read_bytes)


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> File:
    name, trouble = info.filename, ""
    if not info.flag_bits & _UTF8_NAME and not name.isascii():
        try:
            # tools that write UTF-8 without saying so; zipfile has taken it for the DOS alphabet
            name = name.encode("cp437").decode()
        except ValueError:
            trouble = "its name is not UTF-8: rename it"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":":
        trouble = "its name leads out of the archive: no LMS writes such a name, look at it by hand"
    elif stat.S_ISLNK(info.external_attr >> 16):
        trouble = "it is a link: put the file itself there"
    elif info.flag_bits & _ENCRYPTED:
        trouble = "it is encrypted: ask for it without a password"
    elif info.file_size > MAX_BYTES:
        trouble = _too_large(info.file_size)
    return File(path, trouble, lambda: archive.read(info))


def _too_large(size: int) -> str:
    return f"it is {size / 2**20:.0f} MiB, more than the {MAX_BYTES // 2**20} MiB a notebook may have"
