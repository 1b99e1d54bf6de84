"""Our VAE behind the methods that the host's nodes call on a VAE wire."""

from __future__ import annotations

from torch import Tensor

from ..flux_core import AutoEncoder, OffloadPolicy
from ..flux_core.pipeline import to_images, to_pixels
from ..flux_core.tiling import tiled
from . import host


class HostVAE:
    """Latents are raw on both sides; pictures are (B, H, W, 3) in [0, 1]."""

    latent_channels = 16
    latent_dim = 2
    output_channels = 3

    def __init__(self, model: AutoEncoder, policy: OffloadPolicy) -> None:
        self.first_stage_model = model
        self.policy = policy
        self.downscale_ratio = self.upscale_ratio = model.config.compression

    def hold(self, name: str):
        """The model on the device, under its policy."""
        return host.hold(name, self.policy, self.first_stage_model)

    def decode(self, samples_in: Tensor, vae_options: dict | None = None) -> Tensor:
        """Raw latents (B, 16, h, w) to pictures (B, 8 h, 8 w, 3)."""
        with self.hold("VAE decoder"):
            return to_images(self.first_stage_model.decode(samples_in.to(host.device())))

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Pictures to raw latents; sides are cut to multiples of 8, as the host does."""
        pixels = self.crop(pixel_samples)
        with self.hold("VAE encoder"):
            return self.first_stage_model.encode(to_pixels(pixels).to(host.device())).float().cpu()

    def decode_tiled(
        self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16, **_: object
    ) -> Tensor:
        """As ``decode``, over tiles whose sides are given in latents."""
        with self.hold("VAE decoder"):
            pixels = tiled(
                lambda part: self.first_stage_model.decode(part.to(host.device())),
                samples, (tile_y or 64, tile_x or 64), overlap or 0, self.upscale_ratio, 3,
            )  # fmt: skip
        return to_images(pixels)

    def encode_tiled(
        self, pixel_samples: Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 64,
        **_: object,
    ) -> Tensor:  # fmt: skip
        """As ``encode``, over tiles whose sides are given in pixels."""
        ratio = self.downscale_ratio
        tile = tuple(max(ratio, (side or 512) // ratio * ratio) for side in (tile_y, tile_x))
        with self.hold("VAE encoder"):
            return tiled(
                lambda part: self.first_stage_model.encode(part.to(host.device())),
                to_pixels(self.crop(pixel_samples)), (tile[0], tile[1]),
                (overlap or 0) // ratio * ratio, 1 / ratio, self.latent_channels,
            )  # fmt: skip

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

    def is_dynamic(self) -> bool:
        return False
