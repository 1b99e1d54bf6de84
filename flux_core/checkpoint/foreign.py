"""What a file is that FluxFit does not run: another model, or weights packed another way.

Names are told by whole endings and beginnings, never by letters somewhere inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ..models.config import Shapes
from ..quant import FORMATS

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
    (r"\.weight\.(qdata|scale_and_zero|tensor_impl\S*)", "torchao"),
)
PACKED_PATTERNS = tuple((re.compile(ending + "$"), name) for ending, name in PACKED)
ADAPTERS = re.compile(
    r"\.(lora_(A|B|up|down|mid)|lora\.(up|down)|lora_linear_layer|hada_w\d_[ab]|lokr_w\d|oft_\w+|"
    r"boft_\w+|dora_scale)(\.|_|$)|\.processor\.\w+_lora\d?\."
)
#: What names of other models begin with, below whatever prefix.
STRANGERS = (
    (r"conditioner\.embedders\.1\.", "an SDXL checkpoint"),
    (r"double_stream_modulation_img\.", "a FLUX.2 transformer"),
    (r"distilled_guidance_layer\.", "a Chroma transformer"),
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


def packed_as(names: Iterable[str]) -> str | None:
    """How weights are packed that FluxFit does not read; None where nothing says so."""
    own = {
        spec.file_name for format in FORMATS.values() for spec in format.tensors(256, 256).values()
    }
    names = [name for name in names if name.rpartition(".")[2] not in own]
    for pattern, kind in PACKED_PATTERNS:
        if any(pattern.search(name) for name in names):
            return kind
    return None


def is_taesd(shapes: Shapes) -> bool:
    """Whether it is the tiny autoencoder, under one of its spellings."""
    numbered = "1.weight" in shapes and "3.conv.0.weight" in shapes
    layered = any(re.match(r"(.*\.)?(en|de)coder\.layers\.0\.weight$", name) for name in shapes)
    older = any(re.match(r"(.*\.)?taesd_(en|de)coder\.", name) for name in shapes)
    plain = "decoder.1.weight" in shapes and "decoder.3.conv.0.weight" in shapes
    return numbered or layered or older or plain


def is_adapter(shapes: Shapes) -> bool:
    return any(ADAPTERS.search(name) for name in shapes)


#: What is told by more than one name.
OTHERS: tuple[tuple[Callable[[Shapes], bool], str], ...] = (
    (is_adapter, "a LoRA"),
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
