"""Pictures seen by a vision encoder, where it reaches the device only while it computes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.vision import VisionEncoder, VisionFeatures, vision_pixels
from ..offload import OffloadRunner, Work
from ..offload.activations import on_meta, peak_bytes
from ..offload.workload import counted
from ..quant import set_compute


def vision_work(encoder: VisionEncoder) -> Work:
    """Encoding one picture."""
    side, tokens = encoder.config.image_size, encoder.config.tokens

    def count() -> int:
        small = set_compute(on_meta(encoder), "dequantize")
        return peak_bytes(lambda: small(torch.empty(1, 3, side, side, device="meta")))

    return Work(counted(encoder, "picture", count), image_tokens=tokens, text_tokens=0)


@torch.no_grad()
def encode_vision(
    runner: OffloadRunner, encoder: VisionEncoder, images: Tensor, crop: bool = True
) -> VisionFeatures:
    """What an encoder sees in pictures (n, H, W, 3) in [0, 1]: tokens (n, N, D) and pooled (n, P),
    on the CPU.

    Pictures are encoded one by one, so that one has the same bits in any company. ``crop``: cut
    around the middle to a square, else both sides are scaled.
    """
    pixels = vision_pixels(images.cpu(), encoder.config, crop)

    def encode(_: object) -> list[VisionFeatures]:
        return [encoder(one.to(runner.device)).cpu() for one in pixels.split(1)]

    seen = runner.run("vision encoder", [encoder], encode, vision_work(encoder))
    pooled = [each.pooled for each in seen if each.pooled is not None]
    tokens = torch.cat([each.tokens for each in seen])
    return VisionFeatures(tokens, torch.cat(pooled) if pooled else None)
