"""Parts brought to the device under a policy, one run after another, with account kept of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from ..quant import kernels_used
from ..record import note, read_from
from ..units import readable_bytes
from .machine import Machine, measure_machine
from .memory import free_bytes, has_own_memory
from .placement import Placement, Training, placement_of, placements_on
from .plan import (
    UNKNOWN,
    Cost,
    ModulePlan,
    Plan,
    cost_of,
    faster_of,
    make_plan,
    shrunk,
    with_copies,
)
from .policy import OffloadPolicy
from .report import MemoryReport, PartReport
from .ring import Ring
from .turns import turn_of

log = logging.getLogger(__name__)

T = TypeVar("T")
#: What is tried after memory ran out: this share of what was planned with.
RETRY = 0.7
#: A training step goes over the blocks forwards and back. It computes each forwards, forwards
#: again, and its gradients, which for frozen weights are as much once more.
PASSES, COMPUTED = 2, 3
BEGAN = time.monotonic()
ONE_DEVICE = "training is on one device: take devices out of the offload policy"


@dataclass(frozen=True)
class Work:
    """What a part will compute, for its plan: bytes beside the weights, and tokens.

    ``fit`` gives a tile, and the bytes that it takes, for the bytes that there are. ``training``:
    gradients are computed too. ``moved``: bytes that are copied in each pass beside the weights.
    ``on_host`` and ``recompute``: the same work in fewer bytes, where what could be kept over the
    steps waits on the host, and where it is computed in each.
    """

    activations: int = 0
    image_tokens: int = 4096
    text_tokens: int = 512
    batch: int = 1
    fit: Callable[[int], tuple[int, int]] | None = None
    training: Training | None = None
    moved: int = 0
    on_host: Work | None = None
    recompute: Work | None = None

    def fitted(self, plan: Plan) -> Plan:
        """The plan, in tiles where it would be over its budget without."""
        if plan.fits or plan.room is None or self.fit is None:
            return plan
        tile, size = self.fit(plan.room)
        return replace(plan, tile=tile, activations=size)

    def best_plan(self, plan_of: Callable[[Work], Plan]) -> Plan:
        """Of the ways to do it that fit the fastest, each planned by a function."""
        plan = plan_of(self)
        if plan.budget is None:
            return plan
        if self.on_host is not None:
            plan = faster_of(plan, replace(plan_of(self.on_host), kept_on_host=True))
        if self.recompute is not None:
            plan = faster_of(plan, replace(plan_of(self.recompute), recompute=True))
        return plan


class OffloadRunner:
    """Brings parts to the device under a policy.

    ``with runner.hold("vae", module):`` has the modules there inside the block, in whole or by
    way of a ring. ``runner.run("vae", [module], work)`` calls a function there, and once more
    under a smaller plan where memory ran out.
    """

    def __init__(self, policy: OffloadPolicy | None, device: torch.device | str) -> None:
        self.policy = policy or OffloadPolicy()
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.report = MemoryReport(str(self.device))
        #: whether it may move weights on the host to pin them
        self.moves = True

    def on(self, device: torch.device) -> OffloadRunner:
        """One for replicas on a further device, which finds pinned what is to be pinned."""
        other = type(self)(self.policy, device)
        other.moves = False
        return other

    @property
    def separate(self) -> bool:
        """Whether the device's memory is apart from the host's."""
        asked = self.policy.separate_memory
        return has_own_memory(self.device) if asked is None else asked

    @property
    def known(self) -> list[Placement]:
        """All modules that may have weights on this device."""
        return placements_on(self.device)

    def plan(
        self,
        modules: Sequence[nn.Module],
        work: Work,
        policies: Sequence[OffloadPolicy | None] = (),
    ) -> Plan:
        """What a run of these modules together would do; of ways that fit the fastest."""
        return work.best_plan(lambda way: self.one_plan(modules, way, policies))

    def one_plan(
        self,
        modules: Sequence[nn.Module],
        work: Work,
        policies: Sequence[OffloadPolicy | None],
    ) -> Plan:
        """A plan for one way to do the work."""
        chosen = [own or self.policy for own in policies] or [self.policy] * len(modules)
        modes = [policy.of(module) for policy, module in zip(chosen, modules, strict=True)]
        machine: Machine | None = None
        bounded = self.policy.vram_budget is not None
        if (bounded or "auto" in modes) and self.device.type == "cuda":
            machine = measure_machine(self.device)
        costs = [
            cost_of(
                m,
                machine or UNKNOWN,
                image_tokens=work.image_tokens,
                text_tokens=work.text_tokens,
                batch=work.batch,
            )
            for m in modules
        ]
        if work.training is not None:
            costs = [replace(cost, seconds=trained_seconds(cost)) for cost in costs]
        plan = make_plan(
            costs,
            modes,
            self.policy,
            budget=self.budget(modes),
            activations=work.activations,
            machine=machine or (UNKNOWN if bounded else None),
        )
        plan = with_copies(plan, work.moved, machine or UNKNOWN)
        return replace(work.fitted(plan), passes=1 if work.training is None else PASSES)

    def budget(self, modes: Sequence[str]) -> int | None:
        """Bytes of the device for one run; None where nothing bounds it."""
        if self.policy.vram_budget is not None:
            return self.policy.vram_budget
        free = free_bytes(self.device) if "auto" in modes else None
        return None if free is None else free + sum(placement.held for placement in self.known)

    @contextmanager
    def hold(
        self,
        name: str,
        *modules: nn.Module,
        work: Work | None = None,
        policies: Sequence[OffloadPolicy | None] = (),
    ) -> Iterator[Plan]:
        """Modules on the device inside the block of this ``with``, by the plan that it gives.

        Args:
            policies: of each module where it has one of its own, else None.
        """
        with turn_of(*modules):
            yield from self._hold(name, modules, work or Work(), policies)

    def _hold(
        self,
        name: str,
        modules: Sequence[nn.Module],
        work: Work,
        policies: Sequence[OffloadPolicy | None],
    ) -> Iterator[Plan]:
        """``hold`` for whoever has the modules' turn."""
        if work.training is not None and self.policy.devices:
            raise ValueError(ONE_DEVICE)
        plan = self.plan(modules, work, policies)
        if not plan.fits:
            log.warning("%s: %s; trying nevertheless", name, plan)
        placements = [placement_of(module, self.device, self.separate) for module in modules]
        part = report_of(plan, self.device)
        try:
            with ExitStack() as stack:
                started = time.monotonic()
                self.apply_plan(placements, plan)
                rings = [
                    stack.enter_context(
                        placement.running(m.resident, m.slots or 2, training=work.training)
                    )
                    for placement, m in zip(placements, plan.modules, strict=True)
                ]
                self._wait()
                part.moving = time.monotonic() - started
                part.pinned = sum(p.pinned for p in placements)
                if self.separate:
                    part.size = sum(p.held for p in placements) + sum(r.size for r in rings if r)
                started = time.monotonic()
                yield plan
                self._wait()
                part.seconds = time.monotonic() - started
                self.account(name, part, modules, [ring for ring in rings if ring is not None])
        except torch.OutOfMemoryError:
            for placement in placements:
                placement.evict()
            raise
        finally:
            for placement, m in zip(placements, plan.modules, strict=True):
                if not m.keep:
                    placement.evict()

    def account(
        self, name: str, part: PartReport, modules: Sequence[nn.Module], rings: Sequence[Ring]
    ) -> None:
        """Enter what a run took into the report."""
        for ring in rings:
            ring.wait()
        self._wait()  # also for the copies past the last block
        for ring in rings:
            part.streamed += ring.bytes
            part.copies += ring.copies
            part.restarts += ring.restarts
            part.record(ring.trace.read())
        for module in modules:
            part.kernels |= kernels_used(module)
        if self.device.type == "cuda":
            part.peak = torch.cuda.max_memory_allocated(self.device)
        self.report.add(MemoryReport(str(self.device), {name: part}))
        note(
            "ran",
            part=name,
            device=str(self.device),
            models=[read for module in modules if (read := read_from(module)) is not None],
            **part.facts,
        )

    def run(
        self,
        name: str,
        modules: Sequence[nn.Module],
        function: Callable[[Plan], T],
        work: Work | None = None,
        policies: Sequence[OffloadPolicy | None] = (),
    ) -> T:
        """Call a function of the plan while modules are on the device.

        Where memory runs out it is called once more, from its beginning, under ``auto`` with a
        smaller budget; a second time it raises ``torch.OutOfMemoryError``.
        """
        try:
            with self.hold(name, *modules, work=work, policies=policies) as plan:
                return function(plan)
        except torch.OutOfMemoryError as error:
            reason = str(error).split("\n")[
                0
            ]  # the error itself holds the frames, and their tensors
        before, self.policy = self.policy, self.smaller(modules, work or Work(), policies)
        log.warning(
            "%s ran out of memory (%s); trying once more within %s",
            name,
            reason,
            readable_bytes(self.policy.vram_budget or 0),
        )
        try:
            with self.hold(name, *modules, work=work) as plan:
                result = function(plan)
        finally:
            self.policy = before
            for module in modules:  # where memory is this short nothing stays
                placement_of(module, self.device, self.separate).evict()
        self.report.parts[name].replans += 1
        return result

    def smaller(
        self, modules: Sequence[nn.Module], work: Work, policies: Sequence[OffloadPolicy | None]
    ) -> OffloadPolicy:
        """The policy to try under when memory ran out; nothing is left on the device."""
        for placement in self.known:
            placement.evict()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        plan = self.plan(modules, work, policies)
        return shrunk(
            self.policy, int(RETRY * plan_budget(self.policy, free_bytes(self.device), plan))
        )

    def apply_plan(self, placements: Sequence[Placement], plan: Plan) -> None:
        """Bring about what a plan says, other parts giving room where it needs it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if plan.budget is not None:
            others = [p for p in self.known if p not in placements]
            over = plan.peak + sum(p.held for p in others) - plan.budget
            for other in others:
                if over > 0:
                    over -= other.shrink(over)
        for placement, m in zip(placements, plan.modules, strict=True):
            self.pin(placement, m)
            placement.set_resident(m.resident, m.modulations)

    def pin(self, placement: Placement, plan: ModulePlan) -> None:
        """Pin on the host what a run copies often, where the device is a card."""
        if self.device.type == "cuda" and self.policy.pin:
            often = [n for n in range(plan.blocks) if not plan.keep or n not in plan.resident]
            placement.pin(often, self.policy.host_budget, self.moves)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def report_of(plan: Plan, device: torch.device) -> PartReport:
    """What a run by a plan will take on a device, to be filled with what it took."""
    return PartReport(
        device=str(device),
        started=time.monotonic() - BEGAN,
        size=plan.weights,
        predicted=plan.peak,
        step=plan.passes * plan.seconds,
        mode=" and ".join(sorted({module.mode for module in plan.modules})),
        blocks=sum(module.blocks for module in plan.modules),
        tile=plan.tile,
    )


def trained_seconds(cost: Cost) -> tuple[float, ...]:
    """Seconds of each block in one of a training step's passes."""
    return tuple(COMPUTED / PASSES * seconds for seconds in cost.seconds)


def plan_budget(policy: OffloadPolicy, free: int | None, plan: Plan) -> int:
    """What a run that ran out of memory had to do with: the least of all that bounded it."""
    return min(n for n in (policy.vram_budget, free, plan.peak) if n is not None)
