"""Redux: the tokens of SigLIP as tokens of T5, behind those of the prompt.

    tokens = down(SiLU(up(x))),   1152 -> 12288 -> 4096 for FLUX.1

Axis letters: B pictures, N tokens of a picture, D and C widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant.products import Linear
from .config import Shapes


@dataclass(frozen=True)
class ReduxConfig:
    """Widths of a Redux model: what it reads, the one between, and T5's."""

    embed_dim: int = 1152
    hidden_size: int = 12288
    context_dim: int = 4096

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> ReduxConfig:
        """Read the widths from native shapes; raises ``KeyError`` on a missing key."""
        hidden, embed = shapes["redux_up.weight"]
        return cls(embed, hidden, shapes["redux_down.weight"][0])


class ReduxModel(nn.Module):
    """Two linear layers from a vision encoder's tokens to T5's."""

    part = "style_model"

    def __init__(self, config: ReduxConfig) -> None:
        super().__init__()
        self.config = config
        self.redux_up = Linear(config.embed_dim, config.hidden_size)
        self.redux_down = Linear(config.hidden_size, config.context_dim)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        bias = self.redux_up.bias
        assert bias is not None
        return bias.dtype

    def forward(self, x: Tensor) -> Tensor:
        """A vision encoder's tokens (B, N, D) as context (B, N, C).

        Raises ``ValueError`` for tokens of another width.
        """
        if x.shape[-1] != self.config.embed_dim:
            raise ValueError(
                f"Redux reads tokens {self.config.embed_dim} wide, these have {x.shape[-1]}: it "
                "belongs to another vision encoder (SigLIP so400m for FLUX.1 Redux)"
            )
        return self.redux_down(F.silu(self.redux_up(x.to(self.dtype))))
