"""Weights that a file does not have as they are wanted, on disk instead of in memory.

A model may be larger than the host's memory. What its file holds as it is used is mapped from
there (``Source.map``); what had to be converted goes into a file of its own, mapped as well. The
system keeps in memory what it has room for and reads the rest from the disk when it is used.
"""

from __future__ import annotations

import atexit
import errno
import mmap
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..units import readable_bytes

#: Tensors below stay in memory: they are read at every step, and all together they are small.
SMALL = 2**16
#: Bytes of one file.
FILE = 2**30
ALIGNMENT = 256


class Spill:
    """Files that are made as they are needed, and gone with the last tensor in them.

    They lie beside the checkpoint, whose disk is made for large files, or where that cannot be
    written among the system's temporary ones.
    """

    def __init__(self, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        self.folder = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
        self.map: mmap.mmap | None = None
        self.end = self.size = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The same numbers in a file, of any shape; small tensors stay where they are.

        Raises ``CheckpointError`` where the disk is full.
        """
        if tensor.nbytes < SMALL:
            return tensor
        if self.map is None or self.end + tensor.nbytes > self.size:
            self.size, self.end = max(FILE, tensor.nbytes), 0
            self.map = self.file(self.size)
        place = torch.frombuffer(self.map, dtype=torch.uint8, count=tensor.nbytes, offset=self.end)
        self.end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def file(self, size: int) -> mmap.mmap:
        """A mapped file without a name, or on Windows one that goes with the program."""
        try:
            if shutil.disk_usage(self.folder).free < size:
                raise OSError(errno.ENOSPC, "no space left")
            with tempfile.NamedTemporaryFile(
                dir=self.folder, prefix="fluxfit-", suffix=".tmp", delete=sys.platform != "win32"
            ) as file:
                if sys.platform == "win32":
                    atexit.register(Path(file.name).unlink, missing_ok=True)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not later
                else:
                    file.truncate(size)
                return mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: weights that do not fit into memory are kept here while they are "
                f"in use, and the next {readable_bytes(size)} failed: {error.strerror}"
            ) from error
