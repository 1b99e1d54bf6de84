"""A LoRA with a layer of every kind, in blocks and outside of them, for a tiny model."""

from __future__ import annotations

from torch import Tensor

from flux_core import FluxTransformer
from flux_core.lora import Lora
from tests.flux_core.lora.lora_files import pair, random

#: Native layers by what is added to them.
LOW_RANK = (
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.txt_attn.proj",
    "double_blocks.0.img_mod.lin",
    "single_blocks.0.linear1",
    "single_blocks.3.linear2",
    "single_blocks.1.modulation.lin",
    "txt_in",
    "img_in",
    "time_in.out_layer",
    "final_layer.adaLN_modulation.1",
)
HADAMARD = ("double_blocks.1.txt_mlp.2", "single_blocks.4.linear2")
KRONECKER = ("double_blocks.1.img_mlp.0", "single_blocks.2.linear2")
DENSE = ("double_blocks.2.img_attn.proj", "single_blocks.3.modulation.lin", "final_layer.linear")
ROW_DORA = (
    "double_blocks.2.txt_attn.qkv",
    "single_blocks.4.linear1",
    "double_blocks.1.txt_mod.lin",
)
COLUMN_DORA = ("double_blocks.2.img_mlp.2", "single_blocks.1.linear2")
NORMS = (
    "double_blocks.1.img_attn.norm.query_norm",
    "double_blocks.0.txt_attn.norm.key_norm",
    "single_blocks.2.norm.key_norm",
)


# long: a table of kinds
def every_kind(
    model: FluxTransformer, seed: int = 0, dora: bool = True, norms: bool = True
) -> Lora:
    """LoRA, LoHa, LoKr, whole differences, biases; DoRA and norms where they are wanted."""
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}

    def shape(name: str) -> tuple[int, int]:
        layer = model.get_submodule(name)
        return int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]

    for name in LOW_RANK:
        down, up = pair(shape(name), 4, seed)
        layers["transformer", name] = {"down": down, "up": up, "bias": random(len(up), seed=seed)}
    for name in HADAMARD:
        down, up = pair(shape(name), 3, seed)
        down2, up2 = pair(shape(name), 2, seed + 7)
        layers["transformer", name] = {
            "hada_w1_a": up,
            "hada_w1_b": down,
            "hada_w2_a": 5 * up2,
            "hada_w2_b": down2,
        }
    for name in KRONECKER:
        rows, columns = shape(name)
        layers["transformer", name] = {
            "lokr_w1": random(8, 4, seed=seed),
            "lokr_w2": random(rows // 8, columns // 4, seed=seed),
        }
    for name in DENSE:
        rows, columns = shape(name)
        layers["transformer", name] = {
            "diff": random(rows, columns, seed=seed),
            "bias": random(rows, seed=seed),
        }
    for names, axis in ((ROW_DORA, 0), (COLUMN_DORA, 1)) if dora else ():
        for name in names:
            down, up = pair(shape(name), 4, seed)
            size = [1, 1]
            size[axis] = shape(name)[axis]
            magnitude = 0.8 + random(*size, seed=seed).abs()
            layers["transformer", name] = {"down": down, "up": up, "magnitude": magnitude}
    for name in NORMS if norms else ():
        scale = model.get_submodule(name).scale
        layers["transformer", name] = {"value": 1 + 3 * random(len(scale), seed=seed)}  # type: ignore[arg-type]
    return Lora(f"kinds{seed}", layers, {key: (key[1],) for key in layers})
