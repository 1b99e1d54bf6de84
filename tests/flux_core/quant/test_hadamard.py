"""The rotation."""

from __future__ import annotations

import threading

import pytest
import torch

from flux_core.quant.hadamard import block_of, forget_matrices, hadamard, rotate
from tests import tiny_models

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0, deviation: float = 1.0) -> torch.Tensor:
    return deviation * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 4, 16, 64, 256])
def test_rotation_is_orthogonal_its_own_inverse_and_the_matrix_itself(size):
    x = random(5, 768, seed=4)
    turned = rotate(x, size)
    assert tiny_models.relative(rotate(turned, size), x) < 1e-6
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    whole = x.unflatten(-1, (-1, size)) @ hadamard(size, CPU, torch.float32)
    assert tiny_models.relative(turned, whole.flatten(-2)) < 1e-6


def test_the_block_is_the_largest_power_of_four_that_divides():
    widths = {3072: 256, 12288: 256, 15360: 256, 64: 64, 192: 64, 40: 4, 17: 1}
    assert {width: block_of(width) for width in widths} == widths


def test_rotation_spreads_an_outlier():
    row = torch.zeros(1, 256)
    row[0, 7] = 16.0
    assert float(rotate(row, 256).abs().max()) == pytest.approx(1.0)


def test_who_counts_bytes_forgets_nothing_of_others():
    """A page asks for plans while another thread counts its own run."""
    meta = torch.device("meta")
    mine, real = hadamard(64, meta, torch.float16), hadamard(64, CPU, torch.float16)
    others = []

    def count() -> None:
        others.append(hadamard(64, meta, torch.float16))
        forget_matrices("meta")
        others.append(hadamard(64, meta, torch.float16))

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    assert others[0] is not mine and others[1] is not others[0]
    assert hadamard(64, meta, torch.float16) is mine
    assert hadamard(64, CPU, torch.float16) is real
