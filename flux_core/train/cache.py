"""Latents and text embeddings, computed once and kept in safetensors files.

A key is a hash of everything that the tensors depend on: the picture's file and size and the VAE's
weights, or the caption and the text encoders' weights. So another model or another picture of the
same name finds nothing old, and one cache serves many runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import FileError
from ..files import writing
from ..models.language_encoders import LanguageTextEncoders
from ..models.text_encoders import CACHED_PROMPTS, TextEncoders, TextEncoding
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner
from ..offload.pack import named_tensors
from ..sampling.images import to_pixels
from ..sampling.prompts import encode_prompts
from ..sampling.vae import encode_pixels
from .dataset import DataProblems, Item, mask_of_size, picture_of_size

#: Bytes of each tensor that a fingerprint reads, from its beginning and from its end.
SAMPLED_BYTES = 4096
#: Called with what is done, how much of it, and how much there is.
OnProgress = Callable[[str, int, int], None]


def fingerprint(module: nn.Module) -> str:
    """A hash of a model: names, dtypes, shapes and both ends of every tensor.

    Whoever trains or quantizes a model anew changes the ends of its tensors too.
    """
    digest = hashlib.sha256()
    for name, _, _, tensor in named_tensors(module):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1).view(torch.uint8) if tensor.numel() else None
        if flat is not None:
            for part in (flat[:SAMPLED_BYTES], flat[-SAMPLED_BYTES:]):
                digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def cache_key(*parts: object) -> str:
    """The key of what depends on some values and on nothing else."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


class TensorStore:
    """Named tensors by key, in a folder or, without one, in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.memory: dict[str, dict[str, Tensor]] = {}

    def path(self, key: str) -> Path:
        """The file of a key; there is a folder."""
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put; None where nothing was, or where the file is broken."""
        if self.folder is None:
            return self.memory.get(key)
        path = self.path(key)
        try:
            return load_file(path) if path.is_file() else None
        except (SafetensorError, OSError, KeyError):
            path.unlink(missing_ok=True)
            return None

    def has(self, key: str) -> bool:
        """Whether there is something, broken or not."""
        return key in self.memory if self.folder is None else self.path(key).is_file()

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors; a file appears when it is whole."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        # what a host's node remembered is of no use to autograd
        tensors = {n: t.clone() if t.is_inference() else t for n, t in tensors.items()}
        if self.folder is None:
            self.memory[key] = tensors
            return
        path = self.path(key)
        with writing(path) as partial:
            save_file(tensors, partial)


class EncodingCache:
    """What a dataset's items become: latents, masks and text encodings."""

    def __init__(
        self, store: TensorStore, vae: AutoEncoder, encoders: TextEncoders | LanguageTextEncoders
    ) -> None:
        self.store = store
        with torch.no_grad():
            self.vae, self.encoders = fingerprint(vae), fingerprint(encoders)
        self.length = encoders.length
        self.masks_padding = encoders.masks_padding

    def latent_key(self, item: Item) -> str:
        """Where an item's latents and mask are."""
        return cache_key("latents", item.content, *item.size, item.mask_content, self.vae)

    def text_key(self, caption: str) -> str:
        """Where a caption's encoding is."""
        reading = ("masked",) if self.masks_padding else ()
        return cache_key("text", caption, self.length, self.encoders, *reading)

    def fill_latents(
        self,
        items: Sequence[Item],
        vae: AutoEncoder,
        runner: OffloadRunner,
        problems: DataProblems,
        on_fault: str,
        on_progress: OnProgress,
    ) -> list[Item]:
        """Encode the pictures that are not there yet; returns the items that could be.

        Broken files are added to ``problems``, as skipped or refused. Raises ``ConfigError`` for
        those refused.
        """
        missing = [item for item in items if not self.store.has(self.latent_key(item))]
        lost = set[int]()
        for done, item in enumerate(missing):
            on_progress("encoding pictures", done, len(missing))
            try:
                pixels = to_pixels(picture_of_size(item.picture, item.size))
                mask = {}
                if item.mask:
                    mask["mask"] = mask_of_size(item.mask, item.size, vae.config)
            except FileError as error:
                problems.add(item.picture, f"is broken ({error})", on_fault)
                lost.add(id(item))
                continue
            latents = encode_pixels(runner, vae, pixels)
            self.store.put(self.latent_key(item), {"latents": latents} | mask)
        if missing:
            on_progress("encoding pictures", len(missing), len(missing))
        problems.raise_refused()
        return [item for item in items if id(item) not in lost]

    def fill_texts(
        self,
        captions: Sequence[str],
        encoders: TextEncoders | LanguageTextEncoders,
        runner: OffloadRunner,
        on_progress: OnProgress,
    ) -> None:
        """Encode what is not there yet, some captions at a time."""
        captions = list(dict.fromkeys(captions))
        missing = [text for text in captions if not self.store.has(self.text_key(text))]
        for start in range(0, len(missing), CACHED_PROMPTS):
            on_progress("encoding captions", start, len(missing))
            some = missing[start : start + CACHED_PROMPTS]
            encodings = encode_prompts(runner, encoders, some, literal=True)
            for text, encoding in zip(some, encodings, strict=True):
                tensors = {"context": encoding.context, "pooled": encoding.pooled}
                self.store.put(self.text_key(text), tensors)
        if missing:
            on_progress("encoding captions", len(missing), len(missing))

    def latents(self, item: Item) -> tuple[Tensor, Tensor | None]:
        """Raw latents (1, 16, h, w) and the mask (1, h, w) of an item."""
        tensors = self._get(self.latent_key(item), str(item.picture))
        return tensors["latents"], tensors.get("mask")

    def text(self, caption: str) -> TextEncoding:
        """The encoding of a caption: context (1, N, D) and pooled (1, P)."""
        tensors = self._get(self.text_key(caption), repr(caption))
        return TextEncoding(tensors["context"], tensors["pooled"])

    def _get(self, key: str, what: str) -> dict[str, Tensor]:
        tensors = self.store.get(key)
        if tensors is None:
            raise FileNotFoundError(
                f"the cache has lost {what}: start the run again, which makes it anew"
            )
        return tensors
