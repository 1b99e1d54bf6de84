"""A drawing as far as its memory and seconds go, before anything of it is there: what is asked for
beside a plain prompt, as requests whose tensors hold no numbers.

The work of such a request is counted by what counts a real one. Letters of axes: B pictures, N text
tokens, D and P widths, C latent channels, h and w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..lora import LoraStack, lora_applied
from ..models.controlnet import FluxControlNet
from ..models.families import family_of
from ..models.ip_adapter import IPAdapter
from ..models.transformer import FluxTransformer
from ..offload import Work
from ..offload.activations import on_meta
from ..offload.plan import Plan
from ..offload.turns import turn_of
from ..quant import set_compute
from .adapters import AppliedAdapter
from .conditioning import Conditioning, Control, Region, RegionalPrompts
from .guidance import PLAIN_GUIDANCE, GuidanceOptions
from .hires import Hires, outlined_second
from .latents import latent_size
from .references import JOINT, References
from .request import META, DrawRequest
from .settings import SamplingSettings
from .tiles import Tiling

#: The place of a region whose place is not known.
ANYWHERE = Region(area=(1.0, 1.0, 0.0, 0.0), shares=True)


@dataclass(frozen=True, eq=False)
class DrawingOptions:
    """What is asked for beside a prompt and a size.

    ``references`` are heights and widths in pixels; ``regions`` how many prompts of parts there
    are, ``more_text`` tokens that pictures add to the prompt (Redux); an IP-Adapter comes with
    whether the negative prompt is shown a picture too. The rest is as ``DrawRequest`` and
    ``SamplingSettings`` have it; ``hires`` asks for a second run.
    """

    cfg: float = 1.0
    guidance_options: GuidanceOptions = PLAIN_GUIDANCE
    references: Sequence[tuple[int, int]] = ()
    reference_attention: str = JOINT
    regions: int = 0
    more_text: int = 0
    controls: Sequence[FluxControlNet] = ()
    adapters: Sequence[tuple[IPAdapter, bool]] = ()
    loras: LoraStack = ()
    tiles: Tiling | None = None
    differential: float | None = None
    hires: Hires | None = None


def no_numbers(*shape: int) -> Tensor:
    """A tensor of a shape (...) that takes no memory."""
    return torch.zeros(()).expand(shape)


def outlined_adapter(adapter: IPAdapter, negative: bool) -> AppliedAdapter:
    """An IP-Adapter with one picture a prompt, its keys and values without numbers."""
    small = set_compute(on_meta(adapter), "dequantize")
    with torch.no_grad():
        keys = small(torch.empty(1, adapter.config.embed_dim, device=META))
    seen = no_numbers(1, adapter.config.embed_dim)
    of_both = (keys, keys if negative else None)
    return AppliedAdapter(adapter, seen, negative=seen if negative else None, ready=of_both)


def outlined_control(net: FluxControlNet, size: Sequence[int], channels: int, side: int) -> Control:
    """A ControlNet with a picture of ``size`` latents, each ``side`` pixels wide."""
    if net.config.hint:
        return Control(net, no_numbers(1, 3, side * size[0], side * size[1]))
    return Control(net, no_numbers(1, channels, *size))


def outlined_request(
    transformer: FluxTransformer,
    options: DrawingOptions,
    *,
    width: int,
    height: int,
    steps: int,
    batch: int,
    text_tokens: int,
) -> DrawRequest:
    """The request of a drawing with a transformer that may be on meta; errors as ``DrawRequest``
    has them."""
    family, config = family_of(transformer), transformer.config
    size, channels = latent_size(height, width, family.vae), family.vae.latent_channels

    def prompt(tokens: int, **more: object) -> Conditioning:
        pooled = no_numbers(1, config.vec_in_dim) if family.needs_pooled else None
        context = no_numbers(1, tokens, config.context_in_dim)
        return Conditioning(context, pooled, **more)  # type: ignore[arg-type]

    references = regional = None
    if options.references:
        sizes = [latent_size(*pixels, family.vae) for pixels in options.references]
        latents = [no_numbers(1, channels, *sides) for sides in sizes]
        references = References(latents, attention=options.reference_attention)
    if options.regions:
        parts = [prompt(text_tokens, region=ANYWHERE) for _ in range(options.regions)]
        regional = RegionalPrompts(parts)
    of_both = {"references": references}
    guided = options.cfg != 1.0 or options.guidance_options.nag is not None
    return DrawRequest(
        transformer,
        prompt(text_tokens + options.more_text, regional=regional, **of_both),
        no_numbers(batch, channels, *size),
        SamplingSettings(steps=steps, cfg=options.cfg, guidance_options=options.guidance_options),
        negative=prompt(text_tokens, **of_both) if guided else None,
        controls=[
            outlined_control(net, size, channels, family.vae.compression)
            for net in options.controls
        ],
        loras=options.loras,
        tiles=options.tiles,
        differential=options.differential,
        adapters=[outlined_adapter(*each) for each in options.adapters],
    )


def calls_a_step(request: DrawRequest) -> float:
    """How often a step calls the transformer, on average: prompts, each in its windows."""
    denoiser, sigmas = request.denoiser(META), request.noise_schedule.sigmas[:-1].tolist()
    calls = 0
    for sigma in sigmas:
        for prompt in denoiser.drawn(sigma):
            reader = denoiser.reader
            split = reader is not None and reader.splits(prompt)
            calls += len(reader.windows(prompt, sigma)) if reader is not None and split else 1
    return calls / max(1, len(sigmas))


class PlannedDrawing(NamedTuple):
    """The plan of a drawing's largest run, calls of the transformer in each of its steps, and its
    latents' sides."""

    plan: Plan
    calls: float
    height: int
    width: int


def plan_requests(
    first: DrawRequest, hires: Hires | None, plan: Callable[[Sequence[nn.Module], Work], Plan]
) -> PlannedDrawing:
    """Plan a request, and the second run where there is one, by ``plan`` of modules and work."""
    planned = []
    requests = [first] if hires is None else [first, outlined_second(first, hires)]
    with turn_of(first.transformer), lora_applied(first.transformer, first.loras):
        for request in requests:
            chosen = request.work.best_plan(partial(plan, request.modules))
            calls, size = calls_a_step(request), cast(tuple[int, int], request.latents.shape[-2:])
            planned.append(PlannedDrawing(chosen, calls, *size))
    return max(planned, key=lambda each: each.plan.peak)
