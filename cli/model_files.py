"""Files that a person names: where they are, or in ComfyUI's folders of models.

Nothing heavy is imported: a file that is missing is told at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flux_core.files import below
from flux_core.pocket import POCKET

#: Folders of ComfyUI's ``models`` by what an argument names.
FOLDERS = {
    "transformer": ("diffusion_models", "unet", "checkpoints"),
    "clip_l": ("text_encoders", "clip", "checkpoints"),
    "t5": ("text_encoders", "clip", "checkpoints"),
    "text_encoder": ("text_encoders", "clip", "checkpoints"),
    "vae": ("vae", "checkpoints"),
    "lora": ("loras",),
    "control": ("controlnet",),
    "redux": ("style_models",),
    "vision": ("clip_vision",),
    "ip_adapter": ("ipadapter", "ipadapter-flux", "xlabs/ipadapters"),
}


def find_model(name: str | Path, kind: str, option: str) -> Path:
    """The file of that name, or the one of that name in the folders of its kind; absolute.

    Raises ``FileNotFoundError`` naming the option and the places that were looked at.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path.absolute()
    places = list(folders_of(kind))
    # the last one is of another machine's folder
    for inner in [path] if not path.is_absolute() else [Path(path.name)]:
        for place in places:
            try:
                candidate = below(place, inner.as_posix())
            except ValueError:  # it leaves the folder
                continue
            if candidate.exists():
                return candidate.absolute()
    folders = ", ".join(FOLDERS[kind])
    models = os.environ.get("FLUXFIT_MODELS")
    looked = f"nor in {folders} of {models}" if models else f"and no --models to look in {folders}"
    raise FileNotFoundError(f"{option} {name}: no such file, {looked}")


def folders_of(kind: str) -> Iterator[Path]:
    """Where models of a kind lie: those of --models, what trainings wrote, the pocket model's."""
    models = os.environ.get("FLUXFIT_MODELS")
    for folder in FOLDERS[kind]:
        if models:
            yield Path(models) / folder
        yield Path("output") / folder
        yield POCKET / folder


def find_picture(name: str | Path, option: str) -> Path:
    """A picture's file, absolute; raises ``FileNotFoundError`` naming the option."""
    path = Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{option} {name}: no such file")
    return path.absolute()
