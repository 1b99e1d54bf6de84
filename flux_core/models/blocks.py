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
    Modulation,
    ModulationLayer,
    QKNorm,
    SelfAttention,
    after_gelu,
    joint_attention,
    mlp,
    modulated,
    modulated_mlp,
)


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
    """Text and image with weights of their own and one attention over both."""

    feed_forward = staticmethod(modulated_mlp)

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
    ) -> tuple[Tensor, Tensor]:
        """The image (B, L, D) and the text (B, N, D) after the block.

        ``mods`` are two of the image, then two of the text, each of tensors (B, 1, D) or, by token,
        (B, tokens, D); ``rotary`` are cosines and sines of both, text first, each
        (B or 1, N + L, 1, d). ``mask`` over both as ``layers.attention`` has it; ``attend`` stands
        in the place of that function.
        """
        img_mod1, img_mod2, txt_mod1, txt_mod2 = mods
        streams = [
            (modulated(self.txt_attn.qkv, txt_mod1, txt), self.txt_attn.norm),
            (modulated(self.img_attn.qkv, img_mod1, img), self.img_attn.norm),
        ]
        joint = joint_attention(streams, self.img_attn.num_heads, rotary, mask, attend)
        txt_out, img_out = joint.split([txt.shape[1], img.shape[1]], dim=1)

        img = torch.addcmul(img, img_mod1.gate, self.img_attn.proj(img_out))
        img = torch.addcmul(img, img_mod2.gate, self.feed_forward(self.img_mlp, img_mod2, img))
        txt = torch.addcmul(txt, txt_mod1.gate, self.txt_attn.proj(txt_out))
        txt = torch.addcmul(txt, txt_mod2.gate, self.feed_forward(self.txt_mlp, txt_mod2, txt))
        return img, txt


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
    """Attention and MLP side by side, over text and image as one sequence."""

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sizes = [3 * dim, mlp_hidden]
        self.linear1 = Linear(dim, 3 * dim + mlp_hidden)
        self.linear2 = Linear(dim + mlp_hidden, dim)
        self.norm = QKNorm(dim // num_heads)
        self.modulation = ModulationLayer(dim, 1)

    def modulation_layers(self) -> list[ModulationLayer]:
        return [self.modulation]

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
    ) -> Tensor:
        """Text and image as one sequence, (B, N + L, D), after the block.

        ``mods`` is one, of tensors (B, 1, D) or (B, N + L, D); ``rotary`` are cosines and sines,
        each (B or 1, N + L, 1, d). ``mask`` and ``attend`` are those of a double block.
        """
        (mod,) = mods
        qkv, hidden = split_linear(self.linear1, mod, x, self.sizes)
        joint = joint_attention([(qkv, self.norm)], self.num_heads, rotary, mask, attend)
        out = after_gelu(self.linear2, hidden, joint)
        return torch.addcmul(x, mod.gate, out)
