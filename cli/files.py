"""What commands that write files have in common."""

from __future__ import annotations

from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"


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
