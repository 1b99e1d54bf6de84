"""What a picture takes: a call's activations, and all that is around the calls.

Prompts, masks and latents are counted as they are made: the sampler and all around the model runs
on meta, with a model in the transformer's place that is as large as one of its calls.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..models.controlnet import FluxControlNet
from ..models.transformer import FluxTransformer
from ..offload import Work
from ..offload.activations import peak_bytes
from ..offload.workload import (
    ModulationsOnMeta,
    known_bytes,
    precomputing_bytes,
    standing_bytes,
    transformer_bytes,
)
from .denoiser import Denoiser, keep_outside
from .nag import NormalizedAttention
from .samplers import Sampler

#: What a call reads whatever is asked for; the rest are options.
READ = ("img_ids", "txt", "txt_ids", "timesteps", "y", "guidance")
#: Steps after which nothing more is kept by any sampler.
STEPS = 3


class CallsOnMeta:
    """Takes a transformer's place: allocates what each call takes beside the weights, and gives
    back its tokens."""

    def __init__(self, transformer: FluxTransformer, standing: int) -> None:
        """``standing`` are bytes that wait beside the calls."""
        self.transformer, self.standing = transformer, standing
        self.image_tokens = self.text_tokens = 0

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a transformer: its family, sizes and dtype."""
        return getattr(self.transformer, name)

    def __call__(self, img: Tensor, control: object = None, **inputs: Any) -> Tensor:
        """Tokens (B, L, out_channels) for tokens (B, L, in_channels)."""
        batch, image, text = len(img), img.shape[1], inputs["txt"].shape[1]
        self.image_tokens = max(self.image_tokens, image)
        self.text_tokens = max(self.text_tokens, text)
        options = {name: value for name, value in inputs.items() if name not in READ}
        if "side" in options:  # of which nothing is kept while it is counted
            options["side"] = side = options["side"].alike()
            side.source = ModulationsOnMeta(batch, self.transformer.dtype)  # known as well
        with _disable_current_modes():  # what counts a call is no part of the run
            size = transformer_bytes(self.transformer, image, text, batch, options)
        width = self.transformer.config.out_channels
        out = torch.empty(batch, image, width, device=img.device)
        # a call's bytes were counted with what it reads
        read = sum(inputs[name].nbytes for name in READ if isinstance(inputs.get(name), Tensor))
        rest = max(0, self.standing + size - out.nbytes - img.nbytes - read)
        held = torch.empty(rest, dtype=torch.uint8, device=img.device)
        del held
        return out


def counted_sigmas(denoiser: Denoiser, sigmas: Tensor) -> Tensor:
    """Of sigmas (steps + 1,) those that are counted, falling: the first steps, after which a
    sampler does the same, and the first one of all at which the same is read."""
    chosen: list[float] = []
    known: set[Hashable] = set()
    for sigma in sigmas[:-1].tolist():
        reads = denoiser.reads(sigma)
        if reads and (len(chosen) < STEPS or reads not in known):
            chosen.append(sigma)
            known.add(reads)
    return torch.tensor([*chosen, *sigmas[-1:].tolist()])


def picture_work(
    denoiser: Denoiser,
    nets: Sequence[FluxControlNet],
    sampler: Sampler,
    sigmas: Tensor,
    mask: Tensor | None,
) -> Work:
    """The work of a run.

    Args:
        denoiser: the run's, on meta.
        nets: all ControlNets that are on the device.
        sigmas: of the run, (steps + 1,) on the CPU.
        mask: (1 or B, 1, h, w), where a part of the picture is kept.
    """
    transformer, batch = denoiser.transformer, denoiser.shape[0]
    vectors = sum(len(denoiser.drawn(sigma)) for sigma in sigmas.tolist())
    tokens = max(prompt.tokens for prompt in denoiser.largest)
    standing = standing_bytes(transformer, nets, image_tokens=tokens, batch=batch, vectors=vectors)
    calls = CallsOnMeta(transformer, standing)
    denoiser.transformer = cast(FluxTransformer, calls)
    # ControlNets give nothing: their residuals are among what stands
    denoiser.__dict__["_residuals"] = lambda *_: []
    if denoiser.reader is not None:
        denoiser.reader.tiles = replace(
            denoiser.reader.tiles, between=None, mask=None, by_steps=None
        )  # at most every window is read
    for prompts in (denoiser.positive, denoiser.negative or [], denoiser.unguided):
        # what others leave of a background is numbers, which there are none of
        prompts[:] = [replace(prompt, background=False) for prompt in prompts]
    times = counted_sigmas(denoiser, sigmas)

    def draw_on_meta() -> None:
        start, noise, x = (torch.empty(denoiser.shape, device="meta") for _ in range(3))
        model: Any = denoiser
        if mask is not None:
            model = keep_outside(denoiser, mask.to(x), start, noise)
        sampler(model, x, times, lambda _: torch.empty_like(x), lambda *_: None)

    try:
        drawing = peak_bytes(draw_on_meta, device="meta")
    finally:
        if denoiser.loras is not None:
            denoiser.loras.clear()
    precomputing = precomputing_bytes(transformer, vectors, batch)
    size = held_bytes(denoiser) + max(drawing, precomputing)
    return Work(size, calls.image_tokens, calls.text_tokens, batch)


def waiting_bytes(denoiser: Denoiser, nets: Sequence[FluxControlNet], sigmas: Tensor) -> int:
    """Bytes that a picture's denoiser has on the device while another one's draws, in a run of
    ``sigmas`` (steps + 1,): what is read, and modulations."""
    vectors = sum(len(denoiser.drawn(sigma)) for sigma in sigmas.tolist())
    bodies = (denoiser.transformer, *nets)
    dtype, batch = denoiser.transformer.dtype, denoiser.shape[0]
    readings = max((reading_bytes(denoiser, sigma) for sigma in sigmas.tolist()), default=0)
    return held_bytes(denoiser) + known_bytes(bodies, dtype, batch, vectors) + readings


def reading_bytes(denoiser: Denoiser, sigma: float) -> int:
    """Bytes of texts and masks that a denoiser on meta keeps from a step at a sigma to the next."""
    kept: dict[int, int] = {}
    for reading in denoiser.readings.values():
        values = list(reading.at(sigma).values())
        for patches in [value for value in values if isinstance(value, NormalizedAttention)]:
            values += vars(patches).values()
        known = {id(value) for value in vars(reading.prompt).values()}
        kept |= {id(t): t.nbytes for t in values if isinstance(t, Tensor) and id(t) not in known}
    return sum(kept.values())


def latent_bytes(
    sampler: Sampler, sigmas: Tensor, shape: Sequence[int], mask: Tensor | None
) -> int:
    """Bytes of latents of a shape (B, C, h, w) that a sampler has at once over ``sigmas`` (steps +
    1,), where its pictures come one by one; ``mask`` (1 or B, 1, h, w) as a run has it."""
    times = torch.cat([sigmas[:STEPS], sigmas[-1:]])

    def one_by_one(x: Tensor, _: Tensor) -> Tensor:
        return torch.cat([torch.empty_like(row) for row in x.split(1)])

    def draw_on_meta() -> None:
        start, noise, x = (torch.empty(tuple(shape), device="meta") for _ in range(3))
        model: Any = one_by_one
        if mask is not None:
            model = keep_outside(model, mask.to(x), start, noise)
        sampler(model, x, times, lambda _: torch.empty_like(x), lambda *_: None)

    return peak_bytes(draw_on_meta, device="meta")


def held_bytes(denoiser: Denoiser) -> int:
    """Bytes of what all prompts and controls read, which a run keeps on the device."""
    kept = [value for prompt in denoiser.prompts for value in vars(prompt).values()]
    for conditions in denoiser.conditions.values():
        kept += conditions
    kept += denoiser.adapters.tensors
    for side in denoiser.sides:
        kept += [side.tokens, side.ids]
    on_meta = {id(t): t.nbytes for t in kept if isinstance(t, Tensor) and t.is_meta}
    return sum(on_meta.values())
