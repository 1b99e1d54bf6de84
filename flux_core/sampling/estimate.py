"""What a card will do with a model, before it is loaded or bought: memory and seconds of a picture.

The parts are built on meta, at their real sizes, and planned by what plans a real run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, T5Config

from ..models.families import family_of, published_as, published_names
from ..models.family import Family
from ..models.language import MISTRAL, QWEN3, LanguageConfig, LanguageEncoder
from ..models.text_encoders import ClipEncoder, T5Encoder
from ..models.tokenizers import T5_LENGTH
from ..models.transformer import FluxTransformer
from ..models.vae import AutoEncoder
from ..offload import OffloadPolicy, Work
from ..offload.activations import on_meta
from ..offload.machine import Machine
from ..offload.plan import Cost, Plan, cost_of, make_plan, with_copies
from ..offload.workload import sampling_work
from ..quant import quantize, set_compute
from ..units import readable_bytes
from .latents import PIXELS_A_LATENT, image_tokens, latent_size
from .outline import DrawingOptions, PlannedDrawing, outlined_request, plan_requests
from .prompts import t5_work
from .shares import share_of_first
from .vae import vae_work

#: Published sizes of T5 1.1 XXL's encoder and of CLIP-L's text model.
T5_XXL = T5Config(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
    is_encoder_decoder=False,
    use_cache=False,
)
CLIP_L = CLIPTextConfig(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
)
#: Those of the language models of FLUX.2, by the width of the context that they make.
LANGUAGE_SIZES = {
    15_360: LanguageConfig(MISTRAL, 131_072, 5120, 32_768, 32, 8),
    7680: LanguageConfig(QWEN3, 151_936, 2560, 9728, 32, 8),
    12_288: LanguageConfig(QWEN3, 151_936, 4096, 12_288, 32, 8),
}
#: Bytes a second that a disk gives where weights do not fit into the host's memory.
DISK = 3e9
#: Share of the host's memory that weights may take; the rest is the system's and the host's own.
RAM_SHARE = 0.75


class PictureModels(NamedTuple):
    """All parts that a picture takes; they may be without numbers.

    ``t5`` is what makes the context, T5 or a language model; ``clip_l`` None where there is none.
    """

    transformer: FluxTransformer
    clip_l: ClipEncoder | None
    t5: T5Encoder | LanguageEncoder
    vae: AutoEncoder

    @property
    def encoders(self) -> list[nn.Module]:
        """The text encoders that there are."""
        return [self.t5] if self.clip_l is None else [self.clip_l, self.t5]


def text_models(
    family: Family, width: int
) -> tuple[ClipEncoder | None, T5Encoder | LanguageEncoder]:
    """The text encoders of a family's published model whose context is so wide."""
    if width in LANGUAGE_SIZES:
        return None, LanguageEncoder(LANGUAGE_SIZES[width])
    return ClipEncoder(CLIP_L) if family.needs_pooled else None, T5Encoder(T5_XXL)


@cache
def published_models(name: str, precision: str) -> PictureModels:
    """A published model's parts without numbers, transformer and what makes the context at a
    precision; raises ``ValueError`` for an unknown name."""
    family, config = published_as(name)
    with torch.device("meta"):
        transformer = cast(FluxTransformer, family.transformer(config)).bfloat16()
        transformer.family = family
        clip_l, t5 = text_models(family, config.context_in_dim)
        clip_l = None if clip_l is None else clip_l.bfloat16()
        vae = AutoEncoder(family.vae).bfloat16()
        parts = PictureModels(transformer, clip_l, t5.bfloat16(), vae)
        quantize(transformer, precision)
        quantize(t5, precision)
    return parts


def flux1_dev(precision: str) -> PictureModels:
    """FLUX.1-dev without numbers, transformer and T5 at a precision."""
    return published_models("FLUX.1-dev", precision)


def models_like(transformer: FluxTransformer, precision: str) -> PictureModels:
    """The published model that a transformer's other parts are most likely those of."""
    family, width = family_of(transformer), transformer.config.context_in_dim
    like = {name: published_as(name) for name in published_names()}
    same = [name for name, (other, _) in like.items() if other.encoders == family.encoders]
    exact = [name for name in same if like[name][1].context_in_dim == width]
    return published_models((exact or same or list(like))[0], precision)


def flops(function: Callable[[], object]) -> float:
    """Floating-point operations of a function of tensors on meta."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return float(counter.get_total_flops())


@lru_cache(16)
def vae_flops(vae: AutoEncoder, height: int, width: int) -> float:
    small = on_meta(vae)
    z = torch.empty(1, vae.config.latent_channels, height, width, device="meta")
    return flops(lambda: small.decode(z))  # type: ignore[operator]


@lru_cache(16)
def t5_flops(t5: T5Encoder | LanguageEncoder, text_tokens: int) -> float:
    small = set_compute(on_meta(t5), "dequantize")
    ids = torch.empty(1, text_tokens, dtype=torch.long, device="meta")
    return flops(lambda: small(ids))


@dataclass(frozen=True)
class PicturePlan:
    """Plans of the three phases, and seconds: ``before`` and ``after`` the steps, each ``step``."""

    text: Plan
    drawing: Plan
    vae: Plan
    before: float
    step: float
    after: float
    from_disk: float
    pixels: int = PIXELS_A_LATENT  # along a side of a latent

    @property
    def peak(self) -> int:
        """Bytes of the device at most."""
        return max(self.text.peak, self.drawing.peak, self.vae.peak)

    @property
    def fits(self) -> bool:
        return self.text.fits and self.drawing.fits and self.vae.fits

    @property
    def least(self) -> int:
        return max(self.text.least, self.drawing.least, self.vae.peak if self.vae.tile else 0)

    def seconds(self, steps: int) -> float:
        """Seconds of a picture whose prompt is new and whose parts wait on the host."""
        return self.before + steps * self.step + self.after

    def __str__(self) -> str:
        if not self.fits:
            return f"does not fit: it needs {readable_bytes(self.least)} at least"
        tiles = f", VAE in tiles of {self.pixels * self.vae.tile} pixels" if self.vae.tile else ""
        disk = f", {readable_bytes(self.from_disk)} from disk a step" if self.from_disk else ""
        blocks = self.drawing.modules[0]
        stay = f"{len(blocks.resident)} of {blocks.blocks} blocks stay"
        streamed = f"{readable_bytes(blocks.streamed)} streamed a step" if blocks.streamed else ""
        return (
            ", ".join(filter(None, (f"peak {readable_bytes(self.peak)}", stay, streamed)))
            + f"{tiles}{disk}: {self.step:.2f} s a step"
            + f" ({max(0.0, self.drawing.slowdown):.0%} lost)"
        )


def plan_phase(
    modules: Sequence[nn.Module],
    costs: Sequence[Cost],
    work: Work,
    policy: OffloadPolicy,
    machine: Machine,
    vram: float,
) -> Plan:
    """The plan of modules that are on a card of ``vram`` bytes together."""
    budget = int(vram if policy.vram_budget is None else min(vram, policy.vram_budget))
    bounded = policy.vram_budget is not None or policy.mode != "stream"
    plan = make_plan(
        costs,
        [policy.of(m) for m in modules],
        policy,
        budget=budget if bounded else None,
        activations=work.activations,
        machine=machine,
    )
    return work.fitted(with_copies(plan, work.moved, machine))


def plan_steps(
    transformer: FluxTransformer,
    options: DrawingOptions | None,
    plan: Callable[[Sequence[nn.Module], Work], Plan],
    *,
    width: int,
    height: int,
    steps: int,
    batch: int,
    text_tokens: int,
) -> PlannedDrawing:
    """The steps of a picture, planned by ``plan`` of modules and work; without ``options`` a plain
    prompt."""
    if options is not None:
        about = {"steps": steps, "batch": batch, "text_tokens": text_tokens}
        request = outlined_request(transformer, options, width=width, height=height, **about)
        return plan_requests(request, options.hires, plan)
    family = family_of(transformer)
    rows, columns = latent_size(height, width, family.vae)
    work = sampling_work(
        transformer,
        image_tokens=image_tokens(rows, columns, geometry=family.tokens),
        text_tokens=text_tokens,
        batch=batch,
        vectors=steps,
    )
    return PlannedDrawing(plan([transformer], work), 1.0, rows, columns)


def plan_picture(
    machine: Machine,
    *,
    vram: float,
    ram: float | None = None,
    width: int = 1024,
    height: int = 1024,
    steps: int = 28,
    precision: str = "fp8_scaled",
    policy: OffloadPolicy | None = None,
    models: PictureModels | None = None,
    text_tokens: int = T5_LENGTH,
    batch: int = 1,
    options: DrawingOptions | None = None,
    devices: int = 0,
) -> PicturePlan:
    """What a card will do with a model.

    Args:
        models: FLUX.1-dev at ``precision`` unless given.
        vram: bytes of the card that may be used.
        ram: bytes of the host's memory; what is streamed beyond 3/4 of it is read from disk.
        policy: ``auto`` unless given; its ``vram_budget`` counts where it is smaller.
        options: what is asked for beside a plain prompt.
        devices: how many of its kind draw together, of which this is the first; 0 where the policy
            names none, and a batch is drawn at once.
    """
    parts, policy = models or flux1_dev(precision), policy or OffloadPolicy()
    family = family_of(parts.transformer)
    at_once = 1 if devices else batch

    def planned(modules: Sequence[nn.Module], work: Work) -> Plan:
        tokens = {"image_tokens": work.image_tokens, "text_tokens": work.text_tokens}
        costs = [cost_of(m, machine, **tokens, batch=at_once) for m in modules]
        return plan_phase(modules, costs, work, policy, machine, vram)

    size = {"width": width, "height": height}
    about = {"steps": steps, "batch": at_once, "text_tokens": text_tokens}
    body, calls, rows, columns = plan_steps(parts.transformer, options, planned, **size, **about)
    text = planned(parts.encoders, t5_work(parts.t5, text_tokens))
    vae = planned([parts.vae], vae_work(parts.vae, rows, columns, batch))
    moved = sum(cost_of(encoder).all_blocks for encoder in parts.encoders)
    share = 1.0
    if devices:
        share = share_of_first(batch, options is not None and options.cfg != 1.0, devices)
    placed, modulations = body.modules[0], cost_of(parts.transformer).modulations
    from_disk = 0.0 if ram is None else max(0.0, placed.streamed - RAM_SHARE * ram)
    brought = placed.held + (0 if placed.modulations else modulations)
    return PicturePlan(
        text,
        body,
        vae,
        before=(moved + brought) / machine.link + t5_flops(parts.t5, text_tokens) / machine.flops,
        step=share * calls * max(body.seconds, from_disk / DISK),
        after=vae.weights / machine.link
        + batch * vae_flops(parts.vae, rows, columns) / machine.flops,
        from_disk=from_disk,
        pixels=family.vae.compression,
    )
