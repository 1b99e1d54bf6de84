"""The host's CONDITIONING as the core has it: every entry, or an error that says what is not drawn.

An entry is ``[context, {...}]``. What stands in the second is read here by name; a name that nobody
knows and that holds something is an error, since a picture would differ from what the graph says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from flux_core import Conditioning
from flux_core.models.family import Family
from flux_core.sampling.attention_masks import hide_text
from flux_core.sampling.conditioning import AttentionBias, Region, RegionalPrompts
from flux_core.sampling.references import JOINT, References

DEFAULT_GUIDANCE = 3.5
#: Where FluxFitFlexControl puts a ``ControlPicture``.
CONTROL_PICTURE = "fluxfit_control_picture"
#: Where FLUX Regional Prompts puts its regions; stock samplers on our MODEL refuse them.
REGIONS_KEY = "fluxfit_regions"
#: The host's mask of attention, and the tokens of the image that it is over besides the text.
ATTENTION_MASK, MASK_SHAPE = "attention_mask", "attention_mask_img_shape"
#: Names that are read, or that say nothing of the picture.
READ = {
    "pooled_output",
    "guidance",
    "concat_latent_image",
    "concat_mask",
    "area",
    "strength",
    "mask",
    "mask_strength",
    "set_area_to_bounds",
    "start_percent",
    "end_percent",
    "clip_start_percent",
    "clip_end_percent",
    "default",
    "reference_latents",
    "reference_latents_method",
    ATTENTION_MASK,
    MASK_SHAPE,
    CONTROL_PICTURE,
    REGIONS_KEY,
}
#: Sizes that SDXL reads, and what nodes note for themselves.
HARMLESS = {
    "width",
    "height",
    "crop_w",
    "crop_h",
    "target_width",
    "target_height",
    "aesthetic_score",
    "prompt_type",
    "uuid",
    "model_conds",
    "cross_attn",
    "control_apply_to_uncond",
    "noise_augmentation",
}
#: What the stock samplers draw, by the node that puts it there.
STOCK_ONLY = {
    "control": "a stock ControlNet (ControlNetApplyAdvanced)",
    "hooks": "hooks (LoRA schedules)",
    "gligen": "GLIGEN",
    "unclip_conditioning": "unCLIP",
}


def conditioning_of(
    value: object,
    name: str = "positive",
    attention: str = JOINT,
    family: Family | None = None,
) -> list[Conditioning]:
    """Read the host's CONDITIONING for a model's family; raises ``ValueError`` where it is not
    FLUX's, or where it says what FluxSampler does not draw.

    ``attention``: what its references attend to.
    """
    if not isinstance(value, list | tuple) or len(value) == 0:
        raise ValueError(f"{name} is {type(value).__name__}, expected CONDITIONING")
    return [entry_of(entry, name, attention, family) for entry in value]


def entry_of(
    entry: Sequence[Any], name: str, attention: str = JOINT, family: Family | None = None
) -> Conditioning:
    """One entry; errors as ``conditioning_of``."""
    context, extra = entry
    for key, what in STOCK_ONLY.items():
        if extra.get(key) is not None:
            raise ValueError(
                f"{name} carries {what}, which FluxSampler does not draw: wire the loader's MODEL "
                "into a stock sampler, or use the FluxFit node for it"
            )
    unknown = [k for k, v in extra.items() if v is not None and k not in READ | HARMLESS]
    if unknown:
        raise ValueError(
            f"{name} carries {', '.join(map(repr, unknown))}, which FluxSampler does not know: "
            "wire the loader's MODEL into a stock sampler"
        )
    guidance = extra.get("guidance", DEFAULT_GUIDANCE)
    return Conditioning(
        context,
        extra.get("pooled_output"),
        None if guidance is None else float(guidance),
        extra.get("concat_latent_image"),
        extra.get("concat_mask"),
        region_of(extra),
        max(share(extra, "start_percent", 0.0), share(extra, "clip_start_percent", 0.0)),
        min(share(extra, "end_percent", 1.0), share(extra, "clip_end_percent", 1.0)),
        references_of(extra, attention),
        attention_of(extra),
        text_mask_of(extra, name, family),
        control=extra.get(CONTROL_PICTURE),
        regional=regions_of(extra, name, family),
    )


def share(extra: Mapping[str, Any], name: str, default: float) -> float:
    value = extra.get(name)
    return default if value is None else float(value)


def region_of(extra: Mapping[str, Any]) -> Region:
    """Where an entry counts."""
    area, shares = extra.get("area"), False
    if area is not None and area[0] == "percentage":
        area, shares = area[1:], True
    if area is not None and len(area) != 4:
        raise ValueError(f"area has {len(area)} numbers, expected 4: it was made for videos")
    return Region(
        None if area is None else tuple(area),
        shares,
        extra.get("mask"),
        share(extra, "mask_strength", 1.0),
        bool(extra.get("set_area_to_bounds", False)),
        share(extra, "strength", 1.0),
        bool(extra.get("default", False)),
    )


def regions_of(
    extra: Mapping[str, Any], name: str, family: Family | None = None
) -> RegionalPrompts | None:
    """Prompts of parts of the picture, whose padding is read as ``text_mask_of`` has it."""
    regional = extra.get(REGIONS_KEY)
    if regional is not None and not isinstance(regional, RegionalPrompts):
        kind = type(regional).__name__
        raise ValueError(f"{name} carries regions that are a {kind}, expected RegionalPrompts")
    if regional is None or all(prompt.text_mask is None for prompt in regional.prompts):
        return regional
    prompts = tuple(
        replace(prompt, text_mask=padding_of(prompt.text_mask, f"{name}'s region", family))
        for prompt in regional.prompts
    )
    return replace(regional, prompts=prompts)


def references_of(extra: Mapping[str, Any], attention: str = JOINT) -> References | None:
    """Reference latents, raw (1 or B, 16, h, w)."""
    latents = extra.get("reference_latents")
    if not latents:
        return None
    method = extra.get("reference_latents_method") or None
    return References(tuple(latents), method, attention)


def attention_of(extra: Mapping[str, Any]) -> AttentionBias | None:
    """The attention mask over text and image tokens."""
    mask: Tensor | None = extra.get(ATTENTION_MASK)
    shape = extra.get(MASK_SHAPE)
    if mask is None or shape is None:
        return None
    return AttentionBias(mask, int(shape[0]), int(shape[1]))


def text_mask_of(
    extra: Mapping[str, Any], name: str, family: Family | None = None
) -> Tensor | None:
    """The attention mask over text alone, (1 or B, N) booleans, which says what is padding; None
    where all of it is read. Errors as ``padding_of``."""
    mask: Tensor | None = extra.get(ATTENTION_MASK)
    if mask is None or extra.get(MASK_SHAPE) is not None:
        return None
    if mask.ndim != 2:
        raise ValueError(
            f"{name} has an attention_mask of {tuple(mask.shape)} without "
            "attention_mask_img_shape, expected one over text alone, a number for each token"
        )
    return padding_of(mask != 0, name, family)


def padding_of(mask: Tensor | None, name: str, family: Family | None) -> Tensor | None:
    """A mask of text, booleans (1 or B, N), as a family has it: where it does not mask padding
    there is none. Models of language encoders read all of it, as the host's do; raises
    ``ValueError`` for FLUX.1, which was not trained with masks. Without a family it stays."""
    if mask is None or bool(mask.all()):
        return None
    if family is None or family.masks_padding:
        return mask
    if "t5" not in family.encoders:
        return None
    raise ValueError(
        f"{name} has an attention_mask without attention_mask_img_shape: "
        f"it is over text alone, which {family.name} does not mask"
    )


def with_attention(
    extra: Mapping[str, Any], attention: AttentionBias | None, text_mask: Tensor | None
) -> dict[str, Any]:
    """What stands beside a context, with other masks: over text and image tokens, and of text
    alone, (1 or B, N). The host has one name for both."""
    kept = {k: v for k, v in extra.items() if k not in (ATTENTION_MASK, MASK_SHAPE)}
    if attention is None:
        return kept if text_mask is None else kept | {ATTENTION_MASK: text_mask}
    if text_mask is not None:
        attention = hide_text(attention, text_mask)
    return kept | {
        ATTENTION_MASK: attention.values,
        MASK_SHAPE: (attention.rows, attention.columns),
    }
