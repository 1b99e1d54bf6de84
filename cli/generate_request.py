"""All that decides the pictures of ``generate``, as one JSON dict.

``request_of`` makes it from arguments, ``generate_draw.draw`` draws it; between them nothing is
known that is not in it. Files are absolute paths; what was not said is filled in from the model's
family, so that a later version draws the same.

    {"generate": 1, "prompts": [...], "seeds": [...], "batch_size": 1, "width": 1024, ...,
     "model": {"transformer": ..., "vae": ..., "precision": "bf16"}, "loras": [...], ...}

``prompts`` and ``seeds`` have one for each picture. Without ``transformer`` it is the pocket model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .generate_numbers import check_numbers
from .generate_words import MOST_PICTURES, lora_of, region_of, seeds_of, with_picture
from .model_files import find_model, find_picture

VERSION = 1
Request = dict[str, Any]
#: Files of the model beside the transformer.
PARTS = ("clip_l", "t5", "text_encoder", "vae")
#: What the pipeline takes as it is.
PLAIN = (
    *("width", "height", "steps", "guidance", "cfg", "sampler", "scheduler", "shift", "denoise"),
    *("keep_pixels", "differential", "control_strength", "control_end"),
    *("reference_size", "reference_method", "reference_attention"),
)
PICTURES = ("image", "mask", "condition", "condition_mask", "control_picture")
GUIDING = ("cfg_start", "cfg_end", "cfg_zero", "cfg_rescale", "nag_scale")
HIRES = ("hires_denoise", "hires_steps")
MEMORY = ("offload", "vram", "ram", "device", "devices")
#: Options that say something of another one.
NEEDS = {
    "mask": "image",
    "condition_mask": "condition",
    "control_strength": "control_picture",
    "control_end": "control_picture",
    "reference_size": "reference",
    "reference_method": "reference",
    "reference_attention": "reference",
    "keep_pixels": "mask",
    "differential": "mask",
    "hires_denoise": "hires",
    "hires_steps": "hires",
}


def request_of(args: argparse.Namespace) -> Request:
    """The request that arguments ask for, whole.

    Raises ``ValueError`` for what contradicts itself, naming the options, and ``FileNotFoundError``
    for files that are nowhere; then what the headers of the model's files say.
    """
    refuse_contradictions(args)
    check_numbers(args)
    seeds = seeds_of(args.seed, args.count)
    if len(seeds) * len(args.prompt) > MOST_PICTURES:
        pictures = f"{len(args.prompt)} prompts and {len(seeds)} seeds"
        raise ValueError(f"{pictures} are too many pictures, expected at most {MOST_PICTURES}")
    request: Request = {
        "generate": VERSION,
        "prompts": [prompt for prompt in args.prompt for _ in seeds],
        "seeds": seeds * len(args.prompt),
        "batch_size": args.batch_size,
        "negative": args.negative or "",
        "model": model_of(args),
        "memory": given(args, MEMORY),
        **given(args, PLAIN),
    }
    for name in PICTURES:
        if getattr(args, name) is not None:
            request[name] = str(find_picture(getattr(args, name), flag(name)))
    request |= {
        "references": [str(find_picture(path, "--reference")) for path in args.reference],
        "loras": [lora_of(option) for option in args.lora],
        "controls": [with_picture(option, "--control", "control") for option in args.control],
        "redux": [with_picture(option, "--redux", "redux") for option in args.redux],
        "ip_adapters": [
            with_picture(option, "--ip-adapter", "ip_adapter") for option in args.ip_adapter
        ],
        "regions": [region_of(option) for option in args.region],
        "guiding": given(args, GUIDING),
    }
    if args.vision is not None:
        request["vision"] = str(find_model(args.vision, "vision", "--vision"))
    if args.tile is not None:
        request["tile"] = args.tile
    if args.hires is not None:
        request["hires"] = {"scale": args.hires} | given(args, HIRES)
    return with_defaults({name: value for name, value in request.items() if value not in ({}, [])})


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of some that were said, by name."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def model_of(args: argparse.Namespace) -> dict[str, Any]:
    """The files of the model; raises ``ValueError`` for parts without a transformer."""
    names = ("transformer", *PARTS)
    files = {
        name: str(find_model(file, name, flag(name))) for name, file in given(args, names).items()
    }
    of_a_model = [*files, *given(args, ("tokenizers", "text_precision"))]
    if of_a_model and args.transformer is None:
        raise ValueError(f"{flag(of_a_model[0])} is of a model, and there is no --transformer")
    if args.tokenizers is not None:
        files["tokenizers"] = str(find_picture(args.tokenizers, "--tokenizers"))
    return files | given(args, ("precision", "text_precision"))


def refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that say something of what is not there."""
    for name, needed in NEEDS.items():
        if getattr(args, name) is not None and not getattr(args, needed):
            raise ValueError(f"{flag(name)} is given without {flag(needed)}")
    if args.denoise is not None and args.denoise < 1 and args.image is None:
        raise ValueError(f"--denoise {args.denoise:g} is given without --image")
    if args.image is not None and args.mask is None and args.denoise in (None, 1):
        raise ValueError("--image is drawn over at --denoise 1: give --denoise below 1, or --mask")
    if args.vram is not None and args.offload in ("none", "component"):
        raise ValueError(f"--vram is a budget, and --offload {args.offload} asks for none")
    for name in ("vram", "ram"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < 1e6:
            raise ValueError(f"{flag(name)} is {getattr(args, name)}, expected gigabytes")
    if (args.redux or args.ip_adapter) and args.vision is None:
        raise ValueError("--redux and --ip-adapter need --vision, the encoder that sees pictures")
    if args.vision is not None and not (args.redux or args.ip_adapter):
        raise ValueError("--vision is given without --redux and without --ip-adapter")


def with_defaults(request: Mapping[str, Any]) -> Request:
    """A request with what its model's family, or the pocket model, is drawn with."""
    from flux_core.checkpoint.load import transformer_family
    from flux_core.pipeline_files import transformer_of
    from flux_core.pocket import POCKET_SAMPLING

    edits = "references" in request
    usual: Request = {"sampler": "euler", "scheduler": "simple", "denoise": 1.0, "guidance": 3.5}
    transformer = request["model"].get("transformer") if "model" in request else None
    if transformer is None:
        side, memory = 256, "component"
        usual |= {**POCKET_SAMPLING, "cfg": 1.0 if edits else POCKET_SAMPLING["cfg"]}
    else:
        family = transformer_family(transformer_of(transformer))
        side, memory = 1024, "auto"
        usual |= {"steps": family.steps, "cfg": family.cfg, "shift": "host"}
    if edits:
        usual["reference_size"] = "drawn" if transformer is None else "preferred"
    usual |= size_of(request, side)
    complete = usual | dict(request)
    complete["model"] = {"precision": "bf16"} | request.get("model", {})
    if {"vram", "ram"} & set(request.get("memory", {})):
        memory = "auto"
    complete["memory"] = {"offload": memory} | request.get("memory", {})
    if complete["negative"] and complete["cfg"] == 1 and not nagging(complete):
        raise ValueError("--negative is read with --cfg above 1, or with --nag-scale")
    return complete


def nagging(request: Mapping[str, Any]) -> bool:
    """Whether a negative prompt is read whatever cfg is."""
    return "nag_scale" in request.get("guiding", {})


def size_of(request: Mapping[str, Any], side: int) -> dict[str, int]:
    """Width and height: those of the picture to start from, down to a multiple of 16."""
    if "image" not in request:
        return {"width": side, "height": side}
    from flux_core.pictures import upright_size
    from flux_core.sampling.tiles import UNIT

    width, height = upright_size(request["image"])
    return {"width": max(UNIT, width - width % UNIT), "height": max(UNIT, height - height % UNIT)}


def batches_of(request: Mapping[str, Any]) -> list[Request]:
    """Requests of the pictures that are drawn at once, in their order."""
    size, count = request["batch_size"], len(request["prompts"])
    return [
        {**request, **{name: request[name][start : start + size] for name in ("prompts", "seeds")}}
        for start in range(0, count, size)
    ]
