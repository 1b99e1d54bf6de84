"""References that attend to themselves alone: their mathematics, and what is kept of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flux_core import FluxControlNet, FluxTransformer
from flux_core.models.side_tokens import SideTokens
from flux_core.sampling.latents import image_ids
from tests import tiny_models

BATCH, TEXT, IMAGE, BEHIND = 2, 5, 6, 8


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer().requires_grad_(False)


def references() -> tuple[Tensor, Tensor]:
    tokens = torch.randn(BATCH, BEHIND, 64, generator=torch.Generator().manual_seed(3))
    return tokens, image_ids(4, 8, index=1)


def at(time: float) -> dict[str, Tensor]:
    inputs = tiny_models.inputs(BATCH, 4, 6, TEXT)
    return inputs | {"timesteps": torch.full((BATCH,), time)}


def masked(transformer: FluxTransformer, inputs: dict, bias: Tensor | None = None) -> Tensor:
    """All tokens in one sequence, with a mask that hides text and picture from the references."""
    tokens, ids = references()
    seen = torch.zeros(TEXT + IMAGE + BEHIND, TEXT + IMAGE + BEHIND)
    if bias is not None:
        seen[: TEXT + IMAGE, : TEXT + IMAGE] = bias
    seen[-BEHIND:, :-BEHIND] = -torch.inf
    inputs = inputs | {
        "img": torch.cat([inputs["img"], tokens], dim=1),
        "img_ids": torch.cat([inputs["img_ids"], ids]),
    }
    return transformer(**inputs, still_tokens=BEHIND, attention_mask=seen)[:, :IMAGE]


@pytest.mark.parametrize("biased", [False, True])
def test_they_equal_a_mask_over_all_tokens(transformer, biased):
    bias = torch.randn(TEXT + IMAGE, TEXT + IMAGE) if biased else None
    side = SideTokens(*references())
    for time in (1.0, 0.6, 0.1):
        inputs = at(time)
        expected = masked(transformer, inputs, bias)
        mask = None if bias is None else torch.nn.functional.pad(bias, (0, BEHIND))
        result = transformer(**inputs, side=side, attention_mask=mask)
        assert tiny_models.relative(result, expected) < 1e-5
        assert tiny_models.relative(result, transformer(**inputs, attention_mask=bias)) > 1e-2


def test_what_is_kept_serves_every_time_to_the_bit(transformer):
    kept = SideTokens(*references())
    for time in (1.0, 0.6, 0.1):
        anew = SideTokens(*references(), keep=False)
        assert torch.equal(transformer(**at(time), side=kept), transformer(**at(time), side=anew))
        assert len(kept.known) == len(transformer.offload_blocks()) and not anew.known


def test_kept_tokens_pass_through_no_block(transformer, monkeypatch):
    passed: list[int] = []
    side = SideTokens(*references())
    first = transformer.img_in.register_forward_hook(lambda _, args, out: passed.append(len(out)))
    try:
        for time in (0.9, 0.5):
            transformer(**at(time), side=side)
    finally:
        first.remove()
    assert len(passed) == 3  # the picture twice, the references once


def test_a_pass_that_is_broken_off_leaves_nothing(transformer):
    side = SideTokens(*references())
    expected = transformer(**at(0.5), side=SideTokens(*references()))

    def broken(*_):
        raise RuntimeError("out of memory")

    hook = transformer.single_blocks[1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        transformer(**at(0.9), side=side)
    hook.remove()
    assert 0 < len(side.known) < len(transformer.offload_blocks())
    assert torch.equal(transformer(**at(0.5), side=side), expected)


def test_another_state_of_the_model_forgets(transformer):
    side = SideTokens(*references())
    side.depend_on((1.0,))
    transformer(**at(0.9), side=side)
    side.depend_on((1.0,))
    assert side.known
    side.depend_on((0.5,))
    assert not len(side.known)


def test_a_control_s_residuals_are_the_picture_s_alone(transformer):
    net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
    inputs = at(0.7)
    control = net(cond=torch.randn(BATCH, IMAGE, 64), **inputs)
    with_control, without = SideTokens(*references()), SideTokens(*references())
    changed = transformer(**inputs, side=with_control, control=control)
    plain = transformer(**inputs, side=without)
    assert tiny_models.relative(changed, plain) > 1e-2
    for block, known in with_control.known.known.items():
        assert all(torch.equal(a, b) for a, b in zip(known, without.known.get(block), strict=True))


def test_other_code_around_the_blocks_is_refused(transformer):
    with pytest.raises(ValueError, match="without patches"):
        transformer(**at(0.5), side=SideTokens(*references()), patches=object())
