"""Text tokens that nobody reads: padding behind the shorter prompts of a batch.

A prompt alone has none, and no mask either, so that attention stays as fast as without.

Axis letters: B pictures, N text tokens, T tokens of text, picture and references.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .latents import expand


def without_padding(
    mask: Tensor | None,
    text_mask: Tensor | None,
    other_tokens: int,
    batch: int,
    device: torch.device,
) -> Tensor | None:
    """An attention mask under which padding is not read.

    Args:
        mask: (1 or B, T, T) booleans or biases, as ``layers.attention`` has it; None for none.
        text_mask: (1 or B, N) booleans, False for padding; None where there is none.
        other_tokens: those of the picture and of references, behind the text.

    Returns:
        (B, 1, T) booleans, or the mask without what is padding; None where all is read.
    """
    if text_mask is None or bool(text_mask.all()):
        return mask
    read = F.pad(expand(text_mask.bool(), batch), (0, other_tokens), value=True)
    read = read[:, None].to(device)  # (B, 1, T)
    if mask is None:
        return read
    if mask.dtype == torch.bool:
        return mask & read
    return mask.masked_fill(~read, -math.inf)
