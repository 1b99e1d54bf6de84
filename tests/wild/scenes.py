"""Requests that combine features at random: what ``combinations`` draws.

A feature is a function that adds itself to a ``Scene``; a family is one that makes a tiny
transformer. A new one is a line in ``FEATURES`` or ``FAMILIES``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flux_core import (
    Conditioning,
    Control,
    FluxControlNet,
    FluxTransformer,
    LoraRegion,
    LoraUse,
    load_ip_adapter,
    load_lora,
    quantize,
)
from flux_core.models.families import family_of
from flux_core.quant import full_dtype
from flux_core.sampling.adapters import AppliedAdapter
from flux_core.sampling.conditioning import (
    AttentionBias,
    Region,
    RegionalOptions,
    RegionalPrompts,
)
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.latents import token_grid
from flux_core.sampling.nag import NormalizedAttentionGuidance
from flux_core.sampling.references import ATTENTIONS, METHODS, References
from flux_core.sampling.run import DrawRequest, SamplingSettings
from flux_core.sampling.samplers import SAMPLERS
from flux_core.sampling.tiles import Tiling
from tests import adapter_files, flux2_models, tiny_chroma, tiny_models

PRECISIONS = ("fp32", "bf16", "fp8_e4m3fn", "fp8_e5m2", "fp8_scaled", "int8")
TEXT = 12  # tokens


@dataclass
class Scene:
    """A request in the making; latents are (batch, C, rows, columns)."""

    transformer: Any
    rng: random.Random
    folder: Path
    batch: int
    rows: int
    columns: int
    prompts: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def normal(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.rng.randrange(2**32))
        return torch.randn(shape, generator=generator)

    @property
    def channels(self) -> int:
        return family_of(self.transformer).vae.latent_channels

    def mask(self) -> Tensor:
        """A rectangle of ones (1, rows, columns)."""
        mask = torch.zeros(1, self.rows, self.columns)
        top, left = self.rng.randrange(self.rows // 2), self.rng.randrange(self.columns // 2)
        mask[:, top : top + self.rows // 2, left : left + self.columns // 2] = 1
        return mask

    def conditioning(self, **options: Any) -> Conditioning:
        config, family = self.transformer.config, family_of(self.transformer)
        pooled = self.normal(1, config.vec_in_dim) if family.needs_pooled else None
        return Conditioning(self.normal(1, TEXT, config.context_in_dim), pooled, **options)

    def request(self) -> DrawRequest:
        settings: dict[str, Any] = {"steps": 3, "seed": self.rng.randrange(1000)} | self.settings
        return DrawRequest(
            self.transformer,
            [self.conditioning(**prompt) for prompt in self.prompts],
            self.normal(self.batch, self.channels, self.rows, self.columns),
            SamplingSettings(**settings),
            **self.options,
        )


def lora(scene: Scene) -> None:
    """A LoRA on some layers of some blocks, and of what makes modulations."""
    file, rank = {}, scene.rng.choice((2, 16))
    for name, layer in scene.transformer.named_modules():
        there = any(part in name for part in ("_blocks.", "_modulation", "guidance_layer"))
        if hasattr(layer, "out_features") and there and scene.rng.random() < 0.3:
            down, up = scene.normal(rank, layer.in_features), scene.normal(layer.out_features, rank)
            file |= {f"{name}.lora_A.weight": 0.1 * down, f"{name}.lora_B.weight": 0.1 * up}
    if file:
        path = tiny_models.save(file, scene.folder / f"{scene.rng.random()}.safetensors")
        scene.options["loras"] = [*scene.options.get("loras", ()), (load_lora(path), 0.7)]


def lora_control(scene: Scene) -> None:
    """A LoRA with weights a block, a schedule and a region."""
    lora(scene)
    if not scene.options.get("loras"):
        return
    *others, (file, strength) = scene.options["loras"]
    blocks = scene.rng.choice((None, "double 0-1: 0.5, single 1: 1.5, else 1"))
    schedule = scene.rng.choice(("0:1, 0.5:0.3, 1:0", "step 0:1, 0.6:0"))
    region = scene.rng.choice((None, LoraRegion(scene.mask(), text=0.5)))
    use = LoraUse(file, strength, blocks=blocks, schedule=schedule, region=region)
    scene.options["loras"] = [*others, use]


def adapter(scene: Scene) -> None:
    """An IP-Adapter for double blocks or for all, over a part of the picture and of the steps."""
    config, wide = scene.transformer.config, scene.rng.random() < 0.5
    blocks = config.depth + config.depth_single_blocks
    file = adapter_files.instantx(blocks) if wide else adapter_files.xlabs(config.depth)
    path = tiny_models.save(file, scene.folder / f"{scene.rng.random()}.safetensors")
    opened = load_ip_adapter(path, precision=scene.rng.choice(("fp32", "int8")))
    embeds = scene.normal(scene.rng.choice((1, 2)), opened.config.embed_dim)
    mask = scene.rng.choice((None, scene.mask()))
    end = scene.rng.choice((0.5, 1.0))
    applied = AppliedAdapter(opened, embeds, 0.7, end=end, mask=mask)
    scene.options["adapters"] = [*scene.options.get("adapters", ()), applied]


def controlnet(scene: Scene) -> None:
    """A ControlNet over a part of the steps, in bf16 or a byte a weight."""
    net = cast(FluxControlNet, tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), 5))
    net = net.requires_grad_(False).to(scene.transformer.dtype)
    if scene.rng.random() < 0.5:
        quantize(net, "int8")
    cond = scene.normal(1, 16, scene.rows, scene.columns)
    scene.options["controls"] = [Control(net, cond, 0.6, end=scene.rng.choice((0.5, 1.0)))]


def reference(scene: Scene) -> None:
    """One reference or two, of other sizes than the picture."""
    latents = [
        scene.normal(1, scene.channels, *scene.rng.choice(((8, 12), (6, 4), (5, 7))))
        for _ in range(scene.rng.choice((1, 2)))
    ]
    for prompt in scene.prompts:
        method, attention = scene.rng.choice(METHODS), scene.rng.choice(ATTENTIONS)
        prompt["references"] = References(latents, method, attention)


def regional(scene: Scene) -> None:
    """Regions that are read by attention in the call of the first prompt."""
    area = Region((1.0, 0.5, 0.0, 0.0), shares=True)
    options = RegionalOptions(share=0.6, across=scene.rng.choice((0.0, 1.0)))
    prompts = (
        scene.conditioning(region=Region(mask=scene.mask())),
        scene.conditioning(region=area),
    )
    scene.prompts[0]["regional"] = RegionalPrompts(prompts, options)


def nag(scene: Scene) -> None:
    """A negative prompt that attention is guided away from, for a part of the steps."""
    end = scene.rng.choice((0.5, 1.0))
    guidance = GuidanceOptions(nag=NormalizedAttentionGuidance(end=end))
    scene.settings["guidance_options"] = guidance
    scene.options.setdefault("negative", scene.conditioning())


def span(scene: Scene) -> None:
    """Guidance over a part of the steps, in one of its forms."""
    cfg(scene)
    scene.settings["guidance_options"] = GuidanceOptions(
        end=0.6, cfg_zero=scene.rng.choice(("off", "velocity")), zero_steps=1
    )


def tiles(scene: Scene) -> None:
    """Windows that overlap, still or moving."""
    moving = scene.rng.random() < 0.5
    scene.options["tiles"] = Tiling(96, 32, moving=moving)


def differential(scene: Scene) -> None:
    """A grey mask that says from which step on a place is kept."""
    scene.options["mask"] = scene.normal(1, 1, scene.rows, scene.columns).sigmoid()
    scene.options["differential"] = scene.rng.choice((0.5, 1.0))


def mask(scene: Scene) -> None:
    """A part of the latents is kept."""
    scene.options["mask"] = scene.mask()[:, None]
    scene.settings["denoise"] = scene.rng.choice((0.6, 1.0))


def cfg(scene: Scene) -> None:
    """A negative prompt."""
    scene.settings["cfg"] = 2.5
    scene.options["negative"] = scene.conditioning()


def regions(scene: Scene) -> None:
    """Further prompts, of which one counts within a mask and one in an area for some steps."""
    scene.prompts.append(dict(scene.prompts[0], region=Region(mask=scene.mask())))
    area = (scene.rows // 2, scene.columns // 2, 0, 2)
    scene.prompts.append(dict(scene.prompts[0], region=Region(area), end=0.6))


def bias(scene: Scene) -> None:
    """Numbers added to the attention of the first prompt."""
    geometry = family_of(scene.transformer).tokens
    rows, columns = token_grid(scene.rows, scene.columns, geometry)
    side = TEXT + rows * columns
    scene.prompts[0]["attention"] = AttentionBias(scene.normal(1, side, side), rows, columns)


def sampler(scene: Scene) -> None:
    """Another sampler than Euler's."""
    scene.settings["sampler"] = scene.rng.choice(list(SAMPLERS))


Feature = Callable[[Scene], None]
#: In the order in which they are added to a scene.
FEATURES: dict[str, Feature] = {
    "lora": lora,
    "second lora": lora,
    "lora control": lora_control,
    "adapter": adapter,
    "second adapter": adapter,
    "controlnet": controlnet,
    "reference": reference,
    "regions": regions,
    "bias": bias,
    "regional": regional,
    "cfg": cfg,
    "nag": nag,
    "span": span,
    "tiles": tiles,
    "mask": mask,
    "differential": differential,
    "sampler": sampler,
}
#: How a request is refused whose features do not go together.
REFUSED = "references that attend to themselves alone are drawn without"
#: What takes the place of another, and so does not stand with it.
ALIKE = (("nag", "span"), ("mask", "differential"))


def flux1(**sizes: Any) -> Callable[[], nn.Module]:
    return lambda: tiny_models.flux_transformer(replace(tiny_models.DEV, **sizes))


def flux2(**sizes: Any) -> Callable[[], nn.Module]:
    """FLUX.2's, whose prompts are filled up to fewer tokens than the public, for speed."""

    def make() -> nn.Module:
        model = flux2_models.transformer(replace(flux2_models.DEV, **sizes))
        model.family = replace(family_of(model), context_length=8 * TEXT)
        return model

    return make


@dataclass(frozen=True)
class Kind:
    """A family's transformer, and features that are not for it."""

    make: Callable[[], nn.Module]
    without: tuple[str, ...] = ()


#: What is made for FLUX.1 alone.
OF_FLUX1 = ("adapter", "second adapter", "controlnet")
FAMILIES: dict[str, Kind] = {
    "FLUX.1-dev": Kind(flux1()),
    "FLUX.1-schnell": Kind(flux1(guidance_embed=False)),
    "FLUX.1-lite": Kind(flux1(depth=8, depth_single_blocks=2)),
    "FLUX.1 Fill": Kind(flux1(in_channels=384), ("reference",)),
    "Chroma": Kind(tiny_chroma.chroma_transformer, ("controlnet",)),
    "FLUX.2-klein": Kind(flux2(guidance_embed=False), OF_FLUX1),
    "FLUX.2-dev": Kind(flux2(), OF_FLUX1),
}


@dataclass(frozen=True)
class Combination:
    """What is combined; all of it follows from the number."""

    number: int
    family: str
    precision: str
    features: tuple[str, ...]
    batch: int
    rows: int
    columns: int

    @classmethod
    def of(cls, number: int) -> Combination:
        rng = random.Random(number)
        family = rng.choice(list(FAMILIES))
        fitting = [name for name in FEATURES if name not in FAMILIES[family].without]
        chosen = set(rng.sample(fitting, rng.randint(2, 5)))
        for one, other in ALIKE:
            if {one, other} <= chosen:
                chosen.remove(other)
        return cls(
            number,
            family,
            rng.choice(PRECISIONS),
            tuple(name for name in FEATURES if name in chosen),
            rng.choice((1, 2)),
            rng.choice((16, 18, 21)),
            rng.choice((16, 20, 23)),
        )

    def __str__(self) -> str:
        size = f"{self.batch} x {self.rows}x{self.columns}"
        return f"{self.number}: {self.family}, {self.precision}, {size}, {', '.join(self.features)}"


@contextmanager
def set_up(combination: Combination, folder: Path) -> Iterator[DrawRequest]:
    """The request of a combination, its model made anew."""
    transformer = cast(FluxTransformer, FAMILIES[combination.family].make())
    transformer = transformer.requires_grad_(False).to(full_dtype(combination.precision))
    if combination.precision not in ("fp32", "bf16"):
        quantize(transformer, combination.precision)
    scene = Scene(
        transformer,
        random.Random(combination.number),
        folder,
        combination.batch,
        combination.rows,
        combination.columns,
    )
    for name in combination.features:
        FEATURES[name](scene)
    yield scene.request()
