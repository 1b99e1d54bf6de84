"""Chroma's transformer: FLUX.1's blocks, modulated by one small network for all of them.

    vectors = approximator(embed(t), embed(guidance 0), embed(0 ... n - 1));   n = 3 S + 12 D + 2

for D double and S single blocks: 3 vectors of each single block, 6 of the image and 6 of the text
of each double block, in this order, and 2 of the last layer. There is no pooled text and no
distilled guidance; what FLUX.1 makes of them and of each block's modulation, 3 B weights, is gone.

The vectors depend on the timestep alone, so that a run knows all of them before it begins: the
approximator answers what is asked of a modulation layer (``offload.modulations``) for the model as
a whole, and its weights need not be on the device while it draws.

Axis letters as in ``transformer``; K vectors of inputs, n vectors of modulations for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..quant.products import Linear
from .blocks import Block, DoubleStreamBlock, SingleStreamBlock
from .config import Shapes, TransformerConfig, count_whole
from .keymaps import WEIGHT_AND_BIAS, Recipe, Recipes, diffusers_transformer, native
from .layers import MLPEmbedder, Modulation, RMSNorm, timestep_embedding
from .side_tokens import SideTokens
from .transformer import FluxTransformer

#: What stands before the approximator's tensors, in native names and in diffusers'.
APPROXIMATOR = "distilled_guidance_layer"
#: Vectors of a modulation: shift, scale and gate; and those of the last layer, shift and scale.
VECTORS, LAST_VECTORS = 3, 2


@dataclass(frozen=True)
class ChromaConfig(TransformerConfig):
    """Sizes of a Chroma transformer; defaults are Chroma1's.

    The approximator reads ``approximator_in`` numbers, a quarter of them of the timestep and half
    of them of a vector's number, and is ``approximator_hidden`` wide.
    """

    vec_in_dim: int = 0
    guidance_embed: bool = False
    approximator_in: int = 64
    approximator_hidden: int = 5120
    approximator_layers: int = 5

    @property
    def vectors(self) -> int:
        """Vectors of modulations for a timestep."""
        blocks = self.depth_single_blocks + 4 * self.depth
        return VECTORS * blocks + LAST_VECTORS

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> ChromaConfig:
        """Read the sizes from native shapes; raises ``KeyError`` on a missing key."""
        hidden, in_channels = shapes["img_in.weight"]
        wide, read = shapes[f"{APPROXIMATOR}.in_proj.weight"]
        return cls(
            in_channels=in_channels,
            context_in_dim=shapes["txt_in.weight"][1],
            hidden_size=hidden,
            mlp_ratio=shapes["double_blocks.0.img_mlp.0.weight"][0] / hidden,
            depth=count_whole(shapes, "double_blocks.", "img_attn.qkv.weight"),
            depth_single_blocks=count_whole(shapes, "single_blocks.", "linear1.weight"),
            out_channels=shapes["final_layer.linear.weight"][0],
            approximator_in=read,
            approximator_hidden=wide,
            approximator_layers=count_whole(shapes, f"{APPROXIMATOR}.layers.", "in_layer.weight"),
        )


class Approximator(nn.Module):
    """A timestep's embedding to the modulation vectors of all blocks.

    It answers what a modulation layer does (``offload.blocks.PrecomputedLayer``).
    """

    one_by_one = True

    def __init__(self, config: ChromaConfig) -> None:
        super().__init__()
        wide, layers = config.approximator_hidden, config.approximator_layers
        self.vectors, self.numbers = config.vectors, config.approximator_in // 2
        self.in_proj = Linear(config.approximator_in, wide)
        self.layers = nn.ModuleList(MLPEmbedder(wide, wide) for _ in range(layers))
        self.norms = nn.ModuleList(RMSNorm(wide) for _ in range(layers))
        self.out_proj = Linear(wide, config.hidden_size)

    @property
    def width(self) -> int:
        """Numbers that ``raw`` gives for an input."""
        return self.vectors * int(self.out_proj.out_features)

    def raw(self, vec: Tensor) -> Tensor:
        """Embeddings (K, in / 2) to all vectors of each, side by side, (K, n * D).

        One by one, so that a run's numbers do not depend on how many steps it has.
        """
        # their angles are up to 3e5, which devices round each in their own way
        numbers = timestep_embedding(torch.arange(self.vectors), self.numbers).to(vec)
        out = vec.new_empty(len(vec), self.width)
        for i, one in enumerate(vec):
            x = torch.cat([one.expand(self.vectors, -1), numbers], dim=-1)
            out[i] = self.approximate(x)
        return out

    def approximate(self, x: Tensor) -> Tensor:
        """Inputs (n, in) to vectors, one behind the other, (n * D,)."""
        x = self.in_proj(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.out_proj(x).flatten()

    def forward(self, vec: Tensor) -> Tensor:
        """``raw``: (K, in / 2) to (K, n * D)."""
        return self.raw(vec)


class ChromaLastLayer(nn.Module):
    """Hidden tokens to packed latent channels, modulated by the last two vectors."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.linear = Linear(dim, out_channels)

    def forward(self, x: Tensor, vec: Tensor, still_tokens: int = 0) -> Tensor:
        """Tokens x (B, L, D) and vectors (B, n, D) to (B, L, out_channels).

        With ``still_tokens`` the vectors are (2 B, n, D), as ``layers.LastLayer`` has it.
        """
        shift, scale = vec[:, -LAST_VECTORS:].chunk(LAST_VECTORS, dim=1)
        mod = Modulation(shift, scale, scale)
        if still_tokens:
            mod = mod.by_token(x.shape[0], x.shape[1], still_tokens)
        return self.linear(mod.modulate(x))


class ChromaTransformer(FluxTransformer):
    """Chroma: noisy latent tokens and T5's text to the velocity (noise minus picture).

    Called as FLUX.1 is; ``y`` has no numbers, (B, 0), and ``guidance`` is not read.
    """

    config: ChromaConfig
    #: The approximator is 3 % of the bytes, and errors made there reach every block.
    high_precision = ("img_in", "txt_in", APPROXIMATOR, "final_layer")

    def __init__(self, config: ChromaConfig) -> None:
        nn.Module.__init__(self)
        dim, sizes = config.hidden_size, (config.num_heads, config.mlp_hidden)
        self.config, self.family, self.precomputed = config, None, None
        self.axes_dim, self.theta = config.axes_dim, config.theta
        self.img_in = Linear(config.in_channels, dim)
        self.txt_in = Linear(config.context_in_dim, dim)
        self.distilled_guidance_layer = Approximator(config)
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(dim, *sizes, modulation=False) for _ in range(config.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(dim, *sizes, modulation=False)
            for _ in range(config.depth_single_blocks)
        )
        self.final_layer = ChromaLastLayer(dim, config.out_channels)
        self.number_vectors()

    def number_vectors(self) -> None:
        """Let each block know which vectors are its modulations."""
        image = VECTORS * self.config.depth_single_blocks
        text = image + 2 * VECTORS * self.config.depth
        for i, block in enumerate(self.single_blocks):
            cast(Block, block).first_vectors = (VECTORS * i,)
        for i, block in enumerate(self.double_blocks):
            first = 2 * VECTORS * i
            starts = (image + first, image + first + VECTORS)
            starts += (text + first, text + first + VECTORS)
            cast(Block, block).first_vectors = starts

    def modulation_layers(self) -> list[nn.Module]:
        """What is computed before a run, for all blocks together."""
        return [self.distilled_guidance_layer]

    def embed_vector(self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None) -> Tensor:
        """Timesteps (B,) to the approximator's input, (B, in / 2), for a guidance of 0; ``y`` and
        ``guidance`` are not read."""
        size = self.config.approximator_in // 4
        both = (timesteps, torch.zeros_like(timesteps))
        return torch.cat([timestep_embedding(t, size) for t in both], dim=-1).to(self.dtype)

    def modulation_state(
        self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None, still: bool
    ) -> Tensor:
        """The vectors of all blocks, (B, n, D), or (2 B, n, D) with those of time 0: computed
        ahead where somebody did, else live."""
        layer = self.distilled_guidance_layer
        if self.precomputed is not None:
            raw = self.precomputed.of(layer)
        else:
            raw = layer(self.modulation_vector(timesteps, y, guidance, still))
        return raw.unflatten(-1, (layer.vectors, -1))

    def still_vector(self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None) -> Tensor:
        """All blocks' vectors at time 0, side by side, (B, n * D)."""
        return self.distilled_guidance_layer(super().still_vector(timesteps, y, guidance))

    def side_modulations(self, block: nn.Module, side: SideTokens) -> list[Modulation]:
        """The image's among a block's modulations at time 0."""
        layer, raw = self.distilled_guidance_layer, side.vec
        if side.source is not None:
            raw = side.source.of(layer)
        assert raw is not None
        mods = self.modulations(block, raw.unflatten(-1, (layer.vectors, -1)))
        return mods[: 1 if isinstance(block, SingleStreamBlock) else 2]

    def modulations(self, block: nn.Module, vec: Tensor, known: bool = True) -> list[Modulation]:
        """The modulations of one block among the vectors of all, (B, n, D)."""
        starts = cast(Block, block).first_vectors
        return [Modulation(*vec[:, i : i + VECTORS].split(1, dim=1)) for i in starts]

    def diffusers_recipes(self) -> Recipes:
        layers = self.config.approximator_layers
        return super().diffusers_recipes() | diffusers_approximator(layers)


def diffusers_approximator(layers: int) -> Recipes:
    """The approximator of so many layers in diffusers' names."""
    table = {
        f"{APPROXIMATOR}.norms.{i}.scale": Recipe((f"{APPROXIMATOR}.norms.{i}.weight",))
        for i in range(layers)
    }
    names = {f"{name}_proj": f"{name}_proj" for name in ("in", "out")}
    for i in range(layers):
        names[f"layers.{i}.in_layer"] = f"layers.{i}.linear_1"
        names[f"layers.{i}.out_layer"] = f"layers.{i}.linear_2"
    for ours, theirs in names.items():
        for kind in WEIGHT_AND_BIAS:
            table[f"{APPROXIMATOR}.{ours}.{kind}"] = Recipe((f"{APPROXIMATOR}.{theirs}.{kind}",))
    return table


def diffusers_chroma(shapes: Shapes) -> Recipes:
    """Chroma in diffusers' names."""
    layers = count_whole(shapes, f"{APPROXIMATOR}.layers.", "linear_1.weight")
    return diffusers_transformer(shapes) | diffusers_approximator(layers)


def native_chroma(shapes: Shapes) -> Recipes:
    """The native layout; newer files call the scale of a norm its weight."""
    begin, end = f"{APPROXIMATOR}.norms.", ".weight"
    return {
        name.removesuffix(end) + ".scale"
        if name.startswith(begin) and name.endswith(end)
        else name: recipe
        for name, recipe in native(shapes).items()
    }


def is_chroma_native(shapes: Shapes) -> bool:
    """Whether native blocks are Chroma's, and not those of its kin that draws pixels."""
    return f"{APPROXIMATOR}.in_proj.weight" in shapes and "img_in.weight" in shapes


def is_chroma_diffusers(shapes: Shapes) -> bool:
    """Whether diffusers' blocks are Chroma's."""
    return f"{APPROXIMATOR}.in_proj.weight" in shapes and "x_embedder.weight" in shapes
