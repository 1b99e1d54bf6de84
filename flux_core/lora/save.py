"""A LoRA's factors to a file, in the names that others read.

    diffusers  transformer.transformer_blocks.0.attn.to_q.lora_A.weight    fused layers taken apart
    kohya      lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight     native layers, with alpha

Taken apart, the members of a fused layer share its ``down``, and each has its rows of ``up``.
diffusers takes alpha for the rank where a file has none, so there the scale goes into ``up``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import writing
from ..models.families import family_of
from ..models.transformer import FluxBody
from .match import diffusers_targets

#: Down (rank, in) and up (out, rank) by a layer's native name.
Factors = Mapping[str, tuple[Tensor, Tensor]]
FORMATS = ("diffusers", "kohya")


def lora_tensors(
    module: FluxBody, factors: Factors, alpha: float, format: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A transformer's LoRA as a file has it; raises ``ValueError`` for an unknown format."""
    if format not in FORMATS:
        raise ValueError(f"LoRA format is {format!r}, expected one of {', '.join(FORMATS)}")
    tensors: dict[str, Tensor] = {}
    targets = diffusers_targets(module).items()
    for name, (down, up) in factors.items():
        if format == "kohya":
            key = "lora_unet_" + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
            continue
        up = up * (alpha / len(down))
        for theirs, target in [(n, target) for n, target in targets if target.layer == name]:
            rows = up[target.start : target.start + target.count]
            if target.swap:
                rows = torch.cat(rows.chunk(2)[::-1])
            tensors[f"transformer.{theirs}.lora_A.weight"] = down
            tensors[f"transformer.{theirs}.lora_B.weight"] = rows
    return {name: t.detach().to("cpu", dtype).contiguous().clone() for name, t in tensors.items()}


def save_lora(
    module: FluxBody,
    factors: Factors,
    path: str | Path,
    *,
    alpha: float,
    format: str = "diffusers",
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a LoRA of a transformer.

    Args:
        module: the transformer that it is for, which knows the names of its layers.
        path: where to; a file that is there is replaced when the new one is whole.
        metadata: more for the header, beside rank and alpha.

    Returns the path. Raises ``OSError`` where it cannot be written; nothing is left behind then.
    """
    path = Path(path)
    tensors = lora_tensors(module, factors, alpha, format, dtype)
    ranks = {len(down) for down, _ in factors.values()}
    notes = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_base_model_version": family_of(module).lora_base,
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(alpha),
        **(metadata or {}),
    }
    with writing(path) as partial:
        save_file(tensors, partial, metadata=notes)
    return path
