"""What text encoders make of prompts.

Axis letters: B prompts, N tokens, D and P widths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TextEncoding:
    """What the transformer reads: context (B, N, D) and pooled (B, P), P 0 without CLIP-L.

    ``mask`` (B, N) booleans: which tokens are read, where shorter prompts stand beside longer ones;
    None for all.
    """

    context: Tensor
    pooled: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> TextEncoding:
        """The same on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return TextEncoding(self.context.to(device), self.pooled.to(device), mask)


def joined(encodings: Sequence[TextEncoding]) -> TextEncoding:
    """Encodings as one of all their prompts, (B, N, D); what shorter ones lack is masked."""
    longest = max(encoding.context.shape[1] for encoding in encodings)
    contexts, masks = [], []
    for encoding in encodings:
        missing = longest - encoding.context.shape[1]
        contexts.append(F.pad(encoding.context, (0, 0, 0, missing)))
        mask = encoding.mask
        if mask is None:
            mask = torch.ones(encoding.context.shape[:2], dtype=torch.bool)
        masks.append(F.pad(mask, (0, missing)))
    mask = torch.cat(masks)
    return TextEncoding(
        torch.cat(contexts),
        torch.cat([encoding.pooled for encoding in encodings]),
        None if bool(mask.all()) else mask,
    )


#: What prompts were encoded to, the one that was asked for last at the end.
Encodings = OrderedDict[object, TextEncoding]


def recalled(encodings: Encodings, key: object) -> TextEncoding | None:
    """What is kept under a key; None where nothing is."""
    if key in encodings:
        encodings.move_to_end(key)
    return encodings.get(key)


def remember(encodings: Encodings, key: object, encoding: TextEncoding, most: int) -> TextEncoding:
    """Keep an encoding on the CPU, as one of the last so many; gives what is kept."""
    encodings[key] = encoding = encoding.to("cpu")
    if len(encodings) > most:
        encodings.popitem(last=False)
    return encoding
