"""Whether a picture that was drawn in tiles shows them: how much neighbours differ where windows
begin and end, against the lines around them, where the picture shows the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Lines on each side with which a seam is compared: as it, on the edge of a latent's pixels.
NEAR = (8, 16, 24)


def seam_ratio(images: Tensor, rows: Sequence[int], columns: Sequence[int]) -> float:
    """How much pixels differ across seams over how much they do on lines nearby; 1 is no seam.

    Args:
        images: (B, H, W, 3).
        rows, columns: seams between pixels n - 1 and n; those of the picture's edges are none.

    Raises ``ValueError`` where there is no seam.
    """
    across: list[Tensor] = []
    nearby: list[Tensor] = []
    for axis, seams in ((1, rows), (2, columns)):
        steps = images.double().diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(dim=1)
        for seam in seams:
            if not 0 < seam < images.shape[axis]:
                continue
            lines = [seam - 1 + sign * far for far in NEAR for sign in (-1, 1)]
            lines = [line for line in lines if 0 <= line < len(steps) and line + 1 not in seams]
            across.append(steps[seam - 1])
            nearby.append(steps[lines].mean())
    if not across:
        raise ValueError(f"no seam lies inside of a picture of {tuple(images.shape[1:3])} pixels")
    return float(torch.stack(across).sum() / torch.stack(nearby).sum().clamp_min(1e-12))
