"""Our VAE behind the methods that the host's nodes call on a VAE wire."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flux_core import AutoEncoder, OffloadPolicy
from flux_core.models.tiling import tiled
from flux_core.offload import Work
from flux_core.offload.plan import Plan
from flux_core.receipts import pixels_hash, saved_pixels
from flux_core.record import note
from flux_core.sampling.images import to_images, to_pixels
from flux_core.sampling.vae import decode, encode, vae_work

from . import host
from .memory_manager import run


def noted(images: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) that were decoded, whose hashes stand in receipts: one that is saved
    as it is is known by them."""
    note("decode", pixels=[pixels_hash(saved_pixels(image)) for image in images])
    return images


class HostVAE:
    """Latents are raw on both sides; pictures are (B, H, W, 3) in [0, 1]."""

    latent_dim = 2
    output_channels = 3

    def __init__(self, model: AutoEncoder, policy: OffloadPolicy) -> None:
        self.first_stage_model = model
        self.policy = policy
        self.downscale_ratio = self.upscale_ratio = model.config.compression
        self.latent_channels = model.config.latent_channels

    def run(self, name: str, function: Callable[[Plan], Tensor], work: Work) -> Tensor:
        """Call a function with the model on the device, under its policy."""
        return run(name, self.policy, [self.first_stage_model], function, work)

    def decode(self, samples_in: Tensor, vae_options: dict | None = None) -> Tensor:
        """Raw latents (B, 16, h, w) to pictures (B, 8 h, 8 w, 3), in tiles where the plan says."""
        batch, _, height, width = samples_in.shape
        return noted(
            self.run(
                "VAE decoder",
                lambda plan: to_images(
                    decode(self.first_stage_model, samples_in, plan, host.device())
                ),
                vae_work(self.first_stage_model, height, width, batch),
            )
        )

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Pictures to raw latents; sides are cut to multiples of 8, as the host does."""
        pixels = to_pixels(self.crop(pixel_samples))
        height, width = (side // self.downscale_ratio for side in pixels.shape[2:])
        return self.run(
            "VAE encoder",
            lambda plan: encode(self.first_stage_model, pixels, plan, host.device()),
            vae_work(self.first_stage_model, height, width, len(pixels), decoding=False),
        )

    def decode_tiled(
        self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16, **_: object
    ) -> Tensor:
        """As ``decode``, over tiles whose sides are given in latents."""
        tile = (tile_y or 64, tile_x or 64)
        return noted(
            self.run(
                "VAE decoder",
                lambda plan: to_images(
                    tiled(
                        lambda part: self.first_stage_model.decode(part.to(host.device())),
                        samples,
                        tile,
                        overlap or 0,
                        self.upscale_ratio,
                        3,
                    )
                ),
                vae_work(self.first_stage_model, *tile, len(samples)),
            )
        )

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int = 512,
        tile_y: int = 512,
        overlap: int = 64,
        **_: object,
    ) -> Tensor:
        """As ``encode``, over tiles whose sides are given in pixels."""
        ratio = self.downscale_ratio
        small = max(1, (tile_y or 512) // ratio), max(1, (tile_x or 512) // ratio)
        pixels = to_pixels(self.crop(pixel_samples))
        return self.run(
            "VAE encoder",
            lambda plan: tiled(
                lambda part: self.first_stage_model.encode(part.to(host.device())),
                pixels,
                (ratio * small[0], ratio * small[1]),
                (overlap or 0) // ratio * ratio,
                1 / ratio,
                self.latent_channels,
            ),
            vae_work(self.first_stage_model, *small, len(pixels), decoding=False),
        )

    def crop(self, pixels: Tensor) -> Tensor:
        ratio = self.downscale_ratio
        height, width = (side // ratio * ratio for side in pixels.shape[1:3])
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        return pixels[:, top : top + height, left : left + width, :3]

    def spacial_compression_decode(self) -> int:
        return self.upscale_ratio

    def spacial_compression_encode(self) -> int:
        return self.downscale_ratio

    def temporal_compression_decode(self) -> None:
        return None

    def get_sd(self) -> dict[str, Tensor]:
        """All weights by their names, each of its own shape, for VAE Save."""
        return {name: t.cpu() for name, t in self.first_stage_model.state_dict().items()}

    def is_dynamic(self) -> bool:
        return False
