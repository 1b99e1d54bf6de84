"""The pocket model: where its files lie, and what it is best drawn with."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict


class PocketSampling(TypedDict):
    """Arguments of ``FluxPipeline.__call__``."""

    steps: int
    cfg: float
    shift: str


#: What the pocket model is best drawn with: its distilled guidance was never trained, so it needs
#: true guidance, and most steps where the shape is decided.
POCKET_SAMPLING: PocketSampling = {"steps": 30, "cfg": 2.5, "shift": "diffsynth"}
ROOT = Path(__file__).resolve().parents[1]
#: Beside the core in the folder that was cloned; installed, in the package ``fluxfit``.
ASSETS = ROOT / "assets" if (ROOT / "assets").is_dir() else ROOT / "fluxfit" / "assets"
POCKET = ASSETS / "pocket"


def pocket_file(folder: str, suffix: str = "") -> Path:
    """A part of the pocket model; its folders are laid out as the host's model folders."""
    return POCKET / folder / f"fluxfit_pocket{suffix}.safetensors"
