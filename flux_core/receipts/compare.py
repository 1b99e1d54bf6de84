"""A picture held against the one that it should be, and a receipt against another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .receipt import Receipt

#: What two runs of one kind on different days may differ in.
MEASURED = frozenset(
    {"seconds", "moving", "peak", "predicted", "predicted_pass", "streamed", "weights", "kind"}
)
#: Kinds of notes that say what a picture was made with; the others say what it took.
DECIDING = ("draw", "encode", "input")


@dataclass(frozen=True)
class PixelDifference:
    """How far uint8 pictures are from each other: ``largest`` of 255, ``share`` of values that
    differ, ``psnr`` in dB."""

    largest: int
    share: float
    psnr: float

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> PixelDifference:
        """Of two pictures (H, W, 3); raises ``ValueError`` where they have other sizes."""
        if a.shape != b.shape:
            sizes = [f"{x.shape[1]}x{x.shape[0]}" for x in (a, b)]
            raise ValueError(f"{sizes[0]} pixels, expected {sizes[1]}")
        gap = np.abs(a.astype(np.int16) - b.astype(np.int16))
        error = float((gap.astype(np.float64) ** 2).mean()) / 255**2
        psnr = math.inf if error == 0 else -10 * math.log10(error)
        return cls(int(gap.max(initial=0)), float((gap > 0).mean()), psnr)

    @property
    def same(self) -> bool:
        return self.largest == 0

    def __str__(self) -> str:
        if self.same:
            return "same bits"
        return (
            f"differs by at most {self.largest} of 255, in {self.share:.1%} of the values "
            f"(PSNR {self.psnr:.1f} dB)"
        )


def what_differs(before: Receipt, now: Receipt) -> list[str]:
    """What two receipts of one picture do not agree in, in words; what was measured is left out."""
    lines = []
    for name in ("fluxfit", "torch", "device"):
        was, is_now = getattr(before, name), getattr(now, name)
        if was and is_now and was != is_now:
            lines.append(f"{name} is {is_now}, was {was}")
    for name in before.files:
        hashes = [receipt.files.get(name, {}).get("sha256") for receipt in (before, now)]
        if all(hashes) and hashes[0] != hashes[1]:
            lines.append(f"{name} has other content than it had")
    mine, theirs = (list(deciding(receipt)) for receipt in (now, before))
    for number, (is_now, was) in enumerate(zip(mine, theirs, strict=False)):
        for name in sorted({*is_now, *was} - MEASURED - {"node"}):
            if is_now.get(name) != was.get(name) and name in is_now and name in was:
                label = was.get("node", number)
                lines.append(
                    f"{was['kind']} of node {label}: {name} is {is_now[name]}, was {was[name]}"
                )
    policies = [policies_of(receipt) for receipt in (before, now)]
    if policies[0] != policies[1] and all(policies):
        lines.append(f"policy is {', '.join(policies[1])}, was {', '.join(policies[0])}")
    return lines


def deciding(receipt: Receipt) -> Iterator[Mapping[str, Any]]:
    """The notes that say what a picture was made with, one of each node and kind."""
    seen = set()
    for entry in receipt.did:
        if entry.get("kind") in DECIDING:
            key = (entry.get("node"), entry["kind"])
            if key not in seen:
                seen.add(key)
                yield entry


def policies_of(receipt: Receipt) -> list[str]:
    """Under which policies parts ran."""
    return sorted({str(entry["policy"]) for entry in receipt.did if "policy" in entry})
