"""Masks and biases that are added up."""

from __future__ import annotations

import torch

from flux_core.models.layers import attend_rotated
from flux_core.sampling.attention_masks import added_up, as_bias, padding_mask

OPEN = torch.tensor([[[True, False, True], [True, True, False], [True, True, True]]])
BIAS = torch.tensor([[[0.5, 1.0, -1.0], [0.0, 2.0, 0.0], [0.0, 0.0, -3.0]]])


def test_nothing_and_one_are_themselves():
    assert added_up([]) is None and added_up([None, None]) is None
    assert added_up([None, BIAS]) is BIAS and added_up([OPEN]) is OPEN


def test_booleans_are_joined_and_close_biases():
    other = torch.tensor([[[True, True, True], [False, True, True], [True, True, False]]])
    both = added_up([OPEN, other])
    assert both is not None and torch.equal(both, OPEN & other)
    for order in ([OPEN, BIAS, None], [BIAS, OPEN]):
        total = added_up(order)
        assert total is not None and total.dtype == BIAS.dtype
        assert torch.equal(total, torch.where(OPEN, BIAS, -torch.inf))
    total = added_up([BIAS, BIAS])
    assert total is not None and torch.equal(total, 2 * BIAS)
    assert torch.equal(as_bias(OPEN, torch.bfloat16) == 0, OPEN)


def test_masked_text_is_as_good_as_text_left_out():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 7, 2, 8, generator=generator) for _ in range(3))
    keep = torch.tensor([[True, True, False]])
    mask = padding_mask(keep, 4, torch.device("cpu"))
    assert mask is not None and mask.shape == (1, 1, 7)
    kept = torch.tensor([0, 1, 3, 4, 5, 6])
    expected = attend_rotated(q, k[:, kept], v[:, kept], None)
    for combined in (mask, added_up([mask, torch.zeros(1, 7, 7)])):
        drawn = attend_rotated(q, k, v, combined)
        assert torch.allclose(drawn, expected, atol=1e-6)
