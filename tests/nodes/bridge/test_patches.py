"""The host's patches around our blocks, without a host."""

from __future__ import annotations

import pytest
import torch
from fluxfit.nodes.bridge.patches import (
    HostPatches,
    from_host_rotary,
    has_patches,
    refuse_unknown,
    to_host_rotary,
)

from flux_core.models.layers import apply_rotary, rotary_table
from flux_core.sampling.latents import image_ids
from tests import tiny_models

BLOCKS = {"double_block": 2, "single_block": 2}


def test_rotations_in_the_host_s_form_rotate_the_same():
    rotary = rotary_table(image_ids(8, 6), (8, 12, 12), 10_000)
    pe = to_host_rotary(rotary)
    assert pe.shape == (1, 1, 12, 16, 2, 2)
    x = torch.randn(2, 12, 3, 32)
    pairs = x.transpose(1, 2).unflatten(-1, (-1, 2))
    theirs = pe[..., 0] * pairs[..., 0, None] + pe[..., 1] * pairs[..., 1, None]
    ours = apply_rotary(x, rotary).transpose(1, 2)
    assert torch.allclose(theirs.flatten(-2), ours, atol=1e-6)
    for a, b in zip(from_host_rotary(pe), rotary, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": {"input_block_patch": [print]}}, "input_block_patch.*is not for FLUX.1"),
        ({"patches_replace": {"attn2": {("middle", 0): print}}}, "replaces attn2"),
        ({"patches_replace": {"dit": {("double_block", 2): print}}}, "does not have"),
        ({"patches_replace": {"dit": {("block", 0): print}}}, "does not have"),
    ],
)
def test_what_has_no_place_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        refuse_unknown(options, BLOCKS)


def test_what_has_a_place_is_not():
    options = {
        "patches": {"post_input": [print], "attn1_patch": [print], "input_block_patch": []},
        "patches_replace": {"dit": {("single_block", 1): print}},
    }
    refuse_unknown(options, BLOCKS)
    assert has_patches(options)
    assert not has_patches({"patches": {}, "sigmas": 1}) and not has_patches({})


@torch.no_grad()
def test_a_replaced_block_and_a_controlnet_s_residuals():
    transformer = tiny_models.flux_transformer()
    blocks = {
        "double_block": len(transformer.double_blocks),
        "single_block": len(transformer.single_blocks),
    }
    inputs = tiny_models.inputs()
    plain = transformer(**inputs)
    seen = []

    def patch(args, extra):
        seen.append((args["transformer_options"]["block_index"], sorted(args)))
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 0): patch}}}
    same = transformer(**inputs, patches=HostPatches(options, None, blocks))
    assert torch.equal(same, plain)
    assert seen == [(0, ["attn_mask", "img", "pe", "transformer_options", "txt", "vec"])]
    few = torch.ones(2, 2, transformer.img_in.out_features)
    control = {"input": [None, few], "output": [few]}
    changed = transformer(**inputs, patches=HostPatches({}, control, blocks))
    assert not torch.allclose(changed, plain)
