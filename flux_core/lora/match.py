"""Which layers of a model a LoRA's names mean.

The table is built forward, from the model's own layers to every name that they go by: a name with
underscores for dots cannot be read backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.config import count_blocks
from ..models.keymaps import openai_clip_layers
from ..models.layers import RMSNorm
from ..models.transformer import FluxBody
from ..quant import QuantizedLinear
from .branch import Layer
from .deltas import Delta, make_delta, refuse_not_read
from .file import Lora

#: The layer that a control LoRA widens: the picture comes in beside the noise.
WIDENED_LAYER = "img_in"
#: What the layers of CLIP's text model begin with.
CLIP_LAYERS = "text_model.encoder.layers."
#: What a part is called in messages.
PART_NAMES = {
    "transformer": "the transformer",
    "clip_l": "CLIP-L",
    "t5": "T5",
    "language_model": "the language model",
}
#: A transformer's layers as XLabs calls them: 1 is the image's stream, 2 the text's.
XLABS_DOUBLE = {
    "qkv_lora1": "img_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora2": "txt_attn.proj",
}


#: DiffSynth-Studio's names in a double and in a single block: a is the image's stream, b the
#: text's.
DIFFSYNTH_DOUBLE = {
    f"{theirs.format(letter)}": f"{stream}_{ours}"
    for letter, stream in (("a", "img"), ("b", "txt"))
    for theirs, ours in {
        "attn.{}_to_qkv": "attn.qkv",
        "attn.{}_to_out": "attn.proj",
        "ff_{}.0": "mlp.0",
        "ff_{}.2": "mlp.2",
        "norm1_{}.linear": "mod.lin",
    }.items()
}
DIFFSYNTH_SINGLE = {
    "to_qkv_mlp": "linear1",
    "proj_out": "linear2",
    "norm.linear": "modulation.lin",
}


@dataclass(frozen=True)
class LoraTarget:
    """Rows of a layer: the first, and how many; ``swap``: a file has their halves swapped."""

    layer: str
    start: int
    count: int
    width: int
    swap: bool = False


@dataclass
class LoraMatch:
    """What of a LoRA belongs to one model: deltas by layer, scales of norms that are overwritten,
    and the keys that do and do not.

    ``refused`` are keys of layers that the model has, with the reason why they are not applied.
    """

    lora: Lora
    part: str = "transformer"
    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.lora.path}: {len(self.matched)} tensors applied to {len(self.deltas)} layers"
            + (f" and {len(self.norms)} norms" if self.norms else "")
            + f" of {PART_NAMES[self.part]}"
        ]
        if self.unmatched:
            lines.append(f"{len(self.unmatched)} not matched: {first_names(self.unmatched)}")
        lines += [f"{name} {reason}" for name, reason in list(self.refused.items())[:5]]
        return "\n".join(lines)


def lora_report(lora: Lora, matches: Sequence[LoraMatch]) -> str:
    """Where every tensor of a LoRA went: applied, refused, or for a part that is not wired."""
    lines = [str(m) for m in matches if m.matched or m.unmatched]
    for part in PART_NAMES:
        if part in (m.part for m in matches):
            continue
        keys = [key for (owner, _), keys in lora.keys.items() if owner == part for key in keys]
        if keys:
            lines.append(
                f"{len(keys)} tensors are for {PART_NAMES[part]}, which is not wired: "
                f"{first_names(keys)}"
            )
    if lora.alphas:
        counts = ", ".join(f"{count} {where}" for where, count in lora.alphas.items())
        lines.append(f"alpha of layers: {counts}")
    return "\n".join(lines)


def is_whole(matches: Sequence[LoraMatch]) -> bool:
    """Whether everything that was looked at was applied."""
    return not any(m.unmatched for m in matches)


def first_names(names: list[str]) -> str:
    """The first three of many names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def part_of(module: nn.Module) -> str:
    """Which part a module is: ``transformer``, ``clip_l`` or ``t5``."""
    return str(getattr(module, "part", "transformer"))


def linears_of(module: nn.Module) -> dict[str, Layer]:
    """Every layer that may have a LoRA, by its native name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | QuantizedLinear)
    }


def diffusers_targets(module: FluxBody) -> dict[str, LoraTarget]:
    """The layers that diffusers has, by its names."""
    layers = linears_of(module)
    hidden = int(module.img_in.out_features)
    targets: dict[str, LoraTarget] = {}
    for ours, recipe in module.diffusers_recipes().items():
        name, _, kind = ours.rpartition(".")
        if kind != "weight" or name not in layers:
            continue
        width, count = layers[name].in_features, layers[name].out_features
        counts = [hidden] * 3 + [count - 3 * hidden]
        if len(recipe.names) == 1:
            counts = [count]
        for i, theirs in enumerate(recipe.names):
            target = LoraTarget(name, i * hidden, counts[i], width, recipe.transform == "swap")
            targets[theirs.removesuffix(".weight")] = target
    return targets


def lora_targets(module: nn.Module) -> dict[str, LoraTarget]:
    """Every name that a layer or a member of a fused one goes by."""
    layers = linears_of(module)

    def whole(name: str) -> LoraTarget:
        return LoraTarget(name, 0, layers[name].out_features, layers[name].in_features)

    targets = {name: whole(name) for name in layers}
    if isinstance(module, FluxBody):
        hidden = module.img_in.out_features
        targets |= diffusers_targets(module)
        for i in range(len(module.double_blocks)):
            for theirs, ours in XLABS_DOUBLE.items():
                name = f"double_blocks.{i}.{ours}"
                targets[f"double_blocks.{i}.processor.{theirs}"] = whole(name)
        for i in range(len(module.single_blocks)):
            name = f"single_blocks.{i}.linear1"
            targets[f"single_blocks.{i}.processor.qkv_lora"] = LoraTarget(
                name, 0, 3 * hidden, whole(name).width
            )
            targets[f"single_blocks.{i}.processor.proj_lora"] = whole(f"single_blocks.{i}.linear2")
        targets |= diffsynth_targets(module, targets)
    else:
        targets |= text_encoder_targets(targets)
    return targets


def diffsynth_targets(module: FluxBody, targets: Mapping[str, LoraTarget]) -> dict[str, LoraTarget]:
    """A transformer's layers, and members of fused ones, in DiffSynth-Studio's names."""
    renamed: dict[str, LoraTarget] = {}
    for i in range(len(module.double_blocks)):
        for theirs, ours in DIFFSYNTH_DOUBLE.items():
            if f"double_blocks.{i}.{ours}" in targets:  # not every model has modulations there
                renamed[f"blocks.{i}.{theirs}"] = targets[f"double_blocks.{i}.{ours}"]
        for member in "qkv":
            block = f"transformer_blocks.{i}.attn"
            renamed[f"blocks.{i}.attn.a_to_{member}"] = targets[f"{block}.to_{member}"]
            renamed[f"blocks.{i}.attn.b_to_{member}"] = targets[f"{block}.add_{member}_proj"]
    for i in range(len(module.single_blocks)):
        block, theirs_block = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        for theirs, ours in DIFFSYNTH_SINGLE.items():
            if f"{block}.{ours}" in targets:
                renamed[f"{block}.{theirs}"] = targets[f"{block}.{ours}"]
        if f"{theirs_block}.proj_mlp" not in targets:  # fused there as well
            continue
        for member in "qkv":
            renamed[f"{block}.a_to_{member}"] = targets[f"{theirs_block}.attn.to_{member}"]
        renamed[f"{block}.proj_in_besides_attn"] = targets[f"{theirs_block}.proj_mlp"]
    return renamed


def text_encoder_targets(targets: Mapping[str, LoraTarget]) -> dict[str, LoraTarget]:
    """A text encoder's layers under the other names that they go by: without what transformers
    puts around the model, and in OpenAI's names."""
    renamed: dict[str, LoraTarget] = {}
    for outer in ("text_model.", "encoder."):
        for name, target in targets.items():
            if name.startswith(outer):
                renamed[name.removeprefix(outer)] = target
    for ours, recipe in openai_clip_layers(count_blocks(targets, CLIP_LAYERS)).items():
        name, _, kind = ours.rpartition(".")
        if kind == "weight" and name in targets and recipe.transform == "copy":
            theirs = recipe.names[0].removesuffix(".weight")
            renamed[theirs] = renamed[theirs.removeprefix("transformer.")] = targets[name]
    return renamed


def norm_names(module: nn.Module) -> dict[str, str]:
    """Native names of the norms that a LoRA may overwrite, by every name that they go by."""
    names = {name: name for name, m in module.named_modules() if isinstance(m, RMSNorm)}
    if isinstance(module, FluxBody):
        for ours, recipe in module.diffusers_recipes().items():
            name, _, kind = ours.rpartition(".")
            if kind == "scale" and name in names:
                names[recipe.names[0].removesuffix(".weight")] = name
    return names


def new_scale(norm: RMSNorm, kinds: Mapping[str, Tensor]) -> Tensor:
    """A norm's scale (head,) as a LoRA wants it; raises ``ValueError`` for anything else of it."""
    refuse_not_read(kinds)
    (kind, value), *more = kinds.items()
    if more or kind not in ("value", "diff"):
        raise ValueError(f"is a norm's, and holds {', '.join(kinds)}")
    if value.shape != norm.scale.shape:
        raise ValueError(
            f"is made for a norm of {tuple(value.shape)}, this one is {tuple(norm.scale.shape)}"
        )
    return value.float() if kind == "value" else norm.scale.detach().float().cpu() + value.float()


def match_lora(lora: Lora, module: nn.Module, part: str | None = None) -> LoraMatch:
    """Find a LoRA's layers in a transformer, CLIP-L or T5.

    Args:
        part: ``transformer``, ``clip_l`` or ``t5``; by default told by the module.
    """
    part = part or part_of(module)
    targets = lora_targets(module)
    targets |= {name.replace(".", "_"): target for name, target in targets.items()} | targets
    norms = norm_names(module)
    norms |= {name.replace(".", "_"): ours for name, ours in norms.items()}
    match = LoraMatch(lora, part, unmatched=list(lora.unknown) if part == "transformer" else [])
    for (owner, name), kinds in lora.layers.items():
        if owner != part:
            continue
        keys = list(lora.keys[owner, name])
        target = targets.get(name)
        if target is None and name not in norms:
            match.unmatched += keys
            continue
        try:
            if target is None:
                norm = cast(RMSNorm, module.get_submodule(norms[name]))
                match.norms[norms[name]] = new_scale(norm, kinds)
                match.matched += keys
                continue
            rows, wider = (target.start, target.count), target.layer == WIDENED_LAYER
            delta = make_delta(kinds, rows, target.width, target.swap, wider)
        except ValueError as error:
            match.refused[name] = str(error)
            match.unmatched += keys
            continue
        match.deltas.setdefault(target.layer, []).append(delta)
        match.matched += keys
    return match


def refuse_unmatched(lora: Lora, matches: list[LoraMatch]) -> None:
    """Raise ``CheckpointError`` where no layer of any part has anything of a LoRA."""
    if any(m.matched for m in matches):
        return
    keys = [key for keys in lora.keys.values() for key in keys] + list(lora.unknown)
    reasons = [f"; {name} {why}" for m in matches for name, why in m.refused.items()][:1]
    asked = {m.part for m in matches}
    others = {part for part, _ in lora.layers} - asked
    if not reasons and others and not any(part in asked for part, _ in lora.layers):
        names = " and ".join(PART_NAMES[part] for part in PART_NAMES if part in others)
        reasons = [f"; all of it is for {names}, which is not wired"]
    raise CheckpointError(
        f"{lora.path}: nothing of it fits this model: found {first_names(keys)}{''.join(reasons)}; "
        "expected names such as transformer.transformer_blocks.0.attn.to_q.lora_A.weight or "
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, of FLUX.1"
    )
