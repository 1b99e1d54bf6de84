"""SHA-256 of files and of pixels.

A file of weights is read whole once. What came out is kept in a small file of the cache folder
(``FLUXFIT_CACHE``, or ``fluxfit`` below the system's) beside its size and time, and holds for as
long as these are the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import files_of_model, reading, write_text
from ..units import readable_bytes

log = logging.getLogger(__name__)

#: Bytes that are read at once.
CHUNK = 2**24
#: Bytes of files that are hashed without a word.
QUIET = 2**31
#: What is known of files by their paths where the cache folder cannot be written.
_known: dict[str, Sequence[str]] = {}
#: One file is read by one thread.
_reading = threading.Lock()


def cache_folder() -> Path:
    """Where hashes of files are kept."""
    chosen = os.environ.get("FLUXFIT_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "fluxfit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluxfit"


def content_hash(path: str | Path) -> str:
    """The SHA-256 of a file, in hex; of a folder, or of an index of shards, that of its files'
    names and hashes.

    Raises ``FileError`` naming the file where it cannot be read.
    """
    path = Path(path)
    with reading(path, "a file"):
        files = files_of_model(path)
        if files == [path]:
            return file_hash(path)
        about = [f"{file.name} {file_hash(file)}" for file in files]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """The SHA-256 of one file, from the cache where that knows it as it is now."""
    path = path.resolve()
    about = path.stat()
    stamp = [str(path), about.st_size, about.st_mtime_ns]
    kept = cache_folder() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
    with _reading:
        for known in (read_kept(kept), _known.get(str(path))):
            if known is not None and known[:3] == stamp:
                return known[3]
        if about.st_size > QUIET:
            log.info("hashing %s once, %s", path, readable_bytes(about.st_size))
        digest = digest_of(path)
        if path.stat().st_mtime_ns == about.st_mtime_ns:
            try:
                write_text(kept, json.dumps([*stamp, digest]))
            except OSError as error:  # it is read again by the next process
                log.debug("the hash of %s is not kept: %s", path, error)
                _known[str(path)] = [*stamp, digest]
    return digest


def read_kept(kept: Path) -> Sequence[str] | None:
    """What is known of a file: path, size, time, hash; None where nothing is."""
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, list) and len(known) == 4 else None


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def pixels_hash(pixels: np.ndarray) -> str:
    """The SHA-256 of a picture's values, uint8 (H, W, 3), with its size before them."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}\n".encode())
    digest.update(np.ascontiguousarray(pixels[..., :3]).data)
    return digest.hexdigest()
