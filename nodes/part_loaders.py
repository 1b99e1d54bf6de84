"""Nodes that open one part each: FLUX.2's text encoder, and a VAE."""

from __future__ import annotations

from pathlib import Path

from flux_core import CheckpointError, OffloadPolicy, load_language_encoders, load_vae
from flux_core.checkpoint.own_tokenizer import folder_for, has_tokenizer
from flux_core.checkpoint.reader import open_source
from flux_core.quant import full_dtype
from flux_core.quant.registry import FULL_PRECISIONS

from . import host
from .bridge.clip_wire import host_clip
from .loaders import PLACES, PRECISION_CHOICES, PRECISION_HELP, choices, share
from .vae import HostVAE
from .weights import OpenedByNode
from .widgets import choice, compute_input, model_file, policy_input
from .wires import FLUX_TEXT_ENCODERS, LOADING, FluxTextEncoders


class FluxFitTextEncoderLoader:
    """FLUX.2's language model."""

    DESCRIPTION = (
        "Opens the language model that FLUX.2 reads prompts with, for FluxTextEncode: Qwen3 4B or "
        "8B for klein, Mistral Small for dev. Its tokenizer is inside of the file, in a folder "
        "beside it, or for Qwen3 ComfyUI's own."
    )
    CATEGORY = LOADING
    FUNCTION = "load"
    SEARCH_ALIASES = ["flux 2", "flux2", "klein", "qwen3", "mistral", "clip loader"]
    RETURN_TYPES = (FLUX_TEXT_ENCODERS, "CLIP")
    RETURN_NAMES = ("text_encoders", "CLIP")
    OUTPUT_TOOLTIPS = (
        "The language model, for FluxTextEncode.",
        "The same for stock nodes: CLIP Text Encode, LoraLoader.",
    )

    def __init__(self) -> None:
        self.opened = OpenedByNode()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "text_encoder": model_file(
                    (*PLACES["t5"], "checkpoints"),
                    "A file of models/text_encoders or models/checkpoints.",
                ),
                "precision": choice(PRECISION_CHOICES, PRECISION_HELP, default="fp8_scaled"),
                "compute": compute_input(),
            },
            "optional": {"policy": policy_input()},
        }

    def load(
        self, text_encoder: str, precision: str, compute: str, policy: OffloadPolicy | None = None
    ):
        policy = policy or OffloadPolicy()
        with host.progress(100, "loading the text encoder") as bar:
            encoders = self.opened.part(
                "language_model",
                text_encoder,
                (*PLACES["t5"], "checkpoints"),
                precision,
                lambda path: load_language_encoders(
                    path,
                    tokenizer=tokenizer_folder(path),
                    precision=precision,
                    ram_budget=policy.host_budget,
                    progress=share(bar, 0, 100),
                ),
            )
        texts = FluxTextEncoders(encoders, policy, compute=compute)
        return (texts, host_clip(texts))


class FluxFitVAELoader:
    """A VAE alone."""

    DESCRIPTION = (
        "Opens the VAE of FLUX.1 or FLUX.2 alone, told from its file, in tiles where memory wants "
        "it."
    )
    CATEGORY = LOADING
    FUNCTION = "load"
    SEARCH_ALIASES = ["load vae", "flux vae", "ae.safetensors", "flux2 vae"]
    RETURN_TYPES = ("VAE",)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("For VAE Decode, VAE Encode and the nodes that take a VAE.",)

    def __init__(self) -> None:
        self.opened = OpenedByNode()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": model_file(PLACES["vae"], "A file of models/vae.", choices("vae")[:-1]),
                "precision": choice(
                    list(FULL_PRECISIONS),
                    "fp32 is exact and slower, fp16 may overflow.",
                    default="bf16",
                ),
            },
            "optional": {"policy": policy_input()},
        }

    def load(self, vae: str, precision: str, policy: OffloadPolicy | None = None):
        with host.progress(100, "loading the VAE") as bar:
            model = self.opened.part(
                "vae",
                vae,
                PLACES["vae"],
                precision,
                lambda path: load_vae(
                    path, dtype=full_dtype(precision), progress=share(bar, 0, 100)
                ),
            )
        return (HostVAE(model, policy or OffloadPolicy()),)


def tokenizer_folder(path: Path) -> Path | None:
    """None where the file holds its tokenizer, to be read; beside the weights if it is there, else
    the host's own where that is Qwen3's."""
    if has_tokenizer(path):
        return None
    try:
        return folder_for(path)
    except (FileNotFoundError, CheckpointError):
        shipped = host.host_qwen_tokenizer()
        is_qwen = any(name.endswith("self_attn.q_norm.weight") for name in open_source(path).shapes)
        if shipped is None or not is_qwen:
            raise
        return shipped
