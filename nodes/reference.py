"""The nodes for reference pictures: one puts them on a prompt, under the host's own names, one says
what they attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from flux_core.models.config import VAEConfig
from flux_core.sampling.latents import zero_latents
from flux_core.sampling.reference_pictures import SIZES, TOKEN, as_references
from flux_core.sampling.references import ATTENTIONS, METHODS, SELF

from .vae import HostVAE
from .widgets import choice, socket, toggle
from .wires import FLUX_MODEL, SAMPLING, FluxModel, Latent

LATENTS, METHOD = "reference_latents", "reference_latents_method"
#: References are placed as the model that draws was trained.
AS_TRAINED = "auto"


def with_references(conditioning: list, latents: Sequence[Tensor]) -> list:
    """The host's CONDITIONING with more references, raw latents (B, C, h, w) each, behind those
    that it has."""
    return [
        [context, extra | {LATENTS: [*(extra.get(LATENTS) or ()), *latents]}]
        for context, extra in conditioning
    ]


def with_method(conditioning: list, method: str) -> list:
    """The host's CONDITIONING with a way to place all its references."""
    return [[context, extra | {METHOD: method}] for context, extra in conditioning]


class FluxFitReference:
    """A picture for Kontext to look at."""

    DESCRIPTION = (
        "Puts a picture on the prompt as a reference, which FLUX.1 Kontext and models like it look "
        "at while they draw: it is what the prompt's instruction changes. Scaled to a size that "
        "Kontext knows, encoded once for both prompts. Put several of these nodes in a row for "
        "several references. The result fits stock samplers too."
    )
    CATEGORY = SAMPLING
    FUNCTION = "refer"
    SEARCH_ALIASES = ["kontext", "reference latent", "edit picture", "image edit"]
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    OUTPUT_TOOLTIPS = (
        "The prompt with the reference.",
        "The negative prompt with it, where one came in.",
        "Empty, as large as the reference: draw into it to keep the picture's shape.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "positive": socket("CONDITIONING", "What to change, from FluxTextEncode."),
                "vae": socket("VAE", "Encodes the picture; the VAE of the model that draws."),
                "image": socket("IMAGE", "The picture to look at."),
                "size": choice(
                    SIZES,
                    "preferred: the nearest of Kontext's sizes, about a megapixel. own: as it is, "
                    "cut to multiples of 16. drawn: as large as latent.",
                    default=SIZES[0],
                ),
                "method": choice(
                    (AS_TRAINED, *METHODS),
                    "How all references of the prompt are placed. auto: as the model was trained, "
                    "or as an earlier node says. offset: Kontext. index: FLUX.2, each on a layer "
                    "of its own. uxo: USO and UNO.",
                    default=AS_TRAINED,
                ),
            },
            "optional": {
                "negative": socket("CONDITIONING", "Gets the reference as well."),
                "latent": socket("LATENT", "What will be drawn, where size is drawn."),
                "several": toggle(
                    False,
                    "Pictures of a batch are several references, in the place of one for each "
                    "picture that is drawn.",
                    advanced=True,
                ),
            },
        }

    def refer(
        self,
        positive: list,
        vae: HostVAE,
        image: Tensor,
        size: str,
        method: str,
        negative: list | None = None,
        latent: Latent | None = None,
        several: bool = False,
    ):
        drawn = None
        if latent is not None:
            side = vae.spacial_compression_decode()
            height, width = (side * n // TOKEN * TOKEN for n in latent["samples"].shape[-2:])
            drawn = (height, width)
        pictures = list(image.split(1)) if several else [image]
        fitted = as_references(pictures, len(image), size, drawn)
        latents = [vae.encode(picture) for picture in fitted]

        def referring(conditioning: list) -> list:
            referred = with_references(conditioning, latents)
            return referred if method == AS_TRAINED else with_method(referred, method)

        empty = {
            "samples": zero_latents(VAEConfig(), 1, *fitted[0].shape[1:3]),
            "downscale_ratio_spacial": VAEConfig().compression,  # other models' are other sizes
        }
        return (referring(positive), None if negative is None else referring(negative), empty)


class FluxFitReferenceAttention:
    """What a prompt's references attend to."""

    DESCRIPTION = (
        "With self, references attend to themselves alone: what the blocks make of them is the "
        "same in every step, so it is computed in the first and kept where memory allows. Later "
        "steps then compute the prompt and the picture alone. Kontext was trained with joint; try "
        "whether self does for your picture."
    )
    CATEGORY = SAMPLING
    FUNCTION = "set"
    SEARCH_ALIASES = ["kv cache", "reference cache", "flux kv cache"]
    RETURN_TYPES = (FLUX_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For FluxSampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From FluxLoaderFP8."),
                "attention": choice(
                    ATTENTIONS,
                    "self: to themselves alone, once a run. joint: to the prompt and the picture "
                    "too, in every step, as Kontext was trained.",
                    default=SELF,
                ),
            }
        }

    def set(self, model: FluxModel, attention: str):
        return (replace(model, reference_attention=attention),)
