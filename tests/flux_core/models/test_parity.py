"""The same weights and inputs give what diffusers and transformers give, from every layout."""

from __future__ import annotations

import pytest
import torch

from flux_core import load_clip_l, load_controlnet, load_t5, load_transformer, load_vae
from tests import tiny_models as tiny


def prefixed_with_all(state, tmp_path):
    """A host checkpoint: transformer and VAE in one file under the host's prefixes."""
    vae = load_vae(
        tiny.save(tiny.diffusers_vae().state_dict(), tmp_path / "v.safetensors"),
        dtype=torch.float32,
    )
    both = {f"model.diffusion_model.{k}": v for k, v in state.items()}
    both |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
    return tiny.save(both, tmp_path / "all_in_one.safetensors")


LAYOUTS = ("diffusers", "shards", "native", "native, norms called weight", "host checkpoint")


def saved_as(layout, model, tmp_path):
    """The diffusers model's weights in a layout; native ones go through our own load."""
    state = model.state_dict()
    if layout == "diffusers":
        return tiny.save(state, tmp_path / "m.safetensors")
    if layout == "shards":
        return tiny.save_shards(state, tmp_path / "folder")
    ours = load_transformer(tiny.save(state, tmp_path / "d.safetensors"), precision="fp32")
    native = ours.state_dict()
    if layout == "host checkpoint":
        return prefixed_with_all(native, tmp_path)
    if layout == "native, norms called weight":
        native = {k.replace("_norm.scale", "_norm.weight"): v for k, v in native.items()}
    return tiny.save(native, tmp_path / "n.safetensors")


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformer_equals_diffusers(layout, guidance, tmp_path):
    theirs = tiny.diffusers_transformer(guidance)
    ours = load_transformer(saved_as(layout, theirs, tmp_path), precision="fp32")
    kwargs = tiny.inputs()
    if not guidance:
        kwargs["guidance"] = None
    with torch.no_grad():
        expected = theirs(**tiny.to_diffusers(kwargs), return_dict=False)[0]
        result = ours(**kwargs)
    assert ours.config.guidance_embed is guidance
    assert tiny.relative(result, expected) < 1e-5


CONTROLNETS = {
    "upscaler": {},
    "single blocks and modes": {"single": 3, "modes": 10},
    "no guidance": {"guidance": False, "single": 1},
}


@pytest.mark.parametrize("layout", ["diffusers", "native", "shards"])
@pytest.mark.parametrize("kind", CONTROLNETS)
def test_controlnet_and_its_residuals_equal_diffusers(kind, layout, tmp_path):
    theirs = tiny.diffusers_controlnet(**CONTROLNETS[kind])
    path = tiny.save(theirs.state_dict(), tmp_path / "c.safetensors")
    ours = load_controlnet(path, precision="fp32")
    if layout == "native":
        ours = load_controlnet(
            tiny.save(ours.state_dict(), tmp_path / "n.safetensors"), precision="fp32"
        )
    if layout == "shards":
        path = tiny.save_shards(theirs.state_dict(), tmp_path / "folder")
        ours = load_controlnet(path, precision="fp32")
    base = tiny.diffusers_transformer()
    our_base = load_transformer(
        tiny.save(base.state_dict(), tmp_path / "b.safetensors"), precision="fp32"
    )
    kwargs = tiny.inputs()
    cond = torch.randn(kwargs["img"].shape, generator=torch.Generator().manual_seed(3))
    extra, mode = {}, None
    if CONTROLNETS[kind].get("modes"):
        mode = 6
        extra["controlnet_mode"] = torch.full((2, 1), mode)
    guided = CONTROLNETS[kind].get("guidance", True)
    for_net = kwargs if guided else kwargs | {"guidance": None}
    with torch.no_grad():
        double, single = theirs(
            **tiny.to_diffusers(for_net), controlnet_cond=cond, **extra, return_dict=False
        )
        residuals = ours(**for_net, cond=cond, mode=mode)
        expected = base(
            **tiny.to_diffusers(kwargs),
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
            return_dict=False,
        )[0]
        result = our_base(**kwargs, control=residuals)
    assert len(residuals.double) == len(double)
    for a, b in zip(residuals.double, double, strict=True):
        assert tiny.relative(a, b) < 1e-5
    for a, b in zip(residuals.single, single or [], strict=True):
        assert tiny.relative(a, b) < 1e-5
    assert tiny.relative(result, expected) < 1e-5


@pytest.mark.parametrize("layout", ["diffusers", "native"])
def test_vae_equals_diffusers_both_ways(layout, tmp_path):
    theirs = tiny.diffusers_vae()
    ours = load_vae(tiny.save(theirs.state_dict(), tmp_path / "v.safetensors"), dtype=torch.float32)
    if layout == "native":
        path = tiny.save(ours.state_dict(), tmp_path / "n.safetensors")
        ours = load_vae(path, dtype=torch.float32)
    g = torch.Generator().manual_seed(5)
    pictures = torch.rand(2, 3, 48, 32, generator=g) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(pictures).latent_dist.mean
        assert tiny.relative(ours.encode(pictures), latents) < 1e-4
        assert tiny.relative(ours.decode(latents), theirs.decode(latents).sample) < 1e-4
    assert ours.config.ch_mult == (1, 2, 4, 4)


def clip_model():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=298,
        eos_token_id=299,
        pad_token_id=299,
    )
    return tiny.randomise(CLIPTextModel(config))


def t5_model():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=200,
        d_model=48,
        d_kv=32,
        d_ff=96,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return tiny.randomise(T5EncoderModel(config))


@pytest.mark.parametrize("prefix", ["", "text_encoders.clip_l.transformer."])
def test_clip_equals_transformers(prefix, tmp_path):
    theirs = clip_model()
    state = {
        "text_model." + k.removeprefix("text_model."): v for k, v in theirs.state_dict().items()
    }
    ours = load_clip_l(tiny.save(state, tmp_path / "c.safetensors", prefix), precision="fp32")
    ids = torch.randint(0, 290, (3, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[0, 9:], ids[1, 40:], ids[2, 76:] = 298, 299, 299, 299
    with torch.no_grad():
        assert tiny.relative(ours(ids), theirs(input_ids=ids).pooler_output) < 1e-5


@pytest.mark.parametrize("prefix", ["", "text_encoders.t5xxl.transformer."])
@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_t5_equals_transformers(prefix, embedding, tmp_path):
    theirs = t5_model()
    state = dict(theirs.state_dict())
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    if embedding != "both":
        other = {"shared.weight", "encoder.embed_tokens.weight"} - {embedding}
        state.pop(other.pop())
    ours = load_t5(tiny.save(state, tmp_path / "t.safetensors", prefix), precision="fp32")
    ids = torch.randint(0, 200, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert tiny.relative(ours(ids), theirs(input_ids=ids).last_hidden_state) < 1e-5
