"""What a run will take beside the weights: counted for what its prompts read at every step.

Axis letters: B pictures, C channels, h and w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..models.controlnet import FluxControlNet
from ..models.transformer import FluxTransformer
from ..offload import Work
from ..offload.workload import MoreInputs, sampling_work
from .conditioning import Conditioning
from .guidance import GuidanceOptions
from .latents import image_tokens
from .nag import NormalizedAttention
from .reading import guiding_of, reading_sizes, within
from .sigmas import SigmaTable


def guided_on_meta(negative_tokens: int, text_tokens: int) -> dict[str, Any]:
    """What the transformer reads where attention is guided, without numbers."""
    numbers = torch.empty(3, device="meta")
    return {"patches": NormalizedAttention(numbers, negative_tokens, text_tokens)}


# long: its arguments are all that decides what a run takes
def request_work(
    transformer: FluxTransformer,
    nets: Sequence[FluxControlNet],
    positive: Sequence[Conditioning],
    negative: Sequence[Conditioning] | None,
    shape: Sequence[int],
    sigmas: Tensor,
    table: SigmaTable,
    cfg: float,
    options: GuidanceOptions,
) -> Work:
    """What drawing prompts in latents of a shape (B, C, h, w) at ``sigmas`` (steps + 1,) takes."""
    times = [sigma for sigma in sigmas[:-1].tolist() if sigma <= options.zero_sigma(sigmas)]
    guided = [sigma for sigma in times if within(table, options.start, options.end, sigma)]
    entries = [(prompt, times, guiding_of(options, negative)) for prompt in positive]
    if negative is not None and cfg != 1.0:
        entries += [(prompt, guided, None) for prompt in negative]
    itemsize = transformer.dtype.itemsize
    behind = max(entry.references.tokens if entry.references else 0 for entry, *_ in entries)
    image = image_tokens(shape[-2], shape[-1]) + behind
    sizes: set[tuple[int, int]] = set()
    masks = 0
    for entry, steps, guiding in entries:
        some = reading_sizes(entry, guiding, table, steps, shape, itemsize)
        sizes |= {(size.text, size.negative) for size in some}
        masks += max(size.masks for size in some)
    works = []
    for text, negative_tokens in sizes:
        more = None
        if negative_tokens:
            more = MoreInputs(partial(guided_on_meta, negative_tokens, text), negative_tokens)
        works.append(
            sampling_work(
                transformer,
                nets,
                image_tokens=image,
                text_tokens=text,
                batch=shape[0],
                vectors=len(times) * len(positive) + len(guided) * (len(entries) - len(positive)),
                more=more,
            )
        )
    most = max(works, key=lambda work: work.activations)
    return replace(most, activations=most.activations + masks)
