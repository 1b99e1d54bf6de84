"""Opening each part of FLUX.1 from a file; what ``flux_core`` exports under these names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import nn
from typing_extensions import Unpack

from ..models.config import ControlNetConfig, Shapes, VAEConfig
from ..models.controlnet import FluxControlNet
from ..models.families import new_transformer
from ..models.language import LanguageConfig, LanguageEncoder
from ..models.language_encoders import (
    LanguageTextEncoders,
    find_language_tokenizer,
    open_language_tokenizer,
)
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
from ..quant import Precision, full_dtype
from ..quant.registry import FULL_PRECISIONS
from .build import Progress, load_part, outline_part

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


def new_language_model(_: str, shapes: Shapes) -> LanguageEncoder:
    return LanguageEncoder(LanguageConfig.from_shapes(shapes))


#: What makes each kind of part from its layout and native shapes.
NEW_PARTS: dict[str, Callable[[str, Shapes], nn.Module]] = {
    "transformer": new_transformer,
    "controlnet": new_controlnet,
    "clip_l": new_clip_l,
    "t5": new_t5,
    "vae": new_vae,
    "language_model": new_language_model,
}


def outline(path: str | Path, kind: str, precision: Precision = "bf16") -> nn.Module:
    """A part of a file without its numbers, on the meta device, to be planned with.

    Args:
        kind: ``transformer``, ``controlnet``, ``clip_l``, ``t5``, ``vae`` or ``language_model``.

    Raises ``CheckpointError`` as loading does.
    """
    outlined = outline_part(path, kind, NEW_PARTS[kind], precision)
    return outlined.module.to(full_dtype(outlined.precision)).eval()


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


def load_text_encoders(
    clip_l: str | Path,
    t5: str | Path,
    *,
    precision: Precision = "bf16",
    compute: str = "auto",
    device: Device = "cpu",
    tokenizers: str | Path | None = None,
) -> TextEncoders:
    """Open both text encoders with their tokenizers.

    Args:
        precision: of T5; CLIP-L, a twentieth of its size, is quantized with it.
        tokenizers: a folder with ``tokenizer`` (CLIP-L) and ``tokenizer_2`` (T5), by default found
            beside the weights.
    """
    tokenizer_folders = (
        find_tokenizers(clip_l, t5) if tokenizers is None else both_in(Path(tokenizers))
    )
    return TextEncoders(
        load_clip_l(clip_l, precision=precision, compute=compute, device=device),
        load_t5(t5, precision=precision, compute=compute, device=device),
        Tokenizers.load(*tokenizer_folders),
    )


def load_language_encoders(
    path: str | Path, *, tokenizer: str | Path | None = None, **options: Unpack[Options]
) -> LanguageTextEncoders:
    """Open the language model that FLUX.2 reads prompts with: Qwen3 4B or 8B for klein, Mistral
    Small for dev, in a file of its own, a folder or a host checkpoint.

    Args:
        tokenizer: a folder with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``; by
            default found beside the weights.
        options: as ``load_transformer`` has them.
    """
    folder = find_language_tokenizer(path) if tokenizer is None else Path(tokenizer)
    loaded = load_part(path, "language_model", new_language_model, **options)
    language = cast(LanguageEncoder, loaded)
    return LanguageTextEncoders(language, open_language_tokenizer(folder, language.config.kind))


def both_in(folder: Path) -> tuple[Path, Path]:
    return folder / "tokenizer", folder / "tokenizer_2"


def find_tokenizers(clip_l: str | Path, t5: str | Path) -> tuple[Path, Path]:
    """The tokenizers' folders, in the weights' folder or beside it as Hugging Face has them.

    Raises ``FileNotFoundError`` saying where they were looked for.
    """
    tokenizer_folders = []
    for weights, name in ((clip_l, "tokenizer"), (t5, "tokenizer_2")):
        model_folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
        places = [model_folder / name, model_folder.parent / name]
        existing = [place for place in places if place.is_dir()]
        if not existing:
            looked = " or ".join(map(str, places))
            raise FileNotFoundError(
                f"no tokenizer for {weights}: expected the folder {looked}; it is the folder "
                f"{name!r} of the FLUX.1 repository on Hugging Face"
            )
        tokenizer_folders.append(existing[0])
    return tokenizer_folders[0], tokenizer_folders[1]
