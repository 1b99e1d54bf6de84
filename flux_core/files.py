"""The door through which files come in, and the one through which they go out.

Coming in, whatever is wrong with a file becomes one project error that names it. Going out, a file
is there whole or not at all, and never in the place of one that was not meant.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from .errors import CheckpointError, ConfigError, FileError, FolderBusyError, one_line

#: Bytes of a text file that is read whole; none that a person writes comes near.
LARGEST_TEXT = 64_000_000
#: Bytes of JSON that is read whole: nested emptiness takes thirty times its length in memory.
LARGEST_JSON = 16_000_000
#: Bytes of a tokenizer inside of another file; Mistral's, the largest, takes 19 million.
LARGEST_TOKENIZER = 32_000_000
#: How a text begins in UTF-16, as PowerShell writes it, and what no text begins with.
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
NO_TEXTS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x1f\x8b": "packed by gzip",
    b"PK\x03\x04": "a zip archive",
    b"GGUF": "a GGUF file",
}
#: What programs leave beside files that they have not finished.
UNFINISHED = (".partial", ".incomplete", ".part", ".crdownload", ".download", ".tmp", ".aria2")
#: How names of pictures end; whether one can be read, Pillow decides when it is opened.
PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".jp2", ".heic", ".heif", ".jxl", ".ppm", ".tga"),
)
#: What Windows takes for a device, in any folder.
RESERVED = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10)),
}
#: Bytes of a name that every file system takes, with room for what is put around it.
LONGEST_NAME = 200
_numbers = itertools.count()


@contextmanager
def reading(
    path: str | Path, what: str, error: type[FileError] = CheckpointError
) -> Iterator[None]:
    """Whatever goes wrong inside is one error that names the file.

    Args:
        what: what it is read as: "a GGUF file".
        error: the kind of error that it becomes. Interrupts pass as they are, and errors of the
            system (no such file, no right to read it) with the file's name in them.
    """
    try:
        yield
    except FileError as fault:
        if str(path) in str(fault):
            raise
        raise type(fault)(f"{path}: {fault}") from fault
    except FileNotFoundError as fault:
        raise error(f"{path}: no such file") from fault
    except BaseException as fault:  # a damaged file may fail in any way, of any library
        if not is_failure(fault):
            raise
        raise error(f"{path}: cannot be read as {what} ({reason(fault)})") from fault


def is_failure(fault: BaseException) -> bool:
    """Whether something went wrong, and nobody interrupted it.

    Libraries in Rust panic by an exception that is no ``Exception``, and can only be named.
    """
    return isinstance(fault, Exception) or type(fault).__name__ == "PanicException"


def reason(fault: BaseException) -> str:
    """Why something failed, in words; a key or a number alone says nothing."""
    message = str(getattr(fault, "strerror", None) or fault)
    if isinstance(fault, KeyError):
        return f"{message} is missing"
    if isinstance(fault, RecursionError):
        return "it is nested without end"
    if isinstance(fault, MemoryError):
        return "it asks for more memory than there is"
    return message or type(fault).__name__


def read_text(
    path: str | Path, error: type[FileError] = ConfigError, limit: int = LARGEST_TEXT
) -> str:
    """A text file in UTF-8, with or without its byte-order mark.

    Raises ``error`` naming the file where it is missing, of another encoding, or far too long.
    """
    path = Path(path)
    with reading(path, "a text file", error):
        if path.is_dir():
            raise error(f"{path}: is a folder, expected a file")
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise error(f"{path}: is longer than {limit // 1_000_000} MB, expected a text file")
        other = next((name for start, name in NO_TEXTS.items() if raw.startswith(start)), None)
        if other is not None:
            raise error(f"{path}: is {other}, expected a text file")
        if raw.startswith(UTF_16):
            raise error(f"{path}: is no UTF-8 text but UTF-16: save it as UTF-8")
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as fault:
            raise error(
                f"{path}: is no UTF-8 text (byte {fault.start} is {raw[fault.start]:#04x}): "
                "save it as UTF-8"
            ) from fault


def parse_json(
    text: str | bytes,
    *,
    lenient: bool = False,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """JSON; NaN and infinity, which are none, raise ``ValueError`` unless ``lenient``.

    ``pairs`` makes objects of their keys and values, which may be there twice.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number")

    return json.loads(text, parse_constant=float if lenient else refuse, object_pairs_hook=pairs)


def read_json(
    path: str | Path, what: str, error: type[FileError] = ConfigError, *, lenient: bool = False
) -> Any:
    """What a JSON file holds; errors as ``read_text``, and where it is no JSON."""
    text = read_text(path, error, LARGEST_JSON)
    with reading(path, what, error):
        return parse_json(text, lenient=lenient)


#: Files of a folder that together hold one model.
WEIGHTS = (".safetensors", ".sft", ".gguf", ".json")


def files_of_model(path: Path) -> list[Path]:
    """The files that one model lies in: of a folder those of weights, of an index its shards."""
    if path.is_dir():
        return [file for file in sorted(path.iterdir()) if file.suffix in WEIGHTS]
    if path.name.endswith(".index.json"):
        listed = json.loads(path.read_text(encoding="utf-8")).get("weight_map", {}).values()
        return [path, *(path.parent / name for name in sorted(set(map(str, listed))))]
    return [path]


def is_hidden(path: Path) -> bool:
    """Whether a file's name says that it is not a person's own, or not whole yet."""
    return path.name.startswith(".") or path.name.lower().endswith(UNFINISHED)


def folders_below(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder in order, and the names of its files; what is hidden is left out.

    The page asks for lists whenever it loads, so files are named and not looked at. Links are
    followed, each folder once.
    """
    seen = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(folder), sorted(name for name in files if not is_hidden(Path(name)))


def below(root: Path, name: str) -> Path:
    """The path of a name under a folder, which may have folders in it.

    Names alone decide: a link that stands in the folder is whoever's the folder is, and followed.
    Raises ``ValueError`` for a name that leaves the folder, or that some system reads otherwise.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if not parts or not all(map(is_plain_name, parts)):
        raise ValueError(f"name {one_line(name)!r} leaves the folder {root.name}: not used")
    return root.joinpath(*parts)


def is_plain_name(part: str) -> bool:
    """Whether a part of a name is that of a file or folder, in the folder and on every system."""
    stem = part.split(".")[0].strip().upper()
    odd = part in ("", "..") or ":" in part or stem in RESERVED
    return not odd and part.isprintable() and len(part.encode()) <= LONGEST_NAME


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A name to write under; the file has its own when the block ends, on disk.

    Every writer has a name of its own. Whatever happens inside, nothing is left behind, and what
    was there before stays until then. Who may read it is as before, or as for any new file.
    """
    path = Path(path)
    partial = partial_name(path)
    with naming(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.touch()
            mode = (path if path.exists() else partial).stat().st_mode
            partial.unlink()
            yield partial
            partial.chmod(mode)  # safetensors 0.8 lets nobody but the writer read its files
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """A text in UTF-8 to a file, whole or not at all."""
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_new(path: str | Path, content: bytes) -> bool:
    """Write a file where none is; False, and nothing written, where there is one."""
    path = Path(path)
    partial = partial_name(path)
    with naming(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            sync(partial)
            try:
                os.link(partial, path)  # fails where the name is taken, even at the same moment
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                if path.exists():
                    return False
                partial.replace(path)
            return True
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, partial: Path) -> Iterator[None]:
    """An error of the system names the file that is written, not none (a full disk) and not the
    name that it is written under."""
    try:
        yield
    except OSError as fault:
        if fault.errno is None or fault.filename not in (None, str(partial), partial):
            raise
        raise type(fault)(fault.errno, fault.strerror, str(path)) from fault


def write_numbered(start: Path, suffix: str, content: bytes) -> Path:
    """Write a file beside its elders, under the next free number behind ``start``; who writes at
    the same time gets another one."""
    start.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{start.name}_"
    stems = [p.stem for p in start.parent.iterdir() if p.name.startswith(prefix)]
    taken = [n for n in (stem.removeprefix(prefix) for stem in stems) if n.isdecimal()]
    number = 1 + max(map(int, taken), default=0)
    while not write_new(path := start.with_name(f"{prefix}{number:05}{suffix}"), content):
        number += 1
    return path


def partial_name(path: Path) -> Path:
    """A name beside a file that no other writer has."""
    number = f"{os.getpid()}-{threading.get_ident()}-{next(_numbers)}"
    return path.with_name(f".{path.name[-80:]}.{number}.partial")


def sync(path: Path) -> None:
    """Have the disk keep what was written."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
    """Nobody else has this folder inside the block; a program that dies gives it back.

    Raises ``FolderBusyError`` where somebody has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+b") as file:
        if not lock(file):
            raise FolderBusyError(
                f"{folder}: {what} in this folder already: wait for it, or stop it"
            )
        yield


def lock(file: IO[bytes]) -> bool:
    """Take an open file for this process, until it is closed; False where another has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        # on a file system without locks it is as it was before there were any
        return fault.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True
