"""How a family's transformer reads latents: their tokens, and where each token stands.

tokens    (h / patch) x (w / patch), each of patch^2 latents
position  (index, row, column, ...), one number for each rotary axis
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenGeometry:
    """FLUX.1's by default.

    Args:
        patch: latents along a side of a token.
        axes: numbers of a position.
        text_axis: the axis along which text tokens are counted; None puts all of them at zero.
        reference_step: how far apart the indices of reference pictures are.
        reference_method: how they are placed where nobody says it (``sampling.references``).
    """

    patch: int = 2
    axes: int = 3
    text_axis: int | None = None
    reference_step: float = 1.0
    reference_method: str = "offset"


#: What every family has that says nothing else.
FLUX1_TOKENS = TokenGeometry()
