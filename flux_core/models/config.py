"""What a model is: its sizes, told from the shapes in a checkpoint and from nothing else.

Every class is a small frozen dataclass with the defaults of the public FLUX.1-dev model, so that
``TransformerConfig()`` describes FLUX.1-dev. A config never says how weights are stored (see
``quant``) nor where they live (see ``offload``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

#: Rotary axes (index, row, column); their sum is the size of one attention head.
AXES_DIM = (16, 56, 56)


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Count the consecutive numbers N for which some name starts with ``<prefix>N.``."""
    numbers = {
        int(head)
        for name in names
        if name.startswith(prefix) and (head := name[len(prefix) :].split(".")[0]).isdigit()
    }
    count = 0
    while count in numbers:
        count += 1
    return count


def count_whole(shapes: Shapes, prefix: str, key: str) -> int:
    """Count blocks as ``count_blocks`` does; raises where one has no weight of a name, or one
    unlike the first's (``KeyError``, ``ValueError``): nothing is built of names alone."""
    count = count_blocks(shapes, prefix)
    for i in range(count):
        name, first = f"{prefix}{i}.{key}", f"{prefix}0.{key}"
        if shapes[name] != shapes[first] or 0 in shapes[name]:
            raise ValueError(f"{name!r} has shape {shapes[name]}, {first!r} {shapes[first]}")
    return count


@dataclass(frozen=True)
class BodyConfig:
    """Sizes of what a FLUX.1 transformer and its ControlNets share: embedders and blocks.

    ``in_channels`` counts packed channels: 64 for dev, schnell, Krea and Kontext, 128 for the
    Canny and Depth models, 384 for Fill, 196 for Flex.2.
    """

    in_channels: int = 64
    vec_in_dim: int = 768
    context_in_dim: int = 4096
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = AXES_DIM
    theta: int = 10_000
    guidance_embed: bool = True

    def __post_init__(self) -> None:
        head = sum(self.axes_dim)
        if self.hidden_size % head:
            raise ValueError(
                f"hidden size {self.hidden_size} is no multiple of the head size {head} "
                f"(rotary axes {self.axes_dim})"
            )

    @property
    def num_heads(self) -> int:
        return self.hidden_size // sum(self.axes_dim)

    @property
    def mlp_hidden(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @staticmethod
    def sizes(shapes: Shapes) -> dict[str, Any]:
        """The fields of this class, read from native shapes."""
        hidden, in_channels = shapes["img_in.weight"]
        return {
            "in_channels": in_channels,
            "vec_in_dim": shapes["vector_in.in_layer.weight"][1],
            "context_in_dim": shapes["txt_in.weight"][1],
            "hidden_size": hidden,
            "mlp_ratio": shapes["double_blocks.0.img_mlp.0.weight"][0] / hidden,
            "depth": count_whole(shapes, "double_blocks.", "img_attn.qkv.weight"),
            "depth_single_blocks": count_whole(shapes, "single_blocks.", "linear1.weight"),
            "guidance_embed": "guidance_in.in_layer.weight" in shapes,
        }


@dataclass(frozen=True)
class TransformerConfig(BodyConfig):
    """Sizes of a FLUX.1 transformer."""

    out_channels: int = 64

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> TransformerConfig:
        """Read the sizes from a native layout's shapes; raises ``KeyError`` on a missing key."""
        return cls(**cls.sizes(shapes), out_channels=shapes["final_layer.linear.weight"][0])


@dataclass(frozen=True)
class ControlNetConfig(BodyConfig):
    """Sizes of a FLUX.1 ControlNet; defaults are the public upscaler's.

    ``cond_channels`` is the packed width of the condition: 64 for a VAE-encoded picture, 68 with
    an inpainting mask beside it. ``hint`` says that the condition is a picture in pixels, read by
    a convolutional stem (XLabs).
    """

    depth: int = 5
    depth_single_blocks: int = 0
    cond_channels: int = 64
    num_modes: int = 0
    hint: bool = False

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> ControlNetConfig:
        """Read the sizes from native shapes; raises ``KeyError`` on a missing key."""
        return cls(
            **cls.sizes(shapes),
            cond_channels=shapes["pos_embed_input.weight"][1],
            num_modes=shapes.get("controlnet_mode_embedder.weight", (0,))[0],
            hint="input_hint_block.0.weight" in shapes,
        )


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder: ``ch`` times ``ch_mult`` channels at each level.

    ``patch``: so many of its own latents along a side are one latent of the transformer's, and
    these are standardised by the VAE itself. ``decoder_ch``: ``ch`` of its decoder where that has
    another. ``quant_conv``: a 1x1 convolution behind the encoder and in front of the decoder.
    """

    in_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159
    patch: int = 1
    decoder_ch: int | None = None
    quant_conv: bool = False

    @property
    def latent_channels(self) -> int:
        """Channels of a latent as it travels."""
        return self.z_channels * self.patch**2

    @property
    def norm_groups(self) -> int:
        """Groups of every GroupNorm: 32 in FLUX.1, and never fewer than four channels a group.

        With one channel a group the norm would wipe out flat colours.
        """
        return min(32, self.ch // 4)

    @property
    def compression(self) -> int:
        """Pixels along one side of a latent."""
        return 2 ** (len(self.ch_mult) - 1) * self.patch

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> VAEConfig:
        """Read the sizes from native shapes; raises ``KeyError`` on a missing key."""
        ch, in_channels = shapes["encoder.conv_in.weight"][:2]
        levels = count_blocks(shapes, "encoder.down.")
        widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
        decoder, z_channels = shapes["decoder.conv_in.weight"][:2]
        decoder_ch = decoder * ch // widths[-1]
        config = cls(
            in_channels=in_channels,
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            num_res_blocks=count_blocks(shapes, "encoder.down.0.block."),
            z_channels=z_channels,
            decoder_ch=None if decoder_ch == ch else decoder_ch,
            quant_conv="encoder.quant_conv.weight" in shapes,
        )
        if "bn.running_mean" not in shapes:
            return config
        patch = math.isqrt(shapes["bn.running_mean"][0] // z_channels)
        return replace(config, patch=patch, scale_factor=1.0, shift_factor=0.0)
