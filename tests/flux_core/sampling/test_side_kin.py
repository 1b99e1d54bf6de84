"""References that attend to themselves alone on FLUX.2 and Chroma: against diffusers' key-value
cache, against a mask over all tokens, under every policy, within what was predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flux_core import Conditioning, FluxTransformer, OffloadPolicy, quantize
from flux_core.models.families import family_of
from flux_core.models.side_tokens import SideTokens
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.latents import image_ids
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from tests import flux2_models, tiny_chroma
from tests.flux_core.models.test_flux2 import native
from tests.tiny_models import relative

TIMES = (1.0, 0.6, 0.1)
FAMILIES = ("FLUX.2", "Chroma")
#: What text and picture read together.
Inputs = dict[str, Tensor]


def new_model(name: str) -> FluxTransformer:
    if name == "Chroma":
        return tiny_chroma.chroma_transformer()
    model = flux2_models.transformer()
    model.family = dataclasses.replace(family_of(model), context_length=16)  # for speed
    return model


def inputs_of(name: str, time: float) -> Inputs:
    inputs = flux2_models.inputs() if name == "FLUX.2" else tiny_chroma.inputs()
    return inputs | {"timesteps": torch.full((2,), time)}


def references(model: FluxTransformer) -> tuple[Tensor, Tensor]:
    """Tokens (2, R, C) and their positions, ten indices behind the picture."""
    ids = image_ids(4, 6, 10.0, geometry=family_of(model).tokens)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, len(ids), model.config.in_channels, generator=generator), ids


@torch.no_grad()
@pytest.mark.parametrize("guidance", [True, False])
def test_they_are_diffusers_key_value_cache(guidance):
    """Which has references in front of the picture, at time 0."""
    theirs = flux2_models.diffusers_model(guidance)
    config = dataclasses.replace(flux2_models.DEV, guidance_embed=guidance)
    ours = flux2_models.transformer(config)
    ours.load_state_dict(native(theirs))
    from diffusers.models.transformers import transformer_flux2 as their_module

    double, single = (
        their_module.Flux2KVAttnProcessor,
        their_module.Flux2KVParallelSelfAttnProcessor,
    )
    for block in theirs.transformer_blocks:
        block.attn.set_processor(double())
    for block in theirs.single_transformer_blocks:
        block.attn.set_processor(single())
    tokens, ids = references(ours)
    side, cache = SideTokens(tokens, ids), None
    for time in TIMES:
        inputs = inputs_of("FLUX.2", time)
        given: dict[str, Any] = flux2_models.to_diffusers(inputs)
        if not guidance:
            given["guidance"] = None
        if cache is None:
            given["hidden_states"] = torch.cat([tokens, inputs["img"]], dim=1)
            given["img_ids"] = torch.cat([ids, inputs["img_ids"]])
            out = theirs(**given, kv_cache_mode="extract", num_ref_tokens=len(ids))
            expected, cache = out.sample, out.kv_cache
        else:
            expected = theirs(**given, kv_cache=cache, kv_cache_mode="cached").sample
        expected = expected[:, -inputs["img"].shape[1] :]
        assert relative(ours(**inputs, side=side), expected) < 1e-5
        assert relative(ours(**inputs), expected) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_they_equal_a_mask_over_all_tokens(name):
    model = new_model(name)
    tokens, ids = references(model)
    count = len(ids)
    kept = SideTokens(tokens, ids)
    for time in TIMES:
        inputs = inputs_of(name, time)
        image, text = inputs["img"].shape[1], inputs["txt"].shape[1]
        seen = torch.ones(text + image + count, text + image + count, dtype=torch.bool)
        seen[-count:, :-count] = False
        both = {
            "img": torch.cat([inputs["img"], tokens], dim=1),
            "img_ids": torch.cat([inputs["img_ids"], ids]),
        }
        whole = model(**inputs | both, still_tokens=count, attention_mask=seen)
        result = model(**inputs, side=kept)
        assert relative(result, whole[:, :image]) < 1e-5
        anew = SideTokens(tokens, ids, keep=False)
        assert torch.equal(result, model(**inputs, side=anew))


def asked(model: FluxTransformer, attention: str = "self", side: int = 10, **more) -> DrawRequest:
    family, width = family_of(model), model.config.context_in_dim
    channels = family.vae.latent_channels
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    pictures = (normal(1, channels, 6, 8), normal(1, channels, 4, side))
    texts = normal(2, 1, family.context_length or 7, width)
    prompts = [
        Conditioning(text, None, references=References(pictures, None, attention)) for text in texts
    ]
    options = {"latents": torch.zeros(2, channels, 8, 12)} | more
    settings = SamplingSettings(steps=3, cfg=2.0, seed=1)
    return DrawRequest(model, prompts[0], settings=settings, negative=prompts[1], **options)


@pytest.mark.parametrize("name", FAMILIES)
class TestRuns:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_what_is_kept_changes_no_bit_under_any_policy(self, name, precision):
        model = quantize(new_model(name), precision)
        request = asked(model)
        expected = sample(request, keep=False)
        assert torch.equal(sample(request), expected)
        for mode in ("component", "stream"):
            runner = OffloadRunner(OffloadPolicy(mode, separate_memory=True), "cpu")
            assert torch.equal(draw(runner, [request])[0], expected)
        assert relative(sample(asked(model, "joint")), expected) > 1e-3

    @pytest.mark.parametrize("keep", [True, False])
    def test_predicted_bytes_are_what_a_run_takes(self, name, keep):
        model = new_model(name)
        channels = family_of(model).vae.latent_channels
        request = asked(model, side=160, latents=torch.zeros(2, channels, 16, 16))
        work = request.work if keep else request.work.recompute
        assert work is not None
        with LiveBytes() as counted:
            sample(request, keep=keep)
        assert abs(counted.peak - work.activations) < 0.05 * counted.peak
