"""Nodes of regions and of guidance: what they put on wires, and what is drawn with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fluxfit.nodes.conditioning import REGIONS_KEY, conditioning_of

from flux_core.sampling.guidance import PLAIN_GUIDANCE
from flux_core.sampling.nag import NormalizedAttentionGuidance
from tests.nodes.node_calls import defaults, empty, node, sample


@pytest.fixture(scope="module")
def other(loaded):
    return node("FluxTextEncode").encode(loaded[1], "a blue square on white", 3.5)[0]


def region(conditioning, **options):
    return node("FluxFitRegion").add(
        **defaults("FluxFitRegion", conditioning=conditioning, **options)
    )[0]


def regional(conditioning, **options):
    values = defaults("FluxFitRegionalPrompts", conditioning=conditioning, **options)
    return node("FluxFitRegionalPrompts").combine(**values)


class TestRegions:
    def test_boxes_and_masks_make_a_chain(self, positive, other):
        mask = torch.zeros(1, 40, 20)
        mask[:, :, 10:] = 1
        first = region(positive, name="left", width=0.5)
        both = region(other, mask=mask, strength=1.5, regions=first)
        assert [named.name for named in both] == ["left", ""]
        assert both[0].prompt.region.area == (1.0, 0.5, 0.0, 0.0) and both[0].prompt.region.shares
        assert both[1].prompt.region.mask is mask and both[1].prompt.region.strength == 1.5
        (entry,), picture = regional(positive, regions=both, across=0.5)
        assert entry[0] is positive[0][0]
        assert entry[1][REGIONS_KEY].options.across == 0.5
        assert len(entry[1][REGIONS_KEY].prompts) == 2
        assert picture.shape == (1, 512, 512, 3)
        left, right = picture[0, 20, 20], picture[0, 20, -20]
        assert (left - right).abs().max() > 0.2
        assert (picture[0, 236:276, :256] > 0.95).all(-1).any(), "a name is written"

    def test_what_is_drawn_follows_the_regions(self, loaded, positive, other):
        plain, _ = sample(loaded, positive, empty())
        with_regions, _ = regional(positive, regions=region(other, left=0.5), share=1.0)
        drawn, _ = sample(loaded, with_regions, empty())
        apart = (drawn["samples"] - plain["samples"]).abs()
        assert float(apart.max()) > 1e-3
        ignored, _ = regional(positive, regions=region(other, left=0.5), share=0.0, later=0.0)
        again, _ = sample(loaded, ignored, empty())
        assert torch.equal(again["samples"], plain["samples"])

    def test_stock_masks_become_regions(self, positive, other):
        mask = torch.ones(1, 8, 8)
        masked = [[other[0][0], other[0][1] | {"mask": mask, "mask_strength": 0.5}]]
        (entry,), _ = regional([*masked, *positive])
        assert entry[0] is positive[0][0]
        (prompt,) = entry[1][REGIONS_KEY].prompts
        assert prompt.region.mask is mask and prompt.region.mask_strength == 0.5
        with pytest.raises(ValueError, match="0 prompts have no mask and no area"):
            regional(masked)

    def test_a_region_takes_one_prompt_and_a_box_of_some_size(self, positive):
        with pytest.raises(ValueError, match="conditioning has 2 prompts"):
            region([*positive, *positive])
        with pytest.raises(ValueError, match="expected its right and bottom behind"):
            region(positive, left=1.0)
        with pytest.raises(ValueError, match="expected at least one region"):
            regional(positive)


class TestGuidance:
    def test_options_travel_on_the_model(self, loaded):
        model = loaded[0]
        assert model.guidance_options == PLAIN_GUIDANCE
        same = node("FluxFitGuidance").set(**defaults("FluxFitGuidance", model=model))[0]
        assert same == model
        changed = node("FluxFitGuidance").set(
            **defaults(
                "FluxFitGuidance", model=model, end=0.4, cfg_zero="velocity", mimic_scale=2.5
            )
        )[0]
        both = node("FluxFitNAG").set(**defaults("FluxFitNAG", model=changed, scale=3.0))[0]
        expected = replace(
            PLAIN_GUIDANCE,
            end=0.4,
            cfg_zero="velocity",
            mimic_scale=2.5,
            nag=NormalizedAttentionGuidance(scale=3.0),
        )
        assert both.guidance_options == expected and both.module is model.module

    def test_nag_reads_the_negative_prompt_at_cfg_1(self, loaded, positive, other):
        plain, _ = sample(loaded, positive, empty(), negative=other)
        model = node("FluxFitNAG").set(**defaults("FluxFitNAG", model=loaded[0]))[0]
        guided, _ = sample((model,), positive, empty(), negative=other)
        assert not torch.equal(plain["samples"], guided["samples"])
        with pytest.raises(ValueError, match="NAG has 0 negative prompts"):
            sample((model,), positive, empty())

    def test_the_hosts_sampling_does_not_know_them(self, loaded, positive, other):
        model = node("FluxFitNAG").set(**defaults("FluxFitNAG", model=loaded[0]))[0]
        with pytest.raises(ValueError, match="draw with FluxSampler's own samplers"):
            sample((model,), positive, empty(), negative=other, sampler_object=object())


def test_conditioning_with_something_else_for_regions_is_refused(positive):
    context, extra = positive[0]
    with pytest.raises(ValueError, match="positive carries regions that are a str"):
        conditioning_of([[context, extra | {REGIONS_KEY: "left"}]])
