"""Samplers: from noise at the first sigma to a picture at the last.

Each is a function ``(model, x, sigmas, noise, callback) -> x``. ``model(x, sigma)`` gives the
picture that it believes x (B, C, h, w) to hide, ``noise(i)`` fresh noise for step i where a sampler
wants it. Formulas are those of k-diffusion, with the rectified flow's x = (1 - sigma) picture +
sigma noise, and agree with ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]
#: step, x, denoised
Callback = Callable[[int, Tensor, Tensor], None]


class Sampler(Protocol):
    """From x (B, C, h, w) at the first of ``sigmas`` (steps + 1,) to the picture at the last."""

    def __call__(
        self, model: Model, x: Tensor, sigmas: Tensor, noise: Noise, callback: Callback
    ) -> Tensor: ...


def slope(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The derivative dx / dsigma, (B, C, h, w)."""
    return (x - denoised) / sigma


def euler(model: Model, x: Tensor, sigmas: Tensor, noise: Noise, callback: Callback) -> Tensor:
    """Euler's method from x (B, C, h, w): first order, one evaluation a step."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback(i, x, denoised)
        x = x + slope(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
    return x


def heun(model: Model, x: Tensor, sigmas: Tensor, noise: Noise, callback: Callback) -> Tensor:
    """Heun's method from x (B, C, h, w): second order, two evaluations a step but for the last.

    Karras et al. 2022, algorithm 2.
    """
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback(i, x, denoised)
        here, dt = slope(x, sigmas[i], denoised), sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] > 0:
            predicted = x + here * dt
            there = slope(predicted, sigmas[i + 1], model(predicted, sigmas[i + 1]))
            here = (here + there) / 2
        x = x + here * dt
    return x


def dpmpp_2m(model: Model, x: Tensor, sigmas: Tensor, noise: Noise, callback: Callback) -> Tensor:
    """DPM-Solver++(2M) from x (B, C, h, w): second order by the step before, one evaluation a step.

    Lu et al. 2022.
    """
    before, last_h = None, None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback(i, x, denoised)
        if sigmas[i + 1] == sigmas[i]:
            continue  # no step; what was before it stays so
        h = sigmas[i].log() - sigmas[i + 1].log()  # infinite at the end, where expm1 gives -1
        target = denoised
        if before is not None and last_h is not None and sigmas[i + 1] > 0:
            r = last_h / h
            target = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * before
        x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * target
        before, last_h = denoised, h
    return x


def euler_ancestral(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise, callback: Callback
) -> Tensor:
    """Euler from x (B, C, h, w) to below the next sigma, and fresh noise up to it.

    The rectified flow's form.
    """
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback(i, x, denoised)
        if sigmas[i + 1] == 0:
            return denoised
        if sigmas[i + 1] == sigmas[i]:
            noise(i)  # no step, but a draw
            continue
        down = sigmas[i + 1] * (sigmas[i + 1] / sigmas[i])
        keep = (1 - sigmas[i + 1]) / (1 - down)
        renoise = (sigmas[i + 1] ** 2 - down**2 * keep**2) ** 0.5
        ratio = down / sigmas[i]
        x = keep * (ratio * x + (1 - ratio) * denoised) + renoise * noise(i)
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "euler_ancestral": euler_ancestral,
}


def step_noise(x: Tensor, seed: int | Sequence[int]) -> Noise:
    """Fresh noise like x (B, C, h, w) for each step, drawn in their order where x is, as the host
    draws it.

    On a CPU it starts from ``seed + 1``: there the seed itself made the first noise. Of several
    seeds each draws its row as it would alone.
    """
    if isinstance(seed, Sequence):
        rows = [step_noise(row, each) for row, each in zip(x.split(1), seed, strict=True)]
        return lambda step: torch.cat([row(step) for row in rows])
    device = x.device
    start = seed + 1 if device.type == "cpu" else seed
    generator = torch.Generator(device).manual_seed(start % 2**64)
    return lambda step: torch.randn(x.shape, generator=generator, device=device).to(x)
