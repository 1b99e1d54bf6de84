"""The node that opens FLUX.1, each part with its own file and precision."""

from __future__ import annotations

import json
import weakref
from collections.abc import Hashable
from pathlib import Path

import torch
from torch import Tensor

from flux_core import (
    FluxTransformer,
    OffloadPolicy,
    PrecisionPlan,
    TextEncoders,
    load_clip_l,
    load_t5,
    load_transformer,
    load_vae,
)
from flux_core.checkpoint.build import AS_STORED, Progress
from flux_core.checkpoint.load import find_tokenizers, transformer_family
from flux_core.checkpoint.reader import open_source
from flux_core.models.family import Family
from flux_core.models.text_encoders import ClipEncoder, T5Encoder
from flux_core.models.tokenizers import Tokenizers
from flux_core.quant import PRECISIONS, Precision, full_dtype
from flux_core.quant.registry import FULL_PRECISIONS

from . import host
from .bridge.clip_wire import host_clip
from .bridge.model_patcher import host_model
from .vae import HostVAE
from .weights import OpenedByNode, Wanted, weights_key
from .widgets import (
    choice,
    compile_input,
    compute_input,
    model_file,
    plan_input,
    policy_input,
)
from .wires import (
    FLUX_MODEL,
    FLUX_TEXT_ENCODERS,
    LOADING,
    FluxModel,
    FluxTextEncoders,
)

SAME_FILE = "same file as the transformer"
#: In the place of CLIP-L, for families that read T5 alone.
NO_FILE = "none"
POCKET_NAME = "fluxfit_pocket"
#: Where a transformer's file keeps preview factors of its own, as the pocket model's does.
PREVIEW_KEY = "fluxfit.latent_rgb"
#: In which model folders each part is looked for.
PLACES = {
    "transformer": ("diffusion_models", "checkpoints"),
    "clip_l": ("text_encoders",),
    "t5": ("text_encoders",),
    "vae": ("vae",),
}
PRECISION_HELP = (
    "How weights are stored. bf16: two bytes. int8: one byte, the nearest to bf16. fp8_scaled: one "
    "byte with a scale a row. fp8_e4m3fn, fp8_e5m2: one byte, plain cast, as DiffSynth-Studio. "
    "as_stored: as the file has them. "
)
#: What a person can choose as a precision; the last leaves it to the file.
PRECISION_CHOICES = [*PRECISIONS, AS_STORED]


def choices(part: str) -> list[str]:
    """File names for one part, the pocket model's first so that a new graph runs at once."""
    names = host.model_names(*PLACES[part])
    stems = {
        "transformer": POCKET_NAME,
        "clip_l": POCKET_NAME + "_clip_l",
        "t5": POCKET_NAME + "_t5",
        "vae": POCKET_NAME + "_vae",
    }
    names.sort(key=lambda n: not n.startswith(stems[part]))
    more = {"transformer": [], "clip_l": [SAME_FILE, NO_FILE]}
    return [*names, *more.get(part, [SAME_FILE])]


class OpenedParts(OpenedByNode):
    """What the loader opened."""

    def wanted_encoders(
        self, clip_l: Wanted | None, t5: Wanted, clip_l_file: Path | None, t5_file: Path
    ) -> Wanted:
        """The encoders together, opened after each of them, from the files of the two."""
        # not what opens them: that would hold this in a circle
        keys = None if clip_l is None else clip_l.key, t5.key
        files = clip_l_file, t5_file
        return Wanted(("encoders", *keys), lambda: self.text_encoders(*keys, *files))

    def text_encoders(
        self, clip_l_key: Hashable | None, t5_key: Hashable, clip_l: Path | None, t5: Path
    ) -> TextEncoders:
        """The encoders, open already, with their tokenizers."""
        opened = None if clip_l_key is None else self.values[clip_l_key]
        return encoders_of(opened, self.values[t5_key], clip_l, t5)


def encoders_of(
    clip_l: ClipEncoder | None, t5: T5Encoder, clip_l_file: Path | None, t5_file: Path
) -> TextEncoders:
    """The encoders with their tokenizers and embeddings, from the files of the two."""
    tokenizers = Tokenizers.load(*tokenizer_folders(clip_l_file, t5_file))
    encoders = TextEncoders(clip_l, t5, tokenizers)
    encoders.embedding_folders = tuple(host.folders_of("embeddings"))
    return encoders


class FluxLoaderFP8:
    """FLUX.1 from its files."""

    DESCRIPTION = (
        "Opens FLUX.1: transformer, CLIP-L, T5 and VAE, each from its own file and stored at its "
        "own precision. A checkpoint that holds several parts serves them all. Any layout is read: "
        "native, diffusers, ComfyUI, float8 with or without scales. Chroma reads T5 alone."
    )
    CATEGORY = LOADING
    FUNCTION = "load"
    SEARCH_ALIASES = ["flux", "load flux", "fp8", "checkpoint"]
    RETURN_TYPES = (FLUX_MODEL, FLUX_TEXT_ENCODERS, "VAE", "MODEL", "CLIP")
    RETURN_NAMES = ("model", "text_encoders", "vae", "MODEL", "CLIP")
    OUTPUT_TOOLTIPS = (
        "The transformer, for FluxSampler.",
        "CLIP-L and T5, for FluxTextEncode.",
        "The VAE, for VAE Decode, VAE Encode and the ControlNet nodes.",
        "The same transformer for stock nodes: KSampler, LoraLoader, guiders.",
        "The same text encoders for stock nodes: CLIP Text Encode, LoraLoader.",
    )

    def __init__(self) -> None:
        self.opened = OpenedParts()

    @classmethod
    def INPUT_TYPES(cls):
        full = list(FULL_PRECISIONS)
        file = "A file of the folder models/{}."
        return {
            "required": {
                "transformer": model_file(
                    PLACES["transformer"],
                    file.format("diffusion_models or models/checkpoints"),
                    choices("transformer"),
                ),
                "transformer_precision": choice(
                    PRECISION_CHOICES, PRECISION_HELP, default="fp8_scaled"
                ),
                "clip_l": model_file(
                    PLACES["clip_l"],
                    file.format("text_encoders") + " Chroma reads none, whatever is chosen.",
                    choices("clip_l"),
                ),
                "clip_l_precision": choice(
                    full, "CLIP-L is small; leave it at bf16.", default="bf16"
                ),
                "t5": model_file(PLACES["t5"], file.format("text_encoders"), choices("t5")),
                "t5_precision": choice(
                    PRECISION_CHOICES, PRECISION_HELP + "T5 bears it well.", default="fp8_scaled"
                ),
                "vae": model_file(PLACES["vae"], file.format("vae"), choices("vae")),
                "vae_precision": choice(
                    full, "fp32 is exact and slower, fp16 may overflow.", default="bf16"
                ),
            },
            "optional": {
                "policy": policy_input(),
                "plan": plan_input(),
                "compute": compute_input(),
                "compile": compile_input(),
            },
        }

    def load(
        self,
        transformer: str,
        transformer_precision: str,
        clip_l: str,
        clip_l_precision: str,
        t5: str,
        t5_precision: str,
        vae: str,
        vae_precision: str,
        policy: OffloadPolicy | None = None,
        plan: PrecisionPlan | None = None,
        compute: str = "auto",
        compile: bool = False,
    ):
        policy = policy or OffloadPolicy()
        budget = policy.host_budget
        path = host.model_path(transformer, *PLACES["transformer"])
        clip_l = clip_l_for(path, clip_l)
        paths = {
            part: path if name == SAME_FILE else host.model_path(name, *PLACES[part])
            for part, name in (("clip_l", clip_l), ("t5", t5), ("vae", vae))
            if name != NO_FILE
        }
        with host.progress(400, "loading FLUX.1") as bar:
            wanted: dict[str, Wanted] = {}
            if clip_l != NO_FILE:
                wanted["clip_l"] = Wanted(
                    weights_key("clip_l", paths["clip_l"], clip_l_precision),
                    lambda: load_clip_l(
                        paths["clip_l"], precision=clip_l_precision, progress=share(bar, 0, 20)
                    ),
                )
            wanted |= {
                "t5": wanted_t5(paths["t5"], t5_precision, budget, share(bar, 20, 120)),
                "transformer": wanted_transformer(
                    path, plan or transformer_precision, budget, share(bar, 140, 240)
                ),
                "vae": Wanted(
                    weights_key("vae", paths["vae"], vae_precision),
                    lambda: load_vae(
                        paths["vae"], dtype=full_dtype(vae_precision), progress=share(bar, 380, 20)
                    ),
                ),
            }
            wanted["encoders"] = self.opened.wanted_encoders(
                wanted.get("clip_l"), wanted["t5"], paths.get("clip_l"), paths["t5"]
            )
            parts = self.opened.get(wanted)
        flux = FluxModel(
            parts["transformer"],
            policy,
            preview_factors(parts["transformer"], path),
            compute=compute,
            compiled=compile,
        )
        texts = FluxTextEncoders(parts["encoders"], policy, compute=compute)
        return (flux, texts, HostVAE(parts["vae"], policy), host_model(flux), host_clip(texts))


class FluxFitTransformerLoader:
    """A transformer alone."""

    DESCRIPTION = (
        "Opens a transformer of FLUX.1, FLUX.2 or Chroma alone. FLUX.2 has loaders of its own for "
        "the rest; elsewhere text encoders and a VAE that are loaded already serve another model, "
        "or another precision."
    )
    CATEGORY = LOADING
    FUNCTION = "load"
    SEARCH_ALIASES = ["flux", "unet loader", "diffusion model", "gguf"]
    RETURN_TYPES = (FLUX_MODEL, "MODEL")
    RETURN_NAMES = ("model", "MODEL")
    OUTPUT_TOOLTIPS = (
        "The transformer, for FluxSampler.",
        "The same for stock nodes: KSampler, LoraLoader, guiders.",
    )

    def __init__(self) -> None:
        self.opened = OpenedByNode()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "transformer": model_file(
                    PLACES["transformer"],
                    "A file of models/diffusion_models or models/checkpoints.",
                    choices("transformer"),
                ),
                "precision": choice(PRECISION_CHOICES, PRECISION_HELP, default="fp8_scaled"),
                "compute": compute_input(),
            },
            "optional": {
                "policy": policy_input(),
                "plan": plan_input(),
                "compile": compile_input(),
            },
        }

    def load(
        self,
        transformer: str,
        precision: str,
        compute: str,
        policy: OffloadPolicy | None = None,
        plan: PrecisionPlan | None = None,
        compile: bool = False,
    ):
        policy = policy or OffloadPolicy()
        path = host.model_path(transformer, *PLACES["transformer"])
        with host.progress(100, "loading the transformer") as bar:
            model = self.opened.one(
                wanted_transformer(path, plan or precision, policy.host_budget, share(bar, 0, 100))
            )
        flux = FluxModel(
            model, policy, preview_factors(model, path), compute=compute, compiled=compile
        )
        return (flux, host_model(flux))


def wanted_t5(path: Path, precision: str, ram_budget: int | None, progress: Progress) -> Wanted:
    """T5's weights, for ``OpenedByNode``."""
    return Wanted(
        weights_key("t5", path, precision),
        lambda: load_t5(path, precision=precision, ram_budget=ram_budget, progress=progress),
    )


def wanted_transformer(
    path: Path, precision: Precision, ram_budget: int | None, progress: Progress
) -> Wanted:
    """A transformer's weights, for ``OpenedByNode``."""
    return Wanted(
        weights_key("transformer", path, precision),
        lambda: load_transformer(
            path, precision=precision, ram_budget=ram_budget, progress=progress
        ),
    )


def share(bar: host.Progress, start: int, length: int):
    """A loader's progress as a stretch of the whole bar."""
    return lambda done, total: bar.update(start + length * done // total)


_families: dict[Hashable, Family] = {}


def clip_l_for(transformer: Path, chosen: str) -> str:
    """What is to be opened as CLIP-L where a person chose a file of it, or none.

    Raises ``ValueError`` for none where the transformer's family reads it.
    """
    key = weights_key("transformer", transformer, None)
    if key not in _families:
        _families[key] = transformer_family(transformer)
    family = _families[key]
    if not family.needs_pooled:
        return NO_FILE
    if chosen == NO_FILE:
        raise ValueError(
            f"clip_l is {NO_FILE!r}, and {transformer.name} is of {family.name}, which reads "
            "CLIP-L: expected a file such as clip_l.safetensors"
        )
    return chosen


def tokenizer_folders(clip_l: Path | None, t5: Path) -> tuple[Path | None, Path]:
    """Beside the weights if they are there, else the host's own."""
    try:
        return find_tokenizers(clip_l, t5)
    except FileNotFoundError:
        shipped = host.host_tokenizers()
        if shipped is None:
            raise
        return (None if clip_l is None else shipped[0], shipped[1])


_previews: weakref.WeakKeyDictionary[FluxTransformer, Tensor | None] = weakref.WeakKeyDictionary()


def preview_factors(model: FluxTransformer, path: Path) -> Tensor | None:
    """Preview factors (17, 3) that a transformer's file brings along, read once a model."""
    if model not in _previews:
        text = open_source(path).metadata.get(PREVIEW_KEY)
        _previews[model] = None if text is None else torch.tensor(json.loads(text))
    return _previews[model]
