"""What each part will compute, for its plan: the bytes that it takes beside its weights.

They are counted by running the part on meta (``offload.activations``), once for each size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..models.layers import ModulationLayer
from ..models.text_encoders import T5Encoder
from ..models.tiling import tiled
from ..models.transformer import FluxBody, FluxTransformer
from ..models.vae import AutoEncoder
from ..quant import set_compute
from . import Work
from .activations import FusedAttention, on_meta, peak_bytes
from .blocks import modulation_width, modulations_of
from .gradient_checkpointing import gradient_checkpointed
from .modulations import WINDOW
from .placement import Training
from .plan import Plan, nbytes

#: Sides of tiles in latents, from the largest on; the last one is taken whatever the budget.
TILES = (128, 96, 64, 48, 32)
#: Neighbouring tiles share this part of their side.
OVERLAP = 4
_counted: weakref.WeakKeyDictionary[nn.Module, dict[object, int]] = weakref.WeakKeyDictionary()


def counted(module: nn.Module, key: object, count: Callable[[], int]) -> int:
    """A number that is found once for a module and a key."""
    known = _counted.setdefault(module, {})
    if key not in known:
        known[key] = count()
    return known[key]


class ModulationsOnMeta:
    """Modulations without numbers."""

    def __init__(self, body: FluxBody, batch: int) -> None:
        self.batch, self.dtype = batch, body.dtype

    def of(self, layer: ModulationLayer) -> Tensor:
        return torch.empty(self.batch, layer.width, device="meta", dtype=self.dtype)


def one_of_each_block(model: FluxTransformer) -> FluxTransformer:
    """The model on meta with one block of each kind: all are the same, and one leaves nothing
    behind for the next."""
    small = cast(FluxTransformer, on_meta(model))
    for blocks in (small.double_blocks, small.single_blocks):
        del blocks[1:]
    set_compute(small, "dequantize")
    return small


def velocity_on_meta(
    model: FluxTransformer, image_tokens: int, text_tokens: int, batch: int
) -> Tensor:
    """What a transformer on meta gives, (B, L, out_channels), for inputs without numbers."""
    config = model.config

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    return model(
        img=empty(batch, image_tokens, config.in_channels),
        img_ids=empty(image_tokens, 3),
        txt=empty(batch, text_tokens, config.context_in_dim),
        txt_ids=empty(text_tokens, 3),
        timesteps=empty(batch),
        y=empty(batch, config.vec_in_dim),
        guidance=empty(batch),
    )


def transformer_bytes(
    model: FluxTransformer, image_tokens: int, text_tokens: int, batch: int
) -> int:
    """Bytes that a step takes beside the weights, its modulations known: tokens of a picture and
    of text."""

    model = getattr(model, "_orig_mod", model)  # a compiled module holds the one that it was

    def count() -> int:
        small = one_of_each_block(model)
        small.precomputed = ModulationsOnMeta(small, batch)
        return peak_bytes(lambda: velocity_on_meta(small, image_tokens, text_tokens, batch))

    return counted(model, (image_tokens, text_tokens, batch), count)


def sampling_work(
    transformer: FluxTransformer,
    nets: Sequence[FluxBody],
    *,
    image_tokens: int,
    text_tokens: int,
    batch: int,
    vectors: int,
) -> Work:
    """A run of the sampler; ``vectors`` is its steps times its prompts."""
    size = transformer_bytes(transformer, image_tokens, text_tokens, batch)
    item = transformer.dtype.itemsize
    for body in (transformer, *nets):
        known = min(vectors, WINDOW) + 1
        size += known * batch * item * modulation_width(body)
    for net in nets:  # residuals wait for the transformer
        count = len(net.double_blocks) + len(net.single_blocks)
        size += count * batch * image_tokens * int(net.img_in.out_features) * item
    largest = max((nbytes(m, set()) for m in modulations_of(transformer)), default=0)
    return Work(max(size, largest), image_tokens, text_tokens, batch)


@contextmanager
def fused(block: nn.Module) -> Iterator[nn.Module]:
    """A block on meta; a backward pass leaves modes behind, so each call enters its own."""
    with FusedAttention():
        yield block


def training_work(
    transformer: FluxTransformer,
    *,
    image_tokens: int,
    text_tokens: int,
    batch: int,
    on_host: bool,
    kept: int,
) -> Work:
    """A training step, gradients and all, of a transformer that has its ``TrainedLora`` on.

    Args:
        kept: bytes of what is trained, its gradients and the optimizer's state.
        on_host: whether what the blocks keep waits on the host.
    """
    config, item = transformer.config, transformer.dtype.itemsize
    depth = config.depth + config.depth_single_blocks
    # of a block, in either stream
    inputs = item * batch * (image_tokens + text_tokens) * config.hidden_size

    def count() -> int:
        small = one_of_each_block(transformer)

        def step() -> None:
            for block in (*small.double_blocks, *small.single_blocks):
                here = partial(fused, block)
                block.forward = gradient_checkpointed(block, here, here)
            velocity = velocity_on_meta(small, image_tokens, text_tokens, batch)
            velocity.float().square().mean().backward()

        return peak_bytes(step, gradients=True)

    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    shape = (image_tokens, text_tokens, batch, trained)
    # two blocks were counted with what they keep; the host gives back one block's at a time
    size = counted(transformer, shape, count) + (-1 if on_host else depth - 2) * inputs
    mods = item * batch * modulation_width(transformer)
    training = Training(on_host)
    return Work(size + mods + kept, image_tokens, text_tokens, batch, training=training)


def t5_work(t5: T5Encoder, text_tokens: int) -> Work:
    """Encoding one prompt of so many tokens; CLIP-L takes less."""

    def count() -> int:
        small = set_compute(on_meta(t5), "dequantize")
        return peak_bytes(
            lambda: small(torch.empty(1, text_tokens, dtype=torch.long, device="meta"))
        )

    return Work(counted(t5, text_tokens, count), image_tokens=0, text_tokens=text_tokens)


def vae_bytes(vae: AutoEncoder, height: int, width: int, batch: int, decoding: bool) -> int:
    """Bytes that a VAE takes beside its weights for latents of a size."""

    def count() -> int:
        small = cast(AutoEncoder, on_meta(vae))
        if decoding:
            z = torch.empty(batch, vae.config.z_channels, height, width, device="meta")
            return peak_bytes(lambda: small.decode(z))
        side = vae.config.compression
        x = torch.empty(batch, 3, side * height, side * width, device="meta")
        return peak_bytes(lambda: small.encode(x))

    return counted(vae, (height, width, batch, decoding), count)


def vae_work(vae: AutoEncoder, height: int, width: int, batch: int, decoding: bool = True) -> Work:
    """Decoding latents (B, 16, height, width), or encoding the picture of that size."""

    def size(tile: int) -> int:
        return vae_bytes(vae, min(tile, height), min(tile, width), batch, decoding)

    def fit(room: int) -> tuple[int, int]:
        tile = next((tile for tile in TILES if size(tile) <= room), TILES[-1])
        return tile, size(tile)

    whole = vae_bytes(vae, height, width, batch, decoding)
    return Work(whole, image_tokens=0, text_tokens=0, batch=batch, fit=fit)


def decode(vae: AutoEncoder, latents: Tensor, plan: Plan, device: torch.device) -> Tensor:
    """Raw latents to pictures around [-1, 1], (B, 3, H, W), in tiles where the plan wants it."""
    if plan.tile is None:
        return vae.decode(latents.to(device))
    return tiled(
        lambda part: vae.decode(part.to(device)),
        latents,
        (plan.tile, plan.tile),
        plan.tile // OVERLAP,
        vae.config.compression,
        3,
    )


def encode(vae: AutoEncoder, pixels: Tensor, plan: Plan, device: torch.device) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] to raw latents, float32 on the CPU, in tiles where the plan
    wants it."""
    if plan.tile is None:
        return vae.encode(pixels.to(device)).float().cpu()
    side = vae.config.compression
    return tiled(
        lambda part: vae.encode(part.to(device)),
        pixels,
        (side * plan.tile, side * plan.tile),
        side * (plan.tile // OVERLAP),
        1 / side,
        vae.config.z_channels,
    )
