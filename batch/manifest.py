"""What is done, in a file that is only ever added to: one JSON object a line, on disk before a job
counts as done.

A crash may tear the last line, which is cut away when the file is opened again. Anything else that
is wrong with it means that somebody else wrote there, and nothing is added.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flux_core import __version__
from flux_core.errors import ConfigError
from flux_core.files import parse_json, reading

NAME, VERSION, BEGIN = "manifest.jsonl", 1, b'{"manifest": '
#: Bytes of one line: a job's values and its pictures.
LONGEST_LINE = 64_000_000
ID = re.compile(r"[0-9a-f]{24}")
#: A picture's path below the folder; what a name has of its own cannot leave it.
FILE = re.compile(r"pictures/[^/\\.]+/[^/\\]+")


class ManifestError(ConfigError):
    """A manifest cannot be used; the message names it and the line."""


class Manifest:
    """The manifest of a folder, open for adding; a ``private`` one stays so, since what was drawn
    otherwise has texts in it.

    Raises ``ManifestError`` where the file is none of ours; ``OSError`` where it cannot be written.
    """

    def __init__(self, folder: Path, private: bool = False) -> None:
        self.path, self.private = folder / NAME, private
        self.reader: IO[bytes] | None = None
        self.file = self.path.open("a+b", buffering=0)
        try:
            self.size = self.cut_torn_line()
            if not self.size:
                begin = {"manifest": VERSION, "fluxfit": __version__}
                self.add(begin | ({"private": True} if private else {}))
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        self.file.close()
        if self.reader is not None:
            self.reader.close()

    def cut_torn_line(self) -> int:
        """Drop what stands behind the last whole line; the bytes that stay."""
        size = whole = os.fstat(self.file.fileno()).st_size
        while whole > 0:
            start = max(0, whole - 65536)
            self.file.seek(start)
            newline = self.file.read(whole - start).rfind(b"\n")
            whole = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if whole < size:
            self.refuse_foreign(whole)
            self.file.truncate(whole)
        return whole

    def refuse_foreign(self, whole: int) -> None:
        """Raise before anything is cut from a file that no manifest begins."""
        self.file.seek(0)
        start = self.file.read(len(BEGIN))
        begins = start.startswith(BEGIN) if whole else BEGIN.startswith(start)
        if not begins:
            raise ManifestError(
                f"{self.path}: line 1: expected the first line of a manifest: {changed(1)}"
            )

    def add(self, entry: dict[str, Any]) -> int:
        """Add a line, on disk when this returns; where it begins.

        Raises ``OSError``, and leaves the file as it was, where there is no room.
        """
        offset, line = self.size, encoded(entry)
        try:
            written = 0
            while written < len(line):
                written += self.file.write(line[written:]) or 0
            os.fsync(self.file.fileno())
        except BaseException:
            self.file.truncate(offset)
            raise
        self.size += len(line)
        return offset

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Where each line about a job begins, and what it says; raises ``ManifestError``."""
        with open(self.path, "rb") as file, reading(self.path, "a manifest", ManifestError):
            offset = number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                entry = self.checked(line, number)
                if number > 1:
                    yield offset, entry
                offset += len(line)

    def checked(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}: line {number}"
        try:
            entry = parse_json(line)
        except (ValueError, RecursionError) as fault:
            raise ManifestError(f"{where} is no JSON: {changed(number)}") from fault
        if not isinstance(entry, dict):
            raise ManifestError(f"{where}: expected an object: {changed(number)}")
        if number == 1:
            if entry.get("manifest") != VERSION:
                raise ManifestError(
                    f"{where}: expected the first line of a manifest of version {VERSION}: "
                    f"{changed(number)}"
                )
            if bool(entry.get("private")) != self.private:
                how = "without" if self.private else "with"
                raise ManifestError(
                    f"{self.path}: was begun {how} --private: go on so, or choose another folder"
                )
        elif not is_entry(entry):
            raise ManifestError(
                f"{where}: expected a job with its files or its error: {changed(number)}"
            )
        return entry

    def at(self, offset: int) -> dict[str, Any]:
        """The entry that begins there."""
        if self.reader is None:
            self.reader = self.path.open("rb")
        self.reader.seek(offset)
        return json.loads(self.reader.readline())


def changed(number: int) -> str:
    """What to do about a line that is none of ours."""
    if number == 1:
        return "somebody else wrote it: choose another folder"
    return "somebody else wrote it: take this line out; pictures that no line names are adopted"


def encoded(entry: dict[str, Any]) -> bytes:
    """An entry as a line; what is no Unicode stands in it as JSON escapes it."""
    return json.dumps(entry, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def is_entry(entry: dict[str, Any]) -> bool:
    """Whether a line says what became of a job: files with a hash for each, or an error."""
    files, pixels = entry.get("files"), entry.get("pixels", [])
    if not ID.fullmatch(str(entry.get("job"))):
        return False
    if files is None:
        return isinstance(entry.get("error"), str)
    lists = isinstance(files, list) and isinstance(pixels, list) and len(files) == len(pixels)
    if not (lists and files and all(isinstance(text, str) for text in [*files, *pixels])):
        return False
    return all(FILE.fullmatch(file) for file in files)
