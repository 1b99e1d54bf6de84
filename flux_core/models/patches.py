"""Other code around a transformer's blocks: what one forward pass knows, and who may change it.

A host lets extensions replace a block, look at its inputs or change its attention. The transformer
asks a ``BlockPatches`` at these places, and at no others; without one it costs nothing.

Axis letters: B pictures, L image tokens, N text tokens, D width, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from .layers import Attention, Modulation
from .picture_attention import PictureSource
from .side_tokens import SideTokens

DOUBLE, SINGLE = "double", "single"


class EmbeddedInputs(NamedTuple):
    """What the blocks begin with: img (B, L, D), txt (B, N, D), and the positions of both,
    (L, 3) or (B, L, 3) and (N, 3) or (B, N, 3)."""

    img: Tensor
    txt: Tensor
    img_ids: Tensor
    txt_ids: Tensor


@dataclass(frozen=True)
class ForwardState:
    """What all blocks of one forward pass read beside their tokens.

    ``vec`` is the modulation vector, (B, D), or of a model that makes the modulations of all
    blocks at once those, (B, vectors, D); 2 B of them where the last ``still_tokens`` image tokens
    have one of their own. ``rotary`` are cosines and sines, each (B or 1, N + L, 1, d).
    ``mask`` and ``attend``: see ``layers.attention``. ``side``: tokens beside all blocks.
    ``adapters`` are what IP-Adapters bring. ``shared``: modulations of double and of single blocks,
    made of ``vec``, where all blocks of a kind read the same.
    """

    vec: Tensor
    rotary: tuple[Tensor, Tensor]
    text_tokens: int
    still_tokens: int = 0
    mask: Tensor | None = None
    attend: Attention | None = None
    side: SideTokens | None = None
    adapters: PictureSource | None = None
    shared: Sequence[Sequence[Modulation]] | None = None


#: A block's tokens: (img, txt) of a double block, (joint,) of a single one.
Tokens = tuple[Tensor, ...]
#: Runs the block itself.
RunBlock = Callable[[Tokens, ForwardState], Tokens]


class BlockPatches(Protocol):
    """What the transformer calls around its blocks."""

    def embedded(self, inputs: EmbeddedInputs) -> EmbeddedInputs:
        """What the blocks begin with instead."""
        ...

    def block(
        self, kind: str, index: int, tokens: Tokens, state: ForwardState, run: RunBlock
    ) -> Tokens:
        """The tokens after block ``index`` of a kind; ``run`` is the block itself."""
        ...
