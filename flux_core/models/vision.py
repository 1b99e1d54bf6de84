"""Vision encoders: a picture to one vector a patch, and one for the whole.

    SigLIP   patches -> layers -> norm = tokens;   pooled = attention of one learned query over them
    CLIP     class and patches -> norm -> layers = tokens;   pooled = projection(norm(first token))

The layers are ``transformers``' own; this module calls them as Redux and IP-Adapters do. Axis
letters: B pictures, S side in pixels, N tokens, D and P widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant.products import Linear, use_fast_linears
from .vision_config import VisionConfig

#: What pictures are normalised with, by channel: mean and deviation.
CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP_STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """What a vision encoder sees: ``tokens`` (B, N, D), and ``pooled`` (B, P) or None."""

    tokens: Tensor
    pooled: Tensor | None

    def cpu(self) -> VisionFeatures:
        return VisionFeatures(self.tokens.cpu(), None if self.pooled is None else self.pooled.cpu())


class VisionEncoder(nn.Module):
    """CLIP's or SigLIP's vision model, told apart by its config alone."""

    part = "clip_vision"
    #: Small, or read by another library's attention, which wants a weight.
    high_precision: tuple[str, ...] = ("embeddings", "head", "visual_projection")

    def __init__(self, config: VisionConfig) -> None:
        from .vision_layers import vision_parts  # seconds, for those who build one

        super().__init__()
        self.config = config
        parts = vision_parts(config)
        self.embeddings, self.encoder = parts.embeddings, parts.encoder
        self.pre_layrnorm: nn.Module | None = parts.first_norm  # as every file spells it
        self.post_layernorm: nn.Module = parts.last_norm
        self.head: nn.Module | None = parts.head
        self.visual_projection = (
            Linear(config.hidden_size, config.projection, bias=False) if config.projection else None
        )
        use_fast_linears(self)

    def offload_blocks(self) -> list[nn.Module]:
        """The layers in the order in which they run."""
        return list(self.encoder.layers)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.post_layernorm.weight.dtype  # type: ignore[return-value]

    def forward(self, pixels: Tensor) -> VisionFeatures:
        """Normalised pixels (B, 3, S, S) to tokens (B, N, D) and the whole's vector (B, P)."""
        x = self.embeddings(pixels.to(self.dtype))
        if self.pre_layrnorm is not None:
            x = self.pre_layrnorm(x)
        x = self.encoder(inputs_embeds=x).last_hidden_state
        if self.config.siglip:
            x = self.post_layernorm(x)
            return VisionFeatures(x, None if self.head is None else self.head(x))
        pooled = None
        if self.visual_projection is not None:
            pooled = self.visual_projection(self.post_layernorm(x[:, 0]))
        return VisionFeatures(x, pooled)


def vision_pixels(images: Tensor, config: VisionConfig, crop: bool = True) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] as a vision encoder reads them, (B, 3, S, S).

    Scaled bicubically with antialiasing so that the shorter side fits, and cut around the middle;
    without ``crop`` both sides are scaled, as SigLIP was trained. Then rounded to 8 bits, as both
    ``transformers`` and ComfyUI have it. Of a side that does not come out whole ``transformers``
    drops the rest, ComfyUI rounds, which is done here.
    """
    side = config.image_size
    pixels = images[..., :3].movedim(-1, 1).float()
    height, width = pixels.shape[-2:]
    if (height, width) != (side, side):
        scale = side / min(height, width)
        size = (round(scale * height), round(scale * width)) if crop else (side, side)
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    pixels = (255.0 * pixels).clamp(0, 255).round() / 255.0
    mean, deviation = SIGLIP_STATISTICS if config.siglip else CLIP_STATISTICS
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
