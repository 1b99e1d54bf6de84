"""The node that opens a folder of pictures to train on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flux_core.report.pictures import grid
from flux_core.train.config import ON_EMPTY, ON_FAULT, DataConfig
from flux_core.train.dataset import DataProblems, Item, picture_of_size, read_items, summarize

from .training_files import dataset_names, dataset_path
from .widgets import ADVANCED, choice, integer, socket, text, toggle
from .wires import FLUX_DATASET, TRAINING

#: Pictures of a dataset that are shown.
SHOWN = 30


@dataclass(frozen=True)
class Dataset:
    """Folders to learn from."""

    folders: tuple[DataConfig, ...]


class FluxFitDataset:
    """A folder of pictures with captions."""

    DESCRIPTION = (
        "Pictures to train a LoRA on: a folder of ComfyUI's input folder, with a .txt caption "
        "beside each picture, or with a metadata.csv (file_name, text) or .jsonl. Pictures keep "
        "their shape. Chain several."
    )
    CATEGORY = TRAINING
    FUNCTION = "open"
    SEARCH_ALIASES = ["training data", "load images", "captions"]
    RETURN_TYPES = (FLUX_DATASET, "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "pictures", "report")
    OUTPUT_TOOLTIPS = (
        "For FluxFitTrainLora, or the next dataset.",
        "The first pictures with their captions, as they will be seen.",
        "How many there are in which sizes, and what is left out.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "folder": choice(
                    dataset_names(), "A folder with pictures, inside ComfyUI's input folder."
                ),
                "resolution": integer(
                    512, 64, 2048, "Side of a square whose area pictures are brought to.", step=16
                ),
                "repeats": integer(1, 1, 1000, "How often each picture comes in an epoch."),
                "trigger": text("", "Put before every caption, such as a name for the concept."),
            },
            "optional": {
                "dataset": socket(FLUX_DATASET, "More folders, before this one."),
                "bucket_step": integer(
                    64, 16, 256, "Sides are multiples of this.", step=16, **ADVANCED
                ),
                "masks": toggle(
                    True,
                    "Read NAME.mask.png beside a picture: white is learned, black is not.",
                    advanced=True,
                ),
                "broken": choice(
                    ON_FAULT,
                    "What to do about pictures that cannot be opened.",
                    default="refuse",
                    **ADVANCED,
                ),
                "empty_captions": choice(
                    ON_EMPTY,
                    "What to do about pictures without a caption.",
                    default="refuse",
                    **ADVANCED,
                ),
            },
        }

    def open(
        self,
        folder: str,
        resolution: int,
        repeats: int,
        trigger: str,
        dataset: Dataset | None = None,
        bucket_step: int = 64,
        masks: bool = True,
        broken: str = "refuse",
        empty_captions: str = "refuse",
    ):
        config = DataConfig(
            folder=str(dataset_path(folder)),
            repeats=repeats,
            resolutions=(resolution,),
            step=bucket_step,
            trigger=trigger,
            masks=masks,
            broken=broken,
            empty_captions=empty_captions,
        )
        folders = (*(dataset.folders if dataset else ()), config)
        problems = DataProblems()
        items = read_items(folders, problems)
        summary = about(items, problems)
        return {
            "ui": {"text": (summary,)},
            "result": (Dataset(folders), contact_sheet(items)[None], summary),
        }

    @classmethod
    def IS_CHANGED(cls, folder: str, **_: object):
        files = sorted(dataset_path(folder).rglob("*"))
        return str([(f.name, f.stat().st_mtime_ns) for f in files if f.is_file()])


def about(items: list[Item], problems: DataProblems) -> str:
    """A dataset in words."""
    sizes: dict[str, int] = {}
    for item in items:
        name = f"{item.size.width}x{item.size.height}"
        sizes[name] = sizes.get(name, 0) + item.repeats
    summary = f"{len(items)} pictures: " + ", ".join(f"{n} of {s}" for s, n in sizes.items())
    masked = sum(item.mask is not None for item in items)
    summary += f"; {masked} with a mask" if masked else ""
    return summary + (f"\nleft out: {summarize(problems.skipped)}" if problems.skipped else "")


def contact_sheet(items: list[Item]) -> Tensor:
    """The first pictures with their captions on one sheet (H, W, 3)."""
    pictures, labels = [], []
    for item in items[:SHOWN]:
        picture = picture_of_size(item.picture, item.size)[0].movedim(-1, 0)[None]
        side = max(picture.shape[-2:])
        size = [round(160 * n / side) for n in picture.shape[-2:]]
        small = torch.nn.functional.interpolate(picture, size, mode="area")
        pictures.append(small[0].movedim(0, -1))
        labels.append(item.caption[:22])
    return grid(pictures, labels, columns=6)
