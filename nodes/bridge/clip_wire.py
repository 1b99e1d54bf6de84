"""Our text encoders on the host's CLIP wire: CLIP-L and T5, or a language model."""

from __future__ import annotations

from typing import Any

import torch

from flux_core.models.language_encoders import LanguageTextEncoders

from .. import host
from ..wires import FluxTextEncoders
from .clip import FluxTokenizer, HostClipModel, clip_class, patcher_class
from .language_clip import HostLanguageModel, LanguageTokenizer


def host_clip(texts: FluxTextEncoders) -> Any:
    """The host's CLIP for what our own wire carries; outside of the host that itself."""
    if host.comfy("comfy.sd") is None:
        return texts
    clip = clip_class()(no_init=True)
    if isinstance(texts.module, LanguageTextEncoders):
        model: HostClipModel = HostLanguageModel(texts)
        clip.tokenizer = LanguageTokenizer(texts.module)
    else:
        model = HostClipModel(texts)
        clip.tokenizer = FluxTokenizer(texts.module)
    clip.cond_stage_model = model
    clip.patcher = patcher_class()(model, host.device(), torch.device("cpu"), size=1)
    clip.patcher.is_clip = True
    hooks = host.comfy("comfy.hooks")
    assert hooks is not None
    clip.patcher.hook_mode = hooks.EnumHookMode.MinVram
    clip.layer_idx = None
    clip.use_clip_schedule = False
    clip.apply_hooks_to_conds = None
    clip.tokenizer_options = {}
    return clip
