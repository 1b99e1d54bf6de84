"""Which devices of a machine draw together: their names in a policy, and what is there.

A card is named ``cuda:0``; ``all`` are those of the machine. ``cpu``, ``cpu:1``, ``cpu:2`` are one
CPU in the place of several cards, so that whatever is said of cards can be tried without one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..bounds import brief

ALL = "all"


def device_names(value: object) -> tuple[str, ...]:
    """Devices as a policy has them, of a text with commas or of a sequence of names; empty for
    none. Raises ``ValueError`` for what is no name of a card, and for one that comes twice."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")] if value.strip() else []
    if not isinstance(value, Sequence):
        raise ValueError(f"devices is {brief(value)}, expected names such as cuda:0, or {ALL}")
    names = tuple(map(plain_name, value))
    if ALL in names and len(names) > 1:
        raise ValueError(f"devices is {brief(', '.join(names))}, expected {ALL} or names, not both")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"devices names {twice[0]} twice, expected each device once")
    return names


def plain_name(name: object) -> str:
    """A device's name in one way of writing; raises ``ValueError``."""
    if isinstance(name, str) and name.strip().lower() == ALL:
        return ALL
    try:
        device = torch.device(name.strip() if isinstance(name, str) else str(name))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise ValueError(f"devices has {brief(name)}, expected names such as cuda:0, or {ALL}")
    if device.type == "cuda" and device.index is None:
        raise ValueError("devices has cuda, expected the number of a card too, such as cuda:0")
    return str(device) if device.index or device.type == "cuda" else device.type


def devices_of(names: Sequence[str], first: torch.device) -> list[torch.device]:
    """The devices of a policy's names, that on which the run is first of all; empty for no names.

    Raises ``ValueError`` for a card that is not there, and where the run's own is not named.
    """
    if not names:
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own = torch.device(plain_name(str(first)))
    if list(names) == [ALL]:
        there = [torch.device("cuda", index) for index in range(count)]
        return [own, *(d for d in there if d != own)] if own.type == "cuda" else [own]
    devices = [torch.device(name) for name in names]
    for device in devices:
        if device.type == "cuda" and device.index >= count:
            last = f"cuda:{count - 1}"
            seen = ("no card", "cuda:0 alone", f"cuda:0 to {last}")[min(count, 2)]
            raise ValueError(f"devices names {device}, and torch sees {seen}")
    if own not in devices:
        raise ValueError(
            f"devices names {', '.join(names)}, and not {own}, where the model is drawn: name it"
        )
    return [own, *(device for device in devices if device != own)]
