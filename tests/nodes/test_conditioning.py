"""What travels on wires."""

from __future__ import annotations

import math

import pytest
import torch
from fluxfit.nodes.conditioning import conditioning_of, with_attention

from flux_core.models.families import CHROMA, FLUX1_DEV, FLUX2_DEV, FLUX2_KLEIN
from flux_core.sampling.redux import MULTIPLY, STRENGTH_TYPES
from tests.nodes.node_calls import defaults, node


def test_conditioning_of_something_else_is_refused():
    with pytest.raises(ValueError, match="positive is dict, expected CONDITIONING"):
        conditioning_of({})


class TestMasksOfText:
    """An attention mask over text alone, as language encoders give it, says what is padding."""

    CONTEXT, MASK = torch.zeros(1, 4, 8), torch.tensor([[1, 1, 0, 0]])

    def entry(self, mask, **more):
        return [[self.CONTEXT, {"attention_mask": mask, **more}]]

    def test_families_that_mask_padding_read_them(self):
        (prompt,) = conditioning_of(self.entry(self.MASK), family=CHROMA)
        assert prompt.attention is None and prompt.text_mask.tolist() == [[True] * 2 + [False] * 2]
        (prompt,) = conditioning_of(self.entry(torch.ones(1, 4)), family=CHROMA)
        assert prompt.text_mask is None

    def test_language_encoders_padding_is_read_as_the_hosts_is(self):
        for family in (FLUX2_DEV, FLUX2_KLEIN):
            (prompt,) = conditioning_of(self.entry(self.MASK), family=family)
            assert prompt.text_mask is None and prompt.attention is None

    def test_flux_1_refuses_them(self):
        with pytest.raises(ValueError, match="positive has an attention_mask without .*FLUX.1-dev"):
            conditioning_of(self.entry(self.MASK), family=FLUX1_DEV)
        assert conditioning_of(self.entry(self.MASK[:, :2]), family=FLUX1_DEV)[0].attention is None
        with pytest.raises(ValueError, match=r"attention_mask of \(1, 4, 4\) without"):
            conditioning_of(self.entry(torch.ones(1, 4, 4)))

    def test_regions_keep_them_until_the_family_is_known(self):
        node_of = {name: node(name) for name in ("FluxFitRegion", "FluxFitRegionalPrompts")}
        regions = node_of["FluxFitRegion"].add(
            **defaults("FluxFitRegion", conditioning=self.entry(self.MASK))
        )[0]
        values = defaults("FluxFitRegionalPrompts", conditioning=self.entry(self.MASK))
        together, _ = node_of["FluxFitRegionalPrompts"].combine(**values, regions=regions)
        assert together[0][1]["attention_mask"] is self.MASK
        for family, masked in ((None, True), (CHROMA, True), (FLUX2_DEV, False)):
            (prompt,) = conditioning_of(together, family=family)
            masks = [prompt.text_mask, prompt.regional.prompts[0].text_mask]
            assert [mask is not None for mask in masks] == [masked, masked]
        alone = [[self.CONTEXT, {"fluxfit_regions": together[0][1]["fluxfit_regions"]}]]
        with pytest.raises(ValueError, match="positive's region has an attention_mask"):
            conditioning_of(alone, family=FLUX1_DEV)

    @pytest.mark.parametrize("strength_type", STRENGTH_TYPES)
    def test_pictures_stand_behind_padding(self, strength_type):
        tokens = torch.ones(1, 3, 8)
        style = type("Style", (), {"get_cond": lambda self, seen: tokens})()
        options = {"style_model": style, "strength": 0.5, "strength_type": strength_type}
        values = defaults("FluxFitRedux", clip_vision_output=object(), **options)

        def seen(conditioning):
            return node("FluxFitRedux").apply(**values | {"conditioning": conditioning})[0]

        first = seen(self.entry(self.MASK, pooled_output=None))
        assert first[0][0].shape == (1, 7, 8)
        both = seen(first)
        (prompt,) = conditioning_of(both, family=CHROMA)
        if strength_type == MULTIPLY:
            hidden = [True] * 2 + [False] * 2 + [True] * 6
            assert prompt.attention is None and prompt.text_mask.tolist() == [hidden]
            return
        assert prompt.text_mask is None and prompt.attention.values.shape == (1, 11, 11)
        values = prompt.attention.values[0]
        others = [*range(4), 10]  # what pictures see of the rest is not changed
        assert bool((values[others][:, 2:4] == -torch.inf).all())
        assert bool((values[:, 4:7][others] == math.log(0.5)).any())
        assert bool(values[:, :2].isfinite().all())

    def test_all_of_a_text_leaves_no_mask_behind(self):
        extra = {"attention_mask": torch.ones(1, 4), "guidance": 2.0}
        assert with_attention(extra, None, None) == {"guidance": 2.0}
