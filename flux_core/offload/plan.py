"""What a card will do with a transformer: blocks resident, slots, peak, seconds a step.

    peak = small weights + resident blocks + slots + activations
    seconds = the last step of the simulated schedule

It is computed from the model's own bytes and the picture's size; it may be a model on meta and a
card that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..transformer import DoubleStreamBlock, FluxBody, SingleStreamBlock
from .pack import ALIGNMENT, named_tensors
from .schedule import make_schedule, simulate, step_seconds
from .streaming import blocks_of, modulation_parts, parts_of

GB = 1e9
#: Live activations at the peak, in hidden-size vectors of 2 bytes a token: the widest single block
#: holds its input, q, k, v, the MLP's and their product at once.
ACTIVATIONS = 18


@dataclass(frozen=True)
class Machine:
    """A card: bytes of memory, bytes a second over the link, FLOP a second of linear layers and of
    attention (three quarters of it unless told)."""

    vram: float
    link: float
    flops: float
    attention_flops: float | None = None


@dataclass(frozen=True)
class Plan:
    """What stays, what is streamed, and what that takes: bytes and seconds a step.

    ``least`` is the memory below which nothing runs; ``floor`` the seconds with all resident.
    """

    resident: int
    blocks: int
    slots: int
    peak: float
    least: float
    resident_bytes: float
    streamed_bytes: float
    seconds: float
    floor: float
    fits: bool

    @property
    def loss(self) -> float:
        """How much longer a step takes than with all resident, as a share."""
        return self.seconds / self.floor - 1

    def __str__(self) -> str:
        if not self.fits:
            return f"does not fit: the transformer needs {self.least / GB:.1f} GB at least"
        moved = f"{self.streamed_bytes / GB:.2f} GB streamed a step through {self.slots} slots"
        if self.resident == self.blocks:
            moved = "nothing streamed"
        return (
            f"{self.resident} of {self.blocks} blocks resident ({self.resident_bytes / GB:.2f} GB),"
            f" {moved}; peak {self.peak / GB:.1f} GB; {self.seconds:.2f} s a step, "
            f"{self.loss:+.0%} against all resident"
        )


def block_bytes(block: nn.Module) -> int:
    """Bytes of a block that travel: all but its modulation."""
    return sum(
        -(-t.nbytes // ALIGNMENT) * ALIGNMENT
        for *_, t in named_tensors(block, modulation_parts(block))
    )


def block_flops(block: nn.Module, image: int, text: int) -> tuple[float, float]:
    """FLOP of a block's linear layers and of its attention for so many tokens."""

    def weights(module: nn.Module) -> int:
        left_out = modulation_parts(module)
        return sum(
            t.numel() for *_, t in named_tensors(module, left_out) if t.ndim == 2 and t.shape[1] > 1
        )

    tokens = image + text
    if isinstance(block, DoubleStreamBlock):
        pairs = ((block.img_attn, image), (block.img_mlp, image),
                 (block.txt_attn, text), (block.txt_mlp, text))  # fmt: skip
        linear = sum(2.0 * weights(module) * count for module, count in pairs)
        width = block.img_attn.num_heads * block.img_attn.norm.query_norm.scale.numel()
    else:
        assert isinstance(block, SingleStreamBlock)
        linear = 2.0 * weights(block) * tokens
        width = block.num_heads * block.norm.query_norm.scale.numel()
    return linear, 4.0 * tokens * tokens * width


def make_plan(
    model: FluxBody, machine: Machine, *, image: int, text: int = 512, batch: int = 1
) -> Plan:
    """The fastest plan that fits a card.

    Args:
        model: with its precision; may be on meta.
        image, text: tokens; image tokens are width x height / 256.
    """
    blocks = blocks_of(model)
    sizes = [block_bytes(block) for block in blocks]
    attention = machine.attention_flops or 0.75 * machine.flops
    computing = []
    for block in blocks:
        linear, product = block_flops(block, image, text)
        computing.append(batch * (linear / machine.flops + product / attention))
    copying = [size / machine.link for size in sizes]
    inside = set[int]().union(*map(parts_of, blocks))
    small = sum(t.nbytes for *_, t in named_tensors(model, inside))
    hidden = model.img_in.weight.shape[0]
    fixed = small + batch * (image + text) * hidden * 2 * ACTIVATIONS
    floor = sum(computing)
    least = fixed + 2 * max(sizes)
    total = sum(sizes)
    if fixed + total <= machine.vram:
        return Plan(len(blocks), len(blocks), 0, fixed + total, least, total, 0, floor, floor, True)
    plans = []
    for slots in (2, 3, 4):
        room = machine.vram - fixed - slots * max(sizes)
        if room < 0:
            continue
        count, held = 0, 0
        while held + sizes[count] <= room:
            held += sizes[count]
            count += 1
        entries = make_schedule(len(blocks), range(count, len(blocks)), slots, 3)
        seconds = step_seconds(simulate(entries, copying, computing))
        peak = fixed + held + slots * max(sizes[count:])
        plans.append(
            Plan(count, len(blocks), slots, peak, least, held, total - held, seconds, floor, True)
        )
    if not plans:
        return Plan(0, len(blocks), 2, least, least, 0, total, float("nan"), floor, False)
    return min(plans, key=lambda plan: (round(plan.seconds, 4), plan.slots))
