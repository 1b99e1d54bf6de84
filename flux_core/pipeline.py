"""From a prompt to pictures, with each part where the policy wants it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .bounds import brief, check_number
from .models.controlnet import FluxControlNet
from .models.families import family_of
from .models.language_encoders import LanguageTextEncoders
from .models.text_encoders import TextEncoders
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .offload import OffloadPolicy, OffloadRunner
from .offload.replicas import offload_module
from .offload.turns import turn_of
from .pipeline_files import PartOptions, find_files, open_files
from .pipeline_images import Images, with_notes
from .pipeline_inputs import (
    LoraChoice,
    as_device,
    as_policy,
    batch_of,
    check_options,
    check_request,
    listed,
    opened_loras,
    refuse_strangers,
)
from .pipeline_pictures import (
    Picture,
    ReadPictures,
    check_masked,
    condition_of,
    control_of,
    read_beside,
    references_of,
    started_from,
)
from .pipeline_prompts import ReadPrompts, read_prompts, with_regions
from .pocket import pocket_file
from .quant import Precision
from .sampling.conditioning import (
    Control,
    RegionalOptions,
)
from .sampling.fitting import check_control
from .sampling.guidance import PLAIN_GUIDANCE, GuidanceOptions
from .sampling.hires import Hires, draw_twice
from .sampling.image_prompts import ImagePrompt, apply_image_prompts
from .sampling.images import as_pictures, scaled_to, to_pixels
from .sampling.latents import expand, zero_latents
from .sampling.masks import keep_pixels_outside
from .sampling.reference_pictures import PREFERRED
from .sampling.references import JOINT, References
from .sampling.regional import RegionPrompt, checked_regions
from .sampling.run import DrawRequest, SamplingSettings, StepCallback, draw
from .sampling.sizes import check_size
from .sampling.stitch import resized
from .sampling.tiles import UNIT, Tiling
from .sampling.vae import decode_pictures, encode_pixels

log = logging.getLogger(__name__)


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
        refuse_strangers(transformer, text_encoders, vae)
        self.policy = as_policy(policy)
        self.device = as_device(device)

    @classmethod
    def from_pocket(
        cls,
        *,
        precision: str = "bf16",
        policy: OffloadPolicy | str | None = None,
        device: torch.device | str | None = None,
    ) -> FluxPipeline:
        """Open the tiny FLUX.1 that the repository ships; it draws 256x256."""
        return cls.from_files(
            pocket_file("diffusion_models"),
            clip_l=pocket_file("text_encoders", "_clip_l"),
            t5=pocket_file("text_encoders", "_t5"),
            vae=pocket_file("vae", "_vae"),
            precision=precision,
            policy=policy,
            device=device,
        )

    @classmethod
    def from_files(
        cls,
        transformer: str | Path,
        *,
        clip_l: str | Path | None = None,
        t5: str | Path | None = None,
        text_encoder: str | Path | None = None,
        vae: str | Path | None = None,
        precision: Precision = "bf16",
        text_precision: Precision | None = None,
        compute: str = "auto",
        tokenizers: str | Path | None = None,
        policy: OffloadPolicy | str | None = None,
        device: torch.device | str | None = None,
    ) -> FluxPipeline:
        """Open a model of any family: FLUX.1, Chroma, FLUX.2.

        Args:
            transformer: a file of any layout, a folder, an index of shards, a checkpoint that holds
                the other parts too, or a repository in Hugging Face's layout.
            clip_l, t5: what FLUX.1 reads prompts with; Chroma reads T5 alone.
            text_encoder: the language model that FLUX.2 reads prompts with.
            vae: these four are looked for in the checkpoint or repository where they are not given.
            precision: of all parts, as ``load_transformer`` has it; ``text_precision``: of the text
                encoders, where it is another one.
            tokenizers: a folder that has them, where they are not beside the weights.

        Raises ``ValueError`` naming the parts that are missing, or that are given and not read, and
        ``CheckpointError`` naming the file.
        """
        policy, device = as_policy(policy), as_device(device)
        given = {"clip_l": clip_l, "t5": t5, "text_encoder": text_encoder, "vae": vae}
        options = PartOptions(precision, text_precision, compute, tokenizers, policy.ram_budget)
        parts = open_files(find_files(transformer, given), options)
        return cls(*parts, policy=policy, device=device)

    def to(self, device: torch.device | str) -> FluxPipeline:
        """Draw on another device from now on; parts that are on the one before leave it."""
        device = as_device(device)
        parts = (self.transformer, *self.text_encoders.modules_used, self.vae)
        with turn_of(self.transformer, self.text_encoders, self.vae):
            if device != self.device:
                for part in parts:
                    offload_module(part)
            self.device = device
        return self

    @torch.no_grad()
    def control(
        self, net: FluxControlNet, picture: Picture, strength: float = 1.0, **options: Any
    ) -> Control:
        """A ControlNet with a picture (1 or B, H, W, 3) in [0, 1], for ``controls``: encoded as the
        net reads it, and anew in the size of what is drawn.

        ``options`` are the further fields of ``Control``: ``start``, ``end``, ``mode``, ``mask``
        and others. Raises ``ValueError``.
        """
        pixels = to_pixels(as_pictures(picture, "the picture of a ControlNet"))

        def encode(pixels: Tensor) -> Tensor:
            return encode_pixels(OffloadRunner(self.policy, self.device), self.vae, pixels)

        control = Control(net, pixels, strength, **options)
        check_control(control)
        if control.mode is not None and not net.config.num_modes:
            raise ValueError("mode is for union ControlNets, and this one is none")
        if net.config.hint:
            return control
        rows, columns = (max(UNIT, side - side % UNIT) for side in pixels.shape[-2:])
        whole = scaled_to(pixels, rows, columns)  # of any size; it is fitted to what is drawn
        with turn_of(self.vae):
            return replace(control, cond=encode(whole), picture=pixels, encode=encode)

    # long: its arguments are the whole of what can be asked for, each with its line
    @with_notes
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
        seed: int | Sequence[int] = 0,
        batch_size: int = 1,
        sampler: str = "euler",
        scheduler: str = "simple",
        shift: str = "host",
        image: Picture | None = None,
        mask: Picture | None = None,
        denoise: float = 1.0,
        condition: Picture | None = None,
        condition_mask: Picture | None = None,
        control_picture: Picture | None = None,
        control_strength: float = 1.0,
        control_end: float = 1.0,
        reference: Picture | Sequence[Picture] | None = None,
        reference_method: str | None = None,
        reference_size: str = PREFERRED,
        reference_attention: str = JOINT,
        controls: Sequence[Control] = (),
        loras: Sequence[LoraChoice] = (),
        tiles: Tiling | None = None,
        hires: Hires | None = None,
        differential: float | None = None,
        keep_pixels: int | None = None,
        regions: Sequence[RegionPrompt] = (),
        regional: RegionalOptions | None = None,
        guidance_options: GuidanceOptions | None = None,
        image_prompts: Sequence[ImagePrompt] = (),
        callback: StepCallback | None = None,
    ) -> Images:
        """Draw pictures.

        Args:
            prompt: one text, or one for each picture, of which there are then as many.
                ``(word:1.2)`` gives words a weight; ``embedding:name`` stands for a file in a
                folder of ``text_encoders.embedding_folders`` (see ``models.prompt``).
            cfg: true classifier-free guidance; 1 leaves the negative prompt out.
            guidance: the distilled guidance of dev; schnell and Chroma ignore it.
            width, height: in pixels, multiples of 16; those of ``image`` where it is given.
            seed: one for all, whose noise each picture takes its part of, or one for each picture,
                which is then as it would be alone, up to rounding.
            image: (1 or B, H, W, 3) in [0, 1] to start from, for ``denoise`` below 1. This and the
                other pictures may be arrays, bytes, PIL pictures, or files as well.
            mask: (1 or B, H, W) in [0, 1], 1 where to draw anew and 0 where to keep ``image``; of
                another size it is scaled.
            condition: (1 or B, H, W, 3) in [0, 1], what models with a wider input and control LoRAs
                read beside the noise: edges, depth, the picture to fill.
            condition_mask: (1 or B, H, W) in [0, 1], 1 where a Fill model or Flex.2 paints: there
                it sees nothing of the condition.
            control_picture: (1 or B, H, W, 3) in [0, 1], edges, depth or poses that Flex.2 reads
                beside the condition, times ``control_strength``, up to the share ``control_end`` of
                the schedule.
            reference: what Kontext and models like it look at beside the prompt: a picture, or a
                list of pictures, each (1 or B, H, W, 3) in [0, 1] of any size.
            reference_method: how they are placed, by default as the model was trained; see
                ``sampling.references``.
            reference_size: ``preferred`` of Kontext, their ``own``, or the ``drawn`` picture's.
            reference_attention: ``joint``, or ``self`` for what is computed once a run.
            loras: LoRAs, or their files, alone or with their strengths, for the transformer and the
                text encoders; or ``LoraUse``, with weights a block, a schedule and a region.
            tiles: windows in which a picture that is larger is drawn.
            hires: draw a second time, larger; ``width`` and ``height`` are those of the first.
            differential: a grey ``mask`` says from which step on a place is kept; a strength from 0
                to 1, which is the whole as well.
            keep_pixels: where ``mask`` is 0 the pixels of ``image`` stay as they are, to the bit,
                and what is drawn fades in over so many pixels inside of it. With ``hires`` they are
                those of ``image`` enlarged.
            regions: prompts of parts of the picture, read by attention beside ``prompt``;
                ``regional`` says over which steps and how strictly.
            guidance_options: over which steps and how the negative prompt is guided away from; with
                NAG it is read at cfg 1 too.
            image_prompts: pictures that say what to draw, ``ReduxPrompt`` and ``IPAdapterPrompt``.
            shift: ``host``, ``resolution`` or ``diffsynth``; see ``schedule.SHIFTS``.
            callback: called at every step.

        Returns:
            ``Images``. Raises ``ValueError`` for sizes, names and numbers out of range, before
            anything is computed.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        batch, seed = batch_of(prompts, batch_size, seed)
        if not isinstance(negative_prompt, str):
            raise ValueError(f"negative_prompt is {brief(negative_prompt)}, expected a text")
        controls, loras = listed(controls, "controls"), listed(loras, "loras")
        image_prompts = listed(image_prompts, "image_prompts")
        pictures, masks = started_from(image, mask, batch)
        if pictures is not None:
            height, width = pictures.shape[1:3]
        check_size(width, height, batch)
        settings = SamplingSettings(
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler,
            scheduler=scheduler,
            shift=shift,
            denoise=denoise,
            guidance_options=PLAIN_GUIDANCE if guidance_options is None else guidance_options,
        )
        check_number(guidance, "guidance", 0, 1000)
        parts_of_picture = checked_regions(regions, batch)
        check_options(regional, parts_of_picture, hires, pictures, denoise)
        check_masked(masks, keep_pixels, differential)
        opened = opened_loras(loras, self.transformer, self.text_encoders)
        channels = read_beside(self.transformer, opened)
        shown, painted = condition_of(channels, condition, condition_mask, batch)
        placing = References((), reference_method, reference_attention)
        read = ReadPictures(
            shown,
            painted,
            control_of(
                channels, control_picture, batch, shown, painted, control_strength, control_end
            ),
            **references_of(channels, reference, placing, batch, reference_size, (height, width)),
        )
        check_request(
            self.transformer,
            settings,
            read.placing,
            image_prompts,
            hires,
            batch,
            height,
            width,
            controls=controls,
            loras=opened,
            tiles=tiles,
            differential=differential,
        )
        nets = [control.net for control in (*controls, *(hires.controls if hires else ()))]
        parts = (self.transformer, self.text_encoders, self.vae, *nets)
        with turn_of(*parts):
            runner = OffloadRunner(self.policy, self.device)
            positive, negative = self._encode(
                runner, prompts, negative_prompt, settings, guidance, opened
            )
            if parts_of_picture:
                encoders = self._encoders
                positive = with_regions(
                    runner, encoders, positive, parts_of_picture, regional, opened
                )
            positive, adapters = apply_image_prompts(runner, image_prompts, positive)
            latents = zero_latents(family_of(self.transformer).vae, batch, height, width)
            if pictures is not None:
                encoded = encode_pixels(runner, self.vae, to_pixels(pictures))
                latents = expand(encoded, batch)
            fields = read.encoded(runner, self.vae, channels, (height, width))
            small_masks = None
            if masks is not None:
                small_masks = F.interpolate(masks[:, None], latents.shape[-2:], mode="bilinear")
            request = DrawRequest(
                self.transformer,
                replace(positive, **fields),
                latents,
                settings,
                negative=None if negative is None else replace(negative, **fields),
                mask=small_masks,
                controls=controls,
                loras=opened,
                tiles=tiles,
                differential=differential,
                adapters=adapters,
            )
            drawn = self._drawn(runner, request, hires, callback)
            (decoded,) = decode_pictures(runner, self.vae, [drawn])
        if keep_pixels is not None and pictures is not None and masks is not None:
            originals = resized(pictures, *decoded.shape[1:3])
            decoded = keep_pixels_outside(decoded, originals, masks, keep_pixels)
        seeds = tuple(seed) if isinstance(seed, list) else (seed,) * batch
        return Images(decoded, runner.report, seeds)

    @property
    def _encoders(self) -> TextEncoders | LanguageTextEncoders:
        return self.text_encoders.for_family(family_of(self.transformer))

    def _encode(self, runner: OffloadRunner, *asked: Any) -> ReadPrompts:
        """The prompts as conditioning; arguments as ``read_prompts`` has them behind encoders."""
        return read_prompts(runner, self._encoders, *asked)

    def _drawn(
        self,
        runner: OffloadRunner,
        request: DrawRequest,
        hires: Hires | None,
        callback: StepCallback | None,
    ) -> Tensor:
        """Raw latents (B, 16, h, w) of a request, drawn a second time where that is wanted."""
        if hires is None:
            return draw(runner, [request], callback=callback)[0]

        def decode(latents: Tensor) -> Tensor:
            return to_pixels(decode_pictures(runner, self.vae, [latents])[0])

        def encode(pixels: Tensor) -> Tensor:
            return encode_pixels(runner, self.vae, pixels)

        return draw_twice(runner, request, hires, decode, encode, callback)[1]
