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

from flux_core import Conditioning, Control, FluxControlNet, FluxTransformer, load_lora, quantize
from flux_core.models.families import family_of
from flux_core.quant import full_dtype
from flux_core.sampling.conditioning import AttentionBias, Region
from flux_core.sampling.latents import token_grid
from flux_core.sampling.references import ATTENTIONS, METHODS, References
from flux_core.sampling.run import DrawRequest, SamplingSettings
from flux_core.sampling.samplers import SAMPLERS
from tests import tiny_models

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
        return family_of(self.transformer).vae.z_channels

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
        settings: dict[str, Any] = {"steps": 2, "seed": self.rng.randrange(1000)} | self.settings
        return DrawRequest(
            self.transformer,
            [self.conditioning(**prompt) for prompt in self.prompts],
            self.normal(self.batch, self.channels, self.rows, self.columns),
            SamplingSettings(**settings),
            **self.options,
        )


def lora(scene: Scene) -> None:
    """A LoRA on some layers of some blocks."""
    file = {}
    for name, layer in scene.transformer.named_modules():
        if hasattr(layer, "out_features") and "_blocks." in name and scene.rng.random() < 0.3:
            down, up = scene.normal(2, layer.in_features), scene.normal(layer.out_features, 2)
            file |= {f"{name}.lora_A.weight": 0.1 * down, f"{name}.lora_B.weight": 0.1 * up}
    if file:
        path = tiny_models.save(file, scene.folder / f"{scene.rng.random()}.safetensors")
        scene.options["loras"] = [*scene.options.get("loras", ()), (load_lora(path), 0.7)]


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
        prompt["references"] = References(
            latents, scene.rng.choice(METHODS), scene.rng.choice(ATTENTIONS)
        )


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
    rows, columns = token_grid(scene.rows, scene.columns)
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
    "controlnet": controlnet,
    "reference": reference,
    "regions": regions,
    "bias": bias,
    "cfg": cfg,
    "mask": mask,
    "sampler": sampler,
}


def flux1(**sizes: Any) -> Callable[[], nn.Module]:
    return lambda: tiny_models.flux_transformer(replace(tiny_models.DEV, **sizes))


@dataclass(frozen=True)
class Kind:
    """A family's transformer, and features that are not for it."""

    make: Callable[[], nn.Module]
    without: tuple[str, ...] = ()


FAMILIES: dict[str, Kind] = {
    "FLUX.1-dev": Kind(flux1()),
    "FLUX.1-schnell": Kind(flux1(guidance_embed=False)),
    "FLUX.1-lite": Kind(flux1(depth=8, depth_single_blocks=2)),
    "FLUX.1 Fill": Kind(flux1(in_channels=384), ("reference",)),
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
