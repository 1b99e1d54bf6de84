"""What a file is that FluxFit does not run: another model, or weights packed another way.

Names are told by whole endings and beginnings, never by letters somewhere inside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch

from ..models.config import Shapes
from ..quant import FORMATS
from .source import TensorInfo

#: What to get in the place of weights that are packed another way.
INSTEAD = "get it in bf16, float8, int8 or GGUF"
#: Weights that are packed another way, by how the names beside them end; the first that fits.
PACKED = (
    (r"\.quant_state\.bitsandbytes__nf4", "bitsandbytes NF4"),
    (r"\.quant_state\.bitsandbytes__fp4", "bitsandbytes FP4"),
    (r"\.(absmax|quant_map|nested_absmax)", "bitsandbytes NF4 or FP4"),
    (r"\.(SCB|weight_format)", "bitsandbytes int8"),
    (r"\.(smooth_factor|smooth_factor_orig|proj_down|proj_up|smooth|smooth_orig)", "SVDQuant"),
    (r"\.(wzeros)", "AWQ as nunchaku has it"),
    (r"\.(wscales|wcscales|wtscale)", "SVDQuant or AWQ as nunchaku has it"),
    (r"\.(g_idx)", "GPTQ"),
    (r"\.(qweight|qzeros)", "AWQ or GPTQ"),
    (r"\.(weight_scale_2|weight_global_scale|weight_packed)", "NVFP4"),
    (r"\.(W_q|W_nbits)", "HQQ"),
    (r"\.(weight\._data|weight\._scale|weight\._packed)", "optimum-quanto"),
    (r"\.(weight_zero_point|zero_point|zero_points)", "integers with zero points"),
    (r"\.weight\.(qdata|scale_and_zero|tensor_impl\S*)", "torchao"),
)
#: More tokens than T5's 32,128; mT5 has 250,000.
MOST_TOKENS = 100_000
PACKED_PATTERNS = tuple((re.compile(ending + "$"), name) for ending, name in PACKED)
ADAPTERS = re.compile(
    r"\.(lora_(A|B|up|down|mid)|lora\.(up|down)|lora_linear_layer|hada_w\d_[ab]|lokr_w\d|oft_\w+|"
    r"boft_\w+|dora_scale)(\.|_|$)|\.processor\.\w+_lora\d?\."
)
#: What names of other models begin with, below whatever prefix.
STRANGERS = (
    (r"conditioner\.embedders\.1\.", "an SDXL checkpoint"),
    (r"nerf_(image_embedder|blocks\.0)\.", "a Chroma Radiance transformer, which draws pixels"),
    (
        r"control_transformer_blocks\.0\.ff\.linear_in\.",
        "a ControlNet for FLUX.2 dev (Fun-Controlnet-Union), which FluxFit does not draw with",
    ),
    (r"joint_blocks\.0\.", "a Stable Diffusion 3 transformer"),
    (r"pos_embed\.proj\.", "a Stable Diffusion 3 model in diffusers layout"),
    (r"input_blocks\.7\.1\.transformer_blocks\.9\.", "an SDXL UNet"),
    (r"model\.diffusion_model\.input_blocks\.", "a Stable Diffusion 1 or 2 checkpoint"),
    (r"input_blocks\.0\.0\.", "a Stable Diffusion UNet or ControlNet"),
    (r"add_embedding\.linear_1\.", "an SDXL UNet in diffusers layout"),
    (r"down_blocks\.0\.resnets\.", "a Stable Diffusion UNet in diffusers layout"),
    (r"redux_(up|down)\.", "a FLUX.1 Redux model"),
    (r"ip_adapter_proj_model\.", "an IP-Adapter"),
    (r"vision_model\.encoder\.", "a vision encoder"),
    (r"visual\.(conv1|transformer)\.", "a vision encoder"),
    (r"(model\.)?layers\.0\.self_attn\.", "a language model"),
)
STRANGER_PATTERNS = tuple((re.compile(r"(^|\.)" + begin), name) for begin, name in STRANGERS)


def packed_as(entries: Mapping[str, TensorInfo]) -> str | None:
    """How a file's weights are packed that FluxFit does not read; None where nothing says so."""
    own = {
        spec.file_name for format in FORMATS.values() for spec in format.tensors(256, 256).values()
    }
    names = [name for name in entries if name.rpartition(".")[2] not in own]
    for pattern, kind in PACKED_PATTERNS:
        if any(pattern.search(name) for name in names):
            return kind
    return "MXFP8" if any(is_mxfp8(name, entries) for name in entries) else None


def is_mxfp8(name: str, entries: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor holds exponents, one for 32 numbers of a weight: in which order they lie
    depends on who wrote them."""
    layer, _, kind = name.rpartition(".")
    weight, scale = entries.get(f"{layer}.weight"), entries[name]
    return (
        kind == "weight_scale"
        and scale.dtype in (torch.uint8, torch.float8_e8m0fnu)
        and weight is not None
        and weight.dtype.is_floating_point
        and math.prod(weight.shape) == 32 * math.prod(scale.shape)
    )


def is_taesd(shapes: Shapes) -> bool:
    """Whether it is the tiny autoencoder, under one of its spellings."""
    numbered = "1.weight" in shapes and "3.conv.0.weight" in shapes
    layered = any(re.match(r"(.*\.)?(en|de)coder\.layers\.0\.weight$", name) for name in shapes)
    older = any(re.match(r"(.*\.)?taesd_(en|de)coder\.", name) for name in shapes)
    plain = "decoder.1.weight" in shapes and "decoder.3.conv.0.weight" in shapes
    return numbered or layered or older or plain


def is_multilingual_t5(shapes: Shapes) -> bool:
    """Whether T5's names are UMT5's, which has positions in every block, or mT5's, of many more
    tokens."""
    positions = "block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    tables = [s for n, s in shapes.items() if n.endswith(("shared.weight", "embed_tokens.weight"))]
    if not any(".SelfAttention." in name for name in shapes):
        return False
    several = any(name.endswith(positions) for name in shapes)
    return several or any(len(shape) == 2 and shape[0] > MOST_TOKENS for shape in tables)


def is_adapter(shapes: Shapes) -> bool:
    return any(ADAPTERS.search(name) for name in shapes)


#: What is told by more than one name.
OTHERS: tuple[tuple[Callable[[Shapes], bool], str], ...] = (
    (is_adapter, "a LoRA"),
    (is_multilingual_t5, "a UMT5 or mT5 encoder, which other models read"),
    (is_taesd, "TAESD, a tiny autoencoder for previews"),
)


def stranger(shapes: Shapes) -> str | None:
    """Which other model a file's names are of; None where they are of none that is known."""
    for fits, name in OTHERS:
        if fits(shapes):
            return name
    for pattern, name in STRANGER_PATTERNS:
        if any(pattern.search(key) for key in shapes):
            return name
    return None
