"""What stands before a sampler in a graph, as far as the live plan counts it.

The page sends the nodes that a sampler is fed by, nearest first: each with its ``type``, the
``values`` of its widgets, the ``wired`` inputs, and ``behind`` which of the sampler's inputs it
stands. Nodes that say how a model is drawn are called as a run calls them, on a model without
numbers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flux_core import Control, FluxControlNet, FluxTransformer, IPAdapter, OffloadPolicy
from flux_core.checkpoint.load import outline
from flux_core.lora import Lora, load_lora
from flux_core.sampling.hires import Hires
from flux_core.sampling.outline import DrawingOptions, no_numbers
from flux_core.sampling.reference_pictures import DRAWN

from . import host
from .control import FOLDER as CONTROL_FOLDER
from .control import ControlNetUpscalerFP8, FluxFitControlNet
from .guidance import FluxFitGuidance, FluxFitNAG
from .inpaint import FluxFitDifferentialDiffusion
from .large import FluxFitHiresFix, FluxFitTiledDrawing
from .lora import FOLDER as LORA_FOLDER
from .lora_control import FluxFitLoraControl
from .reference import FluxFitReferenceAttention
from .sampler import FluxSampler
from .weights import weights_key
from .wires import FluxModel

Node = Mapping[str, Any]
SAMPLER_NODES = {node.__name__: node for node in (FluxSampler, FluxFitHiresFix)}
CONTROLS = tuple(node.__name__ for node in (FluxFitControlNet, ControlNetUpscalerFP8))
#: Nodes that take a model and widgets, and give a model.
ON_MODELS = {
    node.__name__: node
    for node in (
        FluxFitGuidance,
        FluxFitNAG,
        FluxFitTiledDrawing,
        FluxFitDifferentialDiffusion,
        FluxFitReferenceAttention,
        FluxFitLoraControl,
    )
}
#: What a reference of unknown size is counted as: a megapixel, as Kontext's are.
MEGAPIXEL = (1024, 1024)
#: Tokens of a picture that SigLIP sees for Redux, along a side.
REDUX_SIDE = 27
#: Outlines of LoRAs and adapters that are kept.
KEPT = 32
#: Numbers of a LoRA's tensor that is kept whole: alphas, scales of norms.
SMALL = 4096
_kept: OrderedDict[Hashable, Any] = OrderedDict()
#: The page asks from several threads.
_asking = threading.Lock()


def remembered(key: Hashable, make: Callable[[], Any]) -> Any:
    """What was made for a key, one of the last ones."""
    with _asking:
        if key not in _kept:
            with torch.inference_mode(False):
                _kept[key] = make()
        _kept.move_to_end(key)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        return _kept[key]


def outlined_lora(path: Path) -> Lora:
    """A LoRA whose large tensors have no numbers."""

    def small(tensor: Tensor) -> Tensor:
        return tensor.to("meta") if tensor.ndim > 1 and tensor.numel() > SMALL else tensor.clone()

    def make() -> Lora:
        lora = load_lora(path)
        layers = {
            layer: {kind: small(tensor) for kind, tensor in kinds.items()}
            for layer, kinds in lora.layers.items()
        }
        return replace(lora, layers=layers)

    return remembered(weights_key("lora outline", path, ""), make)


def outlined_file(kind: str, name: object, folder: str, precision: object) -> nn.Module:
    """A part of a file on meta."""
    path, chosen = host.model_path(str(name), folder), str(precision or "bf16")
    key = weights_key(f"{kind} outline", path, chosen)
    return remembered(key, lambda: outline(path, kind, chosen))


def outlined_adapter_of(nodes: Sequence[Node]) -> IPAdapter | None:
    """The IP-Adapter of the nearest loader, on meta."""
    loader = next((node for node in nodes if node["type"] == "FluxFitIPAdapterLoader"), None)
    if loader is None:
        return None
    values = loader["values"]
    about = ("ip_adapter", values.get("ip_adapter"), host.IP_ADAPTERS, values.get("precision"))
    return cast(IPAdapter, outlined_file(*about))


def outlined_nets(nodes: Sequence[Node], behind: str) -> list[FluxControlNet]:
    """The ControlNets behind an input of the sampler, on meta, but for those that count nothing."""
    return [
        cast(
            FluxControlNet,
            outlined_file(
                "controlnet",
                node["values"].get("controlnet"),
                CONTROL_FOLDER,
                node["values"].get("precision"),
            ),
        )
        for node in nodes
        if node["type"] in CONTROLS
        and behind in node["behind"]
        and node["values"].get("strength", 1)
    ]


def nodes_of(question: Mapping[str, Any]) -> list[Node]:
    """The nodes of a question; raises ``ValueError`` for anything else."""
    nodes = question.get("nodes") or []
    for node in nodes:
        whole = isinstance(node, dict) and isinstance(node.get("type"), str)
        parts = (("values", dict), ("wired", list), ("behind", list)) if whole else ()
        if not whole or not all(isinstance(node.get(name), kind) for name, kind in parts):
            raise ValueError("nodes has something that is no node: type, values, wired, behind")
    return list(nodes)


def widgets_of(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """A node's widgets with what a graph says of them, and their defaults for the rest."""
    inputs = kind.INPUT_TYPES()
    specs = {**inputs["required"], **inputs.get("optional", {})}
    defaults = {
        name: spec[1]["default"]
        for name, spec in specs.items()
        if len(spec) > 1 and "default" in spec[1]
    }
    return {name: values.get(name, default) for name, default in defaults.items()}


def called(node: Node, model: FluxModel) -> FluxModel:
    """The model behind a node that changes how it is drawn."""
    kind = ON_MODELS[node["type"]]
    values = widgets_of(kind, node["values"])
    if kind is FluxFitLoraControl:
        if not model.loras:
            return model
        if "mask" in node["wired"]:
            values["mask"] = torch.ones(1, 8, 8)
    function = getattr(kind(), kind.FUNCTION)
    return cast(FluxModel, function(model=model, **values)[0])


def model_of(nodes: Sequence[Node], transformer: FluxTransformer) -> tuple[FluxModel, list[bool]]:
    """The model that reaches the sampler, and of each IP-Adapter on it, whether the negative prompt
    is shown a picture too."""
    model, adapters = FluxModel(transformer, OffloadPolicy()), list[bool]()
    for node in reversed(nodes):  # from the loader on
        values = node["values"]
        if "model" not in node["behind"]:
            continue
        if node["type"] == "FluxFitLoraLoader" and values.get("on", True):
            path = host.model_path(str(values.get("lora")), LORA_FOLDER)
            use = (outlined_lora(path), float(values.get("strength", 1.0)))
            model = replace(model, loras=(*model.loras, use))
        elif node["type"] == "FluxFitApplyIPAdapter" and values.get("weight", 1.0):
            adapters.append("negative_output" in node["wired"])
        elif node["type"] in ON_MODELS:
            model = called(node, model)
    return model, adapters


def redux_tokens(nodes: Sequence[Node]) -> int:
    """Tokens that pictures add to the positive prompt."""
    sides = [int(node["values"].get("grid") or REDUX_SIDE) for node in nodes]
    return sum(side * side for side in sides)


def options_of(
    question: Mapping[str, Any], transformer: FluxTransformer, width: int, height: int
) -> DrawingOptions | None:
    """What a question's graph asks for beside a plain prompt; None where it has no sampler.

    Raises ``ValueError`` for values that a run would refuse, and ``FileNotFoundError``.
    """
    nodes = nodes_of(question)
    sampler = next((node for node in nodes if node["type"] in SAMPLER_NODES), None)
    if sampler is None:
        return None
    values, wired = widgets_of(SAMPLER_NODES[sampler["type"]], sampler["values"]), sampler["wired"]
    model, adapters = model_of(nodes, transformer)
    adapter = outlined_adapter_of(nodes) if adapters else None
    prompt = [node for node in nodes if "positive" in node["behind"]]
    kinds = {
        kind: [node for node in prompt if node["type"] == kind]
        for kind in ("FluxFitReference", "ReferenceLatent", "FluxFitRegion", "FluxFitRedux")
    }
    references = [
        (height, width) if node["values"].get("size") == DRAWN else MEGAPIXEL
        for node in (*kinds["FluxFitReference"], *kinds["ReferenceLatent"])
    ]
    guidance = model.guidance_options
    cfg = float(values["cfg"]) if "negative" in wired else 1.0
    if "negative" not in wired:
        guidance = replace(guidance, nag=None)  # a run would say that it has none
    hires = None
    if sampler["type"] == FluxFitHiresFix.__name__:
        hires = Hires(
            float(values["scale"]),
            float(values["second_denoise"]),
            int(values["second_steps"]) or None,
            str(values["enlarge"]),
            model.tiles,
            [Control(net, no_numbers(1, 1, 1, 1)) for net in outlined_nets(nodes, "upscaler")],
        )
    return DrawingOptions(
        cfg,
        guidance,
        references,
        model.reference_attention,
        len(kinds["FluxFitRegion"]),
        redux_tokens(kinds["FluxFitRedux"]),
        outlined_nets(nodes, "control"),
        [(adapter, shown) for shown in adapters] if adapter is not None else [],
        model.loras,
        model.tiles,
        model.differential,
        hires,
    )


def counted_lines(options: DrawingOptions | None) -> list[str]:
    """What was counted beside a plain prompt, in one line; none where there is nothing."""
    if options is None:
        return []
    guidance, tiles = options.guidance_options, options.tiles
    counted = [
        *counts("reference", len(options.references)),
        *counts("region", options.regions),
        *counts("Redux token", options.more_text),
        *counts("ControlNet", len(options.controls)),
        *counts("IP-Adapter", len(options.adapters)),
        *counts("LoRA", len(options.loras)),
        *(["cfg"] if options.cfg != 1.0 else []),
        *(["NAG"] if guidance.nag is not None else []),
        *([f"tiles of {tiles.size}"] if tiles is not None else []),
        *([f"a second run, {options.hires.scale:g}x"] if options.hires is not None else []),
    ]
    return ["counted: " + ", ".join(counted)] if counted else []


def counts(what: str, number: int) -> list[str]:
    """So many of something, none where there are none."""
    return [f"{number} {what}{'s' if number > 1 else ''}"] if number else []
