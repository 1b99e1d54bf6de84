"""Train the pocket autoencoder on pictures of shapes, sharp and blurred.

    loss = |x - x'| + |edges(x) - edges(x')| + kl_weight * KL(q(z | x) || N(0, 1))

Crops are taken around the edge of a shape, where there is something to learn; a quarter of them are
enlarged from a smaller picture, because the upscaler's condition is such a picture. Afterwards
every latent channel is rescaled so that FLUX.1's constants (0.1159, 0.3611) standardise it.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flux_core.models.config import VAEConfig
from flux_core.models.vae import AutoEncoder
from tools.pocket.common import WORKERS, Run, arguments
from tools.pocket.scenes import Scene, draw, random_scene

CONFIG = VAEConfig(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=1)


def blurred(picture: np.ndarray, factor: int, rng: random.Random) -> np.ndarray:
    """The picture made ``factor`` times smaller and bicubically enlarged again."""
    side = picture.shape[0]
    small = Image.fromarray(picture).resize((side // factor,) * 2, Image.Resampling.BOX)
    way = rng.choice((Image.Resampling.BICUBIC, Image.Resampling.BILINEAR))
    return np.asarray(small.resize((side, side), way))


def crop(scene: Scene, side: int, size: int, rng: random.Random) -> np.ndarray:
    """A square of the picture whose centre lies near one thing of the scene."""
    picture = draw(scene, side, rng)
    if rng.random() < 0.25:
        picture = blurred(picture, rng.choice((2, 4)), rng)
    thing = rng.choice(scene.things)
    reach = thing.radius * 1.1
    at = [int((c + rng.uniform(-reach, reach)) * side - size / 2) for c in (thing.x, thing.y)]
    left, top = (min(side - size, max(0, p)) for p in at)
    return picture[top : top + size, left : left + size]


def batch(seed: int, count: int, size: int) -> Tensor:
    """Crops (count, 3, size, size) in [-1, 1], the same for the same seed."""
    rng = random.Random(seed)
    sides = (128, 256)
    crops = [
        crop(random_scene(rng, held_out=rng.random() < 0.125), rng.choice(sides), size, rng)
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.diff(dim=-1), x.diff(dim=-2)


def loss_of(vae: AutoEncoder, x: Tensor, kl_weight: float) -> Tensor:
    mean, logvar = vae.encoder(x).float().chunk(2, dim=1)
    logvar = logvar.clamp(-12, 4)
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    out = vae.decoder(z).float()
    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(out), edges(x), strict=True))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return F.l1_loss(out, x) + F.mse_loss(out, x) + sharp + kl_weight * kl


def main() -> None:
    args = arguments(__doc__, steps=5000, size=64, batch=8, lr=1e-3, kl=5e-4)
    torch.manual_seed(0)
    vae = AutoEncoder(CONFIG).to(args.device, memory_format=torch.channels_last)
    with torch.no_grad():  # begin with little noise on the latents, or colours are learnt late
        vae.encoder.conv_out.bias[CONFIG.z_channels :] = -6
        vae.encoder.conv_out.weight[CONFIG.z_channels :] *= 0.1
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0)
    run = Run("vae", args.out, vae, [optimizer], args.steps, warmup=30)
    for seed in run:
        torch.manual_seed(seed)
        x = batch(seed, args.batch // WORKERS, args.size).to(
            args.device, memory_format=torch.channels_last
        )
        with torch.autocast(args.device, torch.bfloat16):
            loss = loss_of(vae, x, args.kl)
        run.update(loss, clip=math.inf)  # Adam is scale-free, and clipping slows it here


if __name__ == "__main__":
    main()
