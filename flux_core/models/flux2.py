"""The FLUX.2 transformer: FLUX.1's, with modulations that all blocks share and gated MLPs.

    vec          = time_in(t) + guidance_in(g)
    modulations  = lin(silu(vec)), one set for double blocks' images, one for their text, one for
                   single blocks
    mlp(x)       = out(silu(a) * b),   a, b = in(x)

No layer has a bias, and there is no pooled text. Names are the reference implementation's
(github.com/black-forest-labs/flux2). Axis letters as in ``transformer``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant.products import Linear
from .blocks import Block, DoubleStreamBlock, SingleStreamBlock, count_weights, split_linear
from .config import Shapes, TransformerConfig, count_whole
from .keymaps import Recipes, diffusers_flux2_body
from .layers import Modulation, ModulationLayer, QKNorm, SelfAttention
from .patches import ForwardState
from .transformer import FluxTransformer

#: Rotary axes (index, row, column, place in the text).
FLUX2_AXES = (32, 32, 32, 32)


@dataclass(frozen=True)
class Flux2Config(TransformerConfig):
    """Sizes of a FLUX.2 transformer; defaults are dev's. ``mlp_ratio`` is that of an MLP's inner
    width, of which its first layer makes two."""

    in_channels: int = 128
    vec_in_dim: int = 0
    context_in_dim: int = 15_360
    hidden_size: int = 6144
    mlp_ratio: float = 3.0
    depth: int = 8
    depth_single_blocks: int = 48
    axes_dim: tuple[int, ...] = FLUX2_AXES
    theta: int = 2000
    out_channels: int = 128

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> Flux2Config:
        """Read the sizes from native shapes; raises ``KeyError`` on a missing key."""
        hidden, in_channels = shapes["img_in.weight"]
        return cls(
            in_channels=in_channels,
            context_in_dim=shapes["txt_in.weight"][1],
            hidden_size=hidden,
            mlp_ratio=shapes["double_blocks.0.img_mlp.2.weight"][1] / hidden,
            depth=count_whole(shapes, "double_blocks.", "img_attn.qkv.weight"),
            depth_single_blocks=count_whole(shapes, "single_blocks.", "linear1.weight"),
            guidance_embed="guidance_in.in_layer.weight" in shapes,
            out_channels=shapes["final_layer.linear.weight"][0],
        )


def gated(gate: Tensor, x: Tensor) -> Tensor:
    """SiLU of a gate times x, both (..., H)."""
    return F.silu(gate) * x


def modulated_gated_mlp(layers: nn.Sequential, mod: Modulation, x: Tensor) -> Tensor:
    """A gated MLP of x (B, L, D), normalised and modulated: (B, L, D)."""
    inner = int(layers[2].in_features)  # type: ignore[arg-type]
    gate, hidden = split_linear(layers[0], mod, x, [inner, inner])
    return layers[2](gated(gate, hidden))


def gated_mlp(dim: int, hidden: int) -> nn.Sequential:
    """Linear to gate and hidden in one, their product, linear; without biases."""
    return nn.Sequential(
        Linear(dim, 2 * hidden, bias=False), nn.Identity(), Linear(hidden, dim, bias=False)
    )


class Flux2DoubleBlock(DoubleStreamBlock):
    """FLUX.1's double block without modulations of its own."""

    feed_forward = staticmethod(modulated_gated_mlp)

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int) -> None:
        Block.__init__(self)  # its parts are others
        self.img_attn = SelfAttention(dim, num_heads, bias=False)
        self.img_mlp = gated_mlp(dim, mlp_hidden)
        self.txt_attn = SelfAttention(dim, num_heads, bias=False)
        self.txt_mlp = gated_mlp(dim, mlp_hidden)

    def modulation_layers(self) -> list[ModulationLayer]:
        return []


class Flux2SingleBlock(SingleStreamBlock):
    """FLUX.1's single block with a gated MLP and without a modulation of its own."""

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int) -> None:
        Block.__init__(self)  # its parts are others
        self.num_heads = num_heads
        self.sizes = [3 * dim, mlp_hidden, mlp_hidden]
        self.linear1 = Linear(dim, 3 * dim + 2 * mlp_hidden, bias=False)
        self.linear2 = Linear(dim + mlp_hidden, dim, bias=False)
        self.norm = QKNorm(dim // num_heads)

    def modulation_layers(self) -> list[ModulationLayer]:
        return []

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        tokens = image_tokens + text_tokens
        width = self.num_heads * self.norm.query_norm.scale.numel()
        return 2.0 * count_weights(self) * tokens, 4.0 * tokens**2 * width

    def inner(self, mod: Modulation, x: Tensor) -> tuple[Tensor, Tensor]:
        """The projection for attention, (B, L, 3 * H * d), and the MLP's gated half, (B, L, M), of
        tokens x (B, L, D)."""
        qkv, gate, hidden = split_linear(self.linear1, mod, x, self.sizes)
        return qkv, gated(gate, hidden)

    def outer(self, hidden: Tensor, joint: Tensor) -> Tensor:
        """What the block adds, (B, L, D)."""
        return self.linear2(torch.cat([joint, hidden], dim=-1))


class Flux2Transformer(FluxTransformer):
    """FLUX.2: noisy latents and text to the velocity (noise minus picture).

    ``forward`` has FLUX.1's arguments: img (B, L, 128), positions of four axes, txt (B, N, D) of a
    language model, no ``y``.
    """

    double_block = Flux2DoubleBlock
    single_block = Flux2SingleBlock
    bias = False
    takes_adapters = False
    #: What all blocks read beside what FLUX.1 keeps exact: it leaves the device for a run, so it
    #: costs no memory there.
    high_precision = (
        *FluxTransformer.high_precision,
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
    )

    def __init__(self, config: Flux2Config) -> None:
        super().__init__(config)
        dim = config.hidden_size
        self.double_stream_modulation_img = ModulationLayer(dim, 2, bias=False)
        self.double_stream_modulation_txt = ModulationLayer(dim, 2, bias=False)
        self.single_stream_modulation = ModulationLayer(dim, 1, bias=False)

    def diffusers_recipes(self) -> Recipes:
        return diffusers_flux2_body(len(self.double_blocks), len(self.single_blocks))

    def modulation_layers(self) -> list[ModulationLayer]:
        """The layers that are computed before a run: image and text of double blocks, single."""
        return [
            self.double_stream_modulation_img,
            self.double_stream_modulation_txt,
            self.single_stream_modulation,
        ]

    def image_modulation(self, block: nn.Module) -> ModulationLayer:
        if isinstance(block, SingleStreamBlock):
            return self.single_stream_modulation
        return self.double_stream_modulation_img

    def shared_modulations(
        self, vec: Tensor, known: bool = True
    ) -> tuple[list[Modulation], list[Modulation]]:
        """Modulations of double and of single blocks for the vector (B, D)."""
        precomputed = self.precomputed if known else None
        img, txt, single = (
            layer(vec) if precomputed is None else layer.split(precomputed.of(layer))
            for layer in self.modulation_layers()
        )
        return [*img, *txt], single

    def block_modulations(
        self, block: nn.Module, state: ForwardState, known: bool
    ) -> list[Modulation]:
        """A block's modulations, each of tensors (B, 1, D)."""
        shared = state.shared if known else None
        if shared is None:  # somebody changed the vector on the way
            shared = self.shared_modulations(state.vec, known)
        double, single = shared
        return [*single] if isinstance(block, SingleStreamBlock) else [*double]
