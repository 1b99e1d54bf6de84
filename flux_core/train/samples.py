"""Pictures that a training draws of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.text_encoders import TextEncoding
from ..models.transformer import FluxTransformer
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner
from ..offload.workload import decode, vae_work
from ..sampling.conditioning import Conditioning
from ..sampling.images import to_images
from ..sampling.latents import CONSTANTS, latent_size
from ..sampling.run import DrawRequest, SamplingSettings, draw
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
    size = latent_size(config.height, config.width)
    start = torch.zeros(1, CONSTANTS.z_channels, *size)

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
    return runner.run(
        "VAE decoder",
        [vae],
        lambda plan: [to_images(decode(vae, z, plan, runner.device))[0] for z in latents],
        vae_work(vae, *size, 1),
    )
