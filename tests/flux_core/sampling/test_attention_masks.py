"""Text that is padding, with regions, NAG, Redux and windows: against prompts without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import Conditioning
from flux_core.models.families import family_of
from flux_core.sampling.attention_masks import hide_text
from flux_core.sampling.conditioning import AttentionBias, Region, RegionalPrompts
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.nag import NormalizedAttentionGuidance
from flux_core.sampling.redux import STRENGTH_TYPES, with_tokens
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.tiles import Tiling
from tests import flux2_models, tiny_chroma
from tests.tiny_models import CONTEXT, relative

LEFT, RIGHT = (1.0, 0.5, 0.0, 0.0), (1.0, 0.25, 0.0, 0.5)


@pytest.fixture(scope="module", params=["Chroma", "FLUX.2-dev"])
def model(request):
    if request.param == "Chroma":
        return tiny_chroma.chroma_transformer()
    model = flux2_models.transformer()
    # zeros in front of a text that is shorter would move its positions
    model.family = replace(family_of(model), context_length=0)
    return model


def padded(prompt: Conditioning, count: int) -> Conditioning:
    """A prompt with so many tokens of padding behind it, and a mask that says so."""
    noise = torch.randn(1, count, CONTEXT, generator=torch.Generator().manual_seed(count))
    mask = torch.ones(1, prompt.context.shape[1], dtype=torch.bool)
    context = torch.cat([prompt.context, 5 * noise], dim=1)
    return replace(prompt, context=context, text_mask=F.pad(mask, (0, count), value=False))


def with_text_masks(whole: bool, region: bool, other: bool, tokens: int = 5):
    """A prompt with two regions, and a negative one; some of them with padding."""

    def text(seed: int, masked: bool, **options) -> Conditioning:
        g = torch.Generator().manual_seed(seed)
        context = torch.randn(1, tokens + seed, CONTEXT, generator=g)
        prompt = Conditioning(context, None, **options)
        return padded(prompt, 2 + seed) if masked else prompt

    places = [Region(area=area, shares=True) for area in (LEFT, RIGHT)]
    parts = (text(1, region, region=places[0]), text(2, False, region=places[1]))
    positive = replace(text(0, whole), regional=RegionalPrompts(parts))
    return positive, text(3, other)


def drawn(model, positive: Conditioning, negative: Conditioning | None = None, **options) -> Tensor:
    channels, side = family_of(model).vae.latent_channels, options.pop("side", 4)
    settings = SamplingSettings(seed=3, steps=2, **options.pop("settings", {}))
    start = torch.zeros(1, channels, side, side)
    return sample(DrawRequest(model, positive, start, settings, negative=negative, **options))


class TestPaddingOfRegions:
    @pytest.mark.parametrize("masked", [(True, False), (False, True), (True, True)])
    def test_what_is_masked_is_as_if_it_were_not_there(self, model, masked):
        with_padding, _ = with_text_masks(*masked, False)
        without, _ = with_text_masks(False, False, False)
        expected = drawn(model, without)
        assert relative(drawn(model, with_padding), expected) < 2e-5
        assert with_padding.regional is not None
        parts = tuple(replace(part, text_mask=None) for part in with_padding.regional.prompts)
        read = replace(with_padding, text_mask=None, regional=RegionalPrompts(parts))
        assert relative(drawn(model, read), expected) > 1e-4

    def test_nag_and_the_negative_prompt_too(self, model):
        settings = {"guidance_options": GuidanceOptions(nag=NormalizedAttentionGuidance(scale=3))}
        for cfg in (1.0, 2.0):
            options = {"settings": settings | {"cfg": cfg}}
            both = drawn(model, *with_text_masks(True, True, True), **options)
            neither = drawn(model, *with_text_masks(False, False, False), **options)
            assert relative(both, neither) < 2e-5


def test_in_windows():
    model = tiny_chroma.chroma_transformer()
    options = {"tiles": Tiling(128, 32), "side": 20}
    with_padding, _ = with_text_masks(True, True, False)
    without, _ = with_text_masks(False, False, False)
    assert relative(drawn(model, with_padding, **options), drawn(model, without, **options)) < 2e-5


@pytest.mark.parametrize("strength_type", STRENGTH_TYPES)
def test_pictures_stand_behind_padding(strength_type):
    model = tiny_chroma.chroma_transformer()
    g = torch.Generator().manual_seed(4)
    text = Conditioning(torch.randn(1, 5, CONTEXT, generator=g), None)
    picture = torch.randn(1, 4, CONTEXT, generator=g)
    about = (picture, 0.5, strength_type)
    with_padding, without = with_tokens(padded(text, 3), *about), with_tokens(text, *about)
    assert with_padding.context.shape[1] == without.context.shape[1] + 3
    expected = drawn(model, without)
    assert relative(drawn(model, with_padding), expected) < 2e-5
    if with_padding.attention is not None and with_padding.text_mask is not None:
        one = hide_text(with_padding.attention, with_padding.text_mask)
        together = replace(with_padding, attention=one, text_mask=None)
        assert relative(drawn(model, together), expected) < 2e-5


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_hidden_text_is_read_by_none(kind):
    values = torch.ones(1, 7, 7, dtype=kind)
    keep = torch.tensor([[True, False, True], [True, True, True]])
    hidden = hide_text(AttentionBias(values, 2, 2), keep)
    assert hidden.values.dtype == kind and hidden.values.shape == (2, 7, 7)
    closed = torch.zeros(2, 7, 7, dtype=torch.bool)
    closed[0, :, 1] = True
    now = hidden.values if kind == torch.bool else hidden.values == 1
    assert torch.equal(~now, closed)
    with pytest.raises(ValueError, match="a mask of text has 2 tokens, the attention's bias 3"):
        hide_text(AttentionBias(values, 2, 2), keep[:, :2])
