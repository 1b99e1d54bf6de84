"""Schedules and regions of LoRAs on what makes the modulations of all blocks: Chroma's approximator
and FLUX.2's shared layers, against runs with the strength of each step by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from flux_core import Conditioning, FluxTransformer, OffloadPolicy
from flux_core.lora import Lora, LoraRegion, LoraUse, lora_applied
from flux_core.lora.schedule import StrengthSchedule
from flux_core.models.families import family_of
from flux_core.offload import OffloadRunner
from flux_core.sampling.inputs import model_inputs
from flux_core.sampling.latents import destandardise, image_ids, unpack
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw
from flux_core.sampling.samplers import SAMPLERS, step_noise
from tests import flux2_models, tiny_chroma
from tests.flux_core.lora.lora_files import pair, random
from tests.tiny_models import relative

SCHEDULE = "0:0.25, 0.4:1, 0.8:0"
#: Layers, and norms that a LoRA overwrites.
APPROXIMATOR = "distilled_guidance_layer"
LAYERS = {
    "Chroma": (
        tuple(
            f"{APPROXIMATOR}.{name}"
            for name in ("in_proj", "layers.0.in_layer", "layers.1.out_layer", "out_proj")
        ),
        (f"{APPROXIMATOR}.norms.1",),
    ),
    "FLUX.2": (
        ("double_stream_modulation_img.lin", "single_stream_modulation.lin"),
        (),
    ),
}
BLOCK_LAYERS = ("double_blocks.0.txt_attn.proj", "single_blocks.1.linear2")
POLICIES = [OffloadPolicy(mode, separate_memory=True) for mode in ("component", "stream")]


def new_model(name: str) -> FluxTransformer:
    if name == "Chroma":
        return tiny_chroma.chroma_transformer()
    model = flux2_models.transformer(dataclasses.replace(flux2_models.DEV, guidance_embed=False))
    model.family = dataclasses.replace(family_of(model), context_length=16)  # for speed
    return model


def lora_for(model: FluxTransformer, name: str, seed: int = 0) -> Lora:
    """On the layers that make modulations and on some in blocks."""
    modulations, norms = LAYERS[name]
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for layer in (*modulations, *BLOCK_LAYERS):
        module = model.get_submodule(layer)
        shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        down, up = pair(shape, 4, seed)
        layers["transformer", layer] = {"down": down, "up": up, "bias": random(len(up), seed=seed)}
    for norm in norms:
        scale = model.get_submodule(norm).scale
        layers["transformer", norm] = {"value": 1 + 3 * random(len(scale), seed=seed)}  # type: ignore[arg-type]
    return Lora("kin", layers, {key: (key[1],) for key in layers})


def request(model: FluxTransformer, loras=(), batch: int = 1, **settings) -> DrawRequest:
    family = family_of(model)
    generator = torch.Generator().manual_seed(4)
    tokens = family.context_length or 7
    width = model.config.context_in_dim
    text = Conditioning(torch.randn(1, tokens, width, generator=generator), None)
    start = torch.zeros(batch, family.vae.latent_channels, 4, 6)
    options = {"steps": 4, "seed": 3} | settings
    return DrawRequest(model, text, start, SamplingSettings(**options), loras=loras)


def drawn(asked: DrawRequest, policy: OffloadPolicy | None = None) -> Tensor:
    return draw(OffloadRunner(policy or OffloadPolicy("none"), "cpu"), [asked])[0]


def by_hand(model: FluxTransformer, lora: Lora, strength: float, sampler: str) -> Tensor:
    """The run with a constant strength of its own at every call."""
    plain = request(model, sampler=sampler)
    noise, sigmas, table = plain.noise_schedule
    points, family = StrengthSchedule.parse(SCHEDULE), family_of(model)
    ids = image_ids(4, 6, geometry=family.tokens)
    context = plain.positives[0].context

    @torch.no_grad()
    def call(x: Tensor, sigma: Tensor) -> Tensor:
        time = 1 / (1 + math.exp(table.mu) * (1 / float(sigma) - 1))
        with lora_applied(model, [(lora, strength * points.at(1 - time))]):
            pooled = torch.zeros(1, 0)
            inputs = model_inputs(x, ids, context, pooled, sigma[None], None, family.tokens)
            velocity = model(**inputs)
        return x - sigma * unpack(velocity.float(), 4, 6, family.tokens)

    x = SAMPLERS[sampler](call, sigmas[0] * noise, sigmas, step_noise(noise, 3), lambda *_: None)
    return destandardise(x, plain.vae)


@pytest.mark.parametrize("name", LAYERS)
class TestModulationsOfAllBlocks:
    @pytest.mark.parametrize("sampler", ["euler", "heun"])
    def test_a_schedule_is_each_step_with_the_strength_of_its_own(self, name, sampler):
        model = new_model(name)
        lora = lora_for(model, name)
        scheduled = drawn(request(model, [LoraUse(lora, 0.4, schedule=SCHEDULE)], sampler=sampler))
        assert relative(scheduled, by_hand(model, lora, 0.4, sampler)) < 1e-5
        constant = drawn(request(model, [(lora, 0.4)], sampler=sampler))
        assert relative(constant, scheduled) > 1e-2

    def test_a_region_counts_there_what_it_says_of_modulations(self, name):
        model = new_model(name)
        modulations, norms = LAYERS[name]
        lora = lora_for(model, name)
        alone = {key: value for key, value in lora.layers.items() if key[1] not in BLOCK_LAYERS}
        lora = Lora("modulations", alone, {key: (key[1],) for key in alone})
        assert len(alone) == len(modulations) + len(norms)
        plain = drawn(request(model))
        for counts in (0.0, 0.5):
            region = LoraRegion(torch.ones(1, 8, 8), modulation=counts)
            there = drawn(request(model, [LoraUse(lora, 0.6, region=region)]))
            assert relative(there, drawn(request(model, [(lora, 0.6 * counts)]))) < 1e-5
            assert torch.equal(there, plain) == (not counts)

    def test_every_policy_draws_the_same_bits(self, name):
        model = new_model(name)
        region = LoraRegion(torch.eye(8)[None], 0.5, 0.25)
        stack = [
            LoraUse(lora_for(model, name), 0.4, schedule=SCHEDULE),
            LoraUse(lora_for(model, name, 9), 0.3, schedule="step 0:0, 0.5:1", region=region),
            LoraUse(lora_for(model, name, 5), 0.1),
        ]
        asked = request(model, stack, batch=2, batch_index=[0, 0])
        expected = drawn(asked)
        for policy in POLICIES:
            assert torch.equal(drawn(asked, policy), expected)
        (alone,) = drawn(request(model, stack))
        assert all(relative(one, alone) < 1e-5 for one in expected)
        assert torch.equal(drawn(request(model)), drawn(request(new_model(name))))
