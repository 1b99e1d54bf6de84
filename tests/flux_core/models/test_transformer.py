"""The transformer against diffusers, from every layout."""

from __future__ import annotations

import pytest
import torch

from flux_core import load_transformer, load_vae
from tests import tiny_models


def prefixed_with_all(state, tmp_path):
    """A host checkpoint: transformer and VAE in one file under the host's prefixes."""
    vae = load_vae(
        tiny_models.save(tiny_models.diffusers_vae().state_dict(), tmp_path / "v.safetensors"),
        dtype=torch.float32,
    )
    both = {f"model.diffusion_model.{k}": v for k, v in state.items()}
    both |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
    return tiny_models.save(both, tmp_path / "all_in_one.safetensors")


LAYOUTS = ("diffusers", "shards", "native", "native, norms called weight", "host checkpoint")


def saved_as(layout, model, tmp_path):
    """The diffusers model's weights in a layout; native ones go through our own load."""
    state = model.state_dict()
    if layout == "diffusers":
        return tiny_models.save(state, tmp_path / "m.safetensors")
    if layout == "shards":
        return tiny_models.save_shards(state, tmp_path / "folder")
    ours = load_transformer(tiny_models.save(state, tmp_path / "d.safetensors"), precision="fp32")
    native = ours.state_dict()
    if layout == "host checkpoint":
        return prefixed_with_all(native, tmp_path)
    if layout == "native, norms called weight":
        native = {k.replace("_norm.scale", "_norm.weight"): v for k, v in native.items()}
    return tiny_models.save(native, tmp_path / "n.safetensors")


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformer_equals_diffusers(layout, guidance, tmp_path):
    theirs = tiny_models.diffusers_transformer(guidance)
    ours = load_transformer(saved_as(layout, theirs, tmp_path), precision="fp32")
    kwargs = tiny_models.inputs()
    if not guidance:
        kwargs["guidance"] = None
    with torch.no_grad():
        expected = theirs(**tiny_models.to_diffusers(kwargs), return_dict=False)[0]
        result = ours(**kwargs)
    assert ours.config.guidance_embed is guidance
    assert tiny_models.relative(result, expected) < 1e-5
