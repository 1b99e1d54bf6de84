"""The nodes that draw a few prompts to learn from them what a precision loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from flux_core import Control, PrecisionPlan
from flux_core.calibration.calibrate import calibrated_copy
from flux_core.calibration.second_moments import record_second_moments_of_all
from flux_core.calibration.sensitivity import choose_plan, measure_sensitivity
from flux_core.files import write_text
from flux_core.models.families import family_of
from flux_core.quant import FORMATS, quantized_names
from flux_core.report.pictures import bars
from flux_core.sampling.run import DrawRequest, SamplingSettings, while_drawing

from . import accounts, host
from .conditioning import conditioning_of
from .memory_manager import HostOffloadRunner
from .sampler import start_latents
from .widgets import STEADY, choice, free_number, integer, plan_input, socket, text
from .wires import (
    FLUX_CONTROL,
    FLUX_MODEL,
    PRECISION,
    PRECISION_PLAN,
    FluxModel,
    Latent,
    controls_of,
)

T = TypeVar("T")


def drawing_inputs(precision: str, help: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Inputs of a node that draws prompts, ``more`` of its own behind the format."""
    prompt = socket("CONDITIONING", "Another prompt to draw.")
    return {
        "required": {
            "model": socket(FLUX_MODEL, "A transformer loaded in bf16."),
            "positive": socket("CONDITIONING", "A prompt to draw."),
            "latent": socket("LATENT", "The size to draw at."),
            "precision": choice(list(FORMATS), help, default=precision),
            **more,
            "steps": integer(4, 1, 100, "Steps drawn of each prompt."),
            "seed": integer(0, 0, 0xFFFFFFFFFFFFFFFF, "Of the noise.", **STEADY),
        },
        "optional": {"positive_2": prompt, "positive_3": prompt},
    }


def observe_drawing(
    what: str,
    model: FluxModel,
    prompts: Sequence,
    latent: Latent,
    steps: int,
    seed: int,
    function: Callable[[Callable[[], object]], T],
    controls: Sequence[Control] = (),
) -> T:
    """Call a function with the model on the device; it is given what draws all the prompts."""
    start, settings = (
        start_latents(latent["samples"], model),
        SamplingSettings(seed=seed, steps=steps),
    )
    requests = [
        DrawRequest(
            model.transformer,
            conditioning_of(prompt, family=family_of(model.transformer)),
            start,
            settings,
            controls=controls,
            loras=model.loras,
            adapters=model.adapters,
        )
        for prompt in prompts
        if prompt is not None
    ]
    runner = HostOffloadRunner(model.policy, host.device())
    with host.progress(sum(request.steps for request in requests), what) as bar:
        result = while_drawing(
            runner, requests, function, callback=lambda step, total, _: bar.update(step + 1)
        )
    accounts.account(runner.report)
    return result


class FluxFitMeasurePrecision:
    """Which layers to keep in 16 bits."""

    DESCRIPTION = (
        "Draws one to three prompts with a model in bf16, measures what each layer loses in every "
        "format, and chooses which layers keep 16 bits within a budget. The plan goes into a "
        "loader and into files that are saved with it."
    )
    CATEGORY = PRECISION
    FUNCTION = "measure"
    SEARCH_ALIASES = ["mixed precision", "sensitivity"]
    RETURN_TYPES = (PRECISION_PLAN, "IMAGE", "STRING")
    RETURN_NAMES = ("plan", "errors", "report")
    OUTPUT_TOOLTIPS = (
        "For a loader's plan input.",
        "The error of each layer, the largest first.",
        "The plan as JSON.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        inputs = drawing_inputs(
            "int8",
            "The format of all the other layers.",
            bits_per_weight=free_number(
                8.5, 8.0, 16.0, 0.1, "The budget: 8 keeps no layer in 16 bits, 16 keeps all."
            ),
        )
        inputs["required"]["save_as"] = text(
            "",
            "A new name under output/precision_plans to keep the plan under; empty keeps it on the "
            "wire alone.",
        )
        return inputs

    def measure(
        self,
        model: FluxModel,
        positive: list,
        latent: Latent,
        precision: str,
        bits_per_weight: float,
        steps: int,
        seed: int,
        save_as: str,
        positive_2: list | None = None,
        positive_3: list | None = None,
    ):
        path = host.inside(host.plan_folders()[0], save_as + ".json") if save_as else None
        if path is not None and path.exists():
            raise FileExistsError(f"{path} exists already: choose another name, or delete it")
        measured = observe_drawing(
            "measuring",
            model,
            (positive, positive_2, positive_3),
            latent,
            steps,
            seed,
            lambda draw: measure_sensitivity(model.transformer, draw),
        )
        plan = choose_plan(measured, precision, bits_per_weight)
        if path is not None:
            write_text(path, plan.to_json())
        title = f"relative output error by layer; {len(plan.layers)} layers keep 16 bits"
        picture = bars({name: layer.errors for name, layer in measured.items()}, title)
        return plan, picture[None], plan.to_json()


class FluxFitCalibrate:
    """One byte a weight, rounded for what the layers read."""

    DESCRIPTION = (
        "Draws one to three prompts with a model in bf16 and quantizes it so that its layers lose "
        "least for what they read there, instead of rounding each weight to the nearest code. "
        "Files are of the same formats: save them once, and drawing with them costs nothing more. "
        "ControlNets in bf16 that are wired in are calibrated with it."
    )
    CATEGORY = PRECISION
    FUNCTION = "calibrate"
    SEARCH_ALIASES = ["quantize", "gptq", "fp8", "int8"]
    RETURN_TYPES = (FLUX_MODEL, FLUX_CONTROL)
    RETURN_NAMES = ("model", "control")
    OUTPUT_TOOLTIPS = (
        "The quantized transformer, for FluxSampler and FluxFitSaveQuantized.",
        "The ControlNets, quantized alike.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        inputs = drawing_inputs("fp8_scaled", "The format of what comes out.")
        inputs["optional"] |= {
            "plan": plan_input(),
            "control": socket(FLUX_CONTROL, "ControlNets to draw with, and to calibrate."),
        }
        return inputs

    def calibrate(
        self,
        model: FluxModel,
        positive: list,
        latent: Latent,
        precision: str,
        steps: int,
        seed: int,
        positive_2: list | None = None,
        positive_3: list | None = None,
        plan: PrecisionPlan | None = None,
        control: Sequence[Control] | None = None,
    ):
        controls = controls_of(control)
        nets = [c.net for c in controls if not quantized_names(c.net)]
        modules = [model.transformer, *dict.fromkeys(nets)]
        second_moments = observe_drawing(
            "calibrating",
            model,
            (positive, positive_2, positive_3),
            latent,
            steps,
            seed,
            lambda draw: record_second_moments_of_all(modules, draw),
            controls,
        )
        calibrated = {}
        for module, of_inputs in zip(modules, second_moments, strict=True):
            of = precision if plan is None or module is not model.transformer else plan
            calibrated[module] = calibrated_copy(module, of, of_inputs, host.device())
        tuned = tuple(replace(c, net=calibrated.get(c.net, c.net)) for c in controls)
        return replace(model, module=calibrated[model.module], compute=None), tuned
