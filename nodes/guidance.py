"""The nodes that say how FLUX Sampler guides away from the negative prompt."""

from __future__ import annotations

from dataclasses import replace

from flux_core.sampling.guidance import CFG_ZERO, PLAIN_GUIDANCE
from flux_core.sampling.nag import NormalizedAttentionGuidance

from .widgets import choice, integer, number, socket, toggle
from .wires import FLUX_MODEL, SAMPLING, FluxModel

USUAL = NormalizedAttentionGuidance()


def share(default: float, tooltip: str) -> tuple:
    return number(default, 0.0, 1.0, 0.01, tooltip)


class FluxFitGuidance:
    """What is made of the positive and the negative prediction."""

    DESCRIPTION = (
        "How FLUX Sampler guides away from the negative prompt where cfg is not 1: over which "
        "steps, and with which formula. Steps outside of start and end take half the time."
    )
    CATEGORY = SAMPLING
    FUNCTION = "set"
    SEARCH_ALIASES = [
        "cfg",
        "cfg zero star",
        "rescale cfg",
        "mahiro",
        "guidance interval",
        "dynamic thresholding",
    ]
    RETURN_TYPES = (FLUX_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For FLUX Sampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From a loader."),
                "start": share(0.0, "Share of the steps from which cfg counts; 0 is the start."),
                "end": share(1.0, "Share of the steps until which cfg counts; 1 is the end."),
                "cfg_zero": choice(
                    list(CFG_ZERO),
                    "CFG-Zero*, which gives the negative prediction the length that fits. "
                    "velocity: as in the paper. picture: as ComfyUI's CFGZeroStar.",
                    default=PLAIN_GUIDANCE.cfg_zero,
                ),
                "zero_steps": integer(
                    0, 0, 100, "First steps that leave the noise as it is; 1 in the paper."
                ),
                "rescale": share(
                    0.0, "How much of the contrast that cfg adds is taken back; 0.7 is usual."
                ),
                "positive_bias": toggle(
                    False, "Lean towards the positive prompt, as ComfyUI's Mahiro."
                ),
            },
            "optional": {
                "mimic_scale": number(
                    0.0,
                    0.0,
                    100.0,
                    0.1,
                    "Dynamic thresholding: the picture keeps the contrast that this cfg would give "
                    "it, where the sampler's is higher. 0 is off.",
                ),
                "threshold_percentile": share(
                    1.0,
                    "Of dynamic thresholding: the share of values that are not cut off; 1 cuts "
                    "none and scales all.",
                ),
            },
        }

    def set(
        self,
        model: FluxModel,
        start: float,
        end: float,
        cfg_zero: str,
        zero_steps: int,
        rescale: float,
        positive_bias: bool,
        mimic_scale: float = 0.0,
        threshold_percentile: float = 1.0,
    ):
        options = replace(
            model.guidance_options,
            start=start,
            end=end,
            cfg_zero=cfg_zero,
            zero_steps=zero_steps,
            rescale=rescale,
            positive_bias=positive_bias,
            mimic_scale=mimic_scale or None,
            threshold_percentile=threshold_percentile,
        )
        return (replace(model, guidance_options=options),)


class FluxFitNAG:
    """Negative prompts at cfg 1."""

    DESCRIPTION = (
        "Normalized attention guidance: FLUX Sampler's negative prompt counts at cfg 1 too, also "
        "with schnell. Only attention is computed twice, so that a step takes little longer."
    )
    CATEGORY = SAMPLING
    FUNCTION = "set"
    SEARCH_ALIASES = ["nag", "normalized attention guidance", "negative prompt"]
    RETURN_TYPES = (FLUX_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For FLUX Sampler, whose negative input it needs.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From a loader."),
                "scale": number(
                    USUAL.scale, 0.0, 50.0, 0.1, "How far from the negative prompt; 1 is nothing."
                ),
                "tau": number(
                    USUAL.tau, 1.0, 10.0, 0.01, "How much larger attention's output may become."
                ),
                "alpha": share(
                    USUAL.alpha, "How much of the guided output is taken; 0 is nothing."
                ),
                "start": share(USUAL.start, "Share of the steps from which it counts."),
                "end": share(USUAL.end, "Share of the steps until which it counts."),
            }
        }

    def set(
        self, model: FluxModel, scale: float, tau: float, alpha: float, start: float, end: float
    ):
        nag = NormalizedAttentionGuidance(scale, tau, alpha, start, end)
        options = replace(model.guidance_options, nag=nag)
        return (replace(model, guidance_options=options),)
