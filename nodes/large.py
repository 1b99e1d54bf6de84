"""The nodes for pictures larger than a model draws at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from flux_core import Control
from flux_core.sampling.hires import ENLARGE, Hires, check_vae, draw_twice
from flux_core.sampling.images import to_images, to_pixels
from flux_core.sampling.run import SamplingSettings
from flux_core.sampling.tiles import SMALLEST_TILE, UNIT, Tiling

from . import accounts, host
from .memory_manager import HostOffloadRunner
from .sampler import FluxSampler, drawing_progress, request_of, summary
from .vae import HostVAE
from .widgets import choice, integer, number, socket, toggle
from .wires import FLUX_CONTROL, FLUX_MODEL, SAMPLING, FluxModel, Latent, controls_of

#: Of windows, in pixels.
MOST_TILE = 4096


class FluxFitTiledDrawing:
    """Windows for large pictures."""

    DESCRIPTION = (
        "Draws pictures that are larger than a tile in windows that overlap and agree at every "
        "step. Memory is planned for one window. ControlNets, regions, masks and what Fill, Canny "
        "and Depth read are cut to each window. A picture no larger than a tile is drawn as ever."
    )
    CATEGORY = SAMPLING
    FUNCTION = "make"
    SEARCH_ALIASES = ["tiled diffusion", "multidiffusion", "tiles", "4k", "large pictures"]
    RETURN_TYPES = (FLUX_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For FluxSampler or FluxFitHiresFix.",)

    @classmethod
    def INPUT_TYPES(cls):
        def pixels(default: int, low: int, high: int, tooltip: str) -> tuple:
            return integer(default, low, high, tooltip, step=UNIT)

        return {
            "required": {
                "model": socket(FLUX_MODEL, "From a loader."),
                "tile_size": pixels(
                    1024, SMALLEST_TILE, MOST_TILE, "The side of a window in pixels."
                ),
                "overlap": pixels(
                    256,
                    0,
                    MOST_TILE // 2,
                    "Pixels that neighbours share at the least; at most half a window. More hides "
                    "seams better and takes longer.",
                ),
                "feather": pixels(
                    256,
                    0,
                    MOST_TILE // 2,
                    "Pixels of the overlap over which one window fades into the next; what is more "
                    "than the overlap counts as the overlap.",
                ),
                "moving": toggle(
                    False,
                    "Windows move from step to step, so that no place is always at an edge; takes "
                    "up to one window more on each side.",
                ),
            }
        }

    def make(self, model: FluxModel, tile_size: int, overlap: int, feather: int, moving: bool):
        tiles = Tiling(tile_size, overlap, min(feather, overlap), moving)
        return (replace(model, tiles=tiles),)


class FluxFitHiresFix(FluxSampler):
    """A large picture in two runs."""

    DESCRIPTION = (
        "Draws small, enlarges, and draws again: the composition of the size that FLUX knows, "
        "with the detail of a large picture. With FluxFitTiledDrawing in front the second run is "
        "drawn in windows; ControlNets on upscaler see the enlarged picture."
    )
    FUNCTION = "sample_twice"
    SEARCH_ALIASES = ["hires fix", "highres", "upscale", "two passes"]
    RETURN_TYPES = ("LATENT", "LATENT", "STRING")
    RETURN_NAMES = ("latent", "first_latent", "report")
    OUTPUT_TOOLTIPS = (
        "The large picture, for VAE Decode.",
        "The small one of the first run.",
        "Memory and time of each part, as text.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        inputs = FluxSampler.INPUT_TYPES()
        more = {
            "vae": socket("VAE", "Of the loader: the picture is enlarged in pixels."),
            "scale": number(2.0, 1.0, 8.0, 0.05, "Sides grow by this."),
            "enlarge": choice(
                list(ENLARGE),
                "bicubic and nearest-exact enlarge pixels; latent ones are faster and need a "
                "second_denoise of 0.6 or more.",
                default=ENLARGE[0],
            ),
            "second_steps": integer(0, 0, 1000, "Steps of the second run; 0 is as many as steps."),
            "second_denoise": number(
                0.5, 0.01, 1.0, 0.01, "How much of the schedule the second run draws."
            ),
        }
        optional = {name: inputs["optional"][name] for name in ("negative", "control")}
        upscaler = socket(
            FLUX_CONTROL, "ControlNets of the second run alone, which see the enlarged picture."
        )
        return {
            "required": inputs["required"] | more,
            "optional": optional | {"upscaler": upscaler},
        }

    def sample_twice(
        self,
        model: FluxModel,
        positive: list,
        latent: Latent,
        vae: HostVAE,
        scale: float,
        enlarge: str,
        second_steps: int,
        second_denoise: float,
        negative: list | None = None,
        control: Sequence[Control] | None = None,
        upscaler: Sequence[Control] | None = None,
        **settings: object,
    ):
        chosen = SamplingSettings(
            **settings,  # type: ignore[arg-type]
            batch_index=latent.get("batch_index"),
            guidance_options=model.guidance_options,
        )
        hires = Hires(
            scale,
            second_denoise,
            second_steps or None,
            enlarge,
            model.tiles,
            controls_of(upscaler),
        )
        check_vae(model.transformer, hires, getattr(vae, "latent_channels", None))
        request = request_of(model, positive, negative, latent, chosen, control)
        runner = HostOffloadRunner(model.policy, host.device())
        steps = request.steps + (second_steps or chosen.steps)

        def decode(latents: Tensor) -> Tensor:
            return to_pixels(vae.decode(latents))

        def encode(pixels: Tensor) -> Tensor:
            return vae.encode(to_images(pixels))

        with drawing_progress(steps, model) as report:
            small, large = draw_twice(runner, request, hires, decode, encode, report)
        accounts.account(runner.report)
        kept = {k: v for k, v in latent.items() if k != "downscale_ratio_spacial"}
        return {
            "ui": {"text": (summary(runner.report, steps),)},
            "result": (
                kept | {"samples": large},
                kept | {"samples": small},
                str(runner.report),
            ),
        }
