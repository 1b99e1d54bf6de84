"""What LoRAs with a schedule or a region count at each call of the transformer.

    r = factor of the schedule at sigma * mask at the token

Axis letters: B pictures, N text tokens, L image tokens (T with references behind them), K LoRAs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..lora import LoraStack, LoraUse
from ..lora.apply import attached_factors, counting
from ..lora.rows import IMAGE, JOINT, TEXT, VECTOR, RowFactors
from ..models.families import family_of
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .latents import expand, pack
from .prepared import PreparedPrompt, sigma_at
from .regions import Area
from .sigmas import SigmaTable


def share_at(table: SigmaTable, sigma: float, known: Sequence[float] = ()) -> float:
    """The share of the schedule, from 0 (noise) to 1, at a sigma: the inverse of ``sigma_at``.

    Of the ``known`` shares that one which ``sigma_at`` gives this very sigma for: a step may lie
    exactly there.
    """
    exact = (share for share in known if sigma_at(table, share) == sigma)
    return next(exact, min(1.0, max(0.0, 1.0 - table.time(min(1.0, sigma)))))


def step_factor(use: LoraUse, table: SigmaTable, sigma: float) -> float:
    """What a LoRA's strength is multiplied with at a sigma."""
    if use.schedule is None:
        return 1.0
    return use.schedule.at(share_at(table, sigma, [share for share, _ in use.schedule.points]))


def token_mask(
    mask: Tensor,
    prompt: PreparedPrompt,
    height: int,
    width: int,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor:
    """A mask (1 or B, H, W) at the image tokens (1 or B, L) of a prompt's area, for latents of
    ``height`` x ``width``: each token has the mean over its part of the picture."""
    latents = F.interpolate(mask[:, None], (height, width), mode="area")
    latents = latents if prompt.area is None else prompt.area.cut(latents)
    return pack(latents, geometry).mean(dim=-1)


class LoraFactors:
    """Tells the branches of a run's LoRAs what counts before every call."""

    def __init__(
        self,
        factors: RowFactors,
        uses: Sequence[LoraUse],
        table: SigmaTable,
        shape: Sequence[int],
        device: torch.device,
        geometry: TokenGeometry = FLUX1_TOKENS,
    ) -> None:
        """``uses`` are those that have branches, in their order; ``shape`` is that of the latents,
        (B, C, h, w)."""
        self.factors, self.uses, self.table = factors, uses, table
        self.height, self.width, self.device = shape[-2], shape[-1], device
        self.geometry = geometry
        self.regions = any(use.region is not None for use in uses)
        self.steps: dict[float, Tensor] = {}
        self.places: dict[tuple[str, Area | None, int, int], dict[str, Tensor]] = {}
        alone = [1.0 if use.region is None else use.region.modulation for use in uses]
        self.vectors = self.numbers(alone)

    def numbers(self, values: Sequence[float]) -> Tensor:
        """Numbers as a tensor, (K,)."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def at_step(self, sigma: float) -> Tensor:
        """What each LoRA counts at a sigma, wherever, (K,)."""
        if sigma not in self.steps:
            factors = [step_factor(use, self.table, sigma) for use in self.uses]
            self.steps[sigma] = self.numbers(factors)
        return self.steps[sigma]

    def set_vectors(self, sigmas: Sequence[float], rows: int = 1) -> None:
        """Say what counts where modulation vectors are read: of each sigma so many rows, or one
        that counts for all of a layer's."""
        factors = torch.stack([self.at_step(sigma) for sigma in sigmas])
        self.factors.by_kind[VECTOR] = (factors * self.vectors).repeat_interleave(rows, dim=0)

    def set_call(
        self, sigma: float, prompt: PreparedPrompt, text_tokens: int, image_tokens: int
    ) -> None:
        """Say what counts in a call with so many tokens, N and T."""
        key = prompt.name, prompt.area, text_tokens, image_tokens
        if key not in self.places:
            self.places[key] = self.at_tokens(prompt, text_tokens, image_tokens)
        now = self.at_step(sigma)
        self.factors.by_kind = {kind: now * place for kind, place in self.places[key].items()}

    def at_tokens(
        self, prompt: PreparedPrompt, text_tokens: int, image_tokens: int
    ) -> dict[str, Tensor]:
        """What each LoRA counts at the tokens of a call, at all steps, by what a layer reads: (K,),
        or (1 or B, tokens, K) with regions."""
        if not self.regions:
            return dict.fromkeys((IMAGE, TEXT, JOINT, VECTOR), torch.ones_like(self.vectors))
        texts = [1.0 if use.region is None else use.region.text for use in self.uses]
        text, columns = self.numbers(texts), []
        for use, elsewhere in zip(self.uses, texts, strict=True):
            mask = torch.ones(1, image_tokens)
            if use.region is not None:
                size = (self.height, self.width)
                mask = token_mask(use.region.mask, prompt, *size, self.geometry)
                # what stands behind the picture's tokens is not in it
                mask = F.pad(mask, (0, image_tokens - mask.shape[1]), value=elsewhere)
            columns.append(mask if len(mask) == 1 else expand(mask, prompt.batch))
        rows = max(map(len, columns))
        image = torch.stack([c.expand(rows, -1) for c in columns], dim=-1).to(self.device)
        joint = torch.cat([text.expand(rows, text_tokens, -1), image], dim=1)
        return {IMAGE: image, TEXT: text, JOINT: joint, VECTOR: self.vectors}

    def clear(self) -> None:
        """Let everything count whole again."""
        self.factors.by_kind = {}


def lora_factors(
    transformer: nn.Module,
    loras: LoraStack,
    table: SigmaTable,
    shape: Sequence[int],
    device: torch.device,
) -> LoraFactors | None:
    """The factors of LoRAs that are beside a transformer's layers, for latents of a shape
    (B, C, h, w); None where none of them has a schedule or a region."""
    factors = attached_factors(transformer)
    if factors is None:
        return None
    geometry = family_of(transformer).tokens
    return LoraFactors(factors, counting(loras), table, shape, device, geometry)
