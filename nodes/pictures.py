"""The nodes that lay pictures beside each other."""

from __future__ import annotations

import torch
from torch import Tensor

from flux_core.report.pictures import against, comparison, grid

from .widgets import integer, number, socket, text, toggle
from .wires import PICTURES

CELLS = 8


class FluxFitCompare:
    """Two pictures and what differs."""

    DESCRIPTION = (
        "Two pictures side by side with their difference enlarged, and how near they are: PSNR in "
        "dB (40 and more is hard to see) and SSIM (1 is equal)."
    )
    CATEGORY = PICTURES
    FUNCTION = "compare"
    SEARCH_ALIASES = ["psnr", "ssim", "difference", "compare images"]
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "report")
    OUTPUT_TOOLTIPS = ("A sheet of three panels for each pair.", "PSNR and SSIM as text.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image_a": socket("IMAGE", "The reference."),
                "image_b": socket("IMAGE", "What is compared with it, of the same size."),
                "name_a": text("A", "Written under the first."),
                "name_b": text("B", "Written under the second."),
                "gain": number(
                    8.0, 1.0, 256.0, 1.0, "By how much the difference is enlarged; grey is none."
                ),
            }
        }

    def compare(self, image_a: Tensor, image_b: Tensor, name_a: str, name_b: str, gain: float):
        if len(image_a) != len(image_b):
            raise ValueError(f"{len(image_a)} pictures against {len(image_b)}: expected as many")
        pairs = [
            comparison(a.cpu()[..., :3].float(), b.cpu()[..., :3].float(), (name_a, name_b), gain)
            for a, b in zip(image_a, image_b, strict=True)
        ]
        return torch.stack([sheet for sheet, _ in pairs]), "\n".join(
            caption for _, caption in pairs
        )


class FluxFitGrid:
    """A sheet of labelled pictures."""

    DESCRIPTION = (
        "Lays pictures out on one sheet with a label each. With compare_to_first every label says "
        "how near its picture is to the first."
    )
    CATEGORY = PICTURES
    FUNCTION = "lay"
    SEARCH_ALIASES = ["grid", "contact sheet", "labels"]
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "report")
    OUTPUT_TOOLTIPS = ("The sheet.", "The labels with what they say.")

    @classmethod
    def INPUT_TYPES(cls):
        cells = {
            f"image_{i}": socket("IMAGE", f"Picture {i}; its first where there are several.")
            for i in range(1, CELLS + 1)
        }
        return {
            "required": {
                "image_1": cells.pop("image_1"),
                "labels": text("", "One line a picture, in order.", multiline=True),
                "columns": integer(3, 1, CELLS, "Pictures in a row."),
                "compare_to_first": toggle(True, "Add PSNR and SSIM against the first picture."),
            },
            "optional": cells,
        }

    def lay(self, labels: str, columns: int, compare_to_first: bool, **cells: Tensor):
        names = sorted(cells, key=lambda name: int(name.rpartition("_")[2]))
        images = [cells[name][0].cpu()[..., :3].float() for name in names]
        lines = labels.splitlines()
        texts = [lines[i] if i < len(lines) else name for i, name in enumerate(names)]
        if compare_to_first:
            texts[1:] = [
                f"{text}\n{against(image, images[0])}"
                for text, image in zip(texts[1:], images[1:], strict=True)
            ]
        report = "\n".join(text.replace("\n", ": ") for text in texts)
        return grid(images, texts, columns)[None], report
