"""Pictures as people have them, and as the VAE reads them.

pictures (B, H, W, 3) in [0, 1];  pixels (B, 3, H, W) in [-1, 1]
"""

from __future__ import annotations

from torch import Tensor


def check_size(width: int, height: int) -> None:
    """Refuse sides that are no multiples of 16 (8 for the VAE, 2 for a token)."""
    for name, side in (("width", width), ("height", height)):
        if side < 16 or side % 16:
            raise ValueError(f"{name} is {side}, expected a multiple of 16, at least 16")


def to_pixels(images: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] to the VAE's (B, 3, H, W) in [-1, 1]."""
    return images.movedim(-1, 1)[:, :3].float() * 2 - 1


def to_images(pixels: Tensor) -> Tensor:
    """The VAE's (B, 3, H, W) to pictures (B, H, W, 3) float32 in [0, 1] on the CPU."""
    return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()
