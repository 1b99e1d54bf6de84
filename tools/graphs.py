"""The graphs of ``workflows/``: their nodes, values and wires."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flux_core.pocket import POCKET_SAMPLING
from tools.model_files import DEV_MODELS, UPSCALER_MODEL


@dataclass
class Node:
    """A node: class, values that differ from defaults, wires; ``tools.pages`` says where it is."""

    type: str
    values: dict[str, Any] = field(default_factory=dict)
    wires: dict[str, tuple[str, int]] = field(default_factory=dict)
    title: str | None = None
    models: list[dict[str, str]] = field(default_factory=list)


Description = dict[str, Node]
POCKET_FILES = {
    "transformer": "fluxfit_pocket.safetensors",
    "clip_l": "fluxfit_pocket_clip_l.safetensors",
    "t5": "fluxfit_pocket_t5.safetensors",
    "vae": "fluxfit_pocket_vae.safetensors",
}
DEV_FILES = dict(zip(POCKET_FILES, (m["name"] for m in DEV_MODELS), strict=True))


def loader(files: dict[str, str], models: list[dict[str, str]]) -> Description:
    return {
        "policy": Node("OffloadPolicy", {"mode": "auto"}),
        "loader": Node("FluxLoaderFP8", dict(files), {"policy": ("policy", 0)}, models=models),
    }


def text(prompt: str, title: str | None = None) -> Node:
    return Node("FluxTextEncode", {"prompt": prompt}, {"text_encoders": ("loader", 1)}, title)


PROMPT = "a large red heart in the middle on a white background"
SAMPLING = {"seed": 7} | POCKET_SAMPLING
DEV_SAMPLING = {"seed": 7}


def drawing(
    prompt: str, side: int, files: dict[str, str], models: list, sampling: dict, prefix: str
) -> Description:
    """A sentence to a picture."""
    wires = {"model": ("loader", 0), "positive": ("prompt", 0), "latent": ("size", 0)}
    graph = loader(files, models) | {"prompt": text(prompt)}
    if "cfg" in sampling:
        graph["negative"] = text("", title="negative prompt")
        wires["negative"] = ("negative", 0)
    return graph | {
        "size": Node("EmptySD3LatentImage", {"width": side, "height": side}),
        "sampler": Node("FluxSampler", dict(sampling), wires),
        "decode": Node("VAEDecode", {}, {"samples": ("sampler", 0), "vae": ("loader", 2)}),
        "save": Node("SaveImage", {"filename_prefix": prefix}, {"images": ("decode", 0)}),
    }


def with_report(graph: Description) -> Description:
    """A drawing that shows what it took."""
    return graph | {
        "memory": Node("FluxFitMemoryReport", {}, {"image": ("decode", 0)}),
        "timeline": Node("PreviewImage", {}, {"images": ("memory", 1)}),
    }


def upscaled(image: tuple[str, int], net: str, models: list, values: dict) -> Description:
    """A picture to a larger one."""
    return {
        "upscaler": Node(
            "ControlNetUpscalerFP8",
            {"controlnet": net} | values,
            {"vae": ("loader", 2), "image": image},
            models=models,
        ),
        "redraw": Node(
            "FluxSampler",
            {"seed": 7, "shift": "diffsynth"},
            {
                "model": ("loader", 0),
                "positive": ("prompt", 0),
                "latent": ("upscaler", 1),
                "control": ("upscaler", 0),
            },
        ),
        "decode_large": Node("VAEDecode", {}, {"samples": ("redraw", 0), "vae": ("loader", 2)}),
        "save_large": Node(
            "SaveImage",
            {"filename_prefix": "FluxFit/upscaled"},
            {"images": ("decode_large", 0)},
        ),
    }


def pocket_upscale() -> Description:
    """Draw, make small and blurred, enlarge again: needs no picture of the person's own."""
    first = drawing(PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/original")
    small = {
        "small": Node(
            "ImageScaleBy",
            {"upscale_method": "area", "scale_by": 0.25},
            {"image": ("decode", 0)},
        ),
        "blur": Node("ImageBlur", {"blur_radius": 3, "sigma": 0.5}, {"image": ("small", 0)}),
    }
    net = "fluxfit_pocket_upscaler.safetensors"
    return first | small | upscaled(("blur", 0), net, [], {"strength": 1.0})


def dev_upscale() -> Description:
    return (
        loader(DEV_FILES, DEV_MODELS)
        | {
            "prompt": text("a photograph, sharp, finely detailed"),
            "picture": Node("LoadImage", {"image": "example.png"}),
        }
        | upscaled(("picture", 0), UPSCALER_MODEL["name"], [UPSCALER_MODEL], {"strength": 0.7})
    )


def pocket_loader() -> Description:
    return loader(POCKET_FILES, [])


def swap_the_loader() -> Description:
    """The stock graph for FLUX.1, its loaders replaced by ours."""
    return pocket_loader() | {
        "prompt": Node("CLIPTextEncode", {"text": PROMPT}, {"clip": ("loader", 4)}),
        "guidance": Node("FluxGuidance", {"guidance": 3.5}, {"conditioning": ("prompt", 0)}),
        "negative": Node(
            "CLIPTextEncode", {"text": ""}, {"clip": ("loader", 4)}, title="negative prompt"
        ),
        "size": Node("EmptySD3LatentImage", {"width": 256, "height": 256}),
        "sampler": Node(
            "KSampler",
            {
                "seed": 7,
                "steps": POCKET_SAMPLING["steps"],
                "cfg": POCKET_SAMPLING["cfg"],
                "sampler_name": "euler",
                "scheduler": "simple",
            },
            {
                "model": ("loader", 3),
                "positive": ("guidance", 0),
                "negative": ("negative", 0),
                "latent_image": ("size", 0),
            },
        ),
        "decode": Node("VAEDecode", {}, {"samples": ("sampler", 0), "vae": ("loader", 2)}),
        "save": Node(
            "SaveImage", {"filename_prefix": "FluxFit/swap_the_loader"}, {"images": ("decode", 0)}
        ),
    }


def image_to_image() -> Description:
    """A drawing, and the same one drawn again from the middle of the way with another sentence."""
    first = drawing(PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/before")
    return first | {
        "other": text("a large blue heart in the middle on a white background", "other prompt"),
        "encode": Node("VAEEncode", {}, {"pixels": ("decode", 0), "vae": ("loader", 2)}),
        "again": Node(
            "FluxSampler",
            dict(SAMPLING) | {"denoise": 0.85},
            {
                "model": ("loader", 0),
                "positive": ("other", 0),
                "latent": ("encode", 0),
                "negative": ("negative", 0),
            },
        ),
        "decode_again": Node("VAEDecode", {}, {"samples": ("again", 0), "vae": ("loader", 2)}),
        "save_again": Node(
            "SaveImage",
            {"filename_prefix": "FluxFit/image_to_image"},
            {"images": ("decode_again", 0)},
        ),
    }


COMPARED = ("fp8_e4m3fn", "fp8_e5m2", "fp8_scaled", "int8")
#: What is drawn to calibrate a precision, which is then compared as well.
CALIBRATED = "fp8_scaled"
SEEN = ("a small blue circle in the top left on a yellow background", "a green star on black")


# long: a table of nodes
def compare_precisions() -> Description:
    """One prompt at every precision, on one sheet, each against bf16; one of them calibrated."""
    graph: Description = {
        "policy": Node("OffloadPolicy", {"mode": "auto"}),
        "loader": Node(
            "FluxLoaderFP8",
            dict(POCKET_FILES) | {"transformer_precision": "bf16", "t5_precision": "bf16"},
            {"policy": ("policy", 0)},
        ),
        "prompt": text(PROMPT),
        "negative": text("", title="negative prompt"),
        "size": Node("EmptySD3LatentImage", {"width": 256, "height": 256}),
    }
    for i, sentence in enumerate(SEEN):
        graph[f"seen {i}"] = text(sentence, "prompt to calibrate with")
    shown = {}
    labels = ("bf16", *COMPARED, f"{CALIBRATED}, calibrated")
    for i, precision in enumerate(labels):
        model = ("loader", 0) if not i else (precision, 0)
        if precision in COMPARED:
            graph[precision] = Node(
                "FluxFitTransformerLoader",
                {"transformer": POCKET_FILES["transformer"], "precision": precision},
                {"policy": ("policy", 0)},
                title=precision,
            )
        elif i:
            graph[precision] = Node(
                "FluxFitCalibrate",
                {"precision": CALIBRATED, "steps": 10},
                {
                    "model": ("loader", 0),
                    "latent": ("size", 0),
                    "positive": ("seen 0", 0),
                    "positive_2": ("seen 1", 0),
                    "positive_3": ("negative", 0),
                },
            )
        graph[f"sampler {precision}"] = Node(
            "FluxSampler",
            dict(SAMPLING),
            {
                "model": model,
                "positive": ("prompt", 0),
                "latent": ("size", 0),
                "negative": ("negative", 0),
            },
            title=f"sampler: {precision}",
        )
        graph[f"decode {precision}"] = Node(
            "VAEDecode",
            {},
            {"samples": (f"sampler {precision}", 0), "vae": ("loader", 2)},
        )
        shown[f"image_{i + 1}"] = (f"decode {precision}", 0)
    return graph | {
        "grid": Node("FluxFitGrid", {"labels": "\n".join(labels)}, shown),
        "save": Node(
            "SaveImage",
            {"filename_prefix": "FluxFit/compare_precisions"},
            {"images": ("grid", 0)},
        ),
    }


def batch_table() -> Description:
    """A table of sentences and seeds, each row a picture."""
    sampling = SAMPLING | {"steps": 12}
    graph = drawing(PROMPT, 256, POCKET_FILES, [], sampling, "")
    del graph["save"]
    number = 1 + list(graph).index("prompt")
    mapping = f"prompt={number}.prompt"
    return graph | {
        "table": Node("FluxFitTable", {"table": "shapes.csv", "mapping": mapping}),
        "batch": Node(
            "FluxFitBatch",
            {"folder": "FluxFit/batch_table"},
            {"table": ("table", 0), "images": ("decode", 0)},
        ),
        "grid": Node("PreviewImage", {}, {"images": ("batch", 1)}),
    }


CONCEPT = "a red crescent on a blue background"


# long: a table of nodes
def train_lora() -> Description:
    """Teach the pocket model a shape that it cannot draw, and draw it without and with the LoRA."""
    parts = {"model": ("loader", 0), "text_encoders": ("loader", 1), "vae": ("loader", 2)}
    graph: Description = loader(POCKET_FILES, []) | {
        "dataset": Node("FluxFitDataset", {"folder": "crescent", "resolution": 256}),
        "pictures": Node("PreviewImage", {}, {"images": ("dataset", 1)}),
        "settings": Node(
            "FluxFitTrainSettings",
            {
                "steps": 600,
                "batch": 4,
                "learning_rate": 2e-3,
                "timesteps": "shift",
                "weight_decay": 0.0,
                "schedule": "cosine",
                "warmup": 20,
            },
        ),
        "train": Node(
            "FluxFitTrainLora",
            {
                "name": "crescent",
                "sample_prompts": CONCEPT,
                "sample_every": 200,
                "sample_steps": POCKET_SAMPLING["steps"],
                "sample_cfg": POCKET_SAMPLING["cfg"],
                "sample_shift": POCKET_SAMPLING["shift"],
            },
            parts | {"dataset": ("dataset", 0), "settings": ("settings", 0)},
        ),
        "loss": Node("PreviewImage", {}, {"images": ("train", 1)}),
        "prompt": text(CONCEPT),
        "negative": text("", title="negative prompt"),
        "size": Node("EmptySD3LatentImage", {"width": 256, "height": 256}),
    }
    for name, model in (("before", "loader"), ("after", "train")):
        graph[name] = Node(
            "FluxSampler",
            dict(SAMPLING),
            {
                "model": (model, 0),
                "positive": ("prompt", 0),
                "latent": ("size", 0),
                "negative": ("negative", 0),
            },
            title=f"{name} training",
        )
        graph[f"decode {name}"] = Node(
            "VAEDecode", {}, {"samples": (name, 0), "vae": ("loader", 2)}
        )
    return graph | {
        "grid": Node(
            "FluxFitGrid",
            {"labels": "before\nafter", "columns": 2},
            {"image_1": ("decode before", 0), "image_2": ("decode after", 0)},
        ),
        "save": Node(
            "SaveImage",
            {"filename_prefix": "FluxFit/train_lora"},
            {"images": ("grid", 0)},
        ),
    }
