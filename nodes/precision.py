"""Precision plans from files, and quantized weights to files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flux_core import Control, PrecisionPlan, save_module
from flux_core.files import read_text

from . import host
from .loaders import PREVIEW_KEY
from .widgets import model_file, socket, text, toggle
from .wires import (
    FLUX_CONTROL,
    FLUX_MODEL,
    FLUX_TEXT_ENCODERS,
    PRECISION,
    PRECISION_PLAN,
    FluxModel,
    FluxTextEncoders,
    controls_of,
)


class FluxFitPrecisionPlan:
    """A plan from a file."""

    DESCRIPTION = (
        "Opens a precision plan: a small JSON file under output/precision_plans or "
        "models/precision_plans that says which layers have which precision. "
        "FluxFitMeasurePrecision makes them."
    )
    CATEGORY = PRECISION
    FUNCTION = "load"
    RETURN_TYPES = (PRECISION_PLAN,)
    RETURN_NAMES = ("plan",)
    OUTPUT_TOOLTIPS = ("For a loader's plan input.",)

    @classmethod
    def INPUT_TYPES(cls):
        where = "A file of the folder output/precision_plans or models/precision_plans."
        return {"required": {"name": model_file((host.PLANS,), where, host.plan_names())}}

    @classmethod
    def IS_CHANGED(cls, name: str) -> str:
        return read_text(plan_path(name))

    def load(self, name: str):
        return (PrecisionPlan.load(plan_path(name)),)


def plan_path(name: str) -> Path:
    """The precision plan of that name; raises ``FileNotFoundError`` where there is none."""
    for root in host.plan_folders():
        if (path := host.inside(root, name)).is_file():
            return path
    raise FileNotFoundError(f"no precision plan {name!r} in {host.plan_folders()[0]}")


class FluxFitSaveQuantized:
    """Weights to a file as they are held."""

    DESCRIPTION = (
        "Writes what is wired in (transformer, T5, the ControlNets) as safetensors, at the "
        "precision that it is held in, under output/, where ComfyUI finds it again. Loading such a "
        "file never builds the 16-bit model. ComfyUI opens float8 files too, and int8 if new."
    )
    CATEGORY = PRECISION
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
                "name": text("FluxFit/flux1_int8", "The files' name, without ending."),
                "overwrite": toggle(False, "Replace files of that name."),
            },
            "optional": {
                "model": socket(FLUX_MODEL, "Goes to output/diffusion_models."),
                "text_encoders": socket(FLUX_TEXT_ENCODERS, "Their T5 goes to output/clip."),
                "control": socket(FLUX_CONTROL, "Its ControlNets go to output/controlnet."),
            },
        }

    def save(
        self,
        name: str,
        overwrite: bool,
        model: FluxModel | None = None,
        text_encoders: FluxTextEncoders | None = None,
        control: Sequence[Control] | None = None,
    ):
        wanted: list[tuple[str, str, Any]] = []
        if model is not None:
            wanted.append(("diffusion_models", name, model.transformer))
        if text_encoders is not None:
            encoder = text_encoders.encoders.context_encoder
            wanted.append(("clip", f"{name}_{encoder.part}", encoder))
        nets = [c.net for c in controls_of(control)]
        for i, net in enumerate(nets):
            number = f"_{i + 1}" if len(nets) > 1 else ""
            wanted.append(("controlnet", f"{name}_controlnet{number}", net))
        if not wanted:
            raise ValueError("nothing is wired in: expected a model, text encoders or a control")
        root = host.output_folder()
        paths = [host.inside(root / folder, f"{n}.safetensors") for folder, n, _ in wanted]
        taken = [path for path in paths if path.exists()]
        if taken and not overwrite:
            raise FileExistsError(f"{taken[0]} exists already: choose another name or overwrite")
        preview = None if model is None or model.preview is None else model.preview.tolist()
        notes = {} if preview is None else {PREVIEW_KEY: json.dumps(preview)}
        with host.progress(100 * len(wanted), "saving") as bar:
            for i, (path, (*_, module)) in enumerate(zip(paths, wanted, strict=True)):
                save_module(
                    module,
                    path,
                    metadata=notes if i == 0 else None,
                    progress=lambda done, total, i=i: bar.update(100 * i + 100 * done // total),
                )
        lines = [f"{path}: {path.stat().st_size / 2**20:.1f} MiB" for path in paths]
        return {"ui": {"text": lines}, "result": ("\n".join(lines),)}
