"""Our parts in ComfyUI's memory manager: its models and ours give each other room.

One patcher a part. It holds a handle in the place of a model, never the part itself, so that a part
that nobody holds any more is gone at once, and its patcher with it. What it says and does about
memory is its placement's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from flux_core.offload import OffloadPolicy, OffloadRunner, Work
from flux_core.offload.placement import Placement, placement_of
from flux_core.offload.plan import ModulePlan, Plan

from . import accounts, host

T = TypeVar("T")
_patchers: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


class Handle(nn.Module):
    """What stands for a part where the host expects a model."""


def handle_of(part: nn.Module) -> Handle:
    """A handle of a class that is called as the part is: the host's log says that name."""
    return type(type(part).__name__, (Handle,), {})()


class PartPatching:
    """What our patchers do in the place of the host's own; a part, and all clones of it."""

    model: Any
    load_device: Any
    offload_device: Any

    part: weakref.ref[nn.Module] | None = None

    @property
    def wanted(self) -> ModulePlan | None:
        """What the part's next run would have on the device."""
        return getattr(self.model, "wanted", None)

    @wanted.setter
    def wanted(self, plan: ModulePlan | None) -> None:
        self.model.wanted = plan

    @property
    def placement(self) -> Placement | None:
        module = self.part() if self.part is not None else None
        return None if module is None else placement_of(module, torch.device(self.load_device))

    def model_size(self) -> int:
        return max(self.wanted.held if self.wanted else 0, self.loaded_size(), 1)

    def loaded_size(self) -> int:
        return self.placement.held if self.placement else 0

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self.loaded_size() else self.offload_device

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        """Bring what is wanted as far as ``extra_memory`` goes; negative gives room."""
        placement, wanted = self.placement, self.wanted
        if placement is None:
            return 0
        if extra_memory < 0:
            return -placement.shrink(int(-extra_memory))
        before = placement.held
        if wanted is not None and wanted.held - before <= extra_memory:
            placement.set_resident(wanted.resident, wanted.modulations)
        return placement.held - before

    def partially_unload(
        self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        return self.placement.shrink(int(memory_to_free)) if self.placement else 0

    def detach(self, unpatch_all: bool = True):
        if unpatch_all and self.placement is not None:
            self.placement.evict()
        return self.model

    def patch_model(self, *args: Any, **kwargs: Any):
        return self.model

    def unpatch_model(self, *args: Any, **kwargs: Any) -> None:
        pass


@cache
def patcher_class() -> type:
    """Our patcher, made of the host's own once it is there."""
    model_patcher = host.comfy("comfy.model_patcher")
    assert model_patcher is not None
    return type("PartPatcher", (PartPatching, model_patcher.ModelPatcher), {})


def patcher_of(module: nn.Module, device: torch.device) -> Any:
    """The host's patcher of a part, made once."""
    wrapped = _patchers.get(module)
    if wrapped is None or wrapped.load_device != device:
        wrapped = patcher_class()(handle_of(module), device, torch.device("cpu"), size=1)
        wrapped.part = weakref.ref(module)
        _patchers[module] = wrapped
    return wrapped


def set_patcher(module: nn.Module, make: Callable[[torch.device], Any]) -> Any:
    """The patcher of a part that has one of a class of its own, made once by ``make``.

    It must not hold the part, which holds it.
    """
    device = host.device()
    wrapped = _patchers.get(module)
    if wrapped is None or wrapped.load_device != device or isinstance(wrapped.model, Handle):
        wrapped = _patchers[module] = make(device)
        wrapped.part = weakref.ref(module)
    return wrapped


class HostOffloadRunner(OffloadRunner):
    """Brings parts to the device by way of the host's memory manager, where there is one."""

    def __init__(self, policy: OffloadPolicy, device: torch.device) -> None:
        super().__init__(policy, device)
        self.manager = host.comfy("comfy.model_management")

    def budget(self, modes: Sequence[str]) -> int | None:
        """As outside of the host, and what its models would give room for."""
        budget = super().budget(modes)
        if budget is None or self.manager is None or self.policy.vram_budget is not None:
            return budget
        ours = set(map(id, _patchers.values()))
        theirs = [m for m in self.manager.current_loaded_models if id(m.model) not in ours]
        return budget + sum(m.model_loaded_memory() for m in theirs if m.device == self.device)

    def apply_plan(self, placements: Sequence[Placement], plan: Plan) -> None:
        """Ask the host for room: it takes others' models away, ours among them, then calls us."""
        if self.manager is not None:
            patchers = [patcher_of(placement.module, self.device) for placement in placements]
            for patcher, wanted in zip(patchers, plan.modules, strict=True):
                patcher.wanted = wanted
            rings = sum(module.ring for module in plan.modules)
            self.manager.load_models_gpu(patchers, memory_required=plan.activations + rings)
        super().apply_plan(placements, plan)


def run(
    name: str,
    policy: OffloadPolicy,
    modules: Sequence[nn.Module],
    function: Callable[[Plan], T],
    work: Work | None = None,
    policies: Sequence[OffloadPolicy | None] = (),
) -> T:
    """Call a function of the plan with modules on the device under a policy, and keep account."""
    runner = HostOffloadRunner(policy, host.device())
    result = runner.run(name, modules, function, work, policies)
    accounts.account(runner.report)
    return result
