"""Pictures that a run draws of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.text_encoders import TextEncoding
from ..models.transformer import FluxTransformer
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner
from ..offload.workload import decode, sampling_work, vae_work
from ..pipeline import to_images
from ..sampling.denoiser import Conditioning, make_noise_schedule, sample
from ..sampling.latents import CONSTANTS
from .config import SamplesConfig


@torch.no_grad()
def draw_samples(
    config: SamplesConfig,
    texts: Sequence[TextEncoding],
    empty: TextEncoding,
    transformer: FluxTransformer,
    vae: AutoEncoder,
    runner: OffloadRunner,
    told: Callable[[int, int], None],
) -> list[Tensor]:
    """One picture (H, W, 3) in [0, 1] for each text, all with the same noise.

    ``told`` is called with steps done and in all.
    """
    height, width = config.height // 8, config.width // 8
    noise_schedule = make_noise_schedule(
        transformer.config, (1, CONSTANTS.z_channels, height, width), seed=config.seed,
        shift=config.shift, steps=config.steps,
    )  # fmt: skip
    steps = len(noise_schedule.sigmas) - 1
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
                torch.zeros(noise_schedule.noise.shape), noise_schedule, negative=negative,
                cfg=config.cfg,
                device=runner.device,
                callback=lambda step, _all, _, n=n: told(n * steps + step, len(texts) * steps),
            )
            for n, text in enumerate(texts)
        ]  # fmt: skip

    latents = runner.run("samples", [transformer], draw_all, work)
    return runner.run(
        "VAE decoder", [vae],
        lambda plan: [to_images(decode(vae, z, plan, runner.device))[0] for z in latents],
        vae_work(vae, height, width, 1),
    )  # fmt: skip
