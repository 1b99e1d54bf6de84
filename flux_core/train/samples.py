"""Pictures that a training draws of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.families import family_of
from ..models.text_encoders import TextEncoding
from ..models.transformer import FluxTransformer
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner
from ..sampling.conditioning import Conditioning
from ..sampling.latents import zero_latents
from ..sampling.run import DrawRequest, SamplingSettings, draw
from ..sampling.vae import decode_pictures
from .config import SamplesConfig


@torch.no_grad()
def draw_samples(
    config: SamplesConfig,
    texts: Sequence[TextEncoding],
    empty: TextEncoding,
    transformer: FluxTransformer,
    vae: AutoEncoder,
    runner: OffloadRunner,
    on_progress: Callable[[int, int], None],
) -> list[Tensor]:
    """One picture (H, W, 3) in [0, 1] for each text, all with the same noise.

    ``empty`` is the encoding of no text, for true guidance; ``on_progress`` is called with steps
    done and in all. The LoRA that is trained is on the transformer already.
    """
    settings = SamplingSettings(
        seed=config.seed, steps=config.steps, cfg=config.cfg, shift=config.shift
    )
    start = zero_latents(family_of(transformer).vae, 1, config.height, config.width)

    def conditioning(text: TextEncoding) -> Conditioning:
        return Conditioning(text.context, text.pooled, config.guidance)

    negative = None if config.cfg == 1.0 else conditioning(empty)
    requests = [
        DrawRequest(transformer, conditioning(text), start, settings, negative=negative)
        for text in texts
    ]
    latents = draw(
        runner,
        requests,
        name="samples",
        callback=lambda step, total, _: on_progress(step, total),
    )
    return [pictures[0] for pictures in decode_pictures(runner, vae, latents)]
