"""Pictures that say what to draw, for those who script: by Redux or by IP-Adapters.

    FluxPipeline(...)("a fox", image_prompts=[
        ReduxPrompt(redux, siglip, picture, strength=0.6),
        IPAdapterPrompt(adapter, clip, picture, weight=0.7, end=0.8)])

Both are seen by a vision encoder; Redux adds to the prompt, an IP-Adapter to every step. Letters of
axes: n pictures that prompt together, H and W their pixels, B pictures drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds import brief, check_number, check_span
from ..models.ip_adapter import IPAdapter
from ..models.redux import ReduxModel
from ..models.vision import VisionEncoder
from ..offload import OffloadRunner
from .adapters import AppliedAdapter
from .conditioning import Conditioning
from .images import as_masks, as_pictures
from .redux import MERGES, MULTIPLY, STRENGTH_TYPES, merged, on_grid, redux_tokens, with_tokens
from .vision import encode_vision


@dataclass(frozen=True, eq=False)
class ReduxPrompt:
    """Pictures (n, H, W, 3) in [0, 1], or whatever ``FluxPipeline`` takes for one, by Redux.

    ``strength`` counts as ``strength_type`` says (``multiply``, ``attn_bias``). ``grid`` are tokens
    to a side that are left of a picture, 0 for all; ``mask`` (1 or n, H, W) says what of
    it counts. Several pictures stand ``side by side``, or with ``merge`` ``sum`` are blended by
    their ``weights``. ``crop``: cut to a square around the middle, else squeezed into one.
    """

    redux: ReduxModel
    encoder: VisionEncoder
    image: object
    strength: float = 1.0
    strength_type: str = MULTIPLY
    grid: int = 0
    mask: object | None = None
    weights: Sequence[float] | None = None
    merge: str = MERGES[0]
    crop: bool = True


@dataclass(frozen=True, eq=False)
class IPAdapterPrompt:
    """Pictures (n, H, W, 3) in [0, 1], or what ``FluxPipeline`` takes for one, by an IP-Adapter.

    ``weight``, ``start`` and ``end`` say how much it counts when; ``mask`` (1 or B, H, W) where in
    the picture that is drawn. ``negative_image`` is shown to the negative prompt, which sees
    nothing without it. ``crop`` None is as the adapter was trained: cut for CLIP, squeezed for
    SigLIP.
    """

    adapter: IPAdapter
    encoder: VisionEncoder
    image: object
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: object | None = None
    negative_image: object | None = None
    crop: bool | None = None


ImagePrompt = ReduxPrompt | IPAdapterPrompt


def check_image_prompt(prompt: object) -> None:
    """Raise ``ValueError`` for what is no image prompt, for parts that do not belong together, and
    for numbers and names out of range."""
    if not isinstance(prompt, ReduxPrompt | IPAdapterPrompt):
        raise ValueError(
            f"image_prompts has {brief(prompt)}, expected a ReduxPrompt or an IPAdapterPrompt"
        )
    if not isinstance(prompt.encoder, VisionEncoder):
        raise ValueError(f"an image prompt has {brief(prompt.encoder)}, expected a VisionEncoder")
    if not isinstance(prompt.crop, bool | None):
        raise ValueError(f"crop is {brief(prompt.crop)}, expected True or False")
    config = prompt.encoder.config
    if isinstance(prompt, IPAdapterPrompt):
        if not isinstance(prompt.adapter, IPAdapter):
            raise ValueError(f"an image prompt has {brief(prompt.adapter)}, expected an IPAdapter")
        check_number(prompt.weight, "an IP-Adapter's weight", -1000, 1000)
        check_span(prompt.start, prompt.end, "an IP-Adapter's")
        reads, sees = prompt.adapter.config.embed_dim, config.pooled_width
    else:
        if not isinstance(prompt.redux, ReduxModel):
            raise ValueError(f"an image prompt has {brief(prompt.redux)}, expected a ReduxModel")
        check_number(prompt.strength, "the strength of a picture", 0, 1000)
        for name, value, known in (
            ("strength_type", prompt.strength_type, STRENGTH_TYPES),
            ("merge", prompt.merge, MERGES),
        ):
            if value not in known:
                raise ValueError(f"{name} is {brief(value)}, expected one of {', '.join(known)}")
        reads, sees = prompt.redux.config.embed_dim, config.hidden_size
    if reads != sees:
        raise ValueError(
            f"the vision encoder gives {sees} numbers, its {type(prompt).__name__} reads {reads}: "
            "they do not belong together"
        )


def seen_pooled(
    runner: OffloadRunner | None, encoder: VisionEncoder, image: object, crop: bool
) -> Tensor:
    """The encoder's vectors (n, P) of pictures."""
    pictures = as_pictures(image, "the picture of an image prompt")
    if runner is None:
        return torch.zeros(len(pictures), encoder.config.pooled_width)
    pooled = encode_vision(runner, encoder, pictures, crop).pooled
    assert pooled is not None, "a width was checked"
    return pooled


def seen_tokens(runner: OffloadRunner | None, prompt: ReduxPrompt) -> Tensor:
    """What Redux makes of its pictures, (n, M, C)."""
    pictures = as_pictures(prompt.image, "the picture of an image prompt")
    if runner is None:
        tokens, width = prompt.encoder.config.tokens, prompt.redux.config.context_dim
        return torch.zeros(len(pictures), tokens, width)
    features = encode_vision(runner, prompt.encoder, pictures, prompt.crop)
    return redux_tokens(runner, prompt.redux, features.tokens)


def applied_adapter(runner: OffloadRunner | None, prompt: IPAdapterPrompt) -> AppliedAdapter:
    """An IP-Adapter with what its encoder sees."""
    crop = not prompt.adapter.config.wide if prompt.crop is None else prompt.crop
    negative = prompt.negative_image
    return AppliedAdapter(
        prompt.adapter,
        seen_pooled(runner, prompt.encoder, prompt.image, crop),
        prompt.weight,
        prompt.start,
        prompt.end,
        None if prompt.mask is None else as_masks(prompt.mask, "an IP-Adapter's mask"),
        None if negative is None else seen_pooled(runner, prompt.encoder, negative, crop),
    )


def apply_image_prompts(
    runner: OffloadRunner | None, prompts: Sequence[ImagePrompt], positive: Conditioning
) -> tuple[Conditioning, list[AppliedAdapter]]:
    """A prompt with what Redux adds to it, and the IP-Adapters of a run.

    Without a runner zeros stand for what encoders see, and all is checked that a run would refuse.
    Raises ``ValueError``.
    """
    adapters = []
    for prompt in prompts:
        if isinstance(prompt, IPAdapterPrompt):
            adapters.append(applied_adapter(runner, prompt))
            continue
        mask = None if prompt.mask is None else as_masks(prompt.mask, "a picture's mask")
        rows = on_grid(seen_tokens(runner, prompt), prompt.grid, mask, prompt.crop)
        joined = merged(rows, prompt.weights, prompt.merge)
        positive = with_tokens(positive, joined, prompt.strength, prompt.strength_type)
    return positive, adapters
