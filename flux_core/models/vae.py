"""The FLUX autoencoders: pictures in [-1, 1] to latents of an eighth of the side, or a sixteenth.

Names are the reference implementation's. ``encode`` gives the mean of the posterior, raw: FLUX.1's
sampler, not the VAE, applies ``(z - shift) * scale``, as latents on the graph are raw too. FLUX.2's
VAE packs its latents 2x2 to 128 channels and standardises these with statistics that it carries.
Axis letters: B batch, C channels, H and W pixels, h and w latents.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant.products import Conv2d
from .banded import enlarge_conv, norm_silu_conv
from .config import VAEConfig


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def quant_conv(channels: int) -> Conv2d:
    return Conv2d(channels, channels, 1)


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H, W)."""
        h = norm_silu_conv(self.norm1, self.conv1, x)
        h = norm_silu_conv(self.norm2, self.conv2, h)
        return h.add_(x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head attention over all latents."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        h = self.norm(x)
        # fused kernels read rows in order; without one torch holds all pairs, and in how many bits
        # it adds them up is a setting of the process, which a host turns
        q, k, v = (
            f(h).flatten(2).transpose(1, 2).contiguous()[:, None] for f in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]  # (B, hw, C)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2, padded at the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        return enlarge_conv(self.conv, x)


class Level(nn.Module):
    """Residual blocks at one resolution and the step to the next."""

    def __init__(self, widths: list[int], step: tuple[str, nn.Module] | None, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        if step is not None:
            self.add_module(*step)
        self.step = step[0] if step is not None else None

    def layers(self) -> list[nn.Module]:
        """In the order in which they run. Whoever runs them holds one picture at a time: a
        ``forward`` would keep its input to the end, half a gigabyte in the finest level."""
        return [*self.block, *([] if self.step is None else [self.get_submodule(self.step)])]


class Middle(nn.Module):
    """Attention between two residual blocks, at the coarsest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures to the posterior's mean and log variance."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = [config.ch * m for m in config.ch_mult], config.norm_groups
        self.conv_in = Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        last = config.ch
        for i, width in enumerate(widths):
            step = ("downsample", Downsample(width)) if i + 1 < len(widths) else None
            self.down.append(Level([last] + [width] * config.num_res_blocks, step, groups))
            last = width
        self.mid = Middle(last, groups)
        self.norm_out = group_norm(last, groups)
        self.conv_out = Conv2d(last, 2 * config.z_channels, 3, padding=1)
        self.quant_conv = quant_conv(2 * config.z_channels) if config.quant_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to mean and log variance (B, 2 z, h, w)."""
        x = self.conv_in(x)
        for level in self.down:
            for layer in cast(Level, level).layers():
                x = layer(x)
        x = norm_silu_conv(self.norm_out, self.conv_out, self.mid(x))
        return x if self.quant_conv is None else self.quant_conv(x)


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        ch = config.decoder_ch or config.ch
        widths, groups = [ch * m for m in config.ch_mult], config.norm_groups
        self.post_quant_conv = quant_conv(config.z_channels) if config.quant_conv else None
        self.conv_in = Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        levels: list[Level] = []
        last = widths[-1]
        for i in reversed(range(len(widths))):
            step = ("upsample", Upsample(widths[i])) if i else None
            levels.append(Level([last] + [widths[i]] * (config.num_res_blocks + 1), step, groups))
            last = widths[i]
        self.up = nn.ModuleList(reversed(levels))  # native order: level 0 is the finest
        self.norm_out = group_norm(last, groups)
        self.conv_out = Conv2d(last, config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z, h, w) to (B, 3, H, W)."""
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            for layer in cast(Level, level).layers():
                x = layer(x)
        return norm_silu_conv(self.norm_out, self.conv_out, x)


class LatentStatistics(nn.Module):
    """Mean and variance of each channel of packed latents, as a batch norm learned them."""

    eps = 1e-4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def parts(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, each (C, 1, 1) float32."""
        mean, variance = (t.float().view(-1, 1, 1) for t in (self.running_mean, self.running_var))
        return mean, (variance + self.eps).sqrt()

    def standardise(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) to mean 0 and deviation 1, in their dtype."""
        mean, deviation = self.parts()
        return ((z.float() - mean) / deviation).to(z.dtype)

    def restore(self, z: Tensor) -> Tensor:
        """Inverse of ``standardise``, (B, C, h, w) float32."""
        mean, deviation = self.parts()
        return z.float() * deviation + mean


class AutoEncoder(nn.Module):
    """The VAE of FLUX.1 or FLUX.2; scaling constants are in ``config``."""

    part = "vae"

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.bn = LatentStatistics(config.latent_channels) if config.patch > 1 else None

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    def encode(self, x: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) in [-1, 1] to latents, the mean: raw ones (B, 16, H/8, W/8)
        of FLUX.1, standardised ones (B, 128, H/16, W/16) of FLUX.2.

        Raises ``ValueError`` for sides that are no multiples of eight or sixteen.
        """
        side = self.config.compression
        if x.shape[-1] % side or x.shape[-2] % side:
            raise ValueError(
                f"picture is {x.shape[-1]}x{x.shape[-2]}, sides must be multiples of {side}"
            )
        z = self.encoder(x.to(self.dtype)).chunk(2, dim=1)[0]
        if self.bn is None:
            return z
        patch = self.config.patch
        packed = rearrange(z, "b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch)
        return self.bn.standardise(packed)

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents (B, C, h, w), as ``encode`` gives them, to pictures (B, 3, H, W),
        unclamped, of [-1, 1].

        Raises ``ValueError`` for latents of another VAE.
        """
        if z.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents have {z.shape[1]} channels, this VAE decodes "
                f"{self.config.latent_channels}: they are another model's"
            )
        if self.bn is not None:
            patch = self.config.patch
            packed = self.bn.restore(z)
            z = rearrange(packed, "b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch)
        return self.decoder(z.to(self.dtype))
