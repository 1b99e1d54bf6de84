"""The graphs of ``workflows/``: their nodes, values and wires."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flux_core.pocket import POCKET_SAMPLING


@dataclass
class Node:
    """A node: class, place of its column and row in pixels, values that differ from defaults."""

    type: str
    x: int
    y: int
    values: dict[str, Any] = field(default_factory=dict)
    wires: dict[str, tuple[str, int]] = field(default_factory=dict)
    title: str | None = None
    models: list[dict[str, str]] = field(default_factory=list)


Description = dict[str, Node]
HUGGING_FACE = "https://huggingface.co"
DEV_MODELS = [
    {
        "name": "flux1-dev.safetensors",
        "url": f"{HUGGING_FACE}/black-forest-labs/FLUX.1-dev/resolve/main/flux1-dev.safetensors",
        "directory": "diffusion_models",
    },
    {
        "name": "clip_l.safetensors",
        "url": f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors",
        "directory": "text_encoders",
    },
    {
        "name": "t5xxl_fp16.safetensors",
        "url": f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main/"
        "t5xxl_fp16.safetensors",
        "directory": "text_encoders",
    },
    {
        "name": "ae.safetensors",
        "url": f"{HUGGING_FACE}/black-forest-labs/FLUX.1-dev/resolve/main/ae.safetensors",
        "directory": "vae",
    },
]
UPSCALER_MODEL = {
    "name": "flux1-dev-controlnet-upscaler.safetensors",
    "url": f"{HUGGING_FACE}/jasperai/Flux.1-dev-Controlnet-Upscaler/resolve/main/"
    "diffusion_pytorch_model.safetensors",
    "directory": "controlnet",
}
POCKET_FILES = {
    "transformer": "fluxfit_pocket.safetensors",
    "clip_l": "fluxfit_pocket_clip_l.safetensors",
    "t5": "fluxfit_pocket_t5.safetensors",
    "vae": "fluxfit_pocket_vae.safetensors",
}
DEV_FILES = dict(zip(POCKET_FILES, (m["name"] for m in DEV_MODELS), strict=True))


def loader(files: dict[str, str], models: list[dict[str, str]]) -> Description:
    return {
        "policy": Node("OffloadPolicy", 0, 0, {"mode": "auto"}),
        "loader": Node(
            "FluxLoaderFP8", 0, 460, dict(files), {"policy": ("policy", 0)}, models=models
        ),
    }


def text(prompt: str, x: int = 380, y: int = 0, title: str | None = None) -> Node:
    return Node("FluxTextEncode", x, y, {"prompt": prompt}, {"text_encoders": ("loader", 1)}, title)


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
        graph["negative"] = text("", y=620, title="negative prompt")
        wires["negative"] = ("negative", 0)
    return graph | {
        "size": Node("EmptySD3LatentImage", 380, 430, {"width": side, "height": side}),
        "sampler": Node("FluxSampler", 800, 0, dict(sampling), wires),
        "decode": Node("VAEDecode", 1180, 0, {}, {"samples": ("sampler", 0), "vae": ("loader", 2)}),
        "save": Node(
            "SaveImage", 1180, 120, {"filename_prefix": prefix}, {"images": ("decode", 0)}
        ),
    }


def with_report(graph: Description) -> Description:
    """A drawing that shows what it took."""
    return graph | {
        "memory": Node("FluxFitMemoryReport", 1560, 0, {}, {"image": ("decode", 0)}),
        "timeline": Node("PreviewImage", 1560, 140, {}, {"images": ("memory", 1)}),
    }


def upscaled(image: tuple[str, int], net: str, models: list, x: int, values: dict) -> Description:
    """A picture to a larger one."""
    return {
        "upscaler": Node(
            "ControlNetUpscalerFP8",
            x,
            0,
            {"controlnet": net} | values,
            {"vae": ("loader", 2), "image": image},
            models=models,
        ),
        "redraw": Node(
            "FluxSampler",
            x + 420,
            0,
            {"seed": 7, "shift": "diffsynth"},
            {
                "model": ("loader", 0),
                "positive": ("prompt", 0),
                "latent": ("upscaler", 1),
                "control": ("upscaler", 0),
            },
        ),
        "decode_large": Node(
            "VAEDecode", x + 800, 0, {}, {"samples": ("redraw", 0), "vae": ("loader", 2)}
        ),
        "save_large": Node(
            "SaveImage",
            x + 800,
            120,
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
            1180,
            550,
            {"upscale_method": "area", "scale_by": 0.25},
            {"image": ("decode", 0)},
        ),
        "blur": Node(
            "ImageBlur", 1180, 710, {"blur_radius": 3, "sigma": 0.5}, {"image": ("small", 0)}
        ),
    }
    net = "fluxfit_pocket_upscaler.safetensors"
    return first | small | upscaled(("blur", 0), net, [], 1560, {"strength": 1.0})


def dev_upscale() -> Description:
    return (
        loader(DEV_FILES, DEV_MODELS)
        | {
            "prompt": text("a photograph, sharp, finely detailed"),
            "picture": Node("LoadImage", 380, 430, {"image": "example.png"}),
        }
        | upscaled(("picture", 0), UPSCALER_MODEL["name"], [UPSCALER_MODEL], 800, {"strength": 0.7})
    )


COMPARED = ("fp8_e4m3fn", "fp8_e5m2", "fp8_scaled", "int8")
#: What is drawn to calibrate a precision, which is then compared as well.
CALIBRATED = "fp8_scaled"
SEEN = ("a small blue circle in the top left on a yellow background", "a green star on black")


# long: a table of nodes
def compare_precisions() -> Description:
    """One prompt at every precision, on one sheet, each against bf16; one of them calibrated."""
    graph: Description = {
        "policy": Node("OffloadPolicy", 0, 0, {"mode": "auto"}),
        "loader": Node(
            "FluxLoaderFP8",
            0,
            460,
            dict(POCKET_FILES) | {"transformer_precision": "bf16", "t5_precision": "bf16"},
            {"policy": ("policy", 0)},
        ),
        "prompt": text(PROMPT),
        "negative": text("", y=420, title="negative prompt"),
        "size": Node("EmptySD3LatentImage", 380, 840, {"width": 256, "height": 256}),
    }
    for i, sentence in enumerate(SEEN):
        graph[f"seen {i}"] = text(sentence, 0, 1000 + 420 * i, "prompt to calibrate with")
    shown = {}
    labels = ("bf16", *COMPARED, f"{CALIBRATED}, calibrated")
    for i, precision in enumerate(labels):
        y = 420 * i
        model = ("loader", 0) if not i else (precision, 0)
        if precision in COMPARED:
            graph[precision] = Node(
                "FluxFitTransformerLoader",
                380,
                820 + 240 * i,
                {"transformer": POCKET_FILES["transformer"], "precision": precision},
                {"policy": ("policy", 0)},
                title=precision,
            )
        elif i:
            graph[precision] = Node(
                "FluxFitCalibrate",
                380,
                820 + 240 * i,
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
            800,
            y,
            dict(SAMPLING),
            {
                "model": model,
                "positive": ("prompt", 0),
                "latent": ("size", 0),
                "negative": ("negative", 0),
            },
        )
        graph[f"decode {precision}"] = Node(
            "VAEDecode",
            1180,
            y,
            {},
            {"samples": (f"sampler {precision}", 0), "vae": ("loader", 2)},
        )
        shown[f"image_{i + 1}"] = (f"decode {precision}", 0)
    return graph | {
        "grid": Node("FluxFitGrid", 1560, 0, {"labels": "\n".join(labels)}, shown),
        "save": Node(
            "SaveImage",
            1560,
            420,
            {"filename_prefix": "FluxFit/compare_precisions"},
            {"images": ("grid", 0)},
        ),
    }


CONCEPT = "a red crescent on a blue background"


# long: a table of nodes
def train_lora() -> Description:
    """Teach the pocket model a shape that it cannot draw, and draw it without and with the LoRA."""
    parts = {"model": ("loader", 0), "text_encoders": ("loader", 1), "vae": ("loader", 2)}
    graph: Description = loader(POCKET_FILES, []) | {
        "dataset": Node("FluxFitDataset", 380, 0, {"folder": "crescent", "resolution": 256}),
        "pictures": Node("PreviewImage", 800, 0, {}, {"images": ("dataset", 1)}),
        "settings": Node(
            "FluxFitTrainSettings",
            380,
            440,
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
            800,
            440,
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
        "loss": Node("PreviewImage", 1220, 0, {}, {"images": ("train", 1)}),
        "prompt": text(CONCEPT, 1220, 330),
        "negative": text("", 1220, 750, title="negative prompt"),
        "size": Node("EmptySD3LatentImage", 1220, 1170, {"width": 256, "height": 256}),
    }
    for i, (name, model) in enumerate((("before", "loader"), ("after", "train"))):
        graph[name] = Node(
            "FluxSampler",
            1640,
            420 * i,
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
            "VAEDecode", 2020, 420 * i, {}, {"samples": (name, 0), "vae": ("loader", 2)}
        )
    return graph | {
        "grid": Node(
            "FluxFitGrid",
            2400,
            0,
            {"labels": "before\nafter", "columns": 2},
            {"image_1": ("decode before", 0), "image_2": ("decode after", 0)},
        ),
        "save": Node(
            "SaveImage",
            2400,
            480,
            {"filename_prefix": "FluxFit/train_lora"},
            {"images": ("grid", 0)},
        ),
    }


def descriptions() -> dict[str, Description]:
    return {
        "text_to_image": drawing(PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/text_to_image"),
        "upscale": pocket_upscale(),
        "compare_precisions": compare_precisions(),
        "train_lora": train_lora(),
        "flux1_dev_fp8_offload": with_report(
            drawing(
                "a red fox asleep in fresh snow, morning light, photograph",
                1024,
                DEV_FILES,
                DEV_MODELS,
                DEV_SAMPLING,
                "FluxFit/flux1_dev",
            )
        ),
        "flux1_dev_upscaler_fp8": dev_upscale(),
    }
