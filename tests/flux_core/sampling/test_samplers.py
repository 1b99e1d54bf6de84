"""Samplers on flows whose end is known."""

from __future__ import annotations

import pytest
import torch

from flux_core.models.families import FLUX1_DEV
from flux_core.sampling.samplers import SAMPLERS, step_noise
from flux_core.sampling.sigmas import make_sigmas, table_for

MEAN, DEVIATION = 0.7, 0.3


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact denoiser where pictures are normal: E[picture | x]."""
    keep = 1 - sigma
    variance = (keep * DEVIATION) ** 2 + sigma**2
    return MEAN + keep * DEVIATION**2 * (x - keep * MEAN) / variance


def draw(name: str, steps: int, count: int = 20_000) -> torch.Tensor:
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 0, steps + 1)
    return SAMPLERS[name](gaussian, x, sigmas, step_noise(x, 0), lambda *_: None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_pictures_come_out_gaussian(name):
    pictures = draw(name, 200)
    assert pictures.mean() == pytest.approx(MEAN, abs=0.01)
    assert pictures.std() == pytest.approx(DEVIATION, rel=0.04)


def test_higher_orders_are_nearer_to_the_flow_s_end():
    exact = draw("heun", 2000, 500)
    errors = {n: float((draw(n, 12, 500) - exact).abs().mean()) for n in SAMPLERS}
    assert errors["heun"] < 0.7 * errors["euler"]
    assert errors["dpmpp_2m"] < 0.7 * errors["euler"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_step_gives_the_model_s_picture(name):
    pictures = draw(name, 1, 10)
    x = torch.randn(10, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(pictures, gaussian(x, torch.tensor(1.0)), atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_reported_and_an_exception_ends_the_run(name):
    seen = []

    def callback(step, x, denoised):
        seen.append(step)
        if step == 3:
            raise InterruptedError

    sigmas = make_sigmas(table_for(FLUX1_DEV), "simple", 8)
    with pytest.raises(InterruptedError):
        SAMPLERS[name](gaussian, torch.randn(4), sigmas, step_noise(torch.zeros(4), 0), callback)
    assert seen == [0, 1, 2, 3]


def test_ancestral_noise_follows_the_seed():
    x = torch.zeros(4)
    first, again, other = (step_noise(x, seed) for seed in (5, 5, 6))
    a = first(0)
    assert torch.equal(a, again(0)) and not torch.equal(a, other(0))
    assert not torch.equal(a, first(1))
    assert step_noise(x, 2**64 - 1)(0).isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("sigmas", [[1.0, 1.0, 0.5, 0.0], [1.0, 0.5, 0.5, 0.5, 0.0], [0.7, 0.7]])
def test_sigmas_that_repeat_are_no_step(name, sigmas):
    x = torch.randn(4, generator=torch.Generator().manual_seed(0))

    def drawn(values):
        noise = step_noise(torch.zeros(4), 0)
        return SAMPLERS[name](gaussian, x, torch.tensor(values), noise, lambda *_: None)

    assert drawn(sigmas).isfinite().all()
    if name != "euler_ancestral":  # whose later steps then have other noise
        assert torch.allclose(drawn(sigmas), drawn(list(dict.fromkeys(sigmas))), atol=1e-6)
