"""The nodes that show pictures to the model itself: IP-Adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from flux_core import IPAdapter, load_ip_adapter
from flux_core.sampling.adapters import AppliedAdapter, check_adapter

from . import host
from .loaders import PRECISION_CHOICES, PRECISION_HELP
from .vision import picture_inputs, seen_by
from .weights import OpenedByNode
from .widgets import choice, model_file, number, socket
from .wires import FLUX_IP_ADAPTER, FLUX_MODEL, IMAGE_PROMPTS, FluxModel


class FluxFitIPAdapterLoader:
    """An IP-Adapter."""

    DESCRIPTION = (
        "Opens an IP-Adapter of FLUX.1: XLabs' (CLIP-L sees for it) or InstantX's (SigLIP so400m), "
        "the latter converted to safetensors. At any precision."
    )
    CATEGORY = IMAGE_PROMPTS
    FUNCTION = "load"
    SEARCH_ALIASES = ["ip-adapter", "ipadapter", "xlabs", "instantx", "image prompt"]
    RETURN_TYPES = (FLUX_IP_ADAPTER,)
    RETURN_NAMES = ("ip_adapter",)
    OUTPUT_TOOLTIPS = ("For FLUX Apply IP-Adapter.",)

    def __init__(self) -> None:
        self.opened = OpenedByNode()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ip_adapter": model_file(
                    (host.IP_ADAPTERS,),
                    "A file of models/ipadapter, models/ipadapter-flux or models/xlabs/ipadapters.",
                ),
                "precision": choice(PRECISION_CHOICES, PRECISION_HELP, default="bf16"),
            }
        }

    def load(self, ip_adapter: str, precision: str):
        adapter = self.opened.part(
            "ip_adapter",
            ip_adapter,
            (host.IP_ADAPTERS,),
            precision,
            lambda path: load_ip_adapter(path, precision=precision),
        )
        return (adapter,)


class FluxFitApplyIPAdapter:
    """Pictures on a model, by an IP-Adapter."""

    DESCRIPTION = (
        "Shows pictures to FLUX.1 through an IP-Adapter, with a weight, a span of the steps and a "
        "mask over what is drawn. What it adds is computed once a picture: other weights, spans, "
        "masks and seeds cost nothing. Chain it for more pictures."
    )
    CATEGORY = IMAGE_PROMPTS
    FUNCTION = "apply"
    SEARCH_ALIASES = ["ip-adapter", "ipadapter", "image prompt", "style reference"]
    RETURN_TYPES = (FLUX_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For FLUX Sampler, or the next FLUX Apply IP-Adapter.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From a loader, LoRAs, or the IP-Adapter before."),
                "ip_adapter": socket(FLUX_IP_ADAPTER, "From FLUX IP-Adapter Loader."),
                "weight": number(
                    0.7, -10.0, 10.0, 0.01, "How much the pictures count; 0 leaves them out."
                ),
                "start": number(
                    0.0, 0.0, 1.0, 0.01, "From which share of the schedule on; 0 is the beginning."
                ),
                "end": number(
                    1.0, 0.0, 1.0, 0.01, "Until which share of the schedule; 1 is the end."
                ),
            },
            "optional": picture_inputs()
            | {
                "mask": socket("MASK", "1 where in the picture that is drawn they count."),
                "negative_output": socket(
                    "CLIP_VISION_OUTPUT",
                    "What the negative prompt is shown, where cfg is not 1; without it nothing.",
                ),
            },
        }

    def apply(
        self,
        model: FluxModel,
        ip_adapter: IPAdapter,
        weight: float,
        start: float,
        end: float,
        clip_vision_output: Any = None,
        clip_vision: Any = None,
        image: Tensor | None = None,
        crop: str = "center",
        mask: Tensor | None = None,
        negative_output: Any = None,
    ):
        seen = seen_by(clip_vision_output, clip_vision, image, crop)
        negative = None if negative_output is None else vector_of(negative_output)
        shape = None if mask is None else mask.reshape(-1, *mask.shape[-2:])
        applied = AppliedAdapter(ip_adapter, vector_of(seen), weight, start, end, shape, negative)
        check_adapter(applied, model.module, 1 if shape is None else len(shape))
        return (replace(model, adapters=(*model.adapters, applied)),)


def vector_of(seen: Any) -> Tensor:
    """The vector (n, P) of the whole picture that an encoder saw."""
    vector = getattr(seen, "pooled", None)
    if vector is None:
        vector = getattr(seen, "image_embeds", None)
    if vector is None or vector.ndim != 2:
        raise ValueError(
            "this vision encoder gives no vector of the whole picture (ComfyUI's SigLIP has none, "
            "nor has a file without its pooling head): open it with FLUX Vision Loader"
        )
    return vector
