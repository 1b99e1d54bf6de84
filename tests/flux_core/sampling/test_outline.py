"""Requests without numbers take what real ones take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flux_core import Conditioning, Control, FluxControlNet, FluxTransformer, load_ip_adapter
from flux_core.offload.activations import on_meta
from flux_core.offload.plan import Plan
from flux_core.sampling.adapters import AppliedAdapter, keys_of
from flux_core.sampling.conditioning import Region, RegionalPrompts
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.hires import Hires
from flux_core.sampling.latents import latent_size
from flux_core.sampling.nag import NormalizedAttentionGuidance
from flux_core.sampling.outline import (
    DrawingOptions,
    calls_a_step,
    no_numbers,
    outlined_request,
    plan_requests,
)
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.tiles import Tiling
from tests import adapter_files, tiny_models

TEXT = 5
NAG = GuidanceOptions(nag=NormalizedAttentionGuidance())
OPTIONS = {
    "plain": DrawingOptions(),
    "guided": DrawingOptions(cfg=3.0),
    "nag": DrawingOptions(guidance_options=NAG),
    "references": DrawingOptions(references=[(64, 48), (32, 32)], cfg=2.0),
    "apart": DrawingOptions(references=[(64, 48)], reference_attention="self"),
    "regions": DrawingOptions(regions=2),
    "more text": DrawingOptions(more_text=9),
    "tiles": DrawingOptions(tiles=Tiling(64, 16), regions=1),
}


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer().requires_grad_(False)


def prompt(tokens: int, **more) -> Conditioning:
    pooled = torch.randn(1, tiny_models.POOLED)
    return Conditioning(torch.randn(1, tokens, tiny_models.CONTEXT), pooled, **more)


def real_request(transformer, options: DrawingOptions, width: int, height: int) -> DrawRequest:
    references = regional = None
    if options.references:
        latents = [torch.randn(1, 16, *latent_size(*size)) for size in options.references]
        references = References(latents, attention=options.reference_attention)
    if options.regions:
        whole = Region(area=(1.0, 1.0, 0.0, 0.0), shares=True)
        regional = RegionalPrompts([prompt(TEXT, region=whole) for _ in range(options.regions)])
    settings = SamplingSettings(steps=3, cfg=options.cfg, guidance_options=options.guidance_options)
    return DrawRequest(
        transformer,
        prompt(TEXT + options.more_text, references=references, regional=regional),
        torch.randn(2, 16, *latent_size(height, width)),
        settings,
        negative=prompt(TEXT, references=references),
        tiles=options.tiles,
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_the_work_is_that_of_a_real_request(transformer, name):
    options = OPTIONS[name]
    about = {"width": 112, "height": 64}
    small = on_meta(transformer)
    outlined = outlined_request(small, options, steps=3, batch=2, text_tokens=TEXT, **about)
    real = real_request(transformer, options, **about)
    assert outlined.work == real.work
    tensors = (outlined.latents, outlined.positives[0].context)
    assert all(tensor.untyped_storage().nbytes() == 4 for tensor in tensors)


@pytest.mark.parametrize("shown", [False, True])
def test_an_adapter_counts_what_each_prompt_is_shown(transformer, shown, tmp_path):
    file = adapter_files.instantx()
    opened = load_ip_adapter(tiny_models.save(file, tmp_path / "adapter.safetensors"))
    about = {"width": 112, "height": 64}
    small, outlined = on_meta(transformer), on_meta(opened)
    plan = outlined_request(
        small,
        DrawingOptions(cfg=3.0, adapters=[(outlined, shown)]),
        steps=3,
        batch=2,
        text_tokens=TEXT,
        **about,
    )
    embeds = torch.randn(1, opened.config.embed_dim)
    applied = AppliedAdapter(opened, embeds, negative=embeds if shown else None)
    plain = real_request(transformer, DrawingOptions(cfg=3.0), **about)
    keys = keys_of(None, opened, embeds)
    ready = replace(applied, ready=(keys, keys if shown else None))
    assert plan.work == replace(plain, adapters=[ready]).work


def test_calls_are_those_that_are_made(transformer):
    seen = []
    handle = transformer.register_forward_pre_hook(lambda *_: seen.append(1))
    half = GuidanceOptions(end=0.5)
    try:
        for options in (
            DrawingOptions(cfg=2.0),
            DrawingOptions(cfg=2.0, guidance_options=half),
            DrawingOptions(cfg=2.0, tiles=Tiling(64, 16)),
        ):
            request = real_request(transformer, options, 112, 64)
            seen.clear()
            sample(request)
            about = {"width": 112, "height": 64, "steps": 3, "batch": 2, "text_tokens": TEXT}
            outlined = outlined_request(on_meta(transformer), options, **about)
            assert calls_a_step(outlined) * 3 == pytest.approx(len(seen))
    finally:
        handle.remove()


def test_controls_and_the_larger_run_are_planned(transformer):
    net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
    about = {"width": 96, "height": 64, "steps": 2, "batch": 1, "text_tokens": TEXT}
    plain = outlined_request(transformer, DrawingOptions(), **about)
    first = outlined_request(transformer, DrawingOptions(controls=[net]), **about)
    assert first.modules == [transformer, net]
    assert first.work.activations > plain.work.activations
    real = replace(plain, controls=[Control(net, torch.randn(1, 16, 8, 12))])
    assert first.work == real.work
    asked = []

    def plan(modules, work):
        asked.append((list(modules), work.image_tokens))
        return Plan((), work.activations, None, 0)

    hires = Hires(2.0, controls=[Control(net, no_numbers(1, 1, 1, 1))])
    planned = plan_requests(plain, hires, plan)
    assert asked == [([transformer], 24), ([transformer, net], 96)]
    assert (planned.height, planned.width) == (16, 24)
