"""Opening each part of FLUX.1 from a file; what ``flux_core`` exports under these names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import nn
from typing_extensions import Unpack

from ..files import reading
from ..models.config import ControlNetConfig, Shapes, VAEConfig
from ..models.controlnet import FluxControlNet
from ..models.families import new_transformer, recognize
from ..models.family import Family
from ..models.ip_adapter import IPAdapter, IPAdapterConfig
from ..models.keymaps import native_shapes
from ..models.language import LanguageConfig, LanguageEncoder
from ..models.language_encoders import (
    LanguageTextEncoders,
    check_marks,
    open_language_tokenizer,
)
from ..models.redux import ReduxConfig, ReduxModel
from ..models.text_encoders import (
    ClipEncoder,
    T5Encoder,
    TextEncoders,
    Tokenizers,
    clip_l_config,
    t5_config,
)
from ..models.transformer import FluxTransformer
from ..models.vae import AutoEncoder
from ..models.vision import VisionEncoder
from ..models.vision_config import VisionConfig
from ..quant import Precision, full_dtype
from ..quant.registry import FULL_PRECISIONS
from .build import Progress, load_part, outline_part
from .detect import find_part
from .own_tokenizer import folder_for, own_tokenizer
from .reader import open_source
from .weights import Weights

Device = torch.device | str


class PlaceOptions(TypedDict, total=False):
    """``device``: where weights end up. ``ram_budget``: bytes of host memory; a part that takes
    more stays on disk. ``progress``: called with tensors done and in all."""

    device: Device
    ram_budget: int | None
    progress: Progress | None


class Options(PlaceOptions, total=False):
    """``precision``: ``bf16`` (the default), ``fp16``, ``fp32``, ``fp8_e4m3fn``, ``fp8_e5m2``,
    ``fp8_scaled``, ``int8``, ``as_stored`` (every layer as the file has it) or a ``PrecisionPlan``.
    ``compute``: how layers of one byte multiply, ``auto``, ``dequantize`` or ``native``."""

    precision: Precision
    compute: str


def new_controlnet(_: str, shapes: Shapes) -> FluxControlNet:
    return FluxControlNet(ControlNetConfig.from_shapes(shapes))


def new_clip_l(_: str, shapes: Shapes) -> ClipEncoder:
    return ClipEncoder(clip_l_config(shapes))


def new_t5(_: str, shapes: Shapes) -> T5Encoder:
    return T5Encoder(t5_config(shapes))


def new_vae(_: str, shapes: Shapes) -> AutoEncoder:
    return AutoEncoder(VAEConfig.from_shapes(shapes))


def new_style_model(_: str, shapes: Shapes) -> ReduxModel:
    return ReduxModel(ReduxConfig.from_shapes(shapes))


def new_clip_vision(_: str, shapes: Shapes) -> VisionEncoder:
    return VisionEncoder(VisionConfig.from_shapes(shapes))


def new_ip_adapter(_: str, shapes: Shapes) -> IPAdapter:
    return IPAdapter(IPAdapterConfig.from_shapes(shapes))


def new_language_model(_: str, shapes: Shapes) -> LanguageEncoder:
    return LanguageEncoder(LanguageConfig.from_shapes(shapes))


#: What makes each kind of part from its layout and native shapes.
NEW_PARTS: dict[str, Callable[[str, Shapes], nn.Module]] = {
    "transformer": new_transformer,
    "controlnet": new_controlnet,
    "clip_l": new_clip_l,
    "t5": new_t5,
    "vae": new_vae,
    "style_model": new_style_model,
    "clip_vision": new_clip_vision,
    "ip_adapter": new_ip_adapter,
    "language_model": new_language_model,
}


def outline(path: str | Path, kind: str, precision: Precision = "bf16") -> nn.Module:
    """A part of a file without its numbers, on the meta device, to be planned with.

    Args:
        kind: one of ``NEW_PARTS``.

    Raises ``CheckpointError`` as loading does.
    """
    outlined = outline_part(path, kind, NEW_PARTS[kind], precision)
    return outlined.module.to(full_dtype(outlined.precision)).eval()


def transformer_family(path: str | Path) -> Family:
    """The family of a file's transformer, told from its header; errors as ``load_transformer``."""
    source = open_source(path)
    with reading(path, "a transformer"):
        part = find_part(source, "transformer")
        shapes = Weights(source.under(part.prefix)).shapes
        return recognize(part.layout, native_shapes(part.key_map(shapes), shapes))[0]


def load_transformer(path: str | Path, **options: Unpack[Options]) -> FluxTransformer:
    """Open a FLUX.1 transformer of any layout (native, host checkpoint, diffusers, float8).

    Args:
        path: a file, a folder with one file or with shards, or an index of shards.
        options: ``precision``, ``device`` and the rest, see ``Options``.

    Raises ``CheckpointError`` (a ``ValueError``) naming the file and what is wrong with it.
    """
    return cast(FluxTransformer, load_part(path, "transformer", new_transformer, **options))


def load_controlnet(path: str | Path, **options: Unpack[Options]) -> FluxControlNet:
    """Open a FLUX.1 ControlNet of any public layout; arguments as ``load_transformer``."""
    return cast(FluxControlNet, load_part(path, "controlnet", new_controlnet, **options))


def load_clip_l(path: str | Path, **options: Unpack[Options]) -> ClipEncoder:
    """Open CLIP-L's text model; arguments as ``load_transformer``."""
    return cast(ClipEncoder, load_part(path, "clip_l", new_clip_l, **options))


def load_t5(path: str | Path, **options: Unpack[Options]) -> T5Encoder:
    """Open T5's encoder; arguments as ``load_transformer``."""
    return cast(T5Encoder, load_part(path, "t5", new_t5, **options))


def load_vae(
    path: str | Path, *, dtype: torch.dtype = torch.bfloat16, **options: Unpack[PlaceOptions]
) -> AutoEncoder:
    """Open the autoencoder, native or diffusers layout, alone or in a host checkpoint."""
    precisions = {kind: name for name, kind in FULL_PRECISIONS.items()}
    if dtype not in precisions:
        raise ValueError(f"VAE dtype is {dtype}, expected one of {', '.join(map(str, precisions))}")
    loaded = load_part(path, "vae", new_vae, precision=precisions[dtype], **options)
    return cast(AutoEncoder, loaded)


def load_redux(path: str | Path, **options: Unpack[Options]) -> ReduxModel:
    """Open a Redux model (a "style model"), alone or in its folder ``image_embedder``; arguments as
    ``load_transformer``."""
    return cast(ReduxModel, load_part(path, "style_model", new_style_model, **options))


def load_vision_encoder(path: str | Path, **options: Unpack[Options]) -> VisionEncoder:
    """Open CLIP's or SigLIP's vision encoder, ComfyUI's file or Hugging Face's folder; arguments as
    ``load_transformer``."""
    return cast(VisionEncoder, load_part(path, "clip_vision", new_clip_vision, **options))


def load_ip_adapter(path: str | Path, **options: Unpack[Options]) -> IPAdapter:
    """Open an IP-Adapter for FLUX.1, XLabs' or InstantX's, as safetensors; arguments as
    ``load_transformer``."""
    return cast(IPAdapter, load_part(path, "ip_adapter", new_ip_adapter, **options))


def load_text_encoders(
    clip_l: str | Path | None,
    t5: str | Path,
    *,
    precision: Precision = "bf16",
    compute: str = "auto",
    device: Device = "cpu",
    tokenizers: str | Path | None = None,
    ram_budget: int | None = None,
) -> TextEncoders:
    """Open both text encoders with their tokenizers.

    Args:
        clip_l: None for families that read T5 alone (Chroma).
        precision: of T5; CLIP-L, a twentieth of its size, is quantized with it.
        tokenizers: a folder with ``tokenizer`` (CLIP-L) and ``tokenizer_2`` (T5), or ComfyUI's
            folder ``comfy``; by default they are found beside the weights.
        ram_budget: as ``PlaceOptions`` has it.
    """
    if tokenizers is None:
        tokenizer_folders = find_tokenizers(clip_l, t5)
    else:
        tokenizer_folders = both_in(Path(tokenizers), clip_l is not None)
    options: Options = {
        "precision": precision,
        "compute": compute,
        "device": device,
        "ram_budget": ram_budget,
    }
    return TextEncoders(
        None if clip_l is None else load_clip_l(clip_l, **options),
        load_t5(t5, **options),
        Tokenizers.load(*tokenizer_folders),
    )


#: The folder of T5's tokenizer in repositories that have CLIP-L's too, and of T5 alone.
T5_TOKENIZER, T5_TOKENIZER_ALONE = "tokenizer_2", "tokenizer"
#: Where ComfyUI's folder ``comfy`` has CLIP's, T5's and Qwen3's.
HOST_CLIP, HOST_T5 = "sd1_tokenizer", "text_encoders/t5_tokenizer"
HOST_QWEN = "text_encoders/qwen25_tokenizer"


def load_language_encoders(
    path: str | Path, *, tokenizer: str | Path | None = None, **options: Unpack[Options]
) -> LanguageTextEncoders:
    """Open the language model that FLUX.2 reads prompts with: Qwen3 4B or 8B for klein, Mistral
    Small for dev, in a file of its own, a folder or a host checkpoint.

    Args:
        tokenizer: a folder with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``; by
            default that inside of the file is taken, or one found beside it.
        options: as ``load_transformer`` has them.
    """
    own = own_tokenizer(path) if tokenizer is None else None
    folder = Path(tokenizer) if tokenizer is not None else None
    if folder is not None and (folder / HOST_QWEN).is_dir():
        folder = folder / HOST_QWEN
    if own is None and folder is None:
        folder = folder_for(path)
    loaded = load_part(path, "language_model", new_language_model, **options)
    language = cast(LanguageEncoder, loaded)
    kind = language.config.kind
    if folder is not None:
        return LanguageTextEncoders(language, open_language_tokenizer(folder, kind))
    assert own is not None
    check_marks(own, kind, path)
    return LanguageTextEncoders(language, own)


def both_in(folder: Path, with_clip_l: bool = True) -> tuple[Path | None, Path]:
    """The tokenizers' folders in one folder, as Hugging Face has them, or ComfyUI."""
    if (folder / HOST_CLIP).is_dir():
        return folder / HOST_CLIP if with_clip_l else None, folder / HOST_T5
    if with_clip_l:
        return folder / "tokenizer", folder / T5_TOKENIZER
    has_both = (folder / T5_TOKENIZER).is_dir()
    return None, folder / (T5_TOKENIZER if has_both else T5_TOKENIZER_ALONE)


def find_tokenizers(clip_l: str | Path | None, t5: str | Path) -> tuple[Path | None, Path]:
    """The tokenizers' folders, in the weights' folder or beside it as Hugging Face has them.

    Raises ``FileNotFoundError`` saying where they were looked for.
    """
    if clip_l is None:
        names = (T5_TOKENIZER, T5_TOKENIZER_ALONE)
        return None, tokenizer_folder(t5, names, "T5's tokenizer")
    return (
        tokenizer_folder(clip_l, ("tokenizer",), "the folder 'tokenizer' of the FLUX.1 repository"),
        tokenizer_folder(
            t5, (T5_TOKENIZER,), f"the folder {T5_TOKENIZER!r} of the FLUX.1 repository"
        ),
    )


def tokenizer_folder(weights: str | Path, names: Sequence[str], what: str) -> Path:
    """The folder of a tokenizer, by its names, in the folder of weights or beside it."""
    model_folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    places = [outer / name for name in names for outer in (model_folder, model_folder.parent)]
    existing = [place for place in places if place.is_dir()]
    if not existing:
        looked = " or ".join(map(str, places))
        raise FileNotFoundError(
            f"no tokenizer for {weights}: expected the folder {looked}; it is {what} on Hugging "
            "Face"
        )
    return existing[0]
