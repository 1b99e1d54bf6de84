"""What commands that write files have in common."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from flux_core.files import PICTURES

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"


def refuse_missing(path: Path) -> None:
    """Raise ``FileNotFoundError`` where there is no file, before what reads it is imported."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")


def named_path(text: str) -> Path:
    """The type of an ``--out``: an empty name is none, and not the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, expected a name")
    return Path(text)


def refuse_picture_name(path: Path, option: str) -> None:
    """Raise ``ValueError`` for a name of a picture that is no PNG, which would become a folder."""
    suffix = path.suffix.lower()
    if suffix in PICTURES and suffix != ".png" and not path.is_dir():
        raise ValueError(f"{option} {path}: pictures are PNG, expected a folder or NAME.png")


def check_folder(folder: Path, option: str) -> None:
    """Raise ``ValueError`` where a folder is none, or cannot be made or written, by trying it;
    nothing is left behind."""
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"{option} {folder}: {nearest} is a file, expected a folder")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {folder}: nothing can be written in {nearest} ({error.strerror})"
        ) from None


def models_folder(path: Path) -> Path:
    """The folder of ``--models``; raises ``FileNotFoundError`` where there is none."""
    folder = path.expanduser()
    if not folder.is_dir():
        problem = "is a file, expected a folder" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"--models {path}: {problem}")
    return folder


def refuse_output(path: Path, overwrite: bool) -> None:
    """Raise ``ValueError`` where a file would be lost, or have a name of something else."""
    if path.is_dir() or path.suffix.lower() not in (".safetensors", ".sft"):
        raise ValueError(f"--out {path}: expected the name of a .safetensors file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already: choose another name or --overwrite")


def find_workflow(path: Path) -> Path:
    """The file of that name, or the workflow of that name that FluxFit brings.

    Raises ``FileNotFoundError`` naming those there are.
    """
    if path.exists():
        return path
    names = sorted(file.name for file in WORKFLOWS.glob("*.json"))
    if path.name not in names:
        raise FileNotFoundError(f"{path}: no such file; FluxFit brings {', '.join(names)}")
    return WORKFLOWS / path.name
