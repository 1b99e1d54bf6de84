"""Other code around the transformer's blocks, masks of attention, and tokens as at time 0."""

from __future__ import annotations

import pytest
import torch

from flux_core.models.layers import attention
from flux_core.models.patches import DOUBLE, SINGLE, EmbeddedInputs
from tests import tiny_models


@pytest.fixture(scope="module")
def transformer():
    return tiny_models.flux_transformer()


class Watching:
    """Patches that change nothing unless told, and write down what they see."""

    def __init__(self, change=None):
        self.seen, self.change = [], change

    def embedded(self, inputs: EmbeddedInputs) -> EmbeddedInputs:
        self.seen.append("embedded")
        return inputs

    def block(self, kind, index, tokens, state, run):
        self.seen.append((kind, index))
        if self.change is not None:
            tokens, state = self.change(tokens, state)
        return run(tokens, state)


@torch.no_grad()
def test_patches_see_every_block_and_cost_no_bit(transformer):
    inputs = tiny_models.inputs()
    watching = Watching()
    plain = transformer(**inputs)
    assert torch.equal(transformer(**inputs, patches=watching), plain)
    double = [(DOUBLE, i) for i in range(len(transformer.double_blocks))]
    single = [(SINGLE, i) for i in range(len(transformer.single_blocks))]
    assert watching.seen == ["embedded", *double, *single]


@torch.no_grad()
def test_what_they_change_counts(transformer):
    from dataclasses import replace

    inputs = tiny_models.inputs()
    plain = transformer(**inputs)
    for change in (
        lambda tokens, state: ((tokens[0] * 1.5, *tokens[1:]), state),
        lambda tokens, state: (tokens, replace(state, vec=state.vec * 2)),
        lambda tokens, state: (tokens, replace(state, attend=lambda *a: 0 * attention(*a))),
    ):
        assert not torch.allclose(transformer(**inputs, patches=Watching(change)), plain)


@torch.no_grad()
def test_a_mask_hides_tokens(transformer):
    inputs = tiny_models.inputs()
    text, image = inputs["txt"].shape[1], inputs["img"].shape[1]
    open_to_all = torch.zeros(text + image, text + image)
    plain = transformer(**inputs)
    masked = transformer(**inputs, attention_mask=open_to_all)
    assert torch.allclose(masked, plain, atol=1e-5)
    hidden = open_to_all.clone()
    hidden[:, :text] = -torch.inf
    hidden[:text, :text] = 0
    without = transformer(**inputs, attention_mask=hidden)
    other = transformer(**inputs | {"txt": torch.randn_like(inputs["txt"])}, attention_mask=hidden)
    assert torch.allclose(without, other, atol=1e-5), "nobody reads the text"
    for mask in (hidden > -1, hidden[None], hidden[None, None]):
        again = transformer(**inputs, attention_mask=mask)
        assert torch.allclose(again, without, atol=1e-5)


@torch.no_grad()
def test_still_tokens_are_modulated_as_at_time_0(transformer):
    inputs = tiny_models.inputs()
    at_zero = inputs | {"timesteps": torch.zeros_like(inputs["timesteps"])}
    assert torch.allclose(transformer(**at_zero, still_tokens=4), transformer(**at_zero), atol=1e-5)
    some, none = transformer(**inputs, still_tokens=4), transformer(**inputs)
    assert some.shape == none.shape and not torch.allclose(some, none)


@torch.no_grad()
def test_without_guidance_nothing_is_added_for_it(transformer):
    inputs = tiny_models.inputs()
    assert transformer.guidance_in is not None
    without = transformer(**inputs | {"guidance": None})
    assert not torch.allclose(without, transformer(**inputs))
