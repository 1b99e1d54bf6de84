"""The FLUX.1 transformer: joint attention over text and image tokens, then over their union.

    vec   = time_in(t) + guidance_in(g) + vector_in(y)
    block: x <- x + gate * f((1 + scale) * norm(x) + shift),   (shift, scale, gate) = mod(vec)

Names and meaning are the reference implementation's (github.com/black-forest-labs/flux), so that
its weights need no map. Axis letters: B batch, L image tokens, N text tokens, D hidden size,
H heads, d head size. Left out on purpose: storage precision (``quant``) and residency
(``offload``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import BodyConfig, TransformerConfig
from .families import family_of


class ControlResiduals(NamedTuple):
    """What a ControlNet adds after each block: two lists of (B, L, D).

    A list is shorter than the transformer is deep: each residual serves several blocks, neighbours
    (``cyclic`` false) or every n-th one (XLabs).
    """

    double: Sequence[Tensor] = ()
    single: Sequence[Tensor] = ()
    cyclic: bool = False


class Modulation(NamedTuple):
    """Shift, scale and gate of one residual branch, each (B, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def modulate(self, x: Tensor) -> Tensor:
        """Normalise x (B, L, D) over D, then scale and shift it."""
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return torch.addcmul(self.shift, x, 1 + self.scale)


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


def attention(q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Softmax attention over (B, L, H, d) with rotary positions; returns (B, L, H * d)."""
    q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class MLPEmbedder(nn.Module):
    """Two linear layers around a SiLU, from an embedding to the hidden size."""

    def __init__(self, in_dim: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.scale.float(), eps=1e-6).to(x.dtype)


class QKNorm(nn.Module):
    """Normalise queries and keys, each with its own scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class ModulationLayer(nn.Module):
    """The vector (B, D) to ``count`` modulations."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.lin = nn.Linear(dim, 3 * count * dim)

    @property
    def width(self) -> int:
        """Numbers that ``raw`` gives for a vector."""
        return int(self.lin.out_features)

    def raw(self, vec: Tensor) -> Tensor:
        """All shifts, scales and gates side by side, (B, 3 * count * D)."""
        return self.lin(F.silu(vec))

    def split(self, raw: Tensor) -> list[Modulation]:
        """What ``raw`` gave, as modulations."""
        parts = raw[:, None].chunk(3 * self.count, dim=-1)
        return [Modulation(*three) for three in zip(*[iter(parts)] * 3, strict=True)]

    def forward(self, vec: Tensor) -> list[Modulation]:
        return self.split(self.raw(vec))


class SelfAttention(nn.Module):
    """Weights of one stream's attention; the product itself is made over both streams."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, D) to normalised q, k and v, each (B, L, H, d)."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return *self.norm(q, k), v


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, 3 * H * d) to three of (B, L, H, d)."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return q, k, v


def mlp(dim: int, hidden: int) -> nn.Sequential:
    """Linear, tanh-approximated GELU, linear."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, dim))


class Block(nn.Module):
    """What both kinds of blocks have in common.

    ``compiled`` is a compiled ``forward`` of the class, or None (``compiled.compile_blocks``). All
    blocks share it, those that read a ring's buffers too, so that each class is compiled once.
    """

    compiled: Callable | None = None

    def __call__(self, *args, **kwargs):
        streamed = "forward" in self.__dict__  # another forward stands in its place
        if self.compiled is None or streamed or self._forward_pre_hooks or self._forward_hooks:
            return super().__call__(*args, **kwargs)
        return self.compiled(self, *args, **kwargs)

    def modulation_layers(self) -> list[ModulationLayer]:
        """The layers whose modulations ``forward`` takes, in order."""
        raise NotImplementedError


class DoubleStreamBlock(Block):
    """Text and image with weights of their own and one attention over both."""

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.img_mod = ModulationLayer(dim, 2)
        self.img_attn = SelfAttention(dim, num_heads)
        self.img_mlp = mlp(dim, mlp_hidden)
        self.txt_mod = ModulationLayer(dim, 2)
        self.txt_attn = SelfAttention(dim, num_heads)
        self.txt_mlp = mlp(dim, mlp_hidden)

    def modulation_layers(self) -> list[ModulationLayer]:
        return [self.img_mod, self.txt_mod]

    def forward(
        self, img: Tensor, txt: Tensor, mods: Sequence[Modulation], rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        img_mod1, img_mod2, txt_mod1, txt_mod2 = mods
        img_qkv = self.img_attn.project(img_mod1.modulate(img))
        txt_qkv = self.txt_attn.project(txt_mod1.modulate(txt))
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(txt_qkv, img_qkv, strict=True))
        joint = attention(q, k, v, rotary)
        txt_out, img_out = joint.split([txt.shape[1], img.shape[1]], dim=1)

        img = torch.addcmul(img, img_mod1.gate, self.img_attn.proj(img_out))
        img = torch.addcmul(img, img_mod2.gate, self.img_mlp(img_mod2.modulate(img)))
        txt = torch.addcmul(txt, txt_mod1.gate, self.txt_attn.proj(txt_out))
        txt = torch.addcmul(txt, txt_mod2.gate, self.txt_mlp(txt_mod2.modulate(txt)))
        return img, txt


def split_linear(linear: nn.Module, x: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """The outputs of a linear layer in parts, made one by one where the weight is plain.

    One output of all parts would be the largest tensor of the model, and its parts not contiguous.
    A layer that somebody listens to is called whole.
    """
    if type(linear) is nn.Linear and not linear._forward_pre_hooks:
        parts = zip(linear.weight.split(sizes), linear.bias.split(sizes), strict=True)
        return [F.linear(x, weight, bias) for weight, bias in parts]
    return linear(x).split(sizes, dim=-1)


class SingleStreamBlock(Block):
    """Attention and MLP side by side, over text and image as one sequence."""

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sizes = [3 * dim, mlp_hidden]
        self.linear1 = nn.Linear(dim, 3 * dim + mlp_hidden)
        self.linear2 = nn.Linear(dim + mlp_hidden, dim)
        self.norm = QKNorm(dim // num_heads)
        self.modulation = ModulationLayer(dim, 1)

    def modulation_layers(self) -> list[ModulationLayer]:
        return [self.modulation]

    def forward(
        self, x: Tensor, mods: Sequence[Modulation], rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        (mod,) = mods
        qkv, hidden = split_linear(self.linear1, mod.modulate(x), self.sizes)
        q, k, v = split_heads(qkv, self.num_heads)
        q, k = self.norm(q, k)
        joint = attention(q, k, v, rotary)
        out = self.linear2(torch.cat([joint, F.gelu(hidden, approximate="tanh")], dim=-1))
        return torch.addcmul(x, mod.gate, out)


class LastLayer(nn.Module):
    """Hidden tokens to packed latent channels."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(Modulation(shift, scale, scale).modulate(x))


class ModulationSource(Protocol):
    """What knows modulations before they are needed (``offload.modulation``)."""

    def of(self, layer: ModulationLayer) -> Tensor:
        """What ``layer.raw`` would give at the step that is drawn now."""
        ...


class FluxBody(nn.Module):
    """The embedders and blocks that the transformer and its ControlNets share."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        dim, sizes = config.hidden_size, (config.num_heads, config.mlp_hidden)
        self.axes_dim, self.theta = config.axes_dim, config.theta
        self.img_in = nn.Linear(config.in_channels, dim)
        self.time_in = MLPEmbedder(256, dim)
        self.vector_in = MLPEmbedder(config.vec_in_dim, dim)
        self.guidance_in = MLPEmbedder(256, dim) if config.guidance_embed else None
        self.txt_in = nn.Linear(config.context_in_dim, dim)
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(dim, *sizes) for _ in range(config.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(dim, *sizes) for _ in range(config.depth_single_blocks)
        )

        #: Modulations that were computed before the run, or None to compute them in it.
        self.precomputed: ModulationSource | None = None

    def modulations(self, block: nn.Module, vec: Tensor) -> list[Modulation]:
        """The modulations of one block for the vector (B, D), live or computed ahead."""
        layers = cast(Block, block).modulation_layers()
        if self.precomputed is not None:
            return [m for layer in layers for m in layer.split(self.precomputed.of(layer))]
        return [m for layer in layers for m in layer(vec)]

    @property
    def reads(self) -> int:
        """Packed channels that a token has for this model; a control LoRA may widen it."""
        return int(getattr(self.img_in, "width", self.img_in.in_features))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations: that of the embedders, which stay in high precision."""
        return self.img_in.weight.dtype

    def embed_vector(self, timesteps: Tensor, y: Tensor, guidance: Tensor | None) -> Tensor:
        """Timesteps (B,), pooled text (B, P) and guidance (B,) to the modulation vector (B, D)."""
        vec = self.time_in(timestep_embedding(timesteps, 256).to(self.dtype))
        if self.guidance_in is not None:
            if guidance is None:
                raise ValueError("this model is guidance-distilled: guidance (B,) is needed")
            vec = vec + self.guidance_in(timestep_embedding(guidance, 256).to(self.dtype))
        return vec + self.vector_in(y.to(self.dtype))


class FluxTransformer(FluxBody):
    """FLUX.1: noisy latent tokens and text to the velocity (noise minus picture)."""

    part = "transformer"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.config, self.family = config, family_of(config)
        self.final_layer = LastLayer(config.hidden_size, config.out_channels)

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        control: ControlResiduals | Sequence[ControlResiduals] | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            img: noisy latents packed 2x2, (B, L, in_channels).
            img_ids: positions (index, row, column), (L, 3) or (B, L, 3).
            txt: T5 output, (B, N, context_in_dim).
            txt_ids: positions of the text, zeros, (N, 3) or (B, N, 3).
            timesteps: (B,) in [0, 1], 1 is pure noise.
            y: pooled CLIP output, (B, vec_in_dim).
            guidance: (B,), e.g. 3.5; needed where the model has ``guidance_in``.
            control: residuals of one ControlNet or of several, spread over the blocks.

        Returns:
            (B, L, out_channels). Raises ``ValueError`` where guidance is missing.
        """
        vec = self.embed_vector(timesteps, y, guidance)
        ids = torch.cat([txt_ids, img_ids], dim=-2)
        rotary = rotary_table(ids, self.axes_dim, self.theta)
        img, txt = self.img_in(img.to(self.dtype)), self.txt_in(txt.to(self.dtype))
        controls = [control] if isinstance(control, ControlResiduals) else control or []

        for i, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, self.modulations(block, vec), rotary)
            for c in controls:
                if c.double:
                    img = img + residual(c.double, i, len(self.double_blocks), c.cyclic)
        joint, start = torch.cat([txt, img], dim=1), txt.shape[1]
        for i, block in enumerate(self.single_blocks):
            joint = block(joint, self.modulations(block, vec), rotary)
            for c in controls:
                if c.single:
                    added = residual(c.single, i, len(self.single_blocks), c.cyclic)
                    joint = torch.cat([joint[:, :start], joint[:, start:] + added], dim=1)
        return self.final_layer(joint[:, start:], vec)


def residual(residuals: Sequence[Tensor], index: int, blocks: int, cyclic: bool) -> Tensor:
    """The residual of block ``index`` where few residuals serve many blocks."""
    if cyclic:
        return residuals[index % len(residuals)]
    return residuals[index // math.ceil(blocks / len(residuals))]
