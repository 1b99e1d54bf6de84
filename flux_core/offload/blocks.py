"""What a model says of itself, as far as offloading asks.

Nothing here knows a class of models, blocks, layers or LoRAs. Whoever wants to be placed has

    model.offload_blocks()                      its blocks, in the order in which they run
    block.flops(image_tokens, text_tokens)      FLOP of linear layers and of attention
    block.modulation_layers()                   layers that are computed before a run; a model that
                                                makes those of all blocks at once answers it itself
    module.offload_role                         "for a run": beside a layer for a run alone (LoRAs);
                                                "trained": has gradients, and never moves
    layer.twin_key(), layer.learn_from_twin()   how it computes, where layers of one layout differ

and a module without one of them has no blocks, nothing to compute ahead, ordinary weights. What is
called at every step of a run is a ``SteppedModel`` too, so that the run's memory can be counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

FOR_A_RUN, TRAINED = "for a run", "trained"


class PrecomputedLayer(Protocol):
    """A layer whose outputs are known before a run: modulations (B, ``width``) of vectors.

    One with ``one_by_one`` reads each vector by itself, whatever many it is given.
    """

    @property
    def width(self) -> int: ...

    def raw(self, vec: Tensor) -> Tensor:
        """(B, D) to (B, ``width``)."""
        ...


@runtime_checkable
class OffloadBlock(Protocol):
    """What a block of a model answers."""

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]: ...

    def modulation_layers(self) -> Sequence[nn.Module]: ...


class SteppedModel(Protocol):
    """A model that is called at every step of a run, with so many tokens of image and text.

    ``meta_inputs`` are arguments of a call, on meta. ``block_input_bytes`` is what a block reads
    and checkpointing keeps of it. ``precomputed`` is what the model asks for modulations.
    """

    precomputed: Any

    @property
    def dtype(self) -> torch.dtype: ...

    def offload_blocks(self) -> list[nn.Module]: ...

    def meta_inputs(
        self, image_tokens: int, text_tokens: int, batch: int
    ) -> Mapping[str, Tensor]: ...

    def block_input_bytes(self, image_tokens: int, text_tokens: int, batch: int) -> int: ...


class ResidualModel(Protocol):
    """A model whose residuals wait for the transformer, as a ControlNet's do."""

    def offload_blocks(self) -> list[nn.Module]: ...

    def residual_bytes(self, image_tokens: int, batch: int) -> int: ...


def blocks_of(module: object) -> list[nn.Module]:
    """The blocks of a model in the order in which they run; empty where it has none."""
    ask = getattr(module, "offload_blocks", None)
    return [] if ask is None else ask()


def parts_of(module: nn.Module) -> set[int]:
    """Ids of a module and of all modules inside it."""
    return {id(part) for part in module.modules()}


def modulations_of(module: object) -> list[nn.Module]:
    """The layers of a model, or of a block, that are computed before a run."""
    owners = [module] if hasattr(module, "modulation_layers") else blocks_of(module)
    return [layer for owner in owners for layer in owner.modulation_layers()]  # type: ignore[operator]


def parts_apart(module: nn.Module) -> set[int]:
    """Ids of what of a model is placed apart from the rest: blocks and what is inside of them, and
    layers that are computed before a run."""
    apart = [*blocks_of(module), *(modulations_of(module) if blocks_of(module) else ())]
    return set[int]().union(*map(parts_of, apart))


def modulation_width(module: object) -> int:
    """Numbers a picture that all modulations of a model take."""
    return sum(int(layer.width) for layer in modulations_of(module))  # type: ignore[arg-type]


def modulation_parts(block: nn.Module) -> set[int]:
    """Modules inside a block that never travel: they are computed ahead of the run."""
    return {number for layer in modulations_of(block) for number in parts_of(layer)}


def is_for_a_run(module: nn.Module) -> bool:
    """Whether a module's own tensors are beside a layer for the length of a run."""
    return getattr(module, "offload_role", "") == FOR_A_RUN


def is_trained(module: nn.Module) -> bool:
    """Whether a module's own tensors are being trained."""
    return getattr(module, "offload_role", "") == TRAINED


def has_attached(module: nn.Module) -> bool:
    """Whether something is beside a module's layers for a run."""
    return bool(parts_for_a_run(module))


def parts_for_a_run(module: nn.Module) -> set[int]:
    """Ids of what is beside a module's layers for the length of a run."""
    return {id(part) for part in module.modules() if is_for_a_run(part)}


def trained_parameters(block: nn.Module) -> Iterator[nn.Parameter]:
    """Of a block, what is trained with each call of it: its modulations are called outside."""
    left_out = modulation_parts(block)
    for part in block.modules():
        if is_trained(part) and id(part) not in left_out:
            yield from part.parameters()


def twin_keys(block: nn.Module) -> tuple[Hashable, ...]:
    """How a block's layers compute, beyond what their tensors' layout says.

    One that is being trained shares its parameters with its twin, and has one of its own.
    """
    keys = [part.twin_key() for part in block.modules() if hasattr(part, "twin_key")]  # type: ignore[operator]
    own = [id(block)] if any(is_trained(part) for part in block.modules()) else []
    return (*keys, *own)


def learn_from_twin(block: nn.Module, twin: nn.Module) -> None:
    """Let a block's layers know how those of its twin computed.

    Blocks of one kind may differ in what is beside layers that are computed before a run.
    """
    others = dict(twin.named_modules())
    for name, own in block.named_modules():
        if name in others and hasattr(own, "learn_from_twin"):
            own.learn_from_twin(others[name])  # type: ignore[operator]
