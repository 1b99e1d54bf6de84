"""From a prompt to pictures, with each part where the policy wants it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .bounds import brief, check_number
from .checkpoint.load import load_text_encoders, load_transformer, load_vae
from .lora import Lora, LoraStack, load_lora, match_lora
from .lora.match import WIDENED_LAYER, is_whole, lora_report, refuse_unmatched
from .models.families import family_of
from .models.language_encoders import LanguageTextEncoders
from .models.text_encoders import TextEncoders, TextEncoding
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .offload import MemoryReport, OffloadPolicy, OffloadRunner
from .offload.turns import turn_of
from .pocket import pocket_file
from .quant import full_dtype
from .sampling.concat import extra_channels
from .sampling.conditioning import Conditioning, Control
from .sampling.images import (
    as_masks,
    as_pictures,
    check_size,
    rows_for,
    scaled_to,
    to_pixels,
)
from .sampling.latents import expand, zero_latents
from .sampling.prompts import encode_prompts
from .sampling.run import DrawRequest, SamplingSettings, StepCallback, check_control, draw
from .sampling.vae import decode_pictures, encode_pixels

log = logging.getLogger(__name__)

#: What a picture may be.
Picture = Tensor | np.ndarray | Image.Image | Sequence[Image.Image]


def batch_of(prompts: Sequence[object], batch_size: int) -> int:
    """Pictures that some prompts and a batch size ask for; raises ``ValueError`` where the two do
    not agree."""
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompt is {brief(prompts)}, expected a text or one for each picture")
    check_number(batch_size, "batch_size", 1, whole=True)
    if len(prompts) > 1 and batch_size not in (1, len(prompts)):
        raise ValueError(
            f"{len(prompts)} prompts and a batch_size of {batch_size}: expected one prompt, or as "
            "many as pictures"
        )
    return max(batch_size, len(prompts))


def listed(value: object, name: str) -> list[Any]:
    """Several of something, none where it is None; raises ``ValueError`` for anything else."""
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {brief(value)}, expected a list")
    return list(cast("Sequence[Any]", value or ()))


@dataclass(frozen=True)
class Images:
    """Pictures (B, H, W, 3) float32 in [0, 1], and what drawing them took."""

    images: Tensor
    report: MemoryReport


class FluxPipeline:
    """All parts of a FLUX model and the order in which they run.

    Raises ``ValueError`` for a VAE or text encoders of another family.
    """

    def __init__(
        self,
        transformer: FluxTransformer,
        text_encoders: TextEncoders | LanguageTextEncoders,
        vae: AutoEncoder,
        *,
        policy: OffloadPolicy | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.transformer, self.text_encoders, self.vae = transformer, text_encoders, vae
        self._refuse_strangers()
        self.policy = (
            OffloadPolicy(policy) if isinstance(policy, str) else policy or OffloadPolicy()
        )
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise ValueError(f"device is {device!r}, expected cpu, cuda or the like") from error

    def _refuse_strangers(self) -> None:
        """Raise ``ValueError`` for parts that another family draws with."""
        family, vae = family_of(self.transformer), self.vae.config
        if vae.latent_channels != family.vae.latent_channels:
            raise ValueError(
                f"the VAE has latents of {vae.latent_channels} channels, {family.name} takes "
                f"{family.vae.latent_channels}: they do not belong together"
            )
        theirs = getattr(self.text_encoders, "kind", None)
        name = "clip_l" if theirs is None else theirs.name
        if name not in family.encoders and (theirs is not None or "t5" not in family.encoders):
            raise ValueError(
                f"{family.name} reads prompts by {' and '.join(family.encoders)}, and these text "
                f"encoders are {'CLIP-L and T5' if theirs is None else theirs.title}"
            )

    @classmethod
    def from_pocket(
        cls,
        *,
        precision: str = "bf16",
        policy: OffloadPolicy | str | None = None,
        device: torch.device | str | None = None,
    ) -> FluxPipeline:
        """Open the tiny FLUX.1 that the repository ships; it draws 256x256."""
        return cls(
            load_transformer(pocket_file("diffusion_models"), precision=precision),
            load_text_encoders(
                pocket_file("text_encoders", "_clip_l"),
                pocket_file("text_encoders", "_t5"),
                precision=precision,
            ),
            load_vae(pocket_file("vae", "_vae"), dtype=full_dtype(precision)),
            policy=policy,
            device=device,
        )

    # long: its arguments are the whole of what can be asked for, each with its line
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        cfg: float = 1.0,
        guidance: float = 3.5,
        width: int = 1024,
        height: int = 1024,
        steps: int = 20,
        seed: int = 0,
        batch_size: int = 1,
        sampler: str = "euler",
        scheduler: str = "simple",
        shift: str = "host",
        image: Picture | None = None,
        mask: Picture | None = None,
        denoise: float = 1.0,
        condition: Picture | None = None,
        condition_mask: Picture | None = None,
        controls: Sequence[Control] = (),
        loras: Sequence[tuple[Lora | str | Path, float]] = (),
        callback: StepCallback | None = None,
    ) -> Images:
        """Draw pictures.

        Args:
            prompt: one text, or one for each picture, of which there are then as many.
                ``(word:1.2)`` gives words a weight; ``embedding:name`` stands for a file in a
                folder of ``text_encoders.embedding_folders`` (see ``models.prompt``).
            cfg: true classifier-free guidance; 1 leaves the negative prompt out.
            guidance: the distilled guidance of dev; schnell ignores it.
            width, height: in pixels, multiples of 16; those of ``image`` where it is given.
            image: (1 or B, H, W, 3) in [0, 1] to start from, for ``denoise`` below 1. This and the
                other pictures may be arrays, bytes, or PIL pictures as well.
            mask: (1 or B, H, W) in [0, 1], 1 where to draw anew and 0 where to keep ``image``; of
                another size it is scaled.
            condition: (1 or B, H, W, 3) in [0, 1], what models with a wider input and control LoRAs
                read beside the noise: edges, depth, the picture to fill.
            condition_mask: (1 or B, H, W) in [0, 1], 1 where a Fill model paints.
            loras: LoRAs, or their files, with their strengths, for the transformer and the text
                encoders.
            shift: ``host``, ``resolution`` or ``diffsynth``; see ``schedule.SHIFTS``.
            callback: called at every step.

        Returns:
            ``Images``. Raises ``ValueError`` for sizes, names and numbers out of range, before
            anything is computed.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        batch = batch_of(prompts, batch_size)
        if not isinstance(negative_prompt, str):
            raise ValueError(f"negative_prompt is {brief(negative_prompt)}, expected a text")
        controls, loras = listed(controls, "controls"), listed(loras, "loras")
        pictures = masks = read_picture = read_mask = None
        if image is not None:
            pictures = rows_for(batch, as_pictures(image, "image"), "image")
            height, width = pictures.shape[1:3]
        check_size(width, height, batch)
        if mask is not None:
            if image is None:
                raise ValueError("a mask says what to keep of an image, but there is no image")
            masks = rows_for(batch, as_masks(mask, "mask"), "mask")
        settings = SamplingSettings(
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler,
            scheduler=scheduler,
            shift=shift,
            denoise=denoise,
        )
        check_number(guidance, "guidance", 0, 1000)
        opened = self._loras(loras)
        if condition is not None:
            self._refuse_condition(opened)
            read_picture = rows_for(batch, as_pictures(condition, "condition"), "condition")
            if condition_mask is not None:
                read_mask = as_masks(condition_mask, "condition_mask")
                read_mask = rows_for(batch, read_mask, "condition_mask")[:, None]
        elif condition_mask is not None:
            raise ValueError("condition_mask belongs to a condition, but there is none")
        for control in controls:
            check_control(control)
        parts = [self.transformer, self.text_encoders, self.vae, *(c.net for c in controls)]
        with turn_of(*parts):
            runner = OffloadRunner(self.policy, self.device)
            positive, negative = self._encode(
                runner, prompts, negative_prompt, cfg, guidance, opened
            )
            latents = zero_latents(family_of(self.transformer).vae, batch, height, width)
            if pictures is not None:
                encoded = encode_pixels(runner, self.vae, to_pixels(pictures))
                latents = expand(encoded, batch)
            if read_picture is not None:
                fitted = scaled_to(to_pixels(read_picture), height, width)
                read = {"picture": encode_pixels(runner, self.vae, fitted), "mask": read_mask}
                positive = replace(positive, **read)
                negative = None if negative is None else replace(negative, **read)
            if masks is not None:
                masks = F.interpolate(masks[:, None], latents.shape[-2:], mode="bilinear")
            request = DrawRequest(
                self.transformer,
                positive,
                latents,
                settings,
                negative=negative,
                mask=masks,
                controls=controls,
                loras=opened,
            )
            (drawn,) = draw(runner, [request], callback=callback)
            (decoded,) = decode_pictures(runner, self.vae, [drawn])
        return Images(decoded, runner.report)

    def _loras(self, loras: Sequence[tuple[Lora | str | Path, float]]) -> LoraStack:
        """LoRAs, opened where they are files; raises where nothing of one fits."""
        opened = []
        for pair in loras:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"loras has {brief(pair)}, expected a file and its strength")
            lora, strength = pair
            if not isinstance(lora, Lora | str | Path):
                raise ValueError(f"loras has {brief(lora)}, expected a LoRA or its file")
            lora = lora if isinstance(lora, Lora) else load_lora(lora)
            check_number(strength, f"the strength of {lora.path}", -1000, 1000)
            parts = (self.transformer, *self.text_encoders.parts)
            matches = [match_lora(lora, part) for part in parts]
            refuse_unmatched(lora, matches)
            if not is_whole(matches):
                log.warning("%s", lora_report(lora, matches))
            opened.append((lora, strength))
        return opened

    def _refuse_condition(self, loras: LoraStack) -> None:
        """Raise ``ValueError`` where nothing reads a picture beside the noise."""
        family = family_of(self.transformer)
        extra = extra_channels(self.transformer.reads, family.tokens, family.vae)
        if not extra and not any(
            WIDENED_LAYER in match_lora(lora, self.transformer).deltas for lora, _ in loras
        ):
            raise ValueError(
                "a condition is read by Fill, Canny and Depth models and control LoRAs, and this "
                "model reads none: is it meant as image, or for a ControlNet?"
            )

    def _encode(
        self,
        runner: OffloadRunner,
        prompts: Sequence[str],
        negative_prompt: str,
        cfg: float,
        guidance: float,
        loras: LoraStack,
    ) -> tuple[Conditioning, Conditioning | None]:
        length = self.text_encoders.context_length(prompts)  # they stand in one batch
        encodings = encode_prompts(
            runner, self.text_encoders, prompts, t5_length=length, loras=loras
        )
        text = TextEncoding.joined(encodings)
        positive = Conditioning(text.context, text.pooled, guidance)
        if cfg == 1.0:
            return positive, None
        (other,) = encode_prompts(runner, self.text_encoders, [negative_prompt], loras=loras)
        return positive, Conditioning(other.context, other.pooled, guidance)
