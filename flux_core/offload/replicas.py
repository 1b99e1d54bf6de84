"""Replicas of a module for further devices: modules of their own, of the same tensors.

    module   tables -> tensors on the host <- tables   replica
             placement, ring, copies           placement, ring, copies

A replica holds no numbers of its own. What its run has on its device is its placement's, as the
module's is, and stays there between runs where the policy keeps it. Host memory is pinned once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import FunctionType

import torch
from torch import Tensor, nn

from .pack import named_tensors, twin
from .placement import forget_placement, placement_if_any

_replicas: weakref.WeakKeyDictionary[nn.Module, dict[torch.device, nn.Module]] = (
    weakref.WeakKeyDictionary()
)

#: What of a module's own is a run's, and not of how it computes.
OF_A_RUN = ("forward", "precomputed")


def replica_of(module: nn.Module, device: torch.device) -> nn.Module:
    """A module's replica for a device, as the module is now; the last run's where it still is one.

    Nothing is attached to the module, and it does not run.
    """
    known = _replicas.setdefault(module, {})
    replica = known.get(device)
    if replica is None or own_tensors(module) != own_tensors(replica):
        if replica is not None:
            forget_placement(replica)
        replica = known[device] = twin(module, on_host(module))
        for layer in replica.modules():
            if "kernel_choices" in layer.__dict__:
                layer.__dict__["kernel_choices"] = {}  # which are tried on each device
    follow(module, replica)
    return replica


def forget_idle_replicas(module: nn.Module) -> None:
    """Keep no replica that has nothing on its device: it would hold tensors that the module may be
    given others for."""
    known = _replicas.get(module, {})
    for device, replica in list(known.items()):
        placement = placement_if_any(replica)
        if placement is None or not placement.held:
            forget_placement(replica)
            del known[device]


def offload_module(module: nn.Module) -> None:
    """Take a module's weights off whatever devices they were left on, and keep hold of none."""
    for replica in _replicas.pop(module, {}).values():
        forget_placement(replica)
    forget_placement(module)


def on_host(module: nn.Module) -> dict[int, Tensor]:
    """Of a module's tensors that are on a device, by id, those on the host that they are copies
    of; each in the shape that it has."""
    placement = placement_if_any(module)
    if placement is None:
        return {}
    return {
        id(copy): tensor
        for weights in placement.host_weights
        if weights.onloaded is not None
        for copy, tensor in zip(weights.copies, weights.tensors, strict=True)
    }


def own_tensors(module: nn.Module) -> list[tuple[str, type[nn.Module], int]]:
    """What a module holds on the host: names, owners' classes, and which tensors."""
    host = on_host(module)
    return [
        (name, type(owner), id(host.get(id(tensor), tensor)))
        for name, owner, _, tensor in named_tensors(module)
    ]


def follow(module: nn.Module, replica: nn.Module) -> None:
    """Let a replica's layers compute as the module's do now: compiled or not, natively or not."""
    for own, other in zip(module.modules(), replica.modules(), strict=True):
        other.__dict__.update(settings_of(own))


def settings_of(layer: nn.Module) -> Iterator[tuple[str, object]]:
    """What a layer computes by beside its tensors: numbers, names, functions, records."""
    for name, value in vars(layer).items():
        plain = value is None or isinstance(value, bool | int | float | str | FunctionType)
        if name not in OF_A_RUN and (plain or is_dataclass(value)):
            yield name, value
