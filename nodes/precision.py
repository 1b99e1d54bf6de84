"""The nodes that measure what a precision loses, keep the choice, and save quantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..flux_core import OffloadPolicy, PrecisionPlan, save_module
from ..flux_core.pictures import bars
from ..flux_core.quant import FORMATS
from ..flux_core.quant.measure import choose_plan, measure
from ..flux_core.sampling import make_course, sample
from . import host
from .loaders import PREVIEW_KEY
from .patcher import run
from .sampler import start_latents
from .wires import (
    CATEGORY,
    FLUX_CONTROL,
    FLUX_MODEL,
    FLUX_TEXT_ENCODERS,
    PRECISION_PLAN,
    FluxModel,
    FluxTextEncoders,
    conditioning_of,
    controls_of,
)


class FluxMeasurePrecision:
    """Which layers to keep in 16 bits."""

    DESCRIPTION = (
        "Draws one to three prompts with a model in bf16, measures what each layer loses in every "
        "format, and chooses which layers keep 16 bits within a budget. The plan goes into a "
        "loader and into files that are saved with it. The card must hold the transformer in bf16."
    )
    CATEGORY = CATEGORY
    FUNCTION = "measure"
    SEARCH_ALIASES = ["mixed precision", "calibrate", "sensitivity"]
    RETURN_TYPES = (PRECISION_PLAN, "IMAGE", "STRING")
    RETURN_NAMES = ("plan", "errors", "report")
    OUTPUT_TOOLTIPS = (
        "For a loader's plan input.",
        "The error of each layer, the largest first.",
        "The plan as JSON.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        prompt = ("CONDITIONING", {"tooltip": "Another prompt to draw."})
        return {
            "required": {
                "model": (FLUX_MODEL, {"tooltip": "A transformer loaded in bf16."}),
                "positive": ("CONDITIONING", {"tooltip": "A prompt to draw."}),
                "latent": ("LATENT", {"tooltip": "The size to draw at."}),
                "precision": (
                    list(FORMATS),
                    {"default": "int8", "tooltip": "The format of all the other layers."},
                ),
                "bits_per_weight": (
                    "FLOAT",
                    {
                        "default": 8.5,
                        "min": 8.0,
                        "max": 16.0,
                        "step": 0.1,
                        "tooltip": "The budget: 8 keeps no layer in 16 bits, 16 keeps all.",
                    },
                ),
                "steps": (
                    "INT",
                    {"default": 4, "min": 1, "max": 100, "tooltip": "Steps drawn of each prompt."},
                ),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF,
                                 "tooltip": "Of the noise."}),
                "save_as": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A name under models/precision_plans to keep the plan under; "
                        "empty keeps it on the wire alone.",
                    },
                ),
            },
            "optional": {"positive_2": prompt, "positive_3": prompt},
        }  # fmt: skip

    def measure(
        self, model: FluxModel, positive, latent: dict, precision: str, bits_per_weight: float,
        steps: int, seed: int, save_as: str, positive_2=None, positive_3=None,
    ):  # fmt: skip
        path = host.inside(host.plans_folder(), save_as + ".json") if save_as else None
        prompts = [conditioning_of(p) for p in (positive, positive_2, positive_3) if p is not None]
        start = start_latents(latent["samples"])
        course = make_course(model.transformer.config, start.shape, seed=seed, steps=steps)
        policy = model.policy
        if policy.of(model.transformer) != "none":  # streamed layers have no names to listen to
            policy = OffloadPolicy("component")
        with host.progress(steps * len(prompts), "measuring") as bar:

            def draw() -> None:
                for i, prompt in enumerate(prompts):
                    sample(
                        model.transformer, prompt, start, course,
                        callback=lambda step, total, _, i=i: bar.update(i * steps + step + 1),
                        device=host.device(),
                    )  # fmt: skip

            measured = run(
                "transformer", policy, [model.transformer],
                lambda _: measure(model.transformer, draw),
            )  # fmt: skip
        plan = choose_plan(measured, precision, bits_per_weight)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(plan.to_json(), encoding="utf-8")
        title = f"relative output error by layer; {len(plan.layers)} layers keep 16 bits"
        picture = bars({name: layer.errors for name, layer in measured.items()}, title)
        return plan, picture[None], plan.to_json()


class FluxPrecisionPlan:
    """A plan from a file."""

    DESCRIPTION = (
        "Opens a precision plan: a small JSON file under models/precision_plans that says which "
        "layers have which precision. FluxMeasurePrecision makes them."
    )
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (PRECISION_PLAN,)
    RETURN_NAMES = ("plan",)
    OUTPUT_TOOLTIPS = ("For a loader's plan input.",)

    @classmethod
    def INPUT_TYPES(cls):
        where = "A file of the folder models/precision_plans."
        return {"required": {"name": (host.plan_names(), {"tooltip": where})}}

    @classmethod
    def IS_CHANGED(cls, name: str) -> str:
        return plan_path(name).read_text(encoding="utf-8")

    def load(self, name: str):
        return (PrecisionPlan.load(plan_path(name)),)


def plan_path(name: str) -> Path:
    path = host.inside(host.plans_folder(), name)
    if not path.is_file():
        raise FileNotFoundError(f"no precision plan {name!r} in {host.plans_folder()}")
    return path


class FluxSaveQuantized:
    """Weights to a file as they are held."""

    DESCRIPTION = (
        "Writes what is wired in (transformer, T5, the ControlNets) as safetensors, at the "
        "precision that it is held in, under output/, where ComfyUI finds it again. Loading such a "
        "file never builds the 16-bit model. ComfyUI opens float8 files too, and int8 if new."
    )
    CATEGORY = CATEGORY
    FUNCTION = "save"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["save model", "quantize", "export"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_TOOLTIPS = ("The files and their sizes.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "name": (
                    "STRING",
                    {
                        "default": "FluxFit/flux1_int8",
                        "tooltip": "The files' name, without ending.",
                    },
                ),
                "overwrite": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Replace files of that name."},
                ),
            },
            "optional": {
                "model": (FLUX_MODEL, {"tooltip": "Goes to output/diffusion_models."}),
                "text_encoders": (
                    FLUX_TEXT_ENCODERS,
                    {"tooltip": "Their T5 goes to output/clip."},
                ),
                "control": (FLUX_CONTROL, {"tooltip": "Its ControlNets go to output/controlnet."}),
            },
        }

    def save(
        self, name: str, overwrite: bool, model: FluxModel | None = None,
        text_encoders: FluxTextEncoders | None = None, control=None,
    ):  # fmt: skip
        wanted: list[tuple[str, Any]] = []
        if model is not None:
            wanted.append((f"diffusion_models/{name}", model.transformer))
        if text_encoders is not None:
            wanted.append((f"clip/{name}_t5", text_encoders.encoders.t5))
        nets = [c.net for c in controls_of(control)]
        for i, net in enumerate(nets):
            number = f"_{i + 1}" if len(nets) > 1 else ""
            wanted.append((f"controlnet/{name}_controlnet{number}", net))
        if not wanted:
            raise ValueError("nothing is wired in: expected a model, text encoders or a control")
        paths = [host.inside(host.output_folder(), f"{n}.safetensors") for n, _ in wanted]
        taken = [path for path in paths if path.exists()]
        if taken and not overwrite:
            raise FileExistsError(f"{taken[0]} exists already: choose another name or overwrite")
        preview = None if model is None or model.preview is None else model.preview.tolist()
        notes = {} if preview is None else {PREVIEW_KEY: json.dumps(preview)}
        with host.progress(100 * len(wanted), "saving") as bar:
            for i, (path, (_, module)) in enumerate(zip(paths, wanted, strict=True)):
                save_module(
                    module, path, metadata=notes if i == 0 else None,
                    progress=lambda done, total, i=i: bar.update(100 * i + 100 * done // total),
                )  # fmt: skip
        lines = [f"{path}: {path.stat().st_size / 2**20:.1f} MiB" for path in paths]
        return {"ui": {"text": lines}, "result": ("\n".join(lines),)}
