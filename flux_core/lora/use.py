"""A LoRA with all that says how much it counts, and where, and when.

All of it is numbers beside the weights:

    strength * weight of the block * factor of the step * mask of the token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..bounds import brief, check_number
from ..pictures import OVERSHOOT
from .block_weights import BlockCounts, BlockWeights
from .file import Lora, load_lora
from .schedule import StrengthSchedule


@dataclass(frozen=True, eq=False)
class LoraRegion:
    """Where in the picture a LoRA counts.

    ``mask`` (H, W) or (1 or B, H, W) in [0, 1], of any size, is what counts at the tokens of the
    picture; ``text`` at those of the text and of reference pictures, which are in no place of it.
    ``modulation`` is what counts in layers that read no tokens and so change the whole picture:
    modulations, and the embedders of time, guidance and pooled text.
    """

    mask: Tensor
    text: float = 1.0
    modulation: float = 0.0

    def __post_init__(self) -> None:
        mask = self.mask
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or not mask.numel():
            actual = tuple(mask.shape) if isinstance(mask, Tensor) else brief(mask)
            raise ValueError(f"a LoRA's mask is {actual}, expected (H, W) or (B, H, W)")
        mask = mask.detach().to("cpu", torch.float32)
        low, high = (float(x) for x in mask.aminmax())
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):  # NaN is neither
            raise ValueError(f"a LoRA's mask has values from {low:g} to {high:g}, expected 0 to 1")
        mask = mask.clamp(0, 1)
        object.__setattr__(self, "mask", mask if mask.ndim == 3 else mask[None])
        check_number(self.text, "what a LoRA with a mask counts at text", -1000, 1000)
        check_number(self.modulation, "what a LoRA with a mask counts in modulations", -1000, 1000)


@dataclass(frozen=True, init=False)
class LoraUse:
    """A LoRA and its strength, with weights a block, a schedule over the steps, and a region.

    The LoRA may be its file, block weights and the schedule their texts, block weights also
    numbers, the region a mask alone. Text encoders are encoded before a run: the schedule and the
    region do not change them.
    """

    lora: Lora
    strength: float
    blocks: BlockWeights | None
    schedule: StrengthSchedule | None
    region: LoraRegion | None

    def __init__(
        self,
        lora: Lora | str | Path,
        strength: float = 1.0,
        blocks: BlockWeights | str | Sequence[float] | None = None,
        schedule: StrengthSchedule | str | None = None,
        region: LoraRegion | Tensor | None = None,
    ) -> None:
        whose = lora.path if isinstance(lora, Lora) else "a LoRA"
        if isinstance(lora, str | Path):
            whose = str(lora)
        check_number(strength, f"the strength of {whose}", -1000, 1000)
        if isinstance(lora, str | Path):
            lora = load_lora(lora)
        if not isinstance(lora, Lora):
            raise ValueError(f"a LoraUse has {brief(lora)}, expected a LoRA (load_lora opens one)")
        if isinstance(region, Tensor):
            region = LoraRegion(region)
        if region is not None and not isinstance(region, LoraRegion):
            raise ValueError(f"a LoRA's region is {brief(region)}, expected a mask or a LoraRegion")
        for name, value in (
            ("lora", lora),
            ("strength", strength),
            ("blocks", BlockWeights.of(blocks)),
            ("schedule", StrengthSchedule.of(schedule)),
            ("region", region),
        ):
            object.__setattr__(self, name, value)

    @property
    def by_row(self) -> bool:
        """Whether what it counts differs from step to step, or from token to token."""
        return self.schedule is not None or self.region is not None

    def check(self, transformer: nn.Module) -> None:
        """Raise ``ValueError`` where its block weights are for a transformer of other blocks."""
        if self.blocks is not None:
            self.blocks.check(BlockCounts.of(transformer))

    def in_layer(self, layer: str, part: str, counts: BlockCounts) -> float:
        """Its strength in a layer of a part, over all steps and tokens."""
        if self.blocks is None:
            return self.strength
        return self.strength * self.blocks.weight(layer, part, counts)


#: LoRAs with their strengths, in any order: what they add adds up.
LoraStack = Sequence[tuple[Lora, float] | LoraUse]


def lora_uses(stack: LoraStack) -> list[LoraUse]:
    """All LoRAs of a stack, those with a strength alone as well."""
    return [item if isinstance(item, LoraUse) else LoraUse(*item) for item in stack]
