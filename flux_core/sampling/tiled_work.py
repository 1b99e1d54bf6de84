"""What a picture in tiles takes: a window's activations, and what is of the whole picture's size.

For one window the latents are nothing beside the activations. For sixteen they are not, so they are
counted: the sampler and all around the model runs on meta, with a model that is as large as a
window's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..models.transformer import FluxTransformer
from ..offload import Work
from ..offload.activations import peak_bytes
from .denoiser import Denoiser, keep_outside
from .samplers import Sampler

#: Steps after which nothing more is kept by any sampler.
STEPS = 3


class WindowOnMeta:
    """Takes a transformer's place: allocates what a window takes, and gives back its tokens."""

    def __init__(self, transformer: FluxTransformer, size: int) -> None:
        self.width, self.size = transformer.config.out_channels, size

    def __call__(self, img: Tensor, **_: Any) -> Tensor:
        """Tokens (B, L, out_channels) for tokens (B, L, in_channels)."""
        out = torch.empty(*img.shape[:2], self.width, device="meta")
        held = torch.empty(max(0, self.size - out.nbytes), dtype=torch.uint8, device="meta")
        del held
        return out


def whole_picture_work(
    window: Work,
    make_denoiser: Callable[[], Denoiser],
    sampler: Sampler,
    sigmas: Tensor,
    mask: Tensor | None,
) -> Work:
    """The work of a picture in tiles.

    Args:
        window: of one window, all steps' modulations with it.
        make_denoiser: makes the run's, on meta.
        sigmas: of the run, (steps + 1,) on the CPU.
        mask: (1 or B, 1, h, w), where a part of the picture is kept.
    """

    def draw_on_meta() -> None:
        denoiser = make_denoiser()
        denoiser.transformer = cast(
            FluxTransformer, WindowOnMeta(denoiser.transformer, window.activations)
        )
        # ControlNets give nothing: their residuals are among a window's activations
        denoiser.__dict__["_residuals"] = lambda *_: []
        assert denoiser.reader is not None
        denoiser.reader.tiles = replace(denoiser.reader.tiles, between=None)  # nothing is drawn
        for prompts in (denoiser.positive, denoiser.negative or []):
            # what others leave of a background is numbers, which there are none of
            prompts[:] = [replace(prompt, background=False) for prompt in prompts]
        start, noise, x = (torch.empty(denoiser.shape, device="meta") for _ in range(3))
        model: Any = denoiser
        if mask is not None:
            model = keep_outside(denoiser, mask.to(x), start, noise)
        # a sampler is the same for all steps after the first ones
        sampler(model, x, sigmas[: STEPS + 1], lambda _: torch.empty_like(x), lambda *_: None)

    return replace(window, activations=peak_bytes(draw_on_meta, device="meta"))
