"""What the keys of a LoRA's file mean: which part, which layer, and what of it.

    transformer.transformer_blocks.0.attn.to_q . lora_A.weight      diffusers, ai-toolkit, PEFT
    lora_unet_double_blocks_0_img_attn_qkv     . lora_down.weight   kohya, OneTrainer
    lycoris_transformer_blocks_0_attn_to_q     . lokr_w1            SimpleTuner with LyCORIS
    diffusion_model.double_blocks.0.img_mlp.0  . lora_up.weight     ComfyUI
    double_blocks.0.processor.qkv_lora1        . down.weight        XLabs
    blocks.0.attn.a_to_qkv                     . lora_A.default.weight   DiffSynth-Studio
    \\_______ part and layer's name ________/   \\__ what ___/

Names are taken as they stand; ``match`` finds the layers that they mean.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: The name of an adapter, which PEFT has before the end of a key.
ADAPTER = r"(?:\.[^.]+)?"
#: What other adapters' keys may go on with.
MORE = r"(?:\.\w+){0,3}"
#: Letters of a key; those of real ones are fewer than 120.
LONGEST_KEY = 500
#: What a key ends with, and what it is called here.
SUFFIXES = [
    (
        rf"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down|down){ADAPTER}\.weight",
        "down",
    ),
    (rf"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up|up){ADAPTER}\.weight", "up"),
    (r"\.(?:lora_A|lora_down)(?:\.default)?", "down"),
    (r"\.(?:lora_B|lora_up)(?:\.default)?", "up"),
    (rf"\.(?:lora_A|lora_down){ADAPTER}\.bias", "down_bias"),
    (rf"\.(?:lora_B|lora_up){ADAPTER}\.bias", "up_bias"),
    (r"\.(?:alpha|lora_alpha|scale_alpha)", "alpha"),
    (
        rf"\.(?:dora_scale|magnitude|magnitude_vector|lora_magnitude_vector{ADAPTER})(?:\.weight)?",
        "magnitude",
    ),
    (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)", ""),
    (r"\.diff", "diff"),
    (r"\.diff_b", "bias"),
    (r"\.(?:scale|set_weight)", "value"),
    (r"\.reshape_weight", "shape"),  # of a wider layer, which its tensors tell as well
    (r"\.(?:lora_mid)\.weight", "lora_mid"),
]
#: Adapters that are no LoRAs, by how their keys end.
OTHERS = [
    (rf"\.(?:oft_blocks|oft_diag|oft_R|oft_r){MORE}", "OFT"),
    (rf"\.(?:boft_\w+){MORE}", "BOFT"),
    (r"\.(?:a1|a2|b1|b2)\.weight", "GLoRA"),
    (rf"\.(?:on_input|ia3_l){MORE}", "IA3"),
    (rf"\.vera_lambda_[bd]{MORE}", "VeRA"),
    (rf"\.hra_u{MORE}", "HRA"),
    (r"\.(?:w_norm|b_norm)", "a norm's difference in LyCORIS' form"),
]
PATTERNS = [(re.compile(rf"(.+?){suffix}"), what) for suffix, what in SUFFIXES]
#: A norm's whole weight, in diffusers' names or newer native ones.
PATTERNS.append((re.compile(r"(.+(?:_norm|norm_(?:added_)?[qk]))\.weight"), "value"))
OTHER_PATTERNS = [(re.compile(rf"(.+?){suffix}"), what) for suffix, what in OTHERS]
#: How kinds begin that are named and not applied.
NOT_READ = "not read: "
#: What programs wrap around a module, anywhere in a name.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_layer.")


def spelled(*words: str) -> list[str]:
    """Beginnings of names, flattened with underscores and with dots."""
    return [word + end for word in words for end in "_."]


#: What names begin with, and which part is meant; the longest that fits counts.
PREFIXES: dict[str, str] = {
    "base_model.model.": "",
    "module.": "",
    "model.": "",
    "model.diffusion_model.": "transformer",
    "diffusion_model.": "transformer",
    "transformer.": "transformer",
    "unet.": "transformer",
    "pipe.dit.": "transformer",
    "dit.": "transformer",
    "lycoris_": "",
    "text_encoder.": "clip_l",
    "text_encoder_2.": "t5",
    **dict.fromkeys(
        spelled(
            "lora_unet",
            "lora_transformer",
            "lycoris_unet",
            "oft_unet",
            "lora_flux",
            "lora_dit",
        ),
        "transformer",
    ),
    **dict.fromkeys(
        spelled("lora_te", "lora_te1", "lora_text_encoder", "lycoris_te", "lycoris_text_encoder"),
        "clip_l",
    ),
    **dict.fromkeys(
        spelled("lora_te2", "lora_te3", "lora_text_encoder_2", "lycoris_text_encoder_2"), "t5"
    ),
    **dict.fromkeys(
        (
            "text_encoders.clip_l.transformer.",
            "text_encoders.clip_l.",
            "cond_stage_model.clip_l.",
            "clip_l.transformer.",
            "clip_l.",
            "te1.",
            "te.",
        ),
        "clip_l",
    ),
    **dict.fromkeys(
        (
            "text_encoders.t5xxl.transformer.",
            "text_encoders.t5xxl.",
            "cond_stage_model.t5xxl.",
            "t5xxl.transformer.",
            "t5xxl.",
            "te2.",
            "te3.",
        ),
        "t5",
    ),
}
ANY_PREFIX = re.compile("|".join(map(re.escape, sorted(PREFIXES, key=len, reverse=True))))


class LoraKey(NamedTuple):
    """A key taken apart; ``stem`` is all of it before ``what``."""

    part: str
    name: str
    what: str
    stem: str


def split_key(key: str) -> LoraKey | None:
    """Part, layer's name and kind of one key; None where it is no known kind of tensor."""
    if len(key) > LONGEST_KEY:
        return None
    for patterns, mark in ((PATTERNS, ""), (OTHER_PATTERNS, NOT_READ)):
        for pattern, what in patterns:
            fit = pattern.fullmatch(key)
            if fit is not None:
                part, name = split_part(fit[1])
                return LoraKey(part, name, mark + (what or fit[2]), fit[1])
    return None


def split_part(name: str) -> tuple[str, str]:
    """The part that a layer's name begins with, the transformer where it names none."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    name = name.removesuffix(".base_layer").removesuffix("_")
    part = ""
    while True:
        prefix = ANY_PREFIX.match(name)
        if prefix is None:
            return part or "transformer", name
        part = part or PREFIXES[prefix[0]]
        name = name[prefix.end() :]
