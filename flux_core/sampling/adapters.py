"""IP-Adapters in a run: their keys and values, computed before it, and how much they count when.

    keys, values = adapter(vector of the picture)        once a picture, for all steps and seeds
    scale        = weight * mask, 0 outside of the span  a number a token

An adapter has a phase of its own, in which its layers stream under the policy as blocks do; in the
steps nothing of it is on the device but keys and values, 0.05 to 1.5 MB a block. Axis letters: B
pictures drawn, n pictures that prompt, P width of a picture's vector, T tokens of pictures, H and
W pixels, h and w latents.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import brief, check_number, check_span
from ..models.families import family_of
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from ..models.ip_adapter import IPAdapter, KeysAndValues
from ..models.patches import DOUBLE, SINGLE
from ..models.picture_attention import PictureAttention
from ..models.transformer import FluxBody, FluxTransformer
from ..offload import OffloadRunner, Work
from ..offload.activations import on_meta, peak_bytes
from ..offload.workload import counted
from ..quant import quantized_linears, set_compute
from .latents import token_grid
from .prepared import PreparedPrompt, span_of
from .regions import Area
from .sigmas import SigmaTable

#: Pictures whose keys and values are kept for an adapter; InstantX's take 90 MB each.
KEPT = 4


@dataclass(frozen=True, eq=False)
class AppliedAdapter:
    """An IP-Adapter with pictures.

    ``embeds`` (n, P) are vectors of pictures, whose tokens are attended to together. ``weight`` is
    a number, ``start`` and ``end`` shares of the schedule from 0 (noise) to 1, ``mask`` (1 or B, H,
    W) in [0, 1] of any size says where in the picture that is drawn it counts. ``negative`` (n, P)
    is what it shows to the negative prompt; without it that sees nothing of it.

    ``ready`` are keys and values of both, which a run computes.
    """

    adapter: IPAdapter
    embeds: Tensor
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: Tensor | None = None
    negative: Tensor | None = None
    ready: tuple[KeysAndValues, KeysAndValues | None] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all its pictures."""
        return len(self.embeds) * self.adapter.config.tokens


def check_adapter(applied: AppliedAdapter, transformer: FluxTransformer, batch: int) -> None:
    """Raise ``ValueError`` for what is no IP-Adapter of this transformer, pictures that another
    encoder saw, and numbers out of range."""
    if not isinstance(applied, AppliedAdapter) or not isinstance(applied.adapter, IPAdapter):
        raise ValueError(f"adapters has {brief(applied)}, expected an AppliedAdapter")
    check_number(applied.weight, "an IP-Adapter's weight", -1000, 1000)
    check_span(applied.start, applied.end, "an IP-Adapter's")
    if not transformer.takes_adapters:
        name = family_of(transformer).name
        raise ValueError(f"{name} takes no IP-Adapters: those of FLUX.1 were not made for it")
    config, body = applied.adapter.config, transformer.config
    blocks = body.depth + (body.depth_single_blocks if config.wide else 0)
    if config.hidden_size != body.hidden_size or config.depth != blocks:
        raise ValueError(
            f"the IP-Adapter has {config.depth} layers of width {config.hidden_size}, this "
            f"transformer asks for {blocks} of {body.hidden_size}: it belongs to another model"
        )
    for embeds in (applied.embeds, applied.negative):
        if embeds is None:
            continue
        if embeds.ndim != 2 or embeds.shape[-1] != config.embed_dim:
            raise ValueError(
                f"the picture's vector is {tuple(embeds.shape)}, this IP-Adapter reads "
                f"{config.embed_dim} numbers: it belongs to another vision encoder"
            )
        if not bool(embeds.isfinite().all()):
            raise ValueError("the picture's vector holds NaN or infinity")
    mask = applied.mask
    if mask is not None and (mask.ndim != 3 or len(mask) not in (1, batch)):
        raise ValueError(
            f"an IP-Adapter's mask is {tuple(mask.shape)}, expected (1 or {batch}, H, W)"
        )


class KnownPicture(NamedTuple):
    """Vectors (n, P), how layers multiplied, and what came of them."""

    embeds: Tensor
    computes: Hashable
    keys: KeysAndValues


_known: weakref.WeakKeyDictionary[IPAdapter, list[KnownPicture]] = weakref.WeakKeyDictionary()


def adapter_work(adapter: IPAdapter, pictures: int) -> Work:
    """Keys and values of so many pictures."""
    config = adapter.config

    def count() -> int:
        small = set_compute(on_meta(adapter), "dequantize")
        return peak_bytes(lambda: small(torch.empty(pictures, config.embed_dim, device="meta")))

    tokens = pictures * config.tokens
    return Work(counted(adapter, pictures, count), image_tokens=tokens, text_tokens=0)


@torch.no_grad()
def keys_of(runner: OffloadRunner | None, adapter: IPAdapter, embeds: Tensor) -> KeysAndValues:
    """Keys and values of vectors (n, P), on the CPU; known ones are not computed again.

    Without a runner they are computed where the adapter is.
    """
    computes = frozenset(layer.compute for layer in quantized_linears(adapter))
    known = _known.setdefault(adapter, [])
    for picture in known:
        same = picture.computes == computes and picture.embeds.shape == embeds.shape
        if same and torch.equal(picture.embeds, embeds.cpu()):
            return picture.keys
    device = adapter.image_proj.norm.weight.device if runner is None else runner.device

    def compute(_: object = None) -> KeysAndValues:
        return KeysAndValues(*(each.cpu() for each in adapter(embeds.to(device))))

    if runner is None:
        keys = compute()
    else:
        work = adapter_work(adapter, len(embeds))
        keys = runner.run("image prompts", [adapter], compute, work)
    known.append(KnownPicture(embeds.cpu().clone(), computes, keys))
    del known[:-KEPT]
    return keys


def made_ready(
    runner: OffloadRunner | None, adapters: Sequence[AppliedAdapter]
) -> list[AppliedAdapter]:
    """Adapters with keys and values; those that count nothing are left out."""
    result = []
    for applied in adapters:
        if applied.ready is None and applied.weight:
            negative = applied.negative
            applied = replace(
                applied,
                ready=(
                    keys_of(runner, applied.adapter, applied.embeds),
                    None if negative is None else keys_of(runner, applied.adapter, negative),
                ),
            )
        if applied.weight:
            result.append(applied)
    return result


@dataclass(frozen=True, eq=False)
class PlacedAdapter:
    """One adapter for one prompt, on the device: keys and values (layers, 1, T, H, d), and scales
    (1 or B, Q, 1) by the kind of block; it counts from the sigma ``first`` to ``last``."""

    keys: Tensor
    values: Tensor
    scales: Mapping[str, Tensor]
    wide: bool
    depth: int
    first: float = math.inf
    last: float = -math.inf


class PlacedAdapters:
    """All adapters that count at a step; what the transformer asks (``PictureSource``)."""

    def __init__(self, adapters: Sequence[PlacedAdapter]) -> None:
        self.adapters = adapters

    @property
    def size_key(self) -> Hashable:
        """What tells those that take as much memory from others."""
        return tuple(
            (each.wide, each.keys.shape, *(scale.shape for scale in each.scales.values()))
            for each in self.adapters
        )

    def of(self, kind: str, index: int) -> list[PictureAttention]:
        """Those of a block."""
        return [
            PictureAttention(
                each.keys[number], each.values[number], each.scales[kind], not each.wide
            )
            for each in self.adapters
            if kind in each.scales
            for number in (index if kind == DOUBLE else each.depth + index,)
        ]


def scales_of(
    applied: AppliedAdapter,
    whole: Sequence[int],
    inner: tuple[int, int] | Sequence[int],
    area: Area | None,
    text: int,
    behind: int,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> dict[str, Tensor]:
    """How much an adapter counts for each token, (1 or B, Q, 1) by the kind of block.

    Args:
        whole, inner: rows and columns of latents of the picture, and of the ``area`` of it.
        text, behind: tokens of text and of references. They have no place in the picture: for
            them it is the mask's average.
    """
    rows, columns = token_grid(inner[0], inner[1], geometry)
    grid = torch.ones(1, 1, rows, columns)
    if applied.mask is not None:
        mask = F.interpolate(applied.mask.float()[:, None], tuple(whole), mode="area")
        mask = mask if area is None else area.cut(mask)
        grid = F.interpolate(mask, (rows, columns), mode="area")
    image = applied.weight * grid.flatten(1)[..., None]
    average = image.mean(1, keepdim=True)
    image = torch.cat([image, average.expand(-1, behind, -1)], dim=1)
    scales = {DOUBLE: image}
    if applied.adapter.config.wide:
        scales[SINGLE] = torch.cat([average.expand(-1, text, -1), image], dim=1)
    return scales


class ReadyAdapter(NamedTuple):
    """An adapter for one prompt: keys and values (layers, 1, T, H, d) on the device."""

    applied: AppliedAdapter
    keys: Tensor
    values: Tensor


class RunAdapters:
    """The adapters of a run for each of its prompts, on the device."""

    def __init__(
        self,
        adapters: Sequence[AppliedAdapter],
        transformer: FluxTransformer,
        positive: Sequence[PreparedPrompt],
        negative: Sequence[PreparedPrompt],
        table: SigmaTable,
        shape: Sequence[int],
        device: torch.device,
    ) -> None:
        self.transformer, self.table, self.device = transformer, table, device
        self.geometry = family_of(transformer).tokens
        self.shape, self.depth = tuple(shape), transformer.config.depth
        self.of_prompt: dict[str, list[ReadyAdapter]] = {}
        self.scales: dict[Hashable, list[dict[str, Tensor]]] = {}
        for applied in made_ready(None, adapters):
            assert applied.ready is not None
            for keys, prompts in zip(applied.ready, (positive, negative), strict=True):
                if keys is None or not prompts:
                    continue
                k, v = (each.to(device, transformer.dtype) for each in keys)
                for prompt in prompts:
                    ready = ReadyAdapter(applied, k, v)
                    self.of_prompt.setdefault(prompt.name, []).append(ready)

    @property
    def tensors(self) -> list[Tensor]:
        """All keys and values, (layers, 1, T, H, d)."""
        ready = [each for some in self.of_prompt.values() for each in some]
        return [tensor for each in ready for tensor in (each.keys, each.values)]

    def counting(self, sigma: float, name: str) -> tuple[bool, ...]:
        """Which of the adapters of a prompt of a name count at a sigma."""
        spans = [
            span_of(self.table, each.applied.start, each.applied.end)
            for each in self.of_prompt.get(name, ())
        ]
        return tuple(last <= sigma <= first for first, last in spans)

    def at(self, sigma: float, prompt: PreparedPrompt, text_tokens: int) -> PlacedAdapters | None:
        """What counts at a sigma for a prompt with so many tokens of text; None where nothing does.

        Compiled blocks are given all of them, those outside of their spans with scales of zero, so
        that a span compiles nothing.
        """
        ready = self.of_prompt.get(prompt.name)
        if ready is None:
            return None
        compiled, active_now = is_compiled(self.transformer), self.counting(sigma, prompt.name)
        placed = []
        for (applied, keys, values), scales, active in zip(
            ready, self.token_scales(prompt, ready, text_tokens), active_now, strict=True
        ):
            if active or compiled:
                scales = scales if active else zeros(scales)
                wide = applied.adapter.config.wide
                placed.append(PlacedAdapter(keys, values, scales, wide, self.depth))
        return PlacedAdapters(placed) if placed else None

    def token_scales(
        self, prompt: PreparedPrompt, ready: Sequence[ReadyAdapter], text_tokens: int
    ) -> list[dict[str, Tensor]]:
        """How much each adapter counts for each token of a prompt's area, (1 or B, Q, 1) by the
        kind of block; made once a place."""
        key = prompt.name, prompt.area, text_tokens
        if key not in self.scales:
            behind = 0 if prompt.references is None else prompt.references.shape[1]
            inner = (prompt.height, prompt.width)
            self.scales[key] = [
                {
                    kind: scale.to(self.device)
                    for kind, scale in scales_of(
                        each.applied,
                        self.shape[-2:],
                        inner,
                        prompt.area,
                        text_tokens,
                        behind,
                        self.geometry,
                    ).items()
                }
                for each in ready
            ]
        return self.scales[key]


def zeros(scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {kind: torch.zeros_like(scale) for kind, scale in scales.items()}


def is_compiled(body: FluxBody) -> bool:
    """Whether the blocks of a transformer or a ControlNet run compiled."""
    blocks = body.offload_blocks()
    return any(getattr(block, "compiled", None) is not None for block in blocks)


class AdapterCost(NamedTuple):
    """What adapters take in a run: arguments of a step without numbers, and bytes on the device
    beside the step's own."""

    options: dict[str, object]
    held: int


def adapter_cost(
    adapters: Sequence[AppliedAdapter],
    transformer: FluxTransformer,
    image_tokens: int,
    text_tokens: int,
    prompts: int,
    guided: bool,
) -> AdapterCost:
    """What adapters take for so many tokens, references among them, and so many prompts in all;
    ``guided``: there is a negative prompt."""
    adapters = [each for each in adapters if each.weight]
    if not adapters:
        return AdapterCost({}, 0)
    config, dtype = transformer.config, transformer.dtype
    placed, held = [], 0
    for applied in adapters:
        wide, size = applied.adapter.config.wide, config.hidden_size
        head = applied.adapter.config.head_size
        shape = (1, applied.tokens, size // head, head)
        one = torch.empty(2, *shape, device="meta", dtype=dtype)
        counts = {DOUBLE: image_tokens} | ({SINGLE: text_tokens + image_tokens} if wide else {})
        rows = 1 if applied.mask is None else len(applied.mask)
        scales = {k: torch.empty(rows, n, 1, device="meta") for k, n in counts.items()}
        placed.append(PlacedAdapter(one, one, scales, wide, 1))
        shown = len(applied.embeds)
        if guided and applied.negative is not None:
            shown += len(applied.negative)
        layers, tokens = applied.adapter.config.depth, shown * applied.adapter.config.tokens
        held += 2 * layers * tokens * size * dtype.itemsize
        held += prompts * sum(scale.nbytes for scale in scales.values())
    return AdapterCost({"adapters": PlacedAdapters(placed)}, held)
