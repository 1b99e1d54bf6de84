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
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..quant.products import Linear
from .blocks import Block, DoubleStreamBlock, SingleStreamBlock
from .config import BodyConfig, TransformerConfig
from .family import Family
from .keymaps import Recipes, diffusers_body
from .layers import (
    LastLayer,
    MLPEmbedder,
    Modulation,
    ModulationLayer,
    rotary_table,
    timestep_embedding,
)
from .patches import DOUBLE, SINGLE, BlockPatches, EmbeddedInputs, ForwardState, Tokens
from .picture_attention import PictureAttention, PictureSource
from .side_tokens import ModulationSource, SideInput, SideTokens


class ControlResiduals(NamedTuple):
    """What a ControlNet adds after each block: two lists of (B, L, D).

    A list is shorter than the transformer is deep: each residual serves several blocks, neighbours
    (``cyclic`` false) or every n-th one (XLabs).
    """

    double: Sequence[Tensor] = ()
    single: Sequence[Tensor] = ()
    cyclic: bool = False


class FluxBody(nn.Module):
    """The embedders and blocks that the transformer and its ControlNets share."""

    #: Top-level modules that are never quantized: they are 0.5 % of the bytes, and errors made
    #: there reach every block.
    high_precision: tuple[str, ...] = (
        "img_in",
        "txt_in",
        "time_in",
        "vector_in",
        "guidance_in",
        "final_layer",
    )
    #: What its blocks are, and whether its linear layers have a bias.
    double_block: type[nn.Module] = DoubleStreamBlock
    single_block: type[nn.Module] = SingleStreamBlock
    bias = True

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        dim, sizes = config.hidden_size, (config.num_heads, config.mlp_hidden)
        self.axes_dim, self.theta = config.axes_dim, config.theta
        self.img_in = Linear(config.in_channels, dim, self.bias)
        self.time_in = MLPEmbedder(256, dim, self.bias)
        self.vector_in = MLPEmbedder(config.vec_in_dim, dim) if config.vec_in_dim else None
        self.guidance_in = MLPEmbedder(256, dim, self.bias) if config.guidance_embed else None
        self.txt_in = Linear(config.context_in_dim, dim, self.bias)
        self.double_blocks = nn.ModuleList(
            self.double_block(dim, *sizes) for _ in range(config.depth)
        )
        self.single_blocks = nn.ModuleList(
            self.single_block(dim, *sizes) for _ in range(config.depth_single_blocks)
        )

        #: Modulations that were computed before the run, or None to compute them in it.
        self.precomputed: ModulationSource | None = None

    def offload_blocks(self) -> list[nn.Module]:
        """The blocks in the order in which they run."""
        return [*self.double_blocks, *self.single_blocks]

    def diffusers_recipes(self) -> Recipes:
        """How diffusers spells the tensors of a model of this depth."""
        return diffusers_body(len(self.double_blocks), len(self.single_blocks))

    def modulations(self, block: nn.Module, vec: Tensor, known: bool = True) -> list[Modulation]:
        """The modulations of one block for the vector (B, D), computed ahead where that vector is
        the ``known`` one and somebody did, else live."""
        layers = cast(Block, block).modulation_layers()
        if known and self.precomputed is not None:
            return [m for layer in layers for m in layer.split(self.precomputed.of(layer))]
        return [m for layer in layers for m in layer(vec)]

    def block_input_bytes(self, image_tokens: int, text_tokens: int, batch: int) -> int:
        """Bytes of what a block reads, which checkpointing keeps of it for its gradients."""
        width = self.img_in.out_features
        return self.dtype.itemsize * batch * (image_tokens + text_tokens) * width

    def kept_bytes(self, side_tokens: int, batch: int) -> int:
        """Bytes of keys and values that a block keeps of side tokens."""
        return 2 * self.dtype.itemsize * batch * side_tokens * self.img_in.out_features

    @property
    def reads(self) -> int:
        """Packed channels that a token has for this model; a control LoRA may widen it."""
        return int(getattr(self.img_in, "width", self.img_in.in_features))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations: that of the embedders, which stay in high precision."""
        return self.img_in.weight.dtype

    def embed_vector(self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None) -> Tensor:
        """Timesteps (B,), pooled text (B, P) and guidance (B,) to the modulation vector (B, D).

        Without guidance nothing is added for it, as ComfyUI's FluxDisableGuidance has it; pooled
        text is None for models that read none.
        """
        vec = self.time_in(timestep_embedding(timesteps, 256).to(self.dtype))
        if self.guidance_in is not None and guidance is not None:
            vec = vec + self.guidance_in(timestep_embedding(guidance, 256).to(self.dtype))
        if self.vector_in is not None and y is not None:
            vec = vec + self.vector_in(y.to(self.dtype))
        return vec


class FluxTransformer(FluxBody):
    """FLUX.1: noisy latent tokens and text to the velocity (noise minus picture)."""

    part = "transformer"
    #: Whether FLUX.1's IP-Adapters are made for models of its kind.
    takes_adapters = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.config = config
        #: What it was opened as; None where it was made by hand (``families.family_of``).
        self.family: Family | None = None
        self.final_layer = LastLayer(config.hidden_size, config.out_channels, self.bias)

    def modulation_vector(
        self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None, still: bool = False
    ) -> Tensor:
        """``embed_vector``, (B, D); with ``still`` that of time 0 behind it, (2 B, D)."""
        vec = self.embed_vector(timesteps, y, guidance)
        if not still:
            return vec
        return torch.cat([vec, self.embed_vector(torch.zeros_like(timesteps), y, guidance)])

    def modulation_state(
        self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None, still: bool
    ) -> Tensor:
        """What blocks and the last layer take their modulations from: the vector, (B, D) or
        (2 B, D)."""
        return self.modulation_vector(timesteps, y, guidance, still)

    def shared_modulations(self, vec: Tensor) -> Sequence[Sequence[Modulation]] | None:
        """What all blocks of a pass read of the vector (B, D), made once; None where each block has
        modulations of its own."""
        return None

    def block_modulations(
        self, block: nn.Module, state: ForwardState, known: bool
    ) -> list[Modulation]:
        """A block's modulations, each of tensors (B, 1, D); ``known`` as ``modulations`` has it."""
        return self.modulations(block, state.vec, known)

    def meta_inputs(self, image_tokens: int, text_tokens: int, batch: int) -> dict[str, Tensor]:
        """What ``forward`` reads, without numbers, of the shapes that it gives."""

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device="meta")

        return {
            "img": empty(batch, image_tokens, self.config.in_channels),
            "img_ids": empty(image_tokens, len(self.axes_dim)),
            "txt": empty(batch, text_tokens, self.config.context_in_dim),
            "txt_ids": empty(text_tokens, len(self.axes_dim)),
            "timesteps": empty(batch),
            "y": empty(batch, self.config.vec_in_dim),
            "guidance": empty(batch),
        }

    # long: its arguments are all that a call can read, each with its line
    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        control: ControlResiduals | Sequence[ControlResiduals] | None = None,
        attention_mask: Tensor | None = None,
        still_tokens: int = 0,
        patches: BlockPatches | None = None,
        side: SideTokens | None = None,
        adapters: PictureSource | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            img: noisy latents packed 2x2, (B, L, in_channels).
            img_ids: positions (index, row, column), (L, 3) or (B, L, 3).
            txt: T5 output, (B, N, context_in_dim).
            txt_ids: positions of the text, zeros, (N, 3) or (B, N, 3).
            timesteps: (B,) in [0, 1], 1 is pure noise.
            y: pooled CLIP output, (B, vec_in_dim); None for models that read none.
            guidance: (B,), e.g. 3.5; None leaves it out.
            control: residuals of one ControlNet or of several, spread over the blocks.
            attention_mask: over all tokens, as ``layers.attention`` has it.
            still_tokens: the last so many image tokens are references, modulated as at time 0.
            patches: other code around the blocks.
            side: references that attend to themselves alone; not with patches (``ValueError``).
            adapters: what IP-Adapters bring to each block.

        Returns (B, L, out_channels).
        """
        self.begin_side(side, timesteps, y, guidance, patches)
        vec = self.modulation_state(timesteps, y, guidance, bool(still_tokens))
        img, txt = self.img_in(img.to(self.dtype)), self.txt_in(txt.to(self.dtype))
        if patches is not None:
            inputs = EmbeddedInputs(img, txt, img_ids, txt_ids)
            img, txt, img_ids, txt_ids = patches.embedded(inputs)
        rotary = rotary_table(torch.cat([txt_ids, img_ids], dim=-2), self.axes_dim, self.theta)
        start = txt.shape[1]
        state = ForwardState(
            vec,
            rotary,
            start,
            still_tokens,
            attention_mask,
            side=side,
            adapters=adapters,
            shared=self.shared_modulations(vec),
        )
        controls = [control] if isinstance(control, ControlResiduals) else control or []

        for i in range(len(self.double_blocks)):
            img, txt = self.run_patched(DOUBLE, i, (img, txt), state, patches)
            for c in controls:
                if c.double:
                    added = residual(c.double, i, len(self.double_blocks), c.cyclic)
                    img = with_residual(img, 0, added)
        joint = torch.cat([txt, img], dim=1)
        for i in range(len(self.single_blocks)):
            (joint,) = self.run_patched(SINGLE, i, (joint,), state, patches)
            for c in controls:
                if c.single:
                    added = residual(c.single, i, len(self.single_blocks), c.cyclic)
                    joint = with_residual(joint, start, added)
        if side is not None:
            side.end()
        return self.final_layer(joint[:, start:], vec, still_tokens)

    def begin_side(
        self,
        side: SideTokens | None,
        timesteps: Tensor,
        y: Tensor | None,
        guidance: Tensor | None,
        patches: BlockPatches | None,
    ) -> None:
        """Start a pass of side tokens for timesteps (B,), pooled text (B, P) and guidance (B,)."""
        if side is None:
            return
        if patches is not None:
            raise ValueError("references that attend to themselves are drawn without patches")
        if side.has_all(len(self.offload_blocks())):
            return
        vec = None
        if side.source is None:
            vec = self.still_vector(timesteps, y, guidance)
        rotary = rotary_table(side.ids, self.axes_dim, self.theta)
        side.begin(self.img_in(side.tokens.to(self.dtype)), rotary, vec)

    def still_vector(self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None) -> Tensor:
        """What side tokens take their modulations from where nobody knows them, (B, D): the vector
        at time 0 in the place of ``timesteps`` (B,)."""
        return self.embed_vector(torch.zeros_like(timesteps), y, guidance)

    def image_modulation(self, block: nn.Module) -> ModulationLayer:
        """The layer of the modulations that a block's image tokens have."""
        return cast(Block, block).modulation_layers()[0]

    def side_input(self, block: nn.Module, side: SideTokens) -> SideInput:
        """What a block reads of side tokens."""
        known = side.kept_of(block)
        if known is not None:
            return SideInput(kept=known)
        return SideInput(side.hidden, self.side_modulations(block, side), side.rotary)

    def side_modulations(self, block: nn.Module, side: SideTokens) -> list[Modulation]:
        """A block's modulations for side tokens, each of tensors (B, 1, D)."""
        layer = self.image_modulation(block)
        if side.source is not None:
            return layer.split(side.source.of(layer))
        assert side.vec is not None
        return layer(side.vec)

    def run_patched(
        self,
        kind: str,
        index: int,
        tokens: Tokens,
        state: ForwardState,
        patches: BlockPatches | None,
    ) -> Tokens:
        """A block's tokens after it, and after what others do around it; each (B, T, D)."""
        block = (self.double_blocks if kind == DOUBLE else self.single_blocks)[index]

        def itself(tokens: Tokens, changed: ForwardState) -> Tokens:
            brought = () if changed.adapters is None else changed.adapters.of(kind, index)
            return self.run_block(block, tokens, changed, changed.vec is state.vec, brought)

        if patches is None:
            return itself(tokens, state)
        return patches.block(kind, index, tokens, state, itself)

    def run_block(
        self,
        block: nn.Module,
        tokens: Tokens,
        state: ForwardState,
        known: bool = True,
        adapters: Sequence[PictureAttention] = (),
    ) -> Tokens:
        """A block's tokens after it: (img, txt) of (B, L, D) and (B, N, D), or (joint,).

        ``known``: whether the modulations of ``state.vec`` may have been precomputed.
        """
        mods = self.block_modulations(block, state, known)
        batch = tokens[0].shape[0]
        if state.still_tokens:
            count = tokens[0].shape[1]
            images = 2 if len(tokens) == 2 else 1
            mods = [
                mod.by_token(batch, count, state.still_tokens) if i < images else mod.first(batch)
                for i, mod in enumerate(mods)
            ]
        brought = None if state.side is None else self.side_input(block, state.side)
        more: list[object] = []
        if any(each is not None for each in (state.mask, state.attend, brought)) or adapters:
            more = [state.mask, state.attend, brought, tuple(adapters)]
        out = block(*tokens, mods, state.rotary, *more)
        out = out if isinstance(out, tuple) else (out,)
        if state.side is not None:
            state.side.after(block, out[len(tokens) :])
        return out[: len(tokens)]


def with_residual(tokens: Tensor, start: int, added: Tensor) -> Tensor:
    """Tokens (B, T, D) with a residual (B, L, D) on those from ``start`` on; what follows them,
    references, has none."""
    if not start and added.shape[1] == tokens.shape[1]:
        return tokens + added
    end = start + added.shape[1]
    return torch.cat([tokens[:, :start], tokens[:, start:end] + added, tokens[:, end:]], dim=1)


def residual(residuals: Sequence[Tensor], index: int, blocks: int, cyclic: bool) -> Tensor:
    """The residual (B, L, D) of block ``index`` where few residuals serve many blocks."""
    if cyclic:
        return residuals[index % len(residuals)]
    return residuals[index // math.ceil(blocks / len(residuals))]
