"""LoRA files of every family on random weights, and a model that they fit."""

from __future__ import annotations

from pathlib import Path

import torch

from flux_core import FluxTransformer
from flux_core.lora import Lora, load_lora
from tests import tiny_models

HIDDEN = tiny_models.HIDDEN


#: Native layers with rows and columns: fused and plain ones, modulation, embedders.
SHAPES = {
    "double_blocks.0.img_attn.qkv": (3 * HIDDEN, HIDDEN),
    "double_blocks.1.txt_mlp.2": (HIDDEN, 4 * HIDDEN),
    "double_blocks.2.img_mod.lin": (6 * HIDDEN, HIDDEN),
    "single_blocks.0.linear1": (7 * HIDDEN, HIDDEN),
    "single_blocks.3.linear2": (HIDDEN, 5 * HIDDEN),
    "txt_in": (HIDDEN, tiny_models.CONTEXT),
}


def new_model() -> FluxTransformer:
    return tiny_models.flux_transformer().requires_grad_(False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(hash(shape) + seed))


def pair(shape: tuple[int, int], rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return random(rank, shape[1], seed=seed), random(shape[0], rank, seed=seed + 1)


def native_files(family: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A file in a family that uses native names, and the weights that it must add."""
    file: dict[str, torch.Tensor] = {}
    added: dict[str, torch.Tensor] = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        down, up = pair(shape, 4 + i)
        key = f"lora_unet_{name.replace('.', '_')}"
        if family == "kohya":
            file |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(2.0),
            }
            added[name] = up @ down * 2.0 / len(down)
        elif family == "comfyui":
            key = f"diffusion_model.{name}"
            file |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
            added[name] = up @ down
        elif family == "loha":
            down2, up2 = pair(shape, 4 + i, seed=9)
            file |= {
                f"{key}.hada_w1_a": up,
                f"{key}.hada_w1_b": down,
                f"{key}.hada_w2_a": up2,
                f"{key}.hada_w2_b": down2,
                f"{key}.alpha": torch.tensor(3.0),
            }
            added[name] = (up @ down) * (up2 @ down2) * 3.0 / len(down)
        elif family == "lokr":
            w1 = random(8, 4)
            low = pair((shape[0] // 8, shape[1] // 4), 3)
            file |= {
                f"{key}.lokr_w1": w1,
                f"{key}.lokr_w2_a": low[1],
                f"{key}.lokr_w2_b": low[0],
                f"{key}.alpha": torch.tensor(6.0),
            }
            added[name] = torch.kron(w1, low[1] @ low[0]) * 2.0
        elif family == "lokr whole":
            w1, w2 = random(8, 4), random(shape[0] // 8, shape[1] // 4)
            file |= {f"{key}.lokr_w1": w1, f"{key}.lokr_w2": w2, f"{key}.alpha": torch.tensor(9.0)}
            added[name] = torch.kron(w1, w2)
        else:
            assert family == "diff"
            file |= {f"{key}.diff": random(*shape), f"{key}.diff_b": random(shape[0])}
            added[name] = random(*shape)
    return file, added


FAMILIES = ("kohya", "comfyui", "loha", "lokr", "lokr whole", "diff")


def write(file: dict[str, torch.Tensor], tmp_path: Path) -> Lora:
    return load_lora(tiny_models.save(file, tmp_path / "lora.safetensors"))


def difference(model: FluxTransformer, merged: FluxTransformer) -> dict[str, torch.Tensor]:
    old, new = model.state_dict(), merged.state_dict()
    return {
        name.removesuffix(".weight"): new[name] - old[name]
        for name in old
        if name.endswith(".weight") and not torch.equal(old[name], new[name])
    }


def diffusers_lora(prefix: str, alphas: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random factors for every layer that LoRAs of diffusers commonly have, unlike in rank."""
    model = tiny_models.diffusers_transformer()
    file = {}
    for i, (name, layer) in enumerate(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and i % 3:  # some members of fused layers are missing
            down, up = pair((layer.out_features, layer.in_features), 2 + i % 5, seed=seed)
            file |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
            if alphas:
                file[f"{prefix}{name}.alpha"] = torch.tensor(float(1 + i % 4))
    return file
