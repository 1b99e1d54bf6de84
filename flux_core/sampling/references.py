"""Reference pictures (Kontext): their latents as tokens behind the image's.

    offset                beside each other on a layer of their own: index 1, rows and columns moved
    index                 each on a layer of its own: index 1, 2, ..., all at row 0 and column 0
    uxo                   on the picture's layer, down and to the right of it (UNO, USO)
    index_timestep_zero   as ``index``, and modulated as at time 0

as ComfyUI's ReferenceLatent and FluxKontextMultiReferenceLatentMethod have them. With them

    joint   they attend to text and picture, and change with every step: as Kontext was trained
    self    they attend to themselves alone, modulated as at time 0: the same in every step, so that
            later steps read what the first made of them (``models.side_tokens``)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds import brief
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .latents import expand, image_ids, pack, token_grid

METHODS = ("offset", "index", "uxo", "index_timestep_zero")
ATTENTIONS = JOINT, SELF = "joint", "self"


@dataclass(frozen=True, eq=False)
class References:
    """Raw latents (1 or B, 16, h, w) of any sizes, and how they are placed.

    ``method`` None is the family's own. Raises ``ValueError`` for an unknown method or attention.
    """

    latents: Sequence[Tensor]
    method: str | None = None
    attention: str = JOINT

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, (None, *METHODS)),
            ("attention", self.attention, ATTENTIONS),
        ):
            if value not in known:
                raise ValueError(
                    f"reference {name} is {brief(value)}, expected one of "
                    + ", ".join(filter(None, known))
                )

    def check(self, channels: int) -> None:
        """Raise ``ValueError`` for what are no latents (B, ``channels``, h, w)."""
        for z in self.latents:
            if not isinstance(z, Tensor) or z.ndim != 4 or z.shape[1] != channels or not z.numel():
                shape = tuple(z.shape) if isinstance(z, Tensor) else brief(z)
                raise ValueError(
                    f"reference latents are {shape}, expected (B, {channels}, h, w) of this "
                    "model's VAE"
                )

    @property
    def still(self) -> bool:
        """Whether they are modulated as at time 0 among the other tokens."""
        return self.method == "index_timestep_zero" and not self.aside

    @property
    def aside(self) -> bool:
        """Whether they attend to themselves alone."""
        return self.attention == SELF


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
