"""The folder of a batch: one driver has it, and what is not a batch's own stays as it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from flux_core.errors import ConfigError
from flux_core.files import locked_folder, reason

from . import manifest, results
from .plan import Say
from .sheet import GRID, INDEX

#: What a run writes over, and would not where it is not its own.
OWN_FILES = (results.NAME, INDEX, GRID)


def locked(folder: Path) -> AbstractContextManager[None]:
    """The folder for this driver alone; raises ``ConfigError`` where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").open("a").close()
    except OSError as fault:
        raise ConfigError(f"{folder}: cannot be written ({reason(fault)})") from fault
    return locked_folder(folder, "another batch is drawn")


def open_manifest(folder: Path, private: bool) -> manifest.Manifest:
    """The manifest, as ``Manifest``; raises ``ConfigError`` where it cannot be written."""
    try:
        return manifest.Manifest(folder, private)
    except OSError as fault:
        name = folder / manifest.NAME
        raise ConfigError(f"{name}: cannot be written ({reason(fault)})") from fault


def look_at_folder(folder: Path, say: Say) -> None:
    """Say what else is in a folder; raises ``ConfigError`` where a run would write over it."""
    if not folder.exists() or (folder / manifest.NAME).exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file, expected a folder")
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    taken = [name for name in OWN_FILES if name in names]
    if taken:
        raise ConfigError(
            f"--out {folder}: has {taken[0]} and no {manifest.NAME}: choose another folder"
        )
    if names:
        say(f"{folder}: has other files and folders ({len(names)}), which stay as they are")
