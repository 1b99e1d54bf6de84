"""From a prompt to pictures, with each part where the policy wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint.load import load_text_encoders, load_transformer, load_vae
from .lora import LoraStack, lora_applied, match_lora
from .lora.match import refuse_unmatched
from .models.text_encoders import TextEncoders, TextEncoding
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .offload import MemoryReport, OffloadPolicy, OffloadRunner, Work
from .offload.plan import Plan
from .offload.workload import decode, encode, sampling_work, t5_work, vae_work
from .quant import full_dtype
from .sampling.denoiser import Conditioning, Control, StepCallback, make_noise_schedule, sample
from .sampling.latents import CONSTANTS

T = TypeVar("T")


class PocketSampling(TypedDict):
    """Arguments of ``FluxPipeline.__call__``."""

    steps: int
    cfg: float
    shift: str


#: What the pocket model is best drawn with: its distilled guidance was never trained, so it needs
#: true guidance, and most steps where the shape is decided.
POCKET_SAMPLING: PocketSampling = {"steps": 30, "cfg": 2.5, "shift": "diffsynth"}
POCKET = Path(__file__).resolve().parents[1] / "assets" / "pocket"


def pocket_file(folder: str, suffix: str = "") -> Path:
    """A part of the pocket model; its folders are laid out as the host's model folders."""
    return POCKET / folder / f"fluxfit_pocket{suffix}.safetensors"


@dataclass(frozen=True)
class Images:
    """Pictures (B, H, W, 3) float32 in [0, 1], and what drawing them took."""

    images: Tensor
    report: MemoryReport


def check_size(width: int, height: int) -> None:
    """Refuse sides that are no multiples of 16 (8 for the VAE, 2 for a token)."""
    for name, side in (("width", width), ("height", height)):
        if side < 16 or side % 16:
            raise ValueError(f"{name} is {side}, expected a multiple of 16, at least 16")


def to_pixels(images: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] to the VAE's (B, 3, H, W) in [-1, 1]."""
    return images.movedim(-1, 1)[:, :3].float() * 2 - 1


def to_images(pixels: Tensor) -> Tensor:
    """The VAE's (B, 3, H, W) to pictures (B, H, W, 3) float32 in [0, 1] on the CPU."""
    return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()


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
            prompt: one text, or one for each picture of the batch.
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
        shape = (batch_size, CONSTANTS.z_channels, height // 8, width // 8)
        noise_schedule = make_noise_schedule(
            self.transformer.config, shape, seed=seed, shift=shift, scheduler=scheduler,
            steps=steps, denoise=denoise,
        )  # fmt: skip
        runner = OffloadRunner(self.policy, self.device)
        image_tokens = height * width // 256

        for lora, _ in loras:
            parts = (self.transformer, self.text_encoders.clip_l, self.text_encoders.t5)
            refuse_unmatched(lora, [match_lora(lora, part) for part in parts])
        positive, negative = self._encode(runner, prompt, negative_prompt, cfg, guidance, loras)
        latents = torch.zeros(shape)
        if image is not None:
            latents = self._latents(runner, image).expand(shape).clone()
        if condition is not None:
            read = {"picture": self._latents(runner, condition)}
            if condition_mask is not None:
                read["mask"] = condition_mask[:, None].float()
            positive = replace(positive, **read)
            negative = None if negative is None else replace(negative, **read)
        small_mask = None if mask is None else F.interpolate(mask[:, None].float(), shape[-2:])
        nets = [c.net for c in controls]
        drawn = run_with_loras(
            runner,
            loras,
            "transformer",
            [self.transformer, *nets],
            lambda _: sample(
                self.transformer,
                positive,
                latents,
                noise_schedule,
                negative=negative,
                cfg=cfg,
                sampler=sampler,
                seed=seed,
                controls=controls,
                mask=small_mask,
                callback=callback,
                device=self.device,
            ),
            sampling_work(
                self.transformer, nets, image=image_tokens, text=positive.context.shape[1],
                batch=batch_size,
                vectors=(len(noise_schedule.sigmas) - 1) * (1 if negative is None else 2),
            ),
            [None, *(c.policy for c in controls)],
        )  # fmt: skip
        pictures = runner.run(
            "VAE decoder", [self.vae],
            lambda plan: to_images(decode(self.vae, drawn, plan, self.device)),
            vae_work(self.vae, height // 8, width // 8, batch_size),
        )  # fmt: skip
        return Images(pictures, runner.report)

    def _latents(self, runner: OffloadRunner, image: Tensor) -> Tensor:
        """Raw latents of pictures (B, H, W, 3)."""
        pixels = to_pixels(image)
        height, width = image.shape[1] // 8, image.shape[2] // 8
        return runner.run(
            "VAE encoder", [self.vae],
            lambda plan: encode(self.vae, pixels, plan, self.device),
            vae_work(self.vae, height, width, len(image), decoding=False),
        )  # fmt: skip

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
        found = encode_prompts(runner, self.text_encoders, prompts, loras=loras)
        context = torch.cat([f.context for f in found])
        positive = Conditioning(context, torch.cat([f.pooled for f in found]), guidance)
        if cfg == 1.0:
            return positive, None
        (other,) = encode_prompts(runner, self.text_encoders, [negative_prompt], loras=loras)
        return positive, Conditioning(other.context, other.pooled, guidance)


def run_with_loras(
    runner: OffloadRunner,
    loras: LoraStack,
    name: str,
    modules: Sequence[nn.Module],
    function: Callable[[Plan], T],
    work: Work,
    policies: Sequence[OffloadPolicy | None] = (),
) -> T:
    """``OffloadRunner.run`` with LoRAs beside the layers of the modules that they fit."""
    with ExitStack() as stack:
        for module in modules:
            if getattr(module, "part", "") != "controlnet":
                stack.enter_context(lora_applied(module, loras))
        return runner.run(name, modules, function, work, policies)


def encode_prompts(
    runner: OffloadRunner,
    encoders: TextEncoders,
    prompts: Sequence[str],
    clip_prompt: str | None = None,
    t5_length: int | None = None,
    loras: LoraStack = (),
) -> list[TextEncoding]:
    """Encodings of prompts, on the CPU; the encoders are not touched for those known already.

    Prompts are encoded one by one, so that one that is known has the bits of one that is not.
    """
    given = clip_prompt, t5_length, tuple(loras)

    def known(prompt: str) -> TextEncoding | None:
        return encoders.cached(prompt, *given)

    missing = [prompt for prompt in dict.fromkeys(prompts) if known(prompt) is None]
    found = {prompt: known(prompt) for prompt in prompts}
    if missing:
        found |= run_with_loras(
            runner, loras, "text encoders", [encoders.clip_l, encoders.t5],
            lambda _: {p: encoders.encode_cached(p, *given) for p in missing},
            t5_work(encoders.t5, t5_length or encoders.tokenizers.t5_length),
        )  # fmt: skip
    return [encoding for prompt in prompts if (encoding := found[prompt]) is not None]
