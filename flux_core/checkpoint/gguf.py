"""GGUF files as a source of tensors: transformers and T5 encoders.

The ``gguf`` package reads the file and knows the number formats (Q8_0, Q4_K and the rest); a tensor
is dequantized to float32 when it is read, one at a time, and then stored at whatever precision the
loader was asked for.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import reading
from ..models.language import HEAD
from .source import Source, TensorInfo

#: Language models of which q and k are written row by row for llama.cpp's rotation.
ROTATED = ("llama", "mistral3")
LANGUAGE = ("qwen3", *ROTATED)
ARCHITECTURES = ("flux", "flux2", "chroma", "t5", "t5encoder", *LANGUAGE)
#: llama.cpp's names of T5's tensors, in native names.
T5_NAMES = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
}
T5_BLOCK = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
#: The same of Qwen3's and Mistral's.
QWEN_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
QWEN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Bytes of numbers in lists, and of what stands before a list's members.
NUMBER_BYTES = {
    **dict.fromkeys(("UINT8", "INT8", "BOOL"), 1),
    **dict.fromkeys(("UINT16", "INT16"), 2),
    **dict.fromkeys(("UINT32", "INT32", "FLOAT32"), 4),
    **dict.fromkeys(("UINT64", "INT64", "FLOAT64"), 8),
}
LIST_HEAD = 12
BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.(weight|bias)")
LANGUAGE_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
TURNED = re.compile(r"layers\.\d+\.self_attn\.[qk]_proj\.weight")


def native_name(name: str, architecture: object = None) -> str:
    """A GGUF tensor's name in the native layout; those of FLUX are native already."""
    if architecture in LANGUAGE:
        layer = LANGUAGE_BLOCK.fullmatch(name)
        if layer and layer[2] in QWEN_BLOCK:
            return f"layers.{layer[1]}.{QWEN_BLOCK[layer[2]]}.{layer[3]}"
        stem, _, kind = name.rpartition(".")
        return f"{QWEN_NAMES.get(stem, stem)}.{kind}"
    block = BLOCK.fullmatch(name)
    if block and block[2] in T5_BLOCK:
        return f"encoder.block.{block[1]}.{T5_BLOCK[block[2]]}.{block[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{T5_NAMES[stem]}.{kind}" if stem in T5_NAMES else name


def header_reader() -> type:
    """``gguf``'s reader, which steps over lists at once: T5's tokens one by one take it seconds."""
    import gguf

    class HeaderReader(gguf.GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int):  # type: ignore[no-untyped-def]
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            inner = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
            count = int(self._get(orig_offs + 4, np.uint64)[0])
            size = LIST_HEAD + list_bytes(
                self.data, orig_offs + LIST_HEAD, inner.name, count, self.byte_order != "I"
            )
            return size, [], [], [gguf.GGUFValueType.ARRAY, inner]

    return HeaderReader


def list_bytes(data: np.ndarray, start: int, kind: str, count: int, swapped: bool) -> int:
    """Bytes of a list's members in a file (bytes,); raises ``ValueError`` for one beyond its end,
    and for lists of lists, which nobody writes."""
    if kind in NUMBER_BYTES:
        size = NUMBER_BYTES[kind] * count
    elif kind == "STRING":
        place, other = start, "big" if sys.byteorder == "little" else "little"
        order = other if swapped else sys.byteorder
        for _ in range(count):
            if place + 8 > len(data):
                break
            place += 8 + int.from_bytes(data[place : place + 8].tobytes(), order)
        size = place - start
    else:
        raise ValueError(f"a list of {kind}")
    if start + size > len(data):
        raise ValueError("a list ends behind the file")
    return size


class GGUFFile(Source):
    """One GGUF file.

    Raises ``CheckpointError`` where it is broken, of another architecture, or where the package
    ``gguf`` is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            reader_of = header_reader()
        except ImportError as error:
            raise CheckpointError(
                f"{path}: GGUF files need the package gguf: pip install gguf"
            ) from error
        with reading(self.path, "a GGUF file: truncated or no GGUF file"):
            reader = reader_of(self.path)
            field = reader.get_field("general.architecture")
            architecture = None if field is None else field.contents()
            split = reader.get_field("split.count")
            parts = 1 if split is None else int(split.contents())
            self._tensors = {native_name(t.name, architecture): t for t in reader.tensors}
            self._reader, self._rotated = reader, architecture in ROTATED
            heads = reader.get_field(f"{architecture}.attention.key_length")
            self._head = HEAD if heads is None else int(heads.contents())
        # stable-diffusion.cpp writes none, and its names tell what it is
        if architecture is not None and architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{path}: holds the architecture {architecture!r}, "
                f"expected one of {', '.join(ARCHITECTURES)}"
            )
        if parts > 1:
            raise CheckpointError(
                f"{path}: is one of {parts} parts, expected one file: gguf-split --merge makes it"
            )
        self._entries = {
            name: TensorInfo(
                torch.float32,
                tuple(int(side) for side in reversed(t.shape)),
                int(t.data_offset),
                int(t.n_bytes),
            )
            for name, t in self._tensors.items()
        }
        self.refuse_truncated()

    def refuse_truncated(self) -> None:
        total = self.path.stat().st_size
        for name, entry in self._entries.items():
            if entry.start + entry.size > total:
                raise CheckpointError(
                    f"{self.path}: is truncated: {name!r} ends at byte {entry.start + entry.size}, "
                    f"the file at {total}"
                )

    @property
    def entries(self) -> dict[str, TensorInfo]:
        return self._entries

    def kind(self, name: str) -> str:
        return self._tensors[name].tensor_type.name

    def read(self, name: str) -> Tensor:
        """A tensor of any shape, dequantized to float32; a layer's weight is (out, in)."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        with reading(self.path, f"a GGUF file, at {name!r}"):
            try:
                values = dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError as error:
                raise CheckpointError(
                    f"{self.path}: {name!r} is {tensor.tensor_type.name}, which gguf does not read"
                ) from error
            result = torch.from_numpy(values.copy()).reshape(self._entries[name].shape)
            if self._rotated and TURNED.fullmatch(name):
                return in_halves(result, self._head)
            return result

    def word(self, name: str) -> str:
        """A text of the header, empty where there is none."""
        field = self._reader.get_field(name)
        return "" if field is None else str(field.contents())

    def list_at(self, name: str) -> tuple[str, int, int] | None:
        """The kind of a list of the header, where its first member begins, and how many there are;
        None where there is no such list."""
        field = self._reader.fields.get(name)
        if field is None or field.types[:1] != [9] or len(field.types) < 2:  # 9 is a list
            return None
        start = int(field.offset) + 8 + len(name.encode()) + 4
        count = int.from_bytes(self._reader.data[start + 4 : start + 12].tobytes(), "little")
        return field.types[1].name, start + LIST_HEAD, count

    def has_strings(self, name: str) -> bool:
        """Whether the header has a list of texts of a name; none of them is read."""
        place = self.list_at(name)
        return place is not None and place[0] == "STRING"

    def strings(self, name: str) -> list[str] | None:
        """A list of texts of the header; None where there is none."""
        place = self.list_at(name)
        if place is None or place[0] != "STRING":
            return None
        _, start, count = place
        size = list_bytes(self._reader.data, start, "STRING", count, False)
        data, texts, at = self._reader.data[start : start + size].tobytes(), [], 0
        for _ in range(count):
            end = at + 8 + int.from_bytes(data[at : at + 8], "little")
            texts.append(data[at + 8 : end].decode())
            at = end
        return texts

    def numbers(self, name: str) -> list[int] | None:
        """A list of 32-bit integers of the header; None where there is none."""
        place = self.list_at(name)
        if place is None or place[0] not in ("INT32", "UINT32"):
            return None
        _, start, count = place
        return self._reader.data[start : start + 4 * count].view("<i4").tolist()


def in_halves(weight: Tensor, head: int) -> Tensor:
    """Rows of a projection (H * d, in) whose pairs stand beside each other in each head of d rows,
    as a file of llama.cpp has them, with the pairs in the head's two halves."""
    return weight.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).reshape(weight.shape)
