"""IP-Adapters of our own wire where the host samples: FLUX Sampler with a SAMPLER of the host.

Axis letters: B pictures drawn, C channels, h and w latents, Q tokens of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flux_core import FluxTransformer
from flux_core.models.ip_adapter import KeysAndValues
from flux_core.sampling.adapters import (
    AppliedAdapter,
    PlacedAdapter,
    PlacedAdapters,
    is_compiled,
    scales_of,
)

#: The numbers that the host's guider gives the two prompts in one call of the model.
POSITIVE, NEGATIVE = 0, 1


class HostAdapters:
    """The adapters of one run for the host's calls of the model.

    ``shape`` (B, C, h, w) is that of the latents; ``sigma_at`` gives the sigma at a share of the
    schedule, as the host's model has it.
    """

    def __init__(
        self,
        adapters: Sequence[AppliedAdapter],
        transformer: FluxTransformer,
        shape: Sequence[int],
        sigma_at: Callable[[float], float],
        device: torch.device,
    ) -> None:
        self.transformer, self.shape = transformer, tuple(shape)
        self.entries: list[tuple[int, AppliedAdapter, PlacedAdapter]] = []
        for applied in adapters:
            assert applied.ready is not None
            for number, keys in zip((POSITIVE, NEGATIVE), applied.ready, strict=True):
                if keys is not None:
                    placed = self.placed(applied, keys, sigma_at, device)
                    self.entries.append((number, applied, placed))

    def placed(
        self,
        applied: AppliedAdapter,
        keys: KeysAndValues,
        sigma_at: Callable[[float], float],
        device: torch.device,
    ) -> PlacedAdapter:
        """An adapter's keys and values on the device, without scales."""
        k, v = (each.to(device, self.transformer.dtype) for each in keys)
        return PlacedAdapter(
            k,
            v,
            {},
            applied.adapter.config.wide,
            self.transformer.config.depth,
            math.inf if applied.start <= 0 else sigma_at(applied.start),
            -math.inf if applied.end >= 1 else sigma_at(applied.end),
        )

    def at(
        self, x: Tensor, sigma: float, text: int, behind: int, options: Mapping[str, Any]
    ) -> PlacedAdapters | None:
        """What counts in a call for latents x (B, C, h, w) with so many text and reference tokens.

        Raises ``ValueError`` where a mask would have to be cut to a prompt's area.
        """
        chunks = [int(number) for number in options.get("cond_or_uncond") or (POSITIVE,)]
        placed = []
        for number, applied, entry in self.entries:
            if number not in chunks:
                continue
            counts = entry.last <= sigma <= entry.first
            if not counts and not is_compiled(self.transformer):
                continue
            if applied.mask is not None and x.shape[-2:] != self.shape[-2:]:
                raise ValueError(
                    "an IP-Adapter's mask and a prompt with an area together: take sampler_object "
                    "away, so that FluxSampler draws by itself"
                )
            rows = len(x) // len(chunks)
            shown = [float(counts and chunk == number) for chunk in chunks for _ in range(rows)]
            weights = torch.tensor(shown).view(-1, 1, 1)
            scales = scales_of(applied, x.shape[-2:], x.shape[-2:], None, text, behind)
            fitted = {
                kind: (repeated(scale, len(chunks), rows) * weights).to(x.device)
                for kind, scale in scales.items()
            }
            placed.append(replace(entry, scales=fitted))
        return PlacedAdapters(placed) if placed else None


def repeated(scale: Tensor, chunks: int, rows: int) -> Tensor:
    """Scales (1 or rows, Q, 1) for every prompt of a call, (1 or chunks * rows, Q, 1)."""
    return scale if len(scale) == 1 else scale.expand(rows, -1, -1).repeat(chunks, 1, 1)
