"""FLUX.1's two kinds of blocks, and what every block says of itself to those who place it.

Axis letters: B pictures, L image tokens, N text tokens, D width, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..quant import fused
from ..quant.linear import QuantizedLinear
from ..quant.products import Linear
from ..quant.products import linear as product
from .layers import (
    Attention,
    KeysValues,
    Modulation,
    ModulationLayer,
    QKNorm,
    SelfAttention,
    after_gelu,
    joint_attention,
    mlp,
    modulated,
    modulated_mlp,
    own_attention,
    split_heads,
)
from .picture_attention import PictureAttention, attend_pictures
from .side_tokens import SideInput


def count_weights(module: nn.Module, left_out: nn.Module | None = None) -> int:
    """Numbers in the matrices of a module's linear layers, but for those of one inside it."""
    skipped = set() if left_out is None else {id(part) for part in left_out.modules()}
    return sum(
        tensor.numel()
        for owner in module.modules()
        if id(owner) not in skipped
        for tensor in (*owner.parameters(recurse=False), *owner.buffers(recurse=False))
        if tensor.ndim == 2 and tensor.shape[1] > 1
    )


class Block(nn.Module):
    """What both kinds of blocks have in common.

    ``compiled`` is a compiled ``forward`` of the class, or None (``compiled.compile_blocks``). All
    blocks share it, those that read a ring's buffers too, so that each class is compiled once.
    """

    compiled: Callable | None = None
    #: Where one layer makes the modulations of all blocks at once: the first vector of each of
    #: this block's (``chroma``).
    first_vectors: tuple[int, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        streamed = "forward" in self.__dict__  # another forward stands in its place
        if self.compiled is None or streamed or self._forward_pre_hooks or self._forward_hooks:
            return super().__call__(*args, **kwargs)
        self.choose_kernels(args[0])
        return self.compiled(self, *args, **kwargs)

    def choose_kernels(self, x: Tensor) -> None:
        """Try what is to be tried on the device of x (B, L, D) before anything is traced there."""
        fused.ready(x.device)
        for layer in self.modules():
            if isinstance(layer, QuantizedLinear):
                layer.kernel_choice(x.device, x.dtype)

    def modulation_layers(self) -> list[ModulationLayer]:
        """The layers whose modulations ``forward`` takes, in order."""
        raise NotImplementedError

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        """FLOP of the linear layers and of attention, for one picture of so many tokens."""
        raise NotImplementedError


class DoubleStreamBlock(Block):
    """Text and image with weights of their own and one attention over both.

    Without ``modulation`` the model makes its modulations elsewhere.
    """

    feed_forward = staticmethod(modulated_mlp)

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int, modulation: bool = True) -> None:
        super().__init__()
        self.img_mod = ModulationLayer(dim, 2) if modulation else None
        self.img_attn = SelfAttention(dim, num_heads)
        self.img_mlp = mlp(dim, mlp_hidden)
        self.txt_mod = ModulationLayer(dim, 2) if modulation else None
        self.txt_attn = SelfAttention(dim, num_heads)
        self.txt_mlp = mlp(dim, mlp_hidden)

    def modulation_layers(self) -> list[ModulationLayer]:
        return [layer for layer in (self.img_mod, self.txt_mod) if layer is not None]

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        image = count_weights(self.img_attn) + count_weights(self.img_mlp)
        text = count_weights(self.txt_attn) + count_weights(self.txt_mlp)
        width = self.img_attn.num_heads * self.img_attn.norm.query_norm.scale.numel()
        linear = 2.0 * (image * image_tokens + text * text_tokens)
        return linear, 4.0 * (image_tokens + text_tokens) ** 2 * width

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        mods: Sequence[Modulation],
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        attend: Attention | None = None,
        side: SideInput | None = None,
        adapters: Sequence[PictureAttention] = (),
    ) -> tuple[Tensor, ...]:
        """The image (B, L, D) and the text (B, N, D) after the block.

        ``mods`` are two of the image, then two of the text, each of tensors (B, 1, D) or, by token,
        (B, tokens, D); ``rotary`` are cosines and sines of both, text first, each
        (B or 1, N + L, 1, d). ``mask`` over both as ``layers.attention`` has it; ``attend`` stands
        in the place of that function. ``side``: what both attend to as well; where it came as
        tokens, those after the block (B, R, D), their keys and values follow. ``adapters`` are
        attended to by the image.
        """
        beyond, behind = (None, ()) if side is None else self.side_stream(side)
        streams = [
            (modulated(self.txt_attn.qkv, mods[2], txt), self.txt_attn.norm),
            (modulated(self.img_attn.qkv, mods[0], img), self.img_attn.norm),
        ]
        joint = joint_attention(streams, self.img_attn.num_heads, rotary, mask, attend, beyond)
        txt_out, img_out = joint.split([txt.shape[1], img.shape[1]], dim=1)
        after: Tensor | None = None
        if adapters:
            q, _, _ = split_heads(streams[1][0], self.img_attn.num_heads)
            q = self.img_attn.norm.query_norm(q)
            img_out, after = attend_pictures(adapters, q, img_out)
            del q
        del streams  # which are no longer needed, and as large as what the MLP makes

        img = self.after_attention(self.img_attn, self.img_mlp, mods[:2], img, img_out)
        txt = self.after_attention(self.txt_attn, self.txt_mlp, mods[2:], txt, txt_out)
        img = img if after is None else img + after
        return img, txt, *behind

    def after_attention(
        self,
        attention: SelfAttention,
        layers: nn.Sequential,
        mods: Sequence[Modulation],
        x: Tensor,
        out: Tensor,
    ) -> Tensor:
        """A stream x (B, L, D) after its attention, of which ``out`` (B, L, H * d) came, and after
        its MLP: (B, L, D)."""
        first, second = mods
        x = torch.addcmul(x, first.gate, attention.proj(out))
        return torch.addcmul(x, second.gate, self.feed_forward(layers, second, x))

    def side_stream(self, side: SideInput) -> tuple[KeysValues, tuple[Tensor, ...]]:
        """Keys and values of tokens (B, R, D) beside the others, by the image's weights; and where
        they were made here the tokens after the block and both again."""
        if side.kept is not None:
            return side.kept, ()
        assert side.tokens is not None and side.rotary is not None
        qkv = modulated(self.img_attn.qkv, side.mods[0], side.tokens)
        out, known = own_attention(qkv, self.img_attn.norm, self.img_attn.num_heads, side.rotary)
        del qkv
        x = self.after_attention(self.img_attn, self.img_mlp, side.mods, side.tokens, out)
        return known, (x, *known)


def split_linear(
    linear: nn.Module, mod: Modulation, x: Tensor, sizes: list[int]
) -> Sequence[Tensor]:
    """The output of a linear layer for x (B, L, in), normalised and modulated, in parts
    (B, L, size), one for each size.

    They are made one by one where the weight is plain: one output of all parts would be the largest
    tensor of the model, and its parts not contiguous. A layer that somebody listens to is called
    whole.
    """
    if type(linear) is Linear and not linear._forward_pre_hooks:
        biases = [None] * len(sizes) if linear.bias is None else linear.bias.split(sizes)
        parts = zip(linear.weight.split(sizes), biases, strict=True)
        x = mod.modulate(x)
        return [product(x, weight, bias) for weight, bias in parts]
    return modulated(linear, mod, x).split(sizes, dim=-1)


class SingleStreamBlock(Block):
    """Attention and MLP side by side, over text and image as one sequence.

    ``modulation`` as a double block has it.
    """

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int, modulation: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sizes = [3 * dim, mlp_hidden]
        self.linear1 = Linear(dim, 3 * dim + mlp_hidden)
        self.linear2 = Linear(dim + mlp_hidden, dim)
        self.norm = QKNorm(dim // num_heads)
        self.modulation = ModulationLayer(dim, 1) if modulation else None

    def modulation_layers(self) -> list[ModulationLayer]:
        return [] if self.modulation is None else [self.modulation]

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        tokens = image_tokens + text_tokens
        width = self.num_heads * self.norm.query_norm.scale.numel()
        weights = count_weights(self, left_out=self.modulation)
        return 2.0 * weights * tokens, 4.0 * tokens**2 * width

    def forward(
        self,
        x: Tensor,
        mods: Sequence[Modulation],
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        attend: Attention | None = None,
        side: SideInput | None = None,
        adapters: Sequence[PictureAttention] = (),
    ) -> Tensor | tuple[Tensor, ...]:
        """Text and image as one sequence, (B, N + L, D), after the block.

        ``mods`` is one, of tensors (B, 1, D) or (B, N + L, D); ``rotary`` are cosines and sines,
        each (B or 1, N + L, 1, d). ``mask``, ``attend`` and ``side`` are those of a double block;
        ``adapters`` are attended to by all tokens.
        """
        beyond, behind = (None, ()) if side is None else self.side_stream(side)
        (mod,) = mods
        qkv, hidden = self.inner(mod, x)
        joint = joint_attention([(qkv, self.norm)], self.num_heads, rotary, mask, attend, beyond)
        after: Tensor | None = None
        if adapters:
            q = self.norm.query_norm(split_heads(qkv, self.num_heads)[0])
            joint, after = attend_pictures(adapters, q, joint)
            del q
        del qkv
        out = torch.addcmul(x, mod.gate, self.outer(hidden, joint))
        out = out if after is None else out + after
        return (out, *behind) if behind else out

    def side_stream(self, side: SideInput) -> tuple[KeysValues, tuple[Tensor, ...]]:
        """Keys and values of tokens (B, R, D) beside the others; and where they were made here the
        tokens after the block and both again."""
        if side.kept is not None:
            return side.kept, ()
        assert side.tokens is not None and side.rotary is not None
        x, (mod,) = side.tokens, side.mods
        qkv, hidden = self.inner(mod, x)
        joint, known = own_attention(qkv, self.norm, self.num_heads, side.rotary)
        del qkv
        x = torch.addcmul(x, mod.gate, self.outer(hidden, joint))
        return known, (x, *known)

    def inner(self, mod: Modulation, x: Tensor) -> Sequence[Tensor]:
        """The projection for attention, (B, L, 3 * H * d), and what of the MLP goes on, (B, L, M),
        of tokens x (B, L, D) that are yet to be normalised and modulated."""
        return split_linear(self.linear1, mod, x, self.sizes)

    def outer(self, hidden: Tensor, joint: Tensor) -> Tensor:
        """What a block adds, (B, L, D), of the MLP's inner (B, L, M) and the attention's output
        (B, L, H * d)."""
        return after_gelu(self.linear2, hidden, joint)
