"""Whether a picture that was drawn in tiles shows them: how much neighbours differ where windows
begin and end, against everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def seam_ratio(images: Tensor, rows: Sequence[int], columns: Sequence[int]) -> float:
    """How much pixels differ across seams over how much they do elsewhere; 1 is no seam.

    Args:
        images: (B, H, W, 3).
        rows, columns: seams between pixels n - 1 and n; those of the picture's edges are none.

    Raises ``ValueError`` where there is no seam.
    """
    across = expected = 0.0
    count = 0
    for axis, seams in ((1, rows), (2, columns)):
        steps = images.double().diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(dim=1)
        at = torch.zeros(len(steps), dtype=torch.bool)
        at[[seam - 1 for seam in set(seams) if 0 < seam < images.shape[axis]]] = True
        count += int(at.sum())
        across += float(steps[at].sum())
        expected += int(at.sum()) * float(steps[~at].mean())
    if not count:
        raise ValueError(f"no seam lies inside of a picture of {tuple(images.shape[1:3])} pixels")
    return across / max(expected, 1e-12)
