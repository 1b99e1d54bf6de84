"""FLUX.1 ControlNets: a few copied blocks that turn a condition into residuals.

    h = img_in(x) + pos_embed_input(condition);   residual_i = controlnet_blocks[i](h_i)

One class for all public layouts: any number of double and single blocks, a mode embedding put
before the text (union models), a condition in latents, in latents with a mask, or in pixels through
a convolutional stem (XLabs). Axis letters as in ``transformer``.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..quant.products import Conv2d, Linear
from .config import ControlNetConfig
from .layers import rotary_table
from .transformer import ControlResiduals, FluxBody

#: The public union models' modes, by name.
UNION_MODES = {
    "canny": 0,
    "tile": 1,
    "depth": 2,
    "blur": 3,
    "pose": 4,
    "gray": 5,
    "low quality": 6,
}


def hint_stem() -> nn.Sequential:
    """XLabs' stem: pixels (B, 3, H, W) to (B, 16, H/8, W/8)."""
    layers: list[nn.Module] = [Conv2d(3, 16, 3, padding=1)]
    for i in range(7):
        layers += [nn.SiLU(), Conv2d(16, 16, 3, padding=1, stride=2 if i in (1, 3, 5) else 1)]
    return nn.Sequential(*layers)


class FluxControlNet(FluxBody):
    """A ControlNet of any public layout, told apart by its config alone."""

    part = "controlnet"
    high_precision = (
        *FluxBody.high_precision,
        "pos_embed_input",
        "controlnet_blocks",
        "controlnet_single_blocks",
    )

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.config = config
        dim = config.hidden_size
        self.pos_embed_input = Linear(config.cond_channels, dim)
        self.input_hint_block = hint_stem() if config.hint else None
        self.controlnet_mode_embedder = (
            nn.Embedding(config.num_modes, dim) if config.num_modes else None
        )
        self.controlnet_blocks = nn.ModuleList(Linear(dim, dim) for _ in range(config.depth))
        self.controlnet_single_blocks = nn.ModuleList(
            Linear(dim, dim) for _ in range(config.depth_single_blocks)
        )

    def residual_bytes(self, image_tokens: int, batch: int) -> int:
        """Bytes of the residuals that ``forward`` gives."""
        count = len(self.controlnet_blocks) + len(self.controlnet_single_blocks)
        return count * batch * image_tokens * self.config.hidden_size * self.dtype.itemsize

    @property
    def wants_mask(self) -> bool:
        """Whether the condition is latents with a mask channel (inpainting)."""
        return self.config.cond_channels == self.config.in_channels + 4

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        cond: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        mode: Tensor | int | None = None,
    ) -> ControlResiduals:
        """Residuals for the transformer's blocks, unscaled.

        Args:
            cond: packed condition (B, L, cond_channels), or pixels (B, 3, H, W) in [-1, 1] where
                the config says ``hint``.
            mode: number of the union mode, an int or (B,) integers; needed where the config has
                modes, and never turned into a float.

        Other arguments are the transformer's. Raises ``ValueError`` for a mode that is missing or
        out of range.
        """
        vec = self.embed_vector(timesteps, y, guidance)
        if self.input_hint_block is not None:
            stem = self.input_hint_block(cond.to(self.dtype))
            cond = rearrange(stem, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
        img = self.img_in(img.to(self.dtype)) + self.pos_embed_input(cond.to(self.dtype))
        txt = self.txt_in(txt.to(self.dtype))
        if self.controlnet_mode_embedder is not None:
            txt = torch.cat([self.embed_mode(mode, img), txt], dim=1)
            txt_ids = torch.cat([txt_ids[..., :1, :], txt_ids], dim=-2)
        rotary = rotary_table(torch.cat([txt_ids, img_ids], dim=-2), self.axes_dim, self.theta)

        double, single = [], []
        for block, out in zip(self.double_blocks, self.controlnet_blocks, strict=True):
            img, txt = block(img, txt, self.modulations(block, vec), rotary)
            double.append(out(img))
        if len(self.single_blocks):
            joint, start = torch.cat([txt, img], dim=1), txt.shape[1]
            for block, out in zip(self.single_blocks, self.controlnet_single_blocks, strict=True):
                joint = block(joint, self.modulations(block, vec), rotary)
                single.append(out(joint[:, start:]))
        return ControlResiduals(double, single, cyclic=self.config.hint)

    def embed_mode(self, mode: Tensor | int | None, img: Tensor) -> Tensor:
        """The mode's vector as one text token (B, 1, D)."""
        assert self.controlnet_mode_embedder is not None
        count = self.config.num_modes
        index = torch.as_tensor(-1 if mode is None else mode, device=img.device).long().flatten()
        if bool(((index < 0) | (index >= count)).any()):
            raise ValueError(
                f"this union ControlNet needs a mode from 0 to {count - 1}, got {mode}"
            )
        return self.controlnet_mode_embedder(index)[:, None].expand(img.shape[0], -1, -1).to(img)
