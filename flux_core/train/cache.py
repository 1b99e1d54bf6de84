"""Latents and text embeddings, computed once and kept in safetensors files.

A key is a hash of everything that the tensors depend on: the picture's file and size and the VAE's
weights, or the caption and the text encoders' weights. So another model or another picture of the
same name finds nothing old, and one cache serves many runs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..models.text_encoders import CACHED_PROMPTS, TextEncoders, TextEncoding
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner
from ..offload.pack import named_tensors
from ..offload.workload import encode, vae_work
from ..pipeline import encode_prompts, to_pixels
from .dataset import Faults, Item, open_mask, open_picture

#: Bytes of each tensor that a fingerprint reads, from its beginning and from its end.
SAMPLED = 4096
#: Called with what is done, how much of it, and how much there is.
Told = Callable[[str, int, int], None]


def fingerprint(module: nn.Module) -> str:
    """A hash of a model: names, dtypes, shapes and both ends of every tensor.

    Whoever trains or quantizes a model anew changes the ends of its tensors too.
    """
    found = hashlib.sha256()
    for name, _, _, tensor in named_tensors(module, set()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1).view(torch.uint8) if tensor.numel() else None
        if flat is not None:
            for part in (flat[:SAMPLED], flat[-SAMPLED:]):
                found.update(part.cpu().numpy().tobytes())
    return found.hexdigest()


def key_of(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


class Store:
    """Named tensors by key, in a folder or, without one, in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.memory: dict[str, dict[str, Tensor]] = {}

    def path(self, key: str) -> Path:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class Cache:
    """What a dataset's items become: latents, masks and text encodings."""

    def __init__(self, store: Store, vae: AutoEncoder, encoders: TextEncoders) -> None:
        self.store = store
        with torch.no_grad():
            self.vae, self.encoders = fingerprint(vae), fingerprint(encoders)
        self.length = encoders.tokenizers.t5_length

    def latent_key(self, item: Item) -> str:
        return key_of("latents", item.content, *item.size, item.mask_content, self.vae)

    def text_key(self, caption: str) -> str:
        return key_of("text", caption, self.length, self.encoders)

    def fill_latents(
        self, items: Sequence[Item], vae: AutoEncoder, runner: OffloadRunner, faults: Faults,
        way: str, told: Told,
    ) -> list[Item]:  # fmt: skip
        """Encode what is not there yet; returns the items that could be."""
        missing = [item for item in items if not self.store.has(self.latent_key(item))]
        lost = set[int]()
        for done, item in enumerate(missing):
            told("encoding pictures", done, len(missing))
            try:
                pixels = to_pixels(open_picture(item.picture, item.size))
                mask = {"mask": open_mask(item.mask, item.size)} if item.mask else {}
            except (OSError, ValueError, SyntaxError) as error:  # PIL raises all three
                faults.add(item.picture, f"is broken ({error})", way)
                lost.add(id(item))
                continue
            work = vae_work(vae, item.size.height // 8, item.size.width // 8, 1, decoding=False)
            latents = runner.run(
                "VAE encoder", [vae], lambda plan, p=pixels: encode(vae, p, plan, runner.device),
                work,
            )  # fmt: skip
            self.store.put(self.latent_key(item), {"latents": latents} | mask)
        if missing:
            told("encoding pictures", len(missing), len(missing))
        faults.raise_refused()
        return [item for item in items if id(item) not in lost]

    def fill_texts(
        self, captions: Sequence[str], encoders: TextEncoders, runner: OffloadRunner, told: Told
    ) -> None:
        """Encode what is not there yet, some captions at a time."""
        captions = list(dict.fromkeys(captions))
        missing = [text for text in captions if not self.store.has(self.text_key(text))]
        for start in range(0, len(missing), CACHED_PROMPTS):
            told("encoding captions", start, len(missing))
            some = missing[start : start + CACHED_PROMPTS]
            found = encode_prompts(runner, encoders, some)
            for text, encoding in zip(some, found, strict=True):
                tensors = {"context": encoding.context, "pooled": encoding.pooled}
                self.store.put(self.text_key(text), tensors)
        if missing:
            told("encoding captions", len(missing), len(missing))

    def latents(self, item: Item) -> tuple[Tensor, Tensor | None]:
        """Raw latents (1, 16, h, w) and the mask (1, h, w) of an item."""
        found = self._get(self.latent_key(item), str(item.picture))
        return found["latents"], found.get("mask")

    def text(self, caption: str) -> TextEncoding:
        found = self._get(self.text_key(caption), repr(caption))
        return TextEncoding(found["context"], found["pooled"])

    def _get(self, key: str, what: str) -> dict[str, Tensor]:
        found = self.store.get(key)
        if found is None:
            raise FileNotFoundError(
                f"the cache has lost {what}: start the run again, which makes it anew"
            )
        return found
