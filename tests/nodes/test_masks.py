"""The host's nodes of masks, without the host: what they make, number by number."""

from __future__ import annotations

import pytest
import torch
from fluxfit.nodes.headless.stock_masks import OPERATIONS, STOCK_MASKS

#: What one number on another gives; and, or, xor see each as 0 or 1.
FORMULAS = {
    "multiply": lambda below, above: below * above,
    "add": lambda below, above: min(1.0, below + above),
    "subtract": lambda below, above: max(0.0, below - above),
    "and": lambda below, above: float(round(below) and round(above)),
    "or": lambda below, above: float(round(below) or round(above)),
    "xor": lambda below, above: float(round(below) != round(above)),
}


def values(*shape: int, seed: int) -> torch.Tensor:
    """Numbers off the middle, so that rounding is the same everywhere."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.98


def combined(destination: torch.Tensor, source: torch.Tensor, **more) -> torch.Tensor:
    return STOCK_MASKS["MaskComposite"]().combine(destination, source, **more)[0]


def test_a_solid_mask_has_its_value_and_size():
    (mask,) = STOCK_MASKS["SolidMask"]().make(0.25, 6, 4)
    assert mask.shape == (1, 4, 6) and mask.dtype == torch.float32 and (mask == 0.25).all()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 1), (5, 3), (9, 9)])
def test_a_mask_on_another(operation, x, y):
    below, above = values(2, 5, 7, seed=1), values(1, 3, 4, seed=2)
    before = below.clone()
    result = combined(below, above, x=x, y=y, operation=operation)
    assert torch.equal(below, before) and result.shape == below.shape
    for picture in range(2):
        for row in range(5):
            for column in range(7):
                expected = float(before[picture, row, column])
                if 0 <= row - y < 3 and 0 <= column - x < 4:
                    expected = FORMULAS[operation](expected, float(above[0, row - y, column - x]))
                assert float(result[picture, row, column]) == pytest.approx(expected, abs=1e-6)


def test_masks_of_a_batch_meet_one_another_and_shapes_of_four_numbers_are_read():
    below, above = values(2, 1, 4, 4, seed=3), values(2, 4, 4, seed=4)
    result = combined(below, above, x=0, y=0, operation="multiply")
    assert torch.equal(result, below[:, 0] * above)


@pytest.mark.parametrize(
    "sides", [(0, 0, 0, 0), (3, 0, 0, 0), (0, 0, 3, 0), (2, 3, 4, 1), (9, 9, 9, 9)]
)
def test_a_mask_fades_out_as_the_host_counts_its_sides(sides):
    mask = values(2, 5, 7, seed=5)
    left, top, right, bottom = sides
    expected = mask.clone()
    for x in range(min(left, 7)):
        expected[:, :, x] *= (x + 1) / min(left, 7)
    for x in range(min(right, 7)):
        expected[:, :, -(x + 1)] *= (x + 1) / min(right, 7)
    for y in range(min(top, 5)):
        expected[:, y] *= (y + 1) / min(top, 5)
    for y in range(min(bottom, 5)):
        expected[:, -(y + 1)] *= (y + 1) / min(bottom, 5)
    (faded,) = STOCK_MASKS["FeatherMask"]().feather(mask, *sides)
    assert torch.equal(faded, expected)
