"""The parts of a pipeline from files: which of them a family needs, and where each is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from .checkpoint.detect import describe, find_parts
from .checkpoint.load import (
    load_language_encoders,
    load_text_encoders,
    load_transformer,
    load_vae,
    transformer_family,
)
from .checkpoint.reader import open_source
from .models.family import Family
from .models.language_encoders import LanguageTextEncoders
from .models.text_encoders import TextEncoders
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .quant import Precision
from .quant.registry import FULL_PRECISIONS

Parts = tuple[FluxTransformer, TextEncoders | LanguageTextEncoders, AutoEncoder]
#: Arguments by what the file of each holds.
ARGUMENTS = {"clip_l": "clip_l", "t5": "t5", "language_model": "text_encoder", "vae": "vae"}
#: Folders of a repository in Hugging Face's layout, beside that of the transformer.
TRANSFORMER_FOLDER = "transformer"
OTHER_FOLDERS = ("text_encoder", "text_encoder_2", "vae")


class PartFiles(NamedTuple):
    """Where parts are; ``clip_l`` and ``t5``, or ``text_encoder``, None where a family reads no
    such."""

    family: Family
    transformer: Path
    vae: Path
    clip_l: Path | None
    t5: Path | None
    text_encoder: Path | None


@dataclass(frozen=True)
class PartOptions:
    """How parts are opened: the ``precision`` of the transformer and the VAE's dtype, and the text
    encoders' where it is another one; how layers of one byte ``compute``; the folder of
    ``tokenizers``, where they are not beside the weights; bytes of host memory above which a part
    stays on disk."""

    precision: Precision = "bf16"
    text_precision: Precision | None = None
    compute: str = "auto"
    tokenizers: str | Path | None = None
    ram_budget: int | None = None


def find_files(transformer: str | Path, given: dict[str, str | Path | None]) -> PartFiles:
    """The file of each part that a transformer is drawn with, of those that are ``given`` (by the
    names in ``ARGUMENTS``) or else of the transformer's own file or repository.

    Only headers are read. Raises ``ValueError`` naming the parts that are missing, or that the
    transformer's family does not read, ``CheckpointError`` as loading does.
    """
    outer, path = Path(transformer), transformer_of(transformer)
    is_repository = path != outer
    inside = [outer / name for name in OTHER_FOLDERS if is_repository and (outer / name).is_dir()]
    family = transformer_family(path)
    language = not {"clip_l", "t5"} & set(family.encoders)
    needed = ["language_model"] if language else list(family.encoders)
    needed = [ARGUMENTS[kind] for kind in (*needed, "vae")]
    unread = [name for name, file in given.items() if file is not None and name not in needed]
    if unread:
        raise ValueError(
            f"{unread[0]} is given, and {family.name} is drawn with {', '.join(needed)} alone"
        )
    places: dict[str, Path] = {}
    for place in (path, *inside):
        for part in find_parts(open_source(place)):
            if part.kind in ARGUMENTS:
                places.setdefault(ARGUMENTS[part.kind], place)
    places |= {name: Path(file) for name, file in given.items() if file is not None}
    missing = [name for name in needed if name not in places]
    if missing:
        source = open_source(path)
        raise ValueError(
            f"{path} is of {family.name}, which is drawn with {', '.join(needed)}: "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given, and the "
            f"file holds {describe(source, find_parts(source))} alone"
        )
    files = {name: places[name] if name in needed else None for name in ARGUMENTS.values()}
    return PartFiles(family, path, places["vae"], *(files[n] for n in PartFiles._fields[3:]))


def transformer_of(path: str | Path) -> Path:
    """Where a transformer is: there, or in its folder of a repository."""
    inner = Path(path) / TRANSFORMER_FOLDER
    return inner if inner.is_dir() else Path(path)


def open_files(files: PartFiles, options: PartOptions) -> Parts:
    """The parts; raises ``CheckpointError``, and ``FileNotFoundError`` where tokenizers are not
    found, as loading does."""
    texts = options.text_precision or options.precision
    place = {"compute": options.compute, "ram_budget": options.ram_budget}
    if files.text_encoder is not None:
        encoders = load_language_encoders(
            files.text_encoder, tokenizer=options.tokenizers, precision=texts, **place
        )
    else:
        assert files.t5 is not None
        encoders = load_text_encoders(
            files.clip_l, files.t5, tokenizers=options.tokenizers, precision=texts, **place
        )
    precision = options.precision if isinstance(options.precision, str) else "bf16"
    dtype = FULL_PRECISIONS.get(precision, torch.bfloat16)
    vae = load_vae(files.vae, dtype=dtype, ram_budget=options.ram_budget)
    transformer = load_transformer(files.transformer, precision=options.precision, **place)
    return transformer, encoders, vae
