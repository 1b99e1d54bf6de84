"""From a prompt to pictures, with each part where the policy wants it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .checkpoint.load import load_text_encoders, load_transformer, load_vae
from .lora import LoraStack, match_lora
from .lora.match import is_whole, lora_report, refuse_unmatched
from .models.families import family_of
from .models.text_encoders import TextEncoders
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .offload import MemoryReport, OffloadPolicy, OffloadRunner
from .pocket import pocket_file
from .quant import full_dtype
from .sampling.conditioning import Conditioning, Control
from .sampling.images import check_size, to_pixels
from .sampling.latents import zero_latents
from .sampling.prompts import encode_prompts
from .sampling.run import DrawRequest, SamplingSettings, StepCallback, draw
from .sampling.vae import decode_pictures, encode_pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """Pictures (B, H, W, 3) float32 in [0, 1], and what drawing them took."""

    images: Tensor
    report: MemoryReport


class FluxPipeline:
    """All parts of FLUX.1 and the order in which they run."""

    def __init__(
        self,
        transformer: FluxTransformer,
        text_encoders: TextEncoders,
        vae: AutoEncoder,
        *,
        policy: OffloadPolicy | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.transformer, self.text_encoders, self.vae = transformer, text_encoders, vae
        self.policy = policy or OffloadPolicy()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def from_pocket(
        cls,
        *,
        precision: str = "bf16",
        policy: OffloadPolicy | None = None,
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
        image: Tensor | None = None,
        mask: Tensor | None = None,
        denoise: float = 1.0,
        condition: Tensor | None = None,
        condition_mask: Tensor | None = None,
        controls: Sequence[Control] = (),
        loras: LoraStack = (),
        callback: StepCallback | None = None,
    ) -> Images:
        """Draw pictures.

        Args:
            prompt: one text, or one for each picture of the batch. ``(word:1.2)`` gives words a
                weight; ``embedding:name`` stands for a file in a folder of
                ``text_encoders.embedding_folders`` (see ``models.prompt``).
            cfg: true classifier-free guidance; 1 leaves the negative prompt out.
            guidance: the distilled guidance of dev; schnell ignores it.
            width, height: in pixels, multiples of 16; those of ``image`` where it is given.
            image: (1 or B, H, W, 3) in [0, 1] to start from, for ``denoise`` below 1.
            mask: (1 or B, H, W) in [0, 1], 1 where to draw anew and 0 where to keep ``image``.
            condition: (1 or B, H, W, 3) in [0, 1], what models with a wider input and control LoRAs
                read beside the noise: edges, depth, the picture to fill.
            condition_mask: (1 or B, H, W) in [0, 1], 1 where a Fill model paints.
            loras: LoRAs with their strengths, for the transformer and the text encoders.
            shift: ``host``, ``resolution`` or ``diffsynth``; see ``schedule.SHIFTS``.
            callback: called at every step.

        Returns:
            ``Images``. Raises ``ValueError`` for sizes, names and numbers out of range, before
            anything is computed.
        """
        if image is not None:
            height, width = image.shape[1:3]
        check_size(width, height)
        if mask is not None and image is None:
            raise ValueError("a mask says what to keep of an image, but there is no image")
        settings = SamplingSettings(
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler,
            scheduler=scheduler,
            shift=shift,
            denoise=denoise,
        )
        runner = OffloadRunner(self.policy, self.device)
        for lora, _ in loras:
            parts = (self.transformer, self.text_encoders.clip_l, self.text_encoders.t5)
            matches = [match_lora(lora, part) for part in parts]
            refuse_unmatched(lora, matches)
            if not is_whole(matches):
                log.warning("%s", lora_report(lora, matches))
        positive, negative = self._encode(runner, prompt, negative_prompt, cfg, guidance, loras)
        latents = zero_latents(family_of(self.transformer).vae, batch_size, height, width)
        if image is not None:
            latents = self._latents(runner, image).expand_as(latents).clone()
        if condition is not None:
            read = {"picture": self._latents(runner, condition)}
            if condition_mask is not None:
                read["mask"] = condition_mask[:, None].float()
            positive = replace(positive, **read)
            negative = None if negative is None else replace(negative, **read)
        request = DrawRequest(
            self.transformer,
            positive,
            latents,
            settings,
            negative=negative,
            mask=None if mask is None else F.interpolate(mask[:, None].float(), latents.shape[-2:]),
            controls=controls,
            loras=loras,
        )
        (drawn,) = draw(runner, [request], callback=callback)
        (pictures,) = decode_pictures(runner, self.vae, [drawn])
        return Images(pictures, runner.report)

    def _latents(self, runner: OffloadRunner, image: Tensor) -> Tensor:
        """Raw latents (B, 16, h, w) of pictures (B, H, W, 3)."""
        return encode_pixels(runner, self.vae, to_pixels(image))

    def _encode(
        self,
        runner: OffloadRunner,
        prompt: str | Sequence[str],
        negative_prompt: str,
        cfg: float,
        guidance: float,
        loras: LoraStack,
    ) -> tuple[Conditioning, Conditioning | None]:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        length = self.text_encoders.context_length(prompts)  # they stand in one batch
        encodings = encode_prompts(
            runner, self.text_encoders, prompts, t5_length=length, loras=loras
        )
        context = torch.cat([e.context for e in encodings])
        positive = Conditioning(context, torch.cat([e.pooled for e in encodings]), guidance)
        if cfg == 1.0:
            return positive, None
        (other,) = encode_prompts(runner, self.text_encoders, [negative_prompt], loras=loras)
        return positive, Conditioning(other.context, other.pooled, guidance)
