"""Before a run: what stays on the device, how many slots, what it will take.

    peak = rest + resident blocks + slots + activations
    seconds = the last step of the simulated schedule

It is computed from the modules' own bytes and from what they compute; they may be on meta, and the
card may not be there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..units import readable_bytes
from .blocks import (
    OffloadBlock,
    blocks_of,
    is_trained,
    modulation_parts,
    modulations_of,
    parts_apart,
    parts_for_a_run,
)
from .machine import Machine
from .pack import aligned, named_tensors
from .policy import OffloadPolicy
from .schedule import make_schedule, simulate, step_seconds

#: What links and matrix units are to each other in a machine that nobody measured: only the share
#: of computing that each block has matters then.
UNKNOWN = Machine(25e9, 70e12)


def packed_bytes(module: nn.Module, left_out: Collection[int] = ()) -> int:
    """Bytes that a module's tensors take in a buffer, but for those of some modules inside it (by
    id) and what is trained; ``quant.apply.module_bytes`` has them all, and as they are stored."""
    sizes_by_id = {
        id(t): aligned(t.nbytes)
        for _, owner, _, t in named_tensors(module, left_out)
        if not is_trained(owner)
    }
    return sum(sizes_by_id.values())


@dataclass(frozen=True)
class Cost:
    """What one module is made of, in bytes; blocks and the seconds that each computes."""

    rest: int
    blocks: tuple[int, ...]
    modulations: int
    seconds: tuple[float, ...]

    @property
    def largest(self) -> int:
        return max(self.blocks, default=0)

    @property
    def all_blocks(self) -> int:
        return self.rest + sum(self.blocks)


def cost_of(
    module: nn.Module,
    machine: Machine = UNKNOWN,
    *,
    image_tokens: int = 4096,
    text_tokens: int = 512,
    batch: int = 1,
) -> Cost:
    """A module's bytes, and its blocks' seconds for so many tokens."""
    blocks = blocks_of(module)
    return Cost(
        rest=packed_bytes(module, parts_apart(module)),
        blocks=tuple(packed_bytes(block, modulation_parts(block)) for block in blocks),
        # what is beside them for a run comes and goes with the call that computes them
        modulations=sum(packed_bytes(m, parts_for_a_run(m)) for m in modulations_of(module)),
        seconds=tuple(
            batch * block_seconds(block, machine, image_tokens, text_tokens) for block in blocks
        ),
    )


def block_seconds(block: nn.Module, machine: Machine, image_tokens: int, text_tokens: int) -> float:
    """Seconds that a block's linear layers and its attention take."""
    assert isinstance(block, OffloadBlock), f"{type(block).__name__} does not say its FLOP"
    linear, attention = block.flops(image_tokens, text_tokens)
    return linear / machine.flops + attention / machine.attention


@dataclass(frozen=True)
class ModulePlan:
    """What of one module stays on the device: block numbers, and bytes with the rest.

    ``keep``: it stays there after the run. ``slots`` is 0 where nothing is streamed.
    """

    mode: str
    resident: frozenset[int]
    blocks: int
    slots: int = 0
    modulations: bool = False
    keep: bool = False
    held: int = 0
    streamed: int = 0
    ring: int = 0


@dataclass(frozen=True)
class Plan:
    """What will happen while some modules compute together.

    Bytes: ``budget`` (None: no bound), ``peak``, and ``least``, below which nothing runs.
    ``seconds`` a pass over all blocks, ``floor`` with all of them resident; 0 where not known. A
    step has so many ``passes``: two where gradients are computed.
    ``tile`` is the side of tiles in latents where a VAE works on tiles. ``recompute``: what could
    be kept over the steps is computed in each; ``kept_on_host``: it waits there.
    """

    modules: tuple[ModulePlan, ...]
    activations: int
    budget: int | None
    least: int
    seconds: float = 0.0
    floor: float = 0.0
    tile: int | None = None
    passes: int = 1
    recompute: bool = False
    kept_on_host: bool = False

    @property
    def weights(self) -> int:
        return sum(module.held + module.ring for module in self.modules)

    @property
    def streamed(self) -> int:
        """Bytes that are copied in each pass over the blocks."""
        return sum(module.streamed for module in self.modules)

    @property
    def peak(self) -> int:
        return self.weights + self.activations

    @property
    def fits(self) -> bool:
        return self.budget is None or self.peak <= self.budget

    @property
    def slowdown(self) -> float:
        """How much longer a step takes than with all resident, as a share."""
        return self.seconds / self.floor - 1 if self.floor else 0.0

    @property
    def room(self) -> int | None:
        """Bytes that the budget leaves for activations; None where there is no bound."""
        return None if self.budget is None else max(0, self.budget - self.weights)

    def __str__(self) -> str:
        if not self.fits:
            return f"does not fit: it needs {readable_bytes(self.least)} at least"
        resident = sum(len(module.resident) for module in self.modules)
        blocks = sum(module.blocks for module in self.modules)
        moved = "nothing streamed"
        if self.streamed:
            slots = max(module.slots for module in self.modules)
            streamed = readable_bytes(self.passes * self.streamed)
            moved = f"{streamed} streamed a step through {slots} slots"
        text = f"{resident} of {blocks} blocks resident, {moved}; peak {readable_bytes(self.peak)}"
        if self.seconds:
            seconds = self.passes * self.seconds
            text += f"; {seconds:.2f} s a step, {max(0.0, self.slowdown):.0%} lost by streaming"
        return text


def choose_resident(
    sizes: Sequence[int], seconds: Sequence[float], room: float, spread: bool = True
) -> frozenset[int]:
    """Which blocks stay when ``room`` bytes are there for them.

    Spread over the step by what they compute, so that the link is never idle: where a block takes
    more bytes for its time (double blocks do), more of them stay. Or else the first ones.
    """
    streaming = sum(sizes) - room
    if streaming <= 0:
        return frozenset(range(len(sizes)))
    rate = streaming / (sum(seconds) or 1.0)
    allowed, passed, left = 0.0, 0, room
    resident = set[int]()
    for number, (size, time) in enumerate(zip(sizes, seconds, strict=True)):
        allowed += rate * time
        if size <= left and not (spread and passed + size / 2 <= allowed):
            resident.add(number)
            left -= size
        else:
            passed += size
    for number, size in enumerate(sizes):  # what rounding left over
        if number not in resident and size <= left:
            resident.add(number)
            left -= size
    return frozenset(resident)


def make_plan(
    costs: Sequence[Cost],
    modes: Sequence[str],
    policy: OffloadPolicy,
    *,
    budget: int | None,
    activations: int,
    machine: Machine | None = None,
) -> Plan:
    """The fastest way to let some modules compute together within a budget.

    Args:
        costs, modes: of each module; modes as ``OffloadPolicy`` has them.
        budget: bytes of the device in all; None is no bound, and the least for ``stream``.
        activations: bytes that computing takes beside the weights.
        machine: for the number of slots and the seconds; without it the policy's slots are taken.
    """
    modes = resolved(costs, modes, budget, activations)
    plans = []
    choices = (2, 3, 4) if machine is not None and "auto" in modes else (policy.slots,)
    for slots in choices:
        for spread in (True, False):
            plans.append(one_plan(costs, modes, slots, spread, budget, activations, machine))
    fitting = [plan for plan in plans if plan.fits] or plans[:1]
    # of plans as fast as each other that which streams least: the speeds are estimates
    return min(fitting, key=lambda plan: (round(plan.seconds, 4), plan.streamed, plan.weights))


def resolved(
    costs: Sequence[Cost], modes: Sequence[str], budget: int | None, activations: int
) -> list[str]:
    """``auto`` as ``none`` where all modules fit whole, else as it is."""
    whole = sum(cost.all_blocks + cost.modulations for cost in costs) + activations
    return [
        "none" if mode == "auto" and (budget is None or whole <= budget) else mode for mode in modes
    ]


def one_plan(
    costs: Sequence[Cost],
    modes: Sequence[str],
    slots: int,
    spread: bool,
    budget: int | None,
    activations: int,
    machine: Machine | None,
) -> Plan:
    """A plan with so many slots and one way to choose what stays."""
    flexible = [
        mode in ("stream", "auto") and not may_as_well_stay(cost, range(len(cost.blocks)), slots)
        for mode, cost in zip(modes, costs, strict=True)
    ]
    fixed = activations
    least = activations
    for mode, cost, streams in zip(modes, costs, flexible, strict=True):
        fixed += cost.rest if streams else cost.all_blocks + cost.modulations * (mode == "none")
        least += cost.rest + min(slots * cost.largest, sum(cost.blocks))
    moved = [cost for cost, streams in zip(costs, flexible, strict=True) if streams]
    sizes = [size for cost in moved for size in cost.blocks]
    room = float(budget - fixed) if budget is not None else 0.0
    if room < sum(sizes):
        room = max(0.0, room - sum(ring_bytes(c, range(len(c.blocks)), slots) for c in moved))
    chosen = choose_resident(sizes, [t for cost in moved for t in cost.seconds], room, spread)
    modules: list[ModulePlan] = []
    first = 0
    seconds = floor = 0.0
    for mode, cost, streams in zip(modes, costs, flexible, strict=True):
        count = len(cost.blocks)
        moving: list[int] = []
        if streams:
            moving = [n for n in range(count) if first + n not in chosen]
            first += count
        if may_as_well_stay(cost, moving, slots):
            moving = []
        modules.append(module_plan(cost, mode, moving, slots))
        if machine is not None:
            floor += sum(cost.seconds)
            seconds += pass_seconds(cost, moving, slots, machine)
    return Plan(tuple(modules), activations, budget, least, seconds, floor)


def module_plan(cost: Cost, mode: str, moving: Sequence[int], slots: int) -> ModulePlan:
    """The plan of one module of which some blocks are streamed."""
    resident = frozenset(range(len(cost.blocks))) - set(moving)
    held = cost.rest + sum(cost.blocks[n] for n in resident)
    return ModulePlan(
        mode=mode,
        resident=resident,
        blocks=len(cost.blocks),
        slots=slots if moving else 0,
        modulations=mode == "none",
        keep=mode in ("none", "auto"),
        held=held + cost.modulations * (mode == "none"),
        streamed=sum(cost.blocks[n] for n in moving),
        ring=ring_bytes(cost, moving, slots),
    )


def ring_bytes(cost: Cost, moving: Sequence[int], slots: int) -> int:
    """Bytes of the slots that some blocks pass through; each takes the largest of them."""
    return min(slots, len(moving)) * max((cost.blocks[n] for n in moving), default=0)


def may_as_well_stay(cost: Cost, moving: Sequence[int], slots: int) -> bool:
    """Whether blocks take no more than the slots that they would pass through."""
    return sum(cost.blocks[n] for n in moving) <= ring_bytes(cost, moving, slots)


def pass_seconds(cost: Cost, moving: Sequence[int], slots: int, machine: Machine) -> float:
    """Seconds of one pass over a module's blocks, some of them streamed."""
    if not moving:
        return sum(cost.seconds)
    entries = make_schedule(len(cost.blocks), moving, slots, 3)
    copying = [size / machine.link for size in cost.blocks]
    return step_seconds(simulate(entries, copying, cost.seconds))


def faster_of(plan: Plan, other: Plan) -> Plan:
    """Of a plan and one that takes fewer bytes that which fits and is faster."""
    if plan.budget is None or (plan.fits and plan.seconds <= other.seconds):
        return plan
    return other


def with_copies(plan: Plan, moved: int, machine: Machine) -> Plan:
    """A plan in each of whose passes so many bytes are copied beside the weights."""
    if not moved:
        return plan
    return replace(plan, seconds=max(plan.seconds, (plan.streamed + moved) / machine.link))


def shrunk(policy: OffloadPolicy, budget: int) -> OffloadPolicy:
    """The policy that is tried when memory ran out under another one."""
    return replace(policy, mode="auto", vram_budget=budget, parts={})
