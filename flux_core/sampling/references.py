"""Reference pictures (Kontext): their latents as tokens behind the image's.

    offset                beside each other on a layer of their own: index 1, rows and columns moved
    index                 each on a layer of its own: index 1, 2, ..., all at row 0 and column 0
    uxo                   on the picture's layer, down and to the right of it (UNO, USO)
    index_timestep_zero   as ``index``, and modulated as at time 0

as ComfyUI's ReferenceLatent and FluxKontextMultiReferenceLatentMethod have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .latents import expand, image_ids, image_tokens, pack, token_grid

METHODS = ("offset", "index", "uxo", "index_timestep_zero")


@dataclass(frozen=True, eq=False)
class References:
    """Raw latents (1 or B, 16, h, w) of any sizes, and how they are placed.

    ``method`` None is the family's own. Raises ``ValueError`` for an unknown method.
    """

    latents: Sequence[Tensor]
    method: str | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise ValueError(
                f"reference method is {self.method!r}, expected one of {', '.join(METHODS)}"
            )

    @property
    def still(self) -> bool:
        """Whether they are modulated as at time 0."""
        return self.method == "index_timestep_zero"

    @property
    def tokens(self) -> int:
        """Tokens of all of them, of FLUX.1's."""
        return self.token_count(FLUX1_TOKENS)

    def token_count(self, geometry: TokenGeometry) -> int:
        """Tokens of all of them."""
        return sum(image_tokens(*latent.shape[-2:], geometry=geometry) for latent in self.latents)


def places(
    sizes: Sequence[tuple[int, int]],
    method: str,
    height: int,
    width: int,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> list[tuple[float, int, int]]:
    """Index, row and column of each reference's first latent.

    Args:
        sizes: rows and columns of latents of each.
        height, width: of the picture's latents.
        geometry: of the family, which says how far apart indices are.
    """
    placed: list[tuple[float, int, int]] = []
    down = right = 0
    for number, (rows, columns) in enumerate(sizes):
        if method in ("index", "index_timestep_zero"):
            placed.append(((number + 1) * geometry.reference_step, 0, 0))
        elif method == "uxo":
            grid = token_grid(height, width, geometry)
            patch = geometry.patch
            placed.append((0.0, grid[0] * patch + down, grid[1] * patch + right))
            down, right = down + rows, right + columns
        else:
            row, column = (0, right) if rows + down > columns + right else (down, 0)
            placed.append((1.0, row, column))
            down, right = max(down, rows + row), max(right, columns + column)
    return placed


def reference_tokens(
    latents: Sequence[Tensor],
    method: str | None,
    height: int,
    width: int,
    batch: int,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Standardised latents (1 or B, C, h, w) of some references as tokens (batch, R, p^2 C) and
    their positions (R, axes), for a picture of ``height`` x ``width`` latents; p latents are a
    side of a token."""
    sizes = [(int(z.shape[-2]), int(z.shape[-1])) for z in latents]
    placed = places(sizes, method or geometry.reference_method, height, width, geometry)
    tokens, ids = [], []
    for z, (index, row, column) in zip(latents, placed, strict=True):
        tokens.append(pack(expand(z, batch), geometry))
        patch = geometry.patch
        first = [(place + patch // 2) // patch for place in (row, column)]
        ids.append(image_ids(z.shape[-2], z.shape[-1], index, *first, geometry=geometry))
    return torch.cat(tokens, dim=1), torch.cat(ids).to(latents[0].device)
