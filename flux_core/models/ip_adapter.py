"""IP-Adapters: a picture's vector as a few tokens, and keys and values of them for every block.

    XLabs      tokens = norm(proj(x));              k = W_k tokens + b,  v = W_v tokens + b
               of the double blocks; added to the tokens that leave the block
    InstantX   tokens = norm(proj2(GELU(proj1(x)))); k = rms(W_k tokens), v = W_v tokens
               of all blocks; added to the attention before its projection

as the public code of both has it (x-flux and diffusers; InstantX's FLUX.1-dev-IP-Adapter). Axis
letters: R rows, P width of a picture's vector, T tokens, C width of tokens, H heads, d width of a
head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant.products import Linear
from .config import AXES_DIM, Shapes, count_whole

#: Of InstantX's norm of keys.
KEY_EPS = 1e-5
#: What a wide projection is told by: a second linear layer.
WIDE = "image_proj.proj.2.weight"


@dataclass(frozen=True)
class IPAdapterConfig:
    """Sizes of an IP-Adapter; defaults are XLabs'.

    ``projection_hidden`` is the width between two projections, 0 where there is one. With
    ``wide`` it is InstantX's kind: keys are normalised, and it has a layer for every block.
    """

    embed_dim: int = 768
    projection_hidden: int = 0
    tokens: int = 16
    context_dim: int = 4096
    hidden_size: int = 3072
    depth: int = 19
    bias: bool = True
    head_size: int = sum(AXES_DIM)

    def __post_init__(self) -> None:
        if self.hidden_size % self.head_size:
            raise ValueError(
                f"keys are {self.hidden_size} wide, expected a multiple of {self.head_size}"
            )

    @property
    def wide(self) -> bool:
        return self.projection_hidden > 0

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> IPAdapterConfig:
        """Read the sizes from native shapes; raises ``KeyError`` on a missing key, ``ValueError``
        for a projection that makes no whole tokens."""
        wide = WIDE in shapes
        first = "image_proj.proj.0.weight" if wide else "image_proj.proj.weight"
        context = shapes["image_proj.norm.weight"][0]
        rows = shapes[WIDE if wide else first][0]
        if rows % context:
            raise ValueError(f"its projection has {rows} rows, expected a multiple of {context}")
        return cls(
            embed_dim=shapes[first][1],
            projection_hidden=shapes[first][0] if wide else 0,
            tokens=rows // context,
            context_dim=context,
            hidden_size=shapes["layers.0.to_k.weight"][0],
            depth=count_whole(shapes, "layers.", "to_k.weight"),
            bias="layers.0.to_k.bias" in shapes,
        )


class PictureProjection(nn.Module):
    """A picture's vector to tokens."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.context_dim = config.context_dim
        out, hidden = config.tokens * config.context_dim, config.projection_hidden
        self.proj: nn.Module = Linear(config.embed_dim, out)
        if config.wide:
            self.proj = nn.Sequential(
                Linear(config.embed_dim, hidden), nn.GELU(), Linear(hidden, out)
            )
        self.norm = nn.LayerNorm(config.context_dim)

    def forward(self, embeds: Tensor) -> Tensor:
        """Vectors (R, P) to tokens (R, T, C)."""
        return self.norm(self.proj(embeds).unflatten(-1, (-1, self.context_dim)))


class KeysAndValues(NamedTuple):
    """Of all layers: ``keys`` and ``values`` (layers, R, T, H, d)."""

    keys: Tensor
    values: Tensor


class PictureKeys(nn.Module):
    """The keys and values of tokens for one block."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.head_size, self.norm_keys = config.head_size, config.wide
        self.to_k = Linear(config.context_dim, config.hidden_size, bias=config.bias)
        self.to_v = Linear(config.context_dim, config.hidden_size, bias=config.bias)

    def modulation_layers(self) -> list[nn.Module]:
        return []

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        """FLOP of its linear layers for so many tokens of pictures; it has no attention."""
        weights = sum(layer.in_features * layer.out_features for layer in (self.to_k, self.to_v))
        return 2.0 * weights * image_tokens, 0.0

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (R, T, C) to keys and values, each (R, T, H, d)."""
        k, v = (
            layer(tokens).unflatten(-1, (-1, self.head_size)) for layer in (self.to_k, self.to_v)
        )
        if self.norm_keys:
            k = F.rms_norm(k.float(), k.shape[-1:], eps=KEY_EPS).to(v.dtype)
        return k, v


class IPAdapter(nn.Module):
    """An IP-Adapter of either kind, told by its config alone; its layers stream like blocks."""

    part = "ip_adapter"

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = PictureProjection(config)
        self.layers = nn.ModuleList(PictureKeys(config) for _ in range(config.depth))

    def offload_blocks(self) -> list[nn.Module]:
        """The layers in the order in which they run."""
        return list(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.image_proj.norm.weight.dtype

    def forward(self, embeds: Tensor) -> KeysAndValues:
        """Vectors of pictures (n, P), which prompt together, to the keys and values of their
        tokens, each (layers, 1, n * T, H, d)."""
        tokens = self.image_proj(embeds.to(self.dtype)).flatten(0, 1)[None]
        pairs = [layer(tokens) for layer in self.layers]
        keys, values = (torch.stack(each) for each in zip(*pairs, strict=True))
        return KeysAndValues(keys, values)
