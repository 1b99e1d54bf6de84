"""Pictures compared with each other, and the sheets that show them."""

from __future__ import annotations

import math

import pytest
import torch

from flux_core.report.pictures import against, bars, comparison, grid, psnr, ssim


def picture(height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))


def test_equal_pictures_are_equal_and_others_are_measured():
    one = picture()
    assert psnr(one, one) == math.inf and ssim(one, one) == pytest.approx(1.0)
    assert against(one, one) == "the same to the bit"
    assert psnr(torch.zeros(8, 8, 3), torch.full((8, 8, 3), 0.1)) == pytest.approx(20.0)
    assert ssim(one, one.flip(0)) < 0.9


def test_pictures_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="pictures of 24x16 and 16x24 pixels cannot be compared"):
        psnr(picture(), picture(24, 16))


def test_sheets_hold_what_they_are_given():
    sheet = grid([picture()] * 4, ["one"] * 4, columns=2)
    assert sheet.ndim == 3 and sheet.shape[1] == 2 * (24 + 4)
    with pytest.raises(ValueError, match="1 pictures have 2 labels"):
        grid([picture()], ["a", "b"])
    sheet, summary = comparison(picture(), picture().flip(0), ("a", "b"), 4.0)
    assert sheet.shape[1] == 3 * (24 + 4) and summary.startswith("PSNR")
    rows = {f"layer {i}": {"int8": 0.1 * i, "fp8": 0.2} for i in range(3)}
    assert bars(rows, "errors", most=2).shape == (70 + 2 * 22, 960, 3)
