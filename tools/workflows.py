"""Write ``workflows/``: each graph in the page's format, as an API prompt, and as a thumbnail.

A graph is described below by its nodes and wires; sizes, widget order and types come from the node
classes, so that both formats always fit them. ``python -m tools.workflows`` writes all; pocket
workflows are run for their thumbnail, the others are drawn as diagrams.
"""

from __future__ import annotations

import argparse
import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "workflows"
THUMBNAIL = 512

runpy.run_path(str(ROOT / "__main__.py"), run_name="fluxfit_command")["open_package"]()

from fluxfit.flux_core.pipeline import POCKET_SAMPLING  # noqa: E402
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless  # noqa: E402  (the package is open now)


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
        "memory": Node("FluxMemoryReport", 1560, 0, {}, {"image": ("decode", 0)}),
        "timeline": Node("PreviewImage", 1560, 140, {}, {"images": ("memory", 1)}),
    }


def upscaled(image: tuple[str, int], net: str, models: list, x: int, values: dict) -> Description:
    """A picture to a larger one."""
    return {
        "upscaler": Node(
            "ControlNetUpscalerFP8", x, 0, {"controlnet": net} | values,
            {"vae": ("loader", 2), "image": image}, models=models,
        ),
        "redraw": Node(
            "FluxSampler", x + 420, 0, {"seed": 7, "shift": "diffsynth"},
            {"model": ("loader", 0), "positive": ("prompt", 0), "latent": ("upscaler", 1),
             "control": ("upscaler", 0)},
        ),
        "decode_large": Node(
            "VAEDecode", x + 800, 0, {}, {"samples": ("redraw", 0), "vae": ("loader", 2)}
        ),
        "save_large": Node(
            "SaveImage", x + 800, 120, {"filename_prefix": "FluxFit/upscaled"},
            {"images": ("decode_large", 0)},
        ),
    }  # fmt: skip


def pocket_upscale() -> Description:
    """Draw, make small and blurred, enlarge again: needs no picture of the person's own."""
    first = drawing(PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/original")
    small = {
        "small": Node(
            "ImageScaleBy", 1180, 550, {"upscale_method": "area", "scale_by": 0.25},
            {"image": ("decode", 0)},
        ),
        "blur": Node(
            "ImageBlur", 1180, 710, {"blur_radius": 3, "sigma": 0.5}, {"image": ("small", 0)}
        ),
    }  # fmt: skip
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


BACKGROUND = (24, 26, 32)
COMPARED = ("fp8_e4m3fn", "fp8_e5m2", "fp8_scaled", "int8")


def compare_precisions() -> Description:
    """One prompt at every precision, on one sheet, each against bf16."""
    graph: Description = {
        "policy": Node("OffloadPolicy", 0, 0, {"mode": "auto"}),
        "loader": Node(
            "FluxLoaderFP8", 0, 460,
            dict(POCKET_FILES) | {"transformer_precision": "bf16", "t5_precision": "bf16"},
            {"policy": ("policy", 0)},
        ),
        "prompt": text(PROMPT),
        "negative": text("", y=300, title="negative prompt"),
        "size": Node("EmptySD3LatentImage", 380, 600, {"width": 256, "height": 256}),
    }  # fmt: skip
    shown = {}
    for i, precision in enumerate(("bf16", *COMPARED)):
        y = 420 * i
        model = ("loader", 0)
        if i:
            model = (precision, 0)
            graph[precision] = Node(
                "FluxTransformerLoader", 380, 700 + 240 * i,
                {"transformer": POCKET_FILES["transformer"], "precision": precision},
                {"policy": ("policy", 0)}, title=precision,
            )  # fmt: skip
        graph[f"sampler {precision}"] = Node(
            "FluxSampler", 800, y, dict(SAMPLING),
            {"model": model, "positive": ("prompt", 0), "latent": ("size", 0),
             "negative": ("negative", 0)},
        )  # fmt: skip
        graph[f"decode {precision}"] = Node(
            "VAEDecode", 1180, y, {},
            {"samples": (f"sampler {precision}", 0), "vae": ("loader", 2)},
        )  # fmt: skip
        shown[f"image_{i + 1}"] = (f"decode {precision}", 0)
    labels = "\n".join(("bf16", *COMPARED))
    return graph | {
        "grid": Node("FluxGrid", 1560, 0, {"labels": labels}, shown),
        "save": Node(
            "SaveImage", 1560, 420, {"filename_prefix": "FluxFit/compare_precisions"},
            {"images": ("grid", 0)},
        ),
    }  # fmt: skip


CONCEPT = "a red crescent on a blue background"


def train_lora() -> Description:
    """Teach the pocket model a shape that it cannot draw, and draw it without and with the LoRA."""
    parts = {"model": ("loader", 0), "text_encoders": ("loader", 1), "vae": ("loader", 2)}
    graph: Description = loader(POCKET_FILES, []) | {
        "dataset": Node("FluxDataset", 380, 0, {"folder": "crescent", "resolution": 256}),
        "pictures": Node("PreviewImage", 800, 0, {}, {"images": ("dataset", 1)}),
        "settings": Node(
            "FluxTrainSettings", 380, 330,
            {"steps": 600, "batch": 4, "learning_rate": 2e-3, "timesteps": "shift",
             "weight_decay": 0.0, "schedule": "cosine", "warmup": 20},
        ),
        "train": Node(
            "FluxTrainLora", 800, 330,
            {"name": "crescent", "sample_prompts": CONCEPT, "sample_every": 200,
             "sample_steps": POCKET_SAMPLING["steps"], "sample_cfg": POCKET_SAMPLING["cfg"],
             "sample_shift": POCKET_SAMPLING["shift"]},
            parts | {"dataset": ("dataset", 0), "settings": ("settings", 0)},
        ),
        "loss": Node("PreviewImage", 1220, 0, {}, {"images": ("train", 1)}),
        "prompt": text(CONCEPT, 1220, 330),
        "negative": text("", 1220, 620, title="negative prompt"),
        "size": Node("EmptySD3LatentImage", 1220, 920, {"width": 256, "height": 256}),
    }  # fmt: skip
    for i, (name, model) in enumerate((("before", "loader"), ("after", "train"))):
        graph[name] = Node(
            "FluxSampler", 1640, 420 * i, dict(SAMPLING),
            {"model": (model, 0), "positive": ("prompt", 0), "latent": ("size", 0),
             "negative": ("negative", 0)}, title=f"{name} training",
        )  # fmt: skip
        graph[f"decode {name}"] = Node(
            "VAEDecode", 2020, 420 * i, {}, {"samples": (name, 0), "vae": ("loader", 2)}
        )
    return graph | {
        "grid": Node(
            "FluxGrid", 2400, 0, {"labels": "before\nafter", "columns": 2},
            {"image_1": ("decode before", 0), "image_2": ("decode after", 0)},
        ),
        "save": Node(
            "SaveImage", 2400, 300, {"filename_prefix": "FluxFit/train_lora"},
            {"images": ("grid", 0)},
        ),
    }  # fmt: skip


def descriptions() -> dict[str, Description]:
    return {
        "text_to_image": drawing(
            PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/text_to_image"
        ),
        "upscale": pocket_upscale(),
        "compare_precisions": compare_precisions(),
        "train_lora": train_lora(),
        "flux1_dev_fp8_offload": with_report(drawing(
            "a red fox asleep in fresh snow, morning light, photograph", 1024, DEV_FILES,
            DEV_MODELS, DEV_SAMPLING, "FluxFit/flux1_dev",
        )),
        "flux1_dev_upscaler_fp8": dev_upscale(),
    }  # fmt: skip


def outputs_of(type_: str) -> list[tuple[str, str]]:
    """Name and wire type of each output."""
    node_class = headless.NODES[type_]
    types = node_class.RETURN_TYPES
    return list(zip(getattr(node_class, "RETURN_NAMES", types), types, strict=True))


def widgets(node: Node) -> dict[str, Any]:
    """Values of a node's widgets in order, defaults filled in."""
    values = {}
    for name, (kind, options) in headless.input_specs(headless.NODES[node.type]).items():
        if headless.is_widget(kind):
            first = kind[0] if isinstance(kind, list | tuple) and kind else ""
            values[name] = node.values.get(name, options.get("default", first))
    unknown = set(node.values) - set(values)
    if unknown:
        raise ValueError(f"{node.type} has no widget {', '.join(sorted(unknown))}")
    return values


def api_prompt(graph: Description) -> dict[str, Any]:
    numbers = {name: str(i + 1) for i, name in enumerate(graph)}
    return {
        numbers[name]: {
            "class_type": node.type,
            "inputs": widgets(node)
            | {key: [numbers[source], slot] for key, (source, slot) in node.wires.items()},
            "_meta": {"title": node.title or node.type},
        }
        for name, node in graph.items()
    }


def ui_workflow(graph: Description) -> dict[str, Any]:
    numbers = {name: i + 1 for i, name in enumerate(graph)}
    links: list[list[Any]] = []
    incoming: dict[tuple[str, str], int] = {}
    outgoing: dict[tuple[str, int], list[int]] = {}
    for name, node in graph.items():
        specs = headless.input_specs(headless.NODES[node.type])
        ordered = [key for key in specs if not headless.is_widget(specs[key][0])]
        for key, (source, slot) in node.wires.items():
            number = len(links) + 1
            kind = outputs_of(graph[source].type)[slot][1]
            links.append([number, numbers[source], slot, numbers[name], ordered.index(key), kind])
            incoming[name, key] = number
            outgoing.setdefault((source, slot), []).append(number)
    nodes = [ui_node(name, node, numbers[name], incoming, outgoing) for name, node in graph.items()]
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def size_of(node: Node) -> list[int]:
    """Width and height that hold a node's sockets and widgets."""
    specs = headless.input_specs(headless.NODES[node.type])
    rows = max(len(specs) - len(widgets(node)), len(outputs_of(node.type)))
    height = 40 + 20 * rows + 26 * len(widgets(node))
    height += 100 * sum(bool(options.get("multiline")) for _, options in specs.values())
    return [340, height + (280 if node.type in ("SaveImage", "LoadImage") else 0)]


def ui_node(name: str, node: Node, number: int, incoming: dict, outgoing: dict) -> dict[str, Any]:
    specs = headless.input_specs(headless.NODES[node.type])
    values: list[Any] = []
    for key, value in widgets(node).items():
        values.append(value)
        if headless.adds_control(key, specs[key][1]):
            values.append("fixed")
    if node.type == "LoadImage":
        values.append("image")
    properties: dict[str, Any] = {"Node name for S&R": node.type}
    if node.type in NODE_CLASS_MAPPINGS:
        properties |= {"cnr_id": "fluxfit", "ver": "0.1.0"}
    else:
        properties |= {"cnr_id": "comfy-core", "ver": "0.3.64"}
    if node.models:
        properties["models"] = node.models
    made = {
        "id": number,
        "type": node.type,
        "pos": [node.x, node.y],
        "size": size_of(node),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [
            {"name": key, "type": kind, "link": incoming.get((name, key))}
            for key, (kind, _) in specs.items()
            if not headless.is_widget(kind)
        ],
        "outputs": [
            {
                "name": label,
                "type": kind,
                "links": outgoing.get((name, slot), []),
                "slot_index": slot,
            }
            for slot, (label, kind) in enumerate(outputs_of(node.type))
        ],
        "properties": properties,
        "widgets_values": values,
    }
    return made | ({"title": node.title} if node.title else {})


def diagram(workflow: dict[str, Any]) -> Image.Image:
    """The graph as boxes and wires."""
    nodes = {n["id"]: n for n in workflow["nodes"]}
    right = max(n["pos"][0] + n["size"][0] for n in nodes.values()) + 40
    bottom = max(n["pos"][1] + n["size"][1] for n in nodes.values()) + 60
    scale = THUMBNAIL / max(right, bottom)
    picture = Image.new("RGB", (THUMBNAIL * 2, THUMBNAIL * 2), BACKGROUND)
    canvas, scale = ImageDraw.Draw(picture), scale * 2
    font = ImageFont.load_default(size=15)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x + 20) * scale, (y + 40) * scale + (2 * THUMBNAIL - bottom * scale) / 2

    for _, source, slot, target, place, _ in workflow["links"]:
        a, b = nodes[source], nodes[target]
        start = at(a["pos"][0] + a["size"][0], a["pos"][1] + 14 + 20 * slot)
        end = at(b["pos"][0], b["pos"][1] + 14 + 20 * place)
        canvas.line([start, end], fill=(240, 170, 60), width=3)
    for node in nodes.values():
        (x, y), (w, h) = node["pos"], node["size"]
        ours = node["type"] in NODE_CLASS_MAPPINGS
        canvas.rounded_rectangle(
            (*at(x, y - 24), *at(x + w, y + h)), 8, fill=(52, 78, 120) if ours else (58, 60, 68)
        )
        canvas.text(at(x + 10, y - 10), node["type"], fill=(255, 255, 255), font=font)
    return picture.reduce(2)


def write(name: str, graph: Description) -> None:
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    workflow = ui_workflow(graph)
    page, api = FOLDER / f"{name}.json", FOLDER / "api" / f"{name}.json"
    page.write_text(json.dumps(workflow, indent=2) + "\n")
    api.write_text(json.dumps(api_prompt(graph), indent=2) + "\n")
    if any(node.models for node in graph.values()):
        picture = diagram(workflow)
    else:
        results = headless.run(headless.read_workflow(page))
        pictures = [Image.open(path) for path in headless.saved_images(results)]
        size = (THUMBNAIL, THUMBNAIL)
        picture = ImageOps.pad(pictures[-1], size, Image.Resampling.LANCZOS, color=BACKGROUND)
    picture.convert("RGB").save(FOLDER / f"{name}.jpg", quality=88)
    print(f"workflows/{name}.json, api/{name}.json, {name}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="names; all without")
    args = parser.parse_args()
    for name, graph in descriptions().items():
        if not args.only or name in args.only:
            write(name, graph)


if __name__ == "__main__":
    main()
