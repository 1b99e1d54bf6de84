"""A LoRA's file: which tensors belong to one layer, and what each is.

    transformer.transformer_blocks.0.attn.to_q . lora_A.weight      diffusers, ai-toolkit, PEFT
    lora_unet_double_blocks_0_img_attn_qkv     . lora_down.weight   kohya, OneTrainer
    diffusion_model.double_blocks.0.img_mlp.0  . lora_up.weight     ComfyUI
    double_blocks.0.processor.qkv_lora1        . down.weight        XLabs
    \\_______ part and layer's name ________/   \\__ what ___/

Names are taken as they stand; ``match`` finds the layers that they mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..checkpoint.errors import CheckpointError
from ..checkpoint.reader import open_source

#: What a key ends with, and what it is called here. Adapters of PEFT have a name before the end.
SUFFIXES = [
    (r"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down|down)(?:\.\w+)?\.weight", "down"),
    (r"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up|up)(?:\.\w+)?\.weight", "up"),
    (r"\.(?:lora_A)(?:\.\w+)?\.bias", "down_bias"),
    (r"\.(?:lora_B|lora_up)(?:\.\w+)?\.bias", "bias"),
    (r"\.alpha", "alpha"),
    (r"\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)", "magnitude"),
    (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)", ""),
    (r"\.diff", "diff"),
    (r"\.diff_b", "bias"),
    (r"\.(?:scale|set_weight)", "value"),
    (r"\.reshape_weight", "shape"),  # of a wider layer, which its tensors tell as well
]
PATTERNS = [(re.compile(rf"(.+?){suffix}"), what) for suffix, what in SUFFIXES]
#: A norm's whole weight, in diffusers' names or newer native ones.
PATTERNS.append((re.compile(r"(.+(?:_norm|norm_(?:added_)?[qk]))\.weight"), "value"))
#: What names begin with, and which part is meant; the longest that fits counts.
PREFIXES = {
    "base_model.model.": "",
    "model.diffusion_model.": "transformer",
    "diffusion_model.": "transformer",
    "transformer.": "transformer",
    "unet.": "transformer",
    "lora_unet_": "transformer",
    "lora_transformer_": "transformer",
    "text_encoder.": "clip_l",
    "text_encoders.clip_l.transformer.": "clip_l",
    "text_encoders.clip_l.": "clip_l",
    "lora_te_": "clip_l",
    "lora_te1_": "clip_l",
    "text_encoder_2.": "t5",
    "text_encoders.t5xxl.transformer.": "t5",
    "text_encoders.t5xxl.": "t5",
    "lora_te2_": "t5",
    "lora_te3_": "t5",
}


@dataclass(frozen=True, eq=False)
class Lora:
    """A file's tensors by part, layer's name and kind; ``keys`` has the key of each layer's.

    ``unknown`` are keys that are not known to belong to any layer.
    """

    path: str
    layers: Mapping[tuple[str, str], Mapping[str, Tensor]]
    keys: Mapping[tuple[str, str], tuple[str, ...]]
    unknown: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def split_key(key: str) -> tuple[str, str, str] | None:
    """Part, layer's name and kind of one key; None where it is no known kind of tensor."""
    for pattern, what in PATTERNS:
        fit = pattern.fullmatch(key)
        if fit is not None:
            part, name = split_part(fit[1])
            return part, name, what or fit[2]
    return None


def split_part(name: str) -> tuple[str, str]:
    """The part that a layer's name begins with, the transformer where it names none."""
    part = ""
    while True:
        fitting = [prefix for prefix in PREFIXES if name.startswith(prefix)]
        if not fitting:
            return part or "transformer", name
        prefix = max(fitting, key=len)
        part = part or PREFIXES[prefix]
        name = name[len(prefix) :]


def load_lora(path: str | Path) -> Lora:
    """Read a LoRA of any family.

    Raises ``CheckpointError`` where the file is broken or holds nothing that looks like a LoRA.
    """
    source = open_source(path)
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    keys: dict[tuple[str, str], list[str]] = {}
    unknown = []
    for key in source.entries:
        split = split_key(key)
        if split is None:
            unknown.append(key)
            continue
        part, name, what = split
        layers.setdefault((part, name), {})[what] = source.read(key)
        keys.setdefault((part, name), []).append(key)
    if not any(set(kinds) - {"value"} for kinds in layers.values()):
        shown = ", ".join(list(source.entries)[:3])
        raise CheckpointError(
            f"{path}: expected a LoRA (keys that end with .lora_A.weight, .lora_down.weight, "
            f".hada_w1_a and the like), found {shown}"
        )
    return Lora(
        str(path), layers, {k: tuple(v) for k, v in keys.items()}, tuple(unknown), source.metadata
    )
