"""A module to a safetensors file, quantized layers as the host's own loader reads them.

    <layer>.weight        codes
    <layer>.weight_scale  (out, 1) float32
    <layer>.comfy_quant   JSON as bytes: the format, and for int8 the block of the rotation

A plain float8 cast is a float8 tensor and nothing else. The file is written under a temporary name
and renamed when it is whole.

ControlNets are a case of their own: the host opens them in diffusers' names, and forgets scales on
the way. So those without scales are written in diffusers' names, and those with scales in native
ones, for FluxFit alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import writing
from ..models.controlnet import FluxControlNet
from ..models.keymaps import CONTROLNET_OWN, diffusers_body
from ..quant import PrecisionPlan, QuantizedLinear, quantized_linears
from ..quant.apply import linears
from .build import Progress, slots_of
from .reader import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
PLAN_KEY = "fluxfit.precision_plan"


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Everything to write, of any shape, by its name in the native layout."""
    for name, shape, owner, attribute in slots_of(module):
        if isinstance(owner, QuantizedLinear) and attribute == "weight":
            yield from quantized_tensors(name.removesuffix(".weight"), owner)
        else:
            value: Tensor = getattr(owner, attribute)
            yield name, value.detach().reshape(shape)


def quantized_tensors(name: str, layer: QuantizedLinear) -> Iterator[tuple[str, Tensor]]:
    """What a quantized layer of that name stores, and the note that tells its format.

    Of a ``RowFormat`` these are codes (out, in), and scales (out, 1) where it has them; the note is
    (bytes,) uint8.
    """
    specs = layer.format.tensors(layer.out_features, layer.in_features)
    for key, tensor in layer.tensors().items():
        yield f"{name}.{specs[key].file_name}", tensor.detach()
    note = layer.format.layer_note(layer.in_features)
    if note is not None:
        raw = json.dumps(note).encode()
        yield f"{name}.comfy_quant", torch.tensor(list(raw), dtype=torch.uint8)


def to_diffusers(net: FluxControlNet, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ControlNet's native tensors in diffusers' names, fused ones taken apart again."""
    config = net.config
    recipes = diffusers_body(config.depth, config.depth_single_blocks) | CONTROLNET_OWN
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = recipes[name].names if name in recipes else (name,)
        sizes = [tensor.shape[0]]
        if len(names) > 1:
            sizes = [config.hidden_size] * 3
            sizes += [tensor.shape[0] - sum(sizes)] * (len(names) - 3)
        renamed.update(zip(names, tensor.split(sizes), strict=True))
    return renamed


def plan_of(module: nn.Module) -> PrecisionPlan | None:
    """The plan by which a quantized module is stored; None where nothing is quantized."""
    precisions = {
        n: m.format.name for n, m in module.named_modules() if isinstance(m, QuantizedLinear)
    }
    if not precisions:
        return None
    return PrecisionPlan.of_layers(precisions, {full: "bf16" for full, *_ in linears(module)})


def save_module(
    module: nn.Module,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a transformer, ControlNet or T5 as one safetensors file.

    Args:
        path: where to; a file that is there is replaced when the new one is whole.
        metadata: more for the header; the precision plan goes there by itself.
        progress: called with tensors done and tensors in all.

    Returns the path. Raises ``OSError`` where it cannot be written; nothing is left behind then.
    """
    path = Path(path)
    tensors = dict(tensors_of(module))
    if isinstance(module, FluxControlNet) and not has_scales(module):
        tensors = to_diffusers(module, tensors)
    plan = plan_of(module)
    notes = {"format": "pt"} | dict(metadata or {})
    if plan is not None:
        notes[PLAN_KEY] = plan.to_json()
    header: dict[str, object] = {"__metadata__": notes}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with writing(path) as partial, open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for done, tensor in enumerate(tensors.values()):
            file.write(bytes_of(tensor))
            if progress is not None:
                progress(done + 1, len(tensors))
    return path


def has_scales(module: nn.Module) -> bool:
    """Whether a layer stores more than one tensor, which diffusers' names have no place for."""
    return any(len(layer.tensor_names) > 1 for layer in quantized_linears(module))


def bytes_of(tensor: Tensor) -> memoryview | bytes:
    """The bytes of a tensor of any shape, without a copy where it lies on the CPU already."""
    if not tensor.numel():
        return b""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
