"""What a part will compute, for its plan: the bytes that it takes beside its weights.

They are counted by running the part on meta (``offload.activations``), once for each size. Parts
are asked (``offload.blocks``), so that a model of another family is counted as FLUX.1 is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..quant import set_compute
from . import Work
from .activations import FusedAttention, on_meta, peak_bytes
from .blocks import (
    PrecomputedLayer,
    ResidualModel,
    SteppedModel,
    blocks_of,
    is_for_a_run,
    modulation_width,
    modulations_of,
)
from .gradient_checkpointing import gradient_checkpointed
from .modulations import WINDOW
from .pack import named_tensors
from .placement import Training
from .plan import packed_bytes

_counted: weakref.WeakKeyDictionary[nn.Module, dict[object, int]] = weakref.WeakKeyDictionary()


def counted(module: nn.Module, key: object, count: Callable[[], int]) -> int:
    """A number that is found once for a module and a key."""
    known = _counted.setdefault(module, {})
    if key not in known:
        known[key] = count()
    return known[key]


class ModulationsOnMeta:
    """Modulations without numbers."""

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        self.batch, self.dtype = batch, dtype

    def of(self, layer: PrecomputedLayer) -> Tensor:
        """Modulations (B, width) of a layer."""
        return torch.empty(self.batch, layer.width, device="meta", dtype=self.dtype)


def one_of_each_block(model: nn.Module) -> Any:
    """The model on meta with one block of each kind, with what is beside its layers.

    Blocks of a list are alike where their tensors are, and one leaves nothing behind for the next.
    """
    small = on_meta(model)
    blocks = {id(block) for block in blocks_of(small)}
    for owner in list(small.modules()):
        if isinstance(owner, nn.ModuleList) and {id(child) for child in owner} <= blocks:
            kinds = list(map(shapes_of, owner))
            for number in reversed(range(len(owner))):
                if kinds[number] in kinds[:number]:
                    del owner[number]
    return set_compute(small, "dequantize")


def shapes_of(module: nn.Module, *, attached_alone: bool = False) -> tuple[Hashable, ...]:
    """What a module holds, or only what is beside its layers for a run, by names, shapes and
    dtypes."""
    return tuple(
        (name, tensor.shape, tensor.dtype, getattr(owner, "size_key", None))
        for name, owner, _, tensor in named_tensors(module)
        if is_for_a_run(owner) or not attached_alone
    )


def transformer_bytes(
    model: SteppedModel,
    image_tokens: int,
    text_tokens: int,
    batch: int,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Bytes that a step takes beside the weights, its modulations known: tokens of a picture and
    of text, and further arguments of a call, tensors of them on meta."""
    # a compiled module holds the one that it was
    module = cast(nn.Module, getattr(model, "_orig_mod", model))
    options = options or {}

    def count() -> int:
        small = one_of_each_block(module)
        vectors = 2 * batch if options.get("still_tokens") else batch
        small.precomputed = ModulationsOnMeta(vectors, model.dtype)

        def step() -> None:
            inputs = small.meta_inputs(image_tokens, text_tokens, batch)
            small(**inputs, **options)

        return peak_bytes(step)

    of_options = tuple((name, part_of_key(value)) for name, value in options.items())
    key = (image_tokens, text_tokens, batch, of_options, shapes_of(module, attached_alone=True))
    return counted(module, key, count)


def part_of_key(value: object) -> Hashable:
    """An argument as a part of a key: a tensor by its shape and dtype, what holds tensors by what
    it says of itself."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return getattr(value, "size_key", cast(Hashable, value))


def precomputing_bytes(model: SteppedModel, vectors: int, batch: int) -> int:
    """Bytes at most while a model's modulations are computed for so many vectors: its largest
    layer, which comes to the device for that; and what a layer of all blocks at once gives."""
    layers = modulations_of(model)
    largest = max((packed_bytes(layer) for layer in layers), default=0)
    if not layers or modulations_of(blocks_of(model)[0]):
        return largest
    known = min(vectors, WINDOW) * batch * model.dtype.itemsize * modulation_width(model)
    return largest + 2 * known  # what it gives, and all of it together


def standing_bytes(
    transformer: SteppedModel,
    nets: Sequence[ResidualModel],
    *,
    image_tokens: int,
    batch: int,
    vectors: int,
) -> int:
    """Bytes that wait beside a transformer's calls: the modulations of so many ``vectors``, a step
    and a prompt each, and the residuals of ControlNets."""
    size = known_bytes((transformer, *nets), transformer.dtype, batch, vectors)
    return size + sum(net.residual_bytes(image_tokens, batch) for net in nets)


def known_bytes(bodies: Sequence[object], dtype: torch.dtype, batch: int, vectors: int) -> int:
    """Bytes of modulations of some models for so many ``vectors``, those of this step among
    them."""
    each = (min(vectors, WINDOW) + 1) * batch * dtype.itemsize
    return sum(each * modulation_width(body) for body in bodies)


def sampling_work(
    transformer: SteppedModel,
    *,
    image_tokens: int,
    text_tokens: int,
    batch: int,
    vectors: int,
    options: Mapping[str, Any] | None = None,
    held: int = 0,
) -> Work:
    """A run of a transformer alone; ``vectors`` is its steps times its prompts, ``options`` are
    further arguments of its calls, ``held`` bytes that are on the device for all steps."""
    size = held + transformer_bytes(transformer, image_tokens, text_tokens, batch, options)
    size += standing_bytes(transformer, [], image_tokens=image_tokens, batch=batch, vectors=vectors)
    precomputing = precomputing_bytes(transformer, vectors, batch)
    return Work(max(size, precomputing), image_tokens, text_tokens, batch)


@contextmanager
def fused(block: nn.Module) -> Iterator[nn.Module]:
    """A block on meta; a backward pass leaves modes behind, so each call enters its own."""
    with FusedAttention():
        yield block


def training_work(
    transformer: SteppedModel,
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
    module = cast(nn.Module, transformer)

    def count() -> int:
        small = one_of_each_block(module)

        def step() -> None:
            for block in blocks_of(small):
                here = partial(fused, block)
                block.forward = gradient_checkpointed(block, here, here)
            velocity = small(**small.meta_inputs(image_tokens, text_tokens, batch))
            velocity.float().square().mean().backward()

        return peak_bytes(step, gradients=True)

    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    size = counted(module, (image_tokens, text_tokens, batch, trained), count)
    # a few blocks were counted with what they keep; the host gives back one block's at a time
    kinds = counted(module, "kinds", lambda: len(blocks_of(one_of_each_block(module))))
    waiting = len(blocks_of(module)) - kinds
    size += (-1 if on_host else waiting) * transformer.block_input_bytes(
        image_tokens, text_tokens, batch
    )
    size += batch * transformer.dtype.itemsize * modulation_width(transformer) + kept
    return Work(size, image_tokens, text_tokens, batch, training=Training(on_host))
