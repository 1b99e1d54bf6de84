"""The layers that FLUX.1's blocks are made of.

    modulate(x) = (1 + scale) LN(x) + shift;   rotary on q and k;   RMS norm a head

Axis letters: B pictures, L tokens, D width, H heads, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant import fused
from ..quant.linear import QuantizedLinear
from ..quant.products import Linear


class Modulation(NamedTuple):
    """Shift, scale and gate of one residual branch, each (B, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def modulate(self, x: Tensor) -> Tensor:
        """Normalise x (B, L, D) over D, then scale and shift it."""
        if fused.serves(x):
            return fused.norm_modulate(x, self.shift, self.scale).codes.view(x.shape)
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return torch.addcmul(self.shift, x, 1 + self.scale)

    def first(self, batch: int) -> Modulation:
        """Of the first so many pictures, each (batch, 1, D)."""
        return Modulation(*(part[:batch] for part in self))

    def by_token(self, batch: int, tokens: int, still: int) -> Modulation:
        """The first half of the batch for all tokens but the last ``still``, the second half for
        those: from (2 batch, 1, D) to (batch, tokens, D)."""

        def spread(part: Tensor) -> Tensor:
            moving = part[:batch].expand(-1, tokens - still, -1)
            return torch.cat([moving, part[batch:].expand(-1, still, -1)], dim=1)

        return Modulation(*map(spread, self))


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Embed t (B,) in [0, 1] as (B, dim) float32 cosines and sines of 1000 t."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    freqs = torch.exp(-math.log(max_period) * steps / half)
    args = (1000.0 * t.float())[:, None] * freqs
    return torch.cat([args.cos(), args.sin()], dim=-1)


def rotary_table(ids: Tensor, axes_dim: Sequence[int], theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions ids (L, 3) or (B, L, 3): each (B or 1, L, 1, d) float32.

    Neighbouring pairs share a frequency and the sine carries the sign of the rotation, so that
    ``apply_rotary`` is two multiplications. Angles are made in float64: at position 4000 a float32
    angle is off by 1e-4.
    """
    if ids.ndim == 2:
        ids = ids[None]
    angles = []
    for axis, dim in enumerate(axes_dim):
        scale = torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim
        angles.append(ids[..., axis, None].double() * theta**-scale)
    angle = torch.cat(angles, dim=-1)[:, :, None]  # (B, L, 1, d/2)
    cos = angle.cos().float().repeat_interleave(2, dim=-1)
    sin = angle.sin().float()
    return cos, torch.stack([-sin, sin], dim=-1).flatten(-2)


def apply_rotary(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of x (B, L, H, d) in float32; returns the dtype of x."""
    cos, sin = rotary
    wide = x.float()
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(wide * cos, swapped, sin).to(x.dtype)


class KeysValues(NamedTuple):
    """Keys with their positions, and values, of tokens that others attend to: (B, R, H, d) each."""

    keys: Tensor
    values: Tensor


class Attention(Protocol):
    """What stands for ``attention`` where other code has a hand in it."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Queries, keys and values (B, L, H, d) to (B, L, H * d)."""
        ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention over (B, L, H, d) with rotary positions; returns (B, L, H * d).

    ``mask`` is what is added to the logits, or booleans that say which pairs may meet: (L, L),
    (B, L, L) or (B, 1 or H, L, L).
    """
    return attend_rotated(apply_rotary(q, rotary), apply_rotary(k, rotary), v, mask)


def attend_rotated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``attention`` of (B, L, H, d) whose queries and keys have their positions: (B, L, H * d)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if mask is not None:
        mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
        mask = mask[:, None] if mask.ndim == 3 else mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


class MLPEmbedder(nn.Module):
    """Two linear layers around a SiLU, from an embedding to the hidden size."""

    def __init__(self, in_dim: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.in_layer = Linear(in_dim, hidden, bias)
        self.out_layer = Linear(hidden, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """An embedding (B, in) to the hidden size, (B, D)."""
        return self.out_layer(F.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) to the same, normalised over its last axis, in the dtype of x."""
        return F.rms_norm(x.float(), x.shape[-1:], self.scale.float(), eps=1e-6).to(x.dtype)


class QKNorm(nn.Module):
    """Normalise queries and keys, each with its own scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, each (B, L, H, d), to the same, normalised over d."""
        return self.query_norm(q), self.key_norm(k)


class ModulationLayer(nn.Module):
    """The vector (B, D) to ``count`` modulations."""

    def __init__(self, dim: int, count: int, bias: bool = True) -> None:
        super().__init__()
        self.count = count
        self.lin = Linear(dim, 3 * count * dim, bias)

    @property
    def width(self) -> int:
        """Numbers that ``raw`` gives for a vector."""
        return int(self.lin.out_features)

    def raw(self, vec: Tensor) -> Tensor:
        """All shifts, scales and gates side by side, (B, 3 * count * D)."""
        return self.lin(F.silu(vec))

    def split(self, raw: Tensor) -> list[Modulation]:
        """What ``raw`` gave, (B, 3 * count * D), as modulations."""
        parts = raw[:, None].chunk(3 * self.count, dim=-1)
        return [Modulation(*three) for three in zip(*[iter(parts)] * 3, strict=True)]

    def forward(self, vec: Tensor) -> list[Modulation]:
        """The vector (B, D) to modulations, each of three tensors (B, 1, D)."""
        return self.split(self.raw(vec))


class SelfAttention(nn.Module):
    """Weights of one stream's attention; the product itself is made over both streams."""

    def __init__(self, dim: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias)
        self.norm = QKNorm(dim // num_heads)
        self.proj = Linear(dim, dim, bias)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, 3 * H * d) to three of (B, L, H, d)."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return q, k, v


def joint_attention(
    streams: Sequence[tuple[Tensor, QKNorm]],
    num_heads: int,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    attend: Attention | None = None,
    beyond: KeysValues | None = None,
) -> Tensor:
    """Attention over streams together, each a projection (B, T, 3 * H * d) with its norm:
    (B, L, H * d), L the tokens of all. They see what is ``beyond`` them too, where ``attend`` is
    None."""
    projected = [qkv for qkv, _ in streams]
    parts = [part for _, norm in streams for part in (norm.query_norm, norm.key_norm)]
    size = projected[0].shape[-1] // 3 // num_heads
    plain = all(type(part) is RMSNorm and not part._forward_hooks for part in parts)
    if attend is None and plain and size & (size - 1) == 0 and fused.serves(projected[0]):
        scales = [part.scale for part in parts]
        rotated = fused.norm_rotary(projected, scales, rotary, num_heads)
        return attend_rotated(*(rotated if beyond is None else extended(*rotated, beyond)), mask)
    heads = []
    for qkv, norm in streams:
        q, k, v = split_heads(qkv, num_heads)
        heads.append((*norm(q, k), v))
    q, k, v = (
        torch.cat(three, dim=1) if len(heads) > 1 else three[0]
        for three in zip(*heads, strict=True)
    )
    if beyond is not None:
        rotated = (apply_rotary(q, rotary), apply_rotary(k, rotary), v)
        return attend_rotated(*extended(*rotated, beyond), mask)
    return (attend or attention)(q, k, v, rotary, mask)


def extended(q: Tensor, k: Tensor, v: Tensor, beyond: KeysValues) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, L, H, d) as they are, keys and values of all tokens, (B, L + R, H, d) each."""
    return q, torch.cat([k, beyond.keys], dim=1), torch.cat([v, beyond.values], dim=1)


def own_attention(
    qkv: Tensor, norm: QKNorm, num_heads: int, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, KeysValues]:
    """Attention of one stream (B, R, 3 * H * d) to itself, (B, R, H * d), and what others need to
    attend to it."""
    parts = (norm.query_norm, norm.key_norm)
    size = qkv.shape[-1] // 3 // num_heads
    plain = all(type(part) is RMSNorm and not part._forward_hooks for part in parts)
    if plain and size & (size - 1) == 0 and fused.serves(qkv):
        scales = [part.scale for part in parts]
        q, k, v = fused.norm_rotary([qkv], scales, rotary, num_heads)
    else:
        q, k, v = split_heads(qkv, num_heads)
        q, k = norm(q, k)
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
    # of its own memory: what is kept must not keep the projection
    return attend_rotated(q, k, v, None), KeysValues(k.contiguous(), v.contiguous())


def modulated(layer: nn.Module, mod: Modulation, x: Tensor) -> Tensor:
    """A linear layer's output (B, L, out) for x (B, L, D), normalised and modulated."""
    if isinstance(layer, QuantizedLinear) and (how := layer.rounding(x)):
        return layer.multiply_rounded(fused.norm_modulate(x, mod.shift, mod.scale, how), x)
    return layer(mod.modulate(x))


def after_gelu(layer: nn.Module, hidden: Tensor, joint: Tensor | None = None) -> Tensor:
    """A linear layer's output (B, L, out) for the GELU of ``hidden`` (B, L, H), behind ``joint``
    (B, L, A) where there is one."""
    if isinstance(layer, QuantizedLinear) and (how := layer.rounding(hidden)):
        return layer.multiply_rounded(fused.join_gelu(joint, hidden, how), hidden)
    if joint is None:
        return layer(F.gelu(hidden, approximate="tanh"))
    if fused.serves(hidden, hidden.shape[-1] + joint.shape[-1]):
        joined = fused.join_gelu(joint, hidden).codes
        return layer(joined.view(*hidden.shape[:-1], -1))
    return layer(torch.cat([joint, F.gelu(hidden, approximate="tanh")], dim=-1))


def modulated_mlp(layers: nn.Sequential, mod: Modulation, x: Tensor) -> Tensor:
    """``mlp`` of x (B, L, D), normalised and modulated: (B, L, D)."""
    return after_gelu(layers[2], modulated(layers[0], mod, x))


def mlp(dim: int, hidden: int) -> nn.Sequential:
    """Linear, tanh-approximated GELU, linear."""
    return nn.Sequential(Linear(dim, hidden), nn.GELU("tanh"), Linear(hidden, dim))


class LastLayer(nn.Module):
    """Hidden tokens to packed latent channels."""

    def __init__(self, dim: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = Linear(dim, out_channels, bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(dim, 2 * dim, bias))

    def forward(self, x: Tensor, vec: Tensor, still_tokens: int = 0) -> Tensor:
        """Tokens x (B, L, D) and the vector (B, D) to (B, L, out_channels).

        With ``still_tokens`` the vector is (2 B, D), its second half for the last so many tokens.
        """
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        mod = Modulation(shift, scale, scale)
        if still_tokens:
            mod = mod.by_token(x.shape[0], x.shape[1], still_tokens)
        return self.linear(mod.modulate(x))
