"""Drawing a request of ``generate``: everything is opened once, pictures are drawn in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .generate_request import PICTURES, PLAIN, VERSION, batches_of
from .model_files import find_model, find_picture

if TYPE_CHECKING:
    from PIL import Image

    from flux_core import FluxPipeline, Images, LoraUse, OffloadPolicy
    from flux_core.record import Note
    from flux_core.sampling.guidance import GuidanceOptions
    from flux_core.sampling.hires import Hires

#: Called with steps done and steps in all, of all pictures.
Progress = Callable[[int, int], None]
#: Pixels of windows of a second run.
TILE = 256
GB = 10**9


def draw(request: Mapping[str, Any], progress: Progress | None = None) -> Images:
    """Draw all pictures of a request, which is all that decides them.

    Raises ``ValueError`` for what the pipeline refuses, ``FileNotFoundError`` for files that are
    neither where they were nor in the folders of models.
    """
    opened = Opened.of(request)
    return joined([opened.draw(batch, progress) for batch in batches_of(request)])


def joined(drawn: Sequence[Images]) -> Images:
    """Pictures of one size, in their order."""
    import torch

    from flux_core import Images
    from flux_core.offload import MemoryReport

    report = MemoryReport()
    for images in drawn:
        report.add(images.report)
    seeds = tuple(seed for images in drawn for seed in images.seeds)
    notes = tuple(note for images in drawn for note in images.notes)
    return Images(torch.cat([images.images for images in drawn]), report, seeds, notes)


@dataclass(frozen=True)
class Opened:
    """The pipeline of a request, its arguments but for prompts and seeds, and what was noted while
    they were opened."""

    pipeline: FluxPipeline
    options: dict[str, Any]
    notes: tuple[Note, ...] = ()

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Opened:
        """Numbers and names are checked before anything large is read."""
        if request.get("generate") != VERSION:
            version = request.get("generate")
            raise ValueError(f"the request has version {version!r}, expected {VERSION}")
        from flux_core.record import recording

        with recording() as notes:
            options = options_of(request)
            pipeline = open_pipeline(request)
            options["controls"] = [
                control_of(pipeline, control, request) for control in request.get("controls", ())
            ]
            options["image_prompts"] = image_prompts_of(request)
        return cls(pipeline, options, tuple(notes))

    def draw(self, batch: Mapping[str, Any], progress: Progress | None = None) -> Images:
        """The pictures of one of ``batches_of``."""
        prompts, seeds = batch["prompts"], batch["seeds"]
        one = len(seeds) == 1

        def callback(step: int, total: int, _: object) -> None:
            if progress is not None:
                progress(step + 1, total)

        images = self.pipeline(
            prompts[0] if one else prompts,
            seed=seeds[0] if one else seeds,
            negative_prompt=batch["negative"],
            callback=callback,
            **self.options,
        )
        return replace(images, notes=(*self.notes, *images.notes))


def options_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline that need no model; raises ``ValueError`` for what is out of
    range."""
    from flux_core.sampling.regional import RegionPrompt
    from flux_core.sampling.settings import SamplingSettings
    from flux_core.sampling.sizes import check_size

    options: dict[str, Any] = {name: request[name] for name in PLAIN if name in request}
    check_size(request["width"], request["height"], request["batch_size"])
    options["guidance_options"] = guiding_of(request.get("guiding", {}))
    names = ("steps", "cfg", "sampler", "scheduler", "shift", "denoise", "guidance_options")
    SamplingSettings(seed=list(request["seeds"]), **{name: options[name] for name in names})
    for name in PICTURES:
        if name in request:
            options[name] = opened_picture(request, name)
    if "references" in request:
        options["reference"] = [find_picture(p, "reference") for p in request["references"]]
    options["regions"] = [
        RegionPrompt(region["prompt"], box=tuple(region["box"]))
        for region in request.get("regions", ())
    ]
    options["loras"] = [lora_of(lora) for lora in request.get("loras", ())]
    tiles = tiling_of(request.get("tile", TILE))
    if "tile" in request:
        options["tiles"] = tiles
    if "hires" in request:
        options["hires"] = hires_of(request["hires"], tiles)
    return options


def lora_of(lora: Mapping[str, Any]) -> LoraUse:
    from flux_core import LoraUse

    path = find_model(lora["file"], "lora", "lora")
    return LoraUse(path, lora["strength"], schedule=lora.get("schedule"))


def tiling_of(size: int) -> Any:
    from flux_core.sampling.tiles import UNIT, Tiling

    return Tiling(size, size // 4 // UNIT * UNIT)


def hires_of(hires: Mapping[str, Any], tiles: Any) -> Hires:
    from flux_core.sampling.hires import Hires

    steps = hires.get("hires_steps")
    return Hires(hires["scale"], hires.get("hires_denoise", 0.3), steps, tiles=tiles)


def guiding_of(guiding: Mapping[str, Any]) -> GuidanceOptions:
    from flux_core.sampling.guidance import GuidanceOptions
    from flux_core.sampling.nag import NormalizedAttentionGuidance

    scale = guiding.get("nag_scale")
    return GuidanceOptions(
        start=guiding.get("cfg_start", 0.0),
        end=guiding.get("cfg_end", 1.0),
        cfg_zero=guiding.get("cfg_zero", "off"),
        rescale=guiding.get("cfg_rescale", 0.0),
        nag=None if scale is None else NormalizedAttentionGuidance(scale=scale),
    )


def opened_picture(request: Mapping[str, Any], name: str) -> Image.Image:
    """A picture of a request; the one to start from, and its mask, in the size that is drawn."""
    from flux_core.sampling.images import picture_of

    picture = picture_of(find_picture(request[name], name), name)
    if name in ("image", "mask"):
        return fitted(picture, request["width"], request["height"])
    return picture


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture in a size: cut around its middle where it is a few pixels larger, else scaled and
    cut to its shape."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    beyond = picture.width - width, picture.height - height
    if all(0 <= each < 16 for each in beyond):
        left, top = beyond[0] // 2, beyond[1] // 2
        return picture.crop((left, top, left + width, top + height))
    return ImageOps.fit(picture, (width, height), Resampling.LANCZOS)


def policy_of(memory: Mapping[str, Any]) -> OffloadPolicy:
    from flux_core import OffloadPolicy

    vram, ram = (None if n not in memory else int(memory[n] * GB) for n in ("vram", "ram"))
    devices = memory.get("devices", ())
    return OffloadPolicy(memory["offload"], vram_budget=vram, ram_budget=ram, devices=devices)


def open_pipeline(request: Mapping[str, Any]) -> FluxPipeline:
    """The pocket model, or the files of a request."""
    from flux_core import FluxPipeline

    model, memory = request["model"], request["memory"]
    place = {"policy": policy_of(memory), "device": memory.get("device")}
    how = {name: model[name] for name in ("precision", "text_precision") if name in model}
    if "transformer" not in model:
        return FluxPipeline.from_pocket(precision=model["precision"], **place)
    files = {
        name: find_model(model[name], name, name)
        for name in ("transformer", "clip_l", "t5", "text_encoder", "vae")
        if name in model
    }
    tokenizers = model.get("tokenizers") or tokenizers_for(files)
    return FluxPipeline.from_files(**files, tokenizers=tokenizers, **how, **place)


def tokenizers_for(files: Mapping[str, Path]) -> Path | None:
    """ComfyUI's tokenizers, where it is known and none are beside the weights."""
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        return None
    from flux_core.checkpoint.load import find_tokenizers
    from flux_core.checkpoint.own_tokenizer import has_tokenizer
    from flux_core.models.language_encoders import find_language_tokenizer

    try:
        if "text_encoder" in files:
            if not has_tokenizer(files["text_encoder"]):
                find_language_tokenizer(files["text_encoder"])
        elif "t5" in files:
            find_tokenizers(files.get("clip_l"), files["t5"])
    except FileNotFoundError:
        return Path(host) / "comfy"
    return None


def control_of(
    pipeline: FluxPipeline, control: Mapping[str, Any], request: Mapping[str, Any]
) -> Any:
    """A ControlNet with its picture, and the mask for one that fills."""
    from flux_core import load_controlnet
    from flux_core.models.controlnet import UNION_MODES
    from flux_core.sampling.images import as_masks

    mode = control.get("mode")
    if mode is not None and mode not in UNION_MODES:
        raise ValueError(f"--control mode is {mode!r}, expected one of {', '.join(UNION_MODES)}")
    precision = request["model"]["precision"]
    net = load_controlnet(find_model(control["model"], "control", "control"), precision=precision)
    options: dict[str, Any] = {name: control[name] for name in ("start", "end") if name in control}
    if net.config.num_modes and mode is None:
        raise ValueError(f"{control['model']} is a union ControlNet: say NET:MODE, as NET:canny")
    if net.wants_mask and "mask" in request:
        options["mask"] = as_masks(opened_picture(request, "mask"), "mask")[:, None]
    number = None if mode is None else UNION_MODES[mode]
    picture = find_picture(control["picture"], "control")
    return pipeline.control(net, picture, control.get("strength", 1.0), mode=number, **options)


def image_prompts_of(request: Mapping[str, Any]) -> list[Any]:
    """Pictures that say what to draw."""
    if "vision" not in request:
        return []
    from flux_core import (
        IPAdapterPrompt,
        ReduxPrompt,
        load_ip_adapter,
        load_redux,
        load_vision_encoder,
    )

    encoder = load_vision_encoder(find_model(request["vision"], "vision", "vision"))
    prompts: list[Any] = []
    for each in request.get("redux", ()):
        redux = load_redux(find_model(each["model"], "redux", "redux"))
        picture = find_picture(each["picture"], "redux")
        prompts.append(ReduxPrompt(redux, encoder, picture, each.get("strength", 1.0)))
    for each in request.get("ip_adapters", ()):
        adapter = load_ip_adapter(find_model(each["model"], "ip_adapter", "ip_adapter"))
        span = {name: each[name] for name in ("start", "end") if name in each}
        picture, weight = find_picture(each["picture"], "ip_adapter"), each.get("strength", 1.0)
        prompts.append(IPAdapterPrompt(adapter, encoder, picture, weight, **span))
    return prompts
