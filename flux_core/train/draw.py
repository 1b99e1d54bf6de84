"""Pictures that a run draws of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..latents import CONSTANTS
from ..offload import Residency
from ..pipeline import to_images
from ..sampling import Conditioning, make_course, sample
from ..text import TextEncoding
from ..transformer import FluxTransformer
from ..vae import AutoEncoder
from ..workload import decode, sampling_work, vae_work
from .config import SamplesConfig


@torch.no_grad()
def draw_samples(
    config: SamplesConfig,
    texts: Sequence[TextEncoding],
    empty: TextEncoding,
    transformer: FluxTransformer,
    vae: AutoEncoder,
    residency: Residency,
    told: Callable[[int, int], None],
) -> list[Tensor]:
    """One picture (H, W, 3) in [0, 1] for each text, all with the same noise.

    ``told`` is called with steps done and in all.
    """
    height, width = config.height // 8, config.width // 8
    course = make_course(
        transformer.config, (1, CONSTANTS.z_channels, height, width), seed=config.seed,
        shift=config.shift, steps=config.steps,
    )  # fmt: skip
    steps = len(course.sigmas) - 1
    negative = None if config.cfg == 1.0 else Conditioning(
        empty.context, empty.pooled, config.guidance
    )  # fmt: skip
    work = sampling_work(
        transformer, [], image=height * width // 4, text=empty.context.shape[1], batch=1,
        vectors=steps * (1 if negative is None else 2),
    )  # fmt: skip

    def draw_all(_) -> list[Tensor]:
        return [
            sample(
                transformer, Conditioning(text.context, text.pooled, config.guidance),
                torch.zeros(course.noise.shape), course, negative=negative, cfg=config.cfg,
                device=residency.device,
                callback=lambda step, _all, _, n=n: told(n * steps + step, len(texts) * steps),
            )
            for n, text in enumerate(texts)
        ]  # fmt: skip

    latents = residency.run("samples", [transformer], draw_all, work)
    return residency.run(
        "VAE decoder", [vae],
        lambda plan: [to_images(decode(vae, z, plan, residency.device))[0] for z in latents],
        vae_work(vae, height, width, 1),
    )  # fmt: skip
