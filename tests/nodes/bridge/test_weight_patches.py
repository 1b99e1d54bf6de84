"""The host's weight patches as deltas: what a sum of matrices says they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fluxfit.nodes.bridge.weight_patches import delta_of, entries_of, numbered_entries

from tests import tiny_models


@dataclass
class Adapter:
    """As the host's adapters are: a name, and tensors in its order."""

    name: str
    weights: tuple[Any, ...]


LAYER = "double_blocks.0.img_attn.proj"
KEY = f"diffusion_model.{LAYER}.weight"


@pytest.fixture(scope="module")
def transformer():
    return tiny_models.flux_transformer()


def entry(what, part=None, function=None, own=1.0, key=KEY):
    (one,) = entries_of({key: [(0.5, what, own, part, function)]}, "diffusion_model.")
    return one


def test_a_lora_of_a_part_with_its_alpha(transformer):
    qkv = transformer.double_blocks[0].img_attn.qkv
    dim = qkv.in_features
    up, down = torch.randn(dim, 4), torch.randn(4, dim)
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    one = entry(Adapter("lora", (up, down, 2.0, None, None, None)), (0, dim, dim), key=key)
    delta = delta_of(one, qkv)
    assert delta.rows == (dim, dim) and one.strength == 0.5
    assert torch.allclose(delta.weight(), up @ down * 0.5, atol=1e-6)


def test_halves_that_are_swapped(transformer):
    layer = transformer.final_layer.adaLN_modulation[1]
    diff = torch.randn(layer.out_features, layer.in_features)

    def swap(weight):
        shift, scale = weight.chunk(2)
        return torch.cat([scale, shift])

    key = "diffusion_model.final_layer.adaLN_modulation.1.weight"
    assert torch.equal(
        delta_of(entry(("diff", (diff,)), None, swap, key=key), layer).diff, swap(diff)
    )
    with pytest.raises(ValueError, match="function on its result"):
        delta_of(entry(("diff", (diff,)), None, lambda w: w * 2, key=key), layer)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (Adapter("oft", ()), "is a oft adapter"),
        (Adapter("lora", (1, 2, 1.0, torch.ones(1), None)), "convolution"),
        (("model_as_lora", (torch.ones(1),)), "needs the weight itself"),
        (("set", (torch.ones(1),)), "overwrites the weight"),
        ([1, 2], "cannot be merged"),
        (("diff", (torch.ones(3, 3),)), r"made for a layer of \(3, 3\)"),
    ],
)
def test_what_has_no_form_beside_a_weight_is_refused_by_name(what, message, transformer):
    with pytest.raises(ValueError, match=f"the patch of {LAYER}.weight .*{message}"):
        numbered_entries(transformer, [entry(what)])


def test_a_weight_that_is_scaled_is_refused(transformer):
    with pytest.raises(ValueError, match="scales the weight itself"):
        numbered_entries(transformer, [entry(("diff", (torch.ones(1),)), own=0.5)])


def test_norms_and_biases(transformer):
    head = transformer.double_blocks[0].img_attn.norm.query_norm.scale
    name = "double_blocks.0.img_attn.norm.query_norm"
    patches = {
        f"diffusion_model.{name}.weight": [
            (1.0, ("diff", (torch.ones_like(head),)), 1.0, None, None)
        ],
        f"diffusion_model.{LAYER}.bias": [
            (1.0, ("diff", (torch.ones(transformer.img_in.out_features),)), 1.0, None, None)
        ],
        "other.weight": [(1.0, ("diff", ()), 1.0, None, None)],
    }
    entries = entries_of(patches, "diffusion_model.")
    assert len(entries) == 2
    deltas, norms = numbered_entries(transformer, entries, 3)
    ((number, value),) = norms[name]
    assert number == 3 and torch.allclose(value, head.float() + 1)
    ((number, delta),) = deltas[LAYER]
    assert number == 4 and delta.bias is not None
