"""Seams are measured where windows meet."""

from __future__ import annotations

import pytest
import torch

from flux_core.report.seams import seam_ratio


def test_a_step_at_a_seam_is_seen_and_a_smooth_picture_has_none():
    ramp = torch.linspace(0, 1, 128)
    smooth = (ramp[:, None] * 0.5 + ramp * 0.5)[None, :, :, None].expand(2, 128, 128, 3)
    assert seam_ratio(smooth, [64], [32, 96]) == pytest.approx(1, abs=1e-3)
    stepped = smooth.clone()
    stepped[:, 64:] += 0.1
    assert seam_ratio(stepped, [64], []) > 20
    assert seam_ratio(stepped, [63], []) < 1.1 and seam_ratio(stepped, [], [64]) < 1.1


def test_seams_at_the_edges_are_none():
    with pytest.raises(ValueError, match="no seam lies inside of a picture of"):
        seam_ratio(torch.zeros(1, 64, 64, 3), [0, 64], [])
