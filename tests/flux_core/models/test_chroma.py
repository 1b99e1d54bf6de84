"""Chroma's transformer against diffusers', and its files in every layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flux_core import CheckpointError, load_transformer, quantize, save_module
from flux_core.checkpoint.inspect import describe_file
from flux_core.checkpoint.load import transformer_family
from flux_core.lora.file import load_lora
from flux_core.lora.match import match_lora
from flux_core.models.chroma import ChromaConfig, ChromaTransformer
from flux_core.models.families import family_of
from flux_core.models.transformer import ControlResiduals, FluxTransformer
from flux_core.offload.modulations import PrecomputedModulations
from flux_core.quant import QuantizedLinear
from tests import tiny_chroma, tiny_models
from tests.flux_core.models.test_patches import Watching
from tests.tiny_models import HIDDEN, relative

#: Two members: another depth, width of the approximator and number of its layers.
MEMBERS = {
    "tiny": tiny_chroma.CHROMA,
    "deeper": dataclasses.replace(
        tiny_chroma.CHROMA,
        depth=2,
        depth_single_blocks=1,
        approximator_in=32,
        approximator_hidden=64,
        approximator_layers=3,
    ),
}


def newer_names(state: dict) -> dict:
    """Norms as newer files name them."""
    return {
        k.removesuffix(".scale") + ".weight" if k.endswith(".scale") else k: v
        for k, v in state.items()
    }


class TestAgainstDiffusers:
    @pytest.mark.parametrize("name", MEMBERS)
    @pytest.mark.parametrize("masked", [False, True])
    def test_velocities_are_the_same(self, name, masked, tmp_path):
        theirs = tiny_chroma.diffusers_transformer(MEMBERS[name])
        path = tiny_models.save(theirs.state_dict(), tmp_path / "model.safetensors")
        ours = load_transformer(path, precision="fp32")
        assert isinstance(ours, ChromaTransformer) and ours.config == MEMBERS[name]
        kwargs = tiny_chroma.inputs()
        tokens = kwargs["txt"].shape[1] + kwargs["img"].shape[1]
        mask = None
        if masked:
            mask = torch.ones(2, tokens, dtype=torch.bool)
            mask[0, 2:5] = mask[1, 4:5] = False
        given = tiny_chroma.to_diffusers(kwargs)
        (expected,) = theirs(**given, attention_mask=mask, return_dict=False)
        actual = ours(**kwargs, attention_mask=None if mask is None else mask[:, None])
        assert relative(actual, expected) < 1e-5
        if masked:
            assert relative(ours(**kwargs), expected) > 1e-3

    def test_neither_guidance_nor_a_pooled_vector_is_read(self):
        model, kwargs = tiny_chroma.chroma_transformer(), tiny_chroma.inputs()
        expected = model(**kwargs)
        other = kwargs | {"guidance": torch.full((2,), 9.0), "y": torch.ones(2, 7)}
        assert torch.equal(model(**other), expected)
        assert torch.equal(model(**kwargs | {"guidance": None}), expected)


class TestModulations:
    def test_those_computed_ahead_are_those_of_the_step(self):
        model, kwargs = tiny_chroma.chroma_transformer(), tiny_chroma.inputs()

        def embedded(sigma: float) -> torch.Tensor:
            return model.embed_vector(torch.full((2,), sigma), kwargs["y"], None)

        precomputed = PrecomputedModulations(model, {(s, ""): embedded(s) for s in (0.9, 0.5, 0.1)})
        for sigma in (0.5, 0.9):
            given = kwargs | {"timesteps": torch.full((2,), sigma)}
            expected = model(**given)
            assert precomputed.select((sigma, ""))
            model.precomputed = precomputed
            called = model.distilled_guidance_layer
            handle = called.register_forward_pre_hook(lambda *_: pytest.fail("computed live"))
            assert torch.equal(model(**given), expected)
            handle.remove()
            model.precomputed = None

    def test_each_vector_modulates_what_it_is_for(self):
        """Blocks and the last layer read all vectors, and each of them once."""
        model = tiny_chroma.chroma_transformer()
        config = model.config
        numbers = torch.arange(config.vectors, dtype=torch.float32)
        vec = numbers.view(1, -1, 1).expand(1, -1, HIDDEN)
        read = []
        for i, block in enumerate(model.offload_blocks()):
            mods = model.modulations(block, vec)
            read += [int(part[0, 0, 0]) for mod in mods for part in mod]
            first = 15 + 6 * i if i < config.depth else 3 * (i - config.depth)
            assert int(mods[0].shift[0, 0, 0]) == first
            assert len(mods) == (4 if i < config.depth else 1)
        assert sorted(read) == list(range(config.vectors - 2))

    def test_references_may_be_modulated_as_at_time_0(self):
        model, kwargs = tiny_chroma.chroma_transformer(), tiny_chroma.inputs(batch=1)
        still = kwargs["img"].shape[1]
        kwargs["timesteps"] = torch.zeros(1)
        assert relative(model(**kwargs, still_tokens=still), model(**kwargs)) < 1e-6
        kwargs["timesteps"] = torch.full((1,), 0.7)
        assert relative(model(**kwargs, still_tokens=2), model(**kwargs)) > 1e-3


class TestFiles:
    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
    @pytest.mark.parametrize("newer", [False, True])
    def test_native_files_load_and_say_what_they_are(self, prefix, newer, tmp_path):
        expected = tiny_chroma.chroma_transformer()
        state = newer_names(expected.state_dict()) if newer else expected.state_dict()
        path = tiny_models.save(state, tmp_path / "model.safetensors", prefix)
        model = load_transformer(path, precision="fp32")
        assert type(model) is ChromaTransformer and model.config == expected.config
        assert model.family is transformer_family(path) is family_of(expected)
        assert model.family.name == "Chroma" and not model.family.needs_pooled
        kwargs = tiny_chroma.inputs()
        assert torch.equal(model(**kwargs), expected(**kwargs))
        assert "transformer (Chroma native layout" in describe_file(path)
        assert "approximator_hidden=96" in describe_file(path)

    @pytest.mark.parametrize("precision", ["fp8_scaled", "int8", "fp8_e4m3fn", "bf16"])
    def test_what_is_saved_loads_as_it_was(self, precision, tmp_path):
        model = quantize(tiny_chroma.chroma_transformer(), precision)
        kept = [n for n, m in model.named_modules() if isinstance(m, QuantizedLinear)]
        assert not any(name.startswith(("distilled", "img_in", "final")) for name in kept)
        assert bool(kept) == (precision != "bf16")
        path = save_module(model, tmp_path / "model.safetensors")
        again = load_transformer(path, precision="as_stored")
        kwargs = tiny_chroma.inputs()
        expected = model.to(torch.bfloat16)(**kwargs)
        assert relative(again(**kwargs).float(), expected.float()) < 1e-6

    @pytest.mark.parametrize("architecture", ["flux", "chroma"])
    def test_gguf_files_load(self, architecture, tmp_path):
        pytest.importorskip("gguf")
        from tests.flux_core.checkpoint.test_gguf import write

        expected, kwargs = tiny_chroma.chroma_transformer(), tiny_chroma.inputs()
        path = write(tmp_path / "m.gguf", expected.state_dict(), "Q8_0", architecture)
        model = load_transformer(path, precision="fp32")
        assert isinstance(model, ChromaTransformer)
        assert relative(model(**kwargs), expected(**kwargs)) < 0.02

    @pytest.mark.parametrize("layer", ["blocks.0.param_generator", "image_embedder.embedder.0"])
    def test_the_kin_that_draws_pixels_is_refused_by_name(self, layer, tmp_path):
        name, state = f"nerf_{layer}.weight", tiny_chroma.chroma_transformer().state_dict()
        state = {k: v for k, v in state.items() if not k.startswith("img_in.")}
        path = tiny_models.save(state | {name: torch.zeros(2, 2)}, tmp_path / "m.safetensors")
        with pytest.raises(CheckpointError, match="found a Chroma Radiance transformer"):
            load_transformer(path)

    def test_a_file_that_lacks_part_of_the_approximator_is_named(self, tmp_path):
        state = tiny_chroma.chroma_transformer().state_dict()
        del state["distilled_guidance_layer.norms.1.scale"]
        path = tiny_models.save(state, tmp_path / "m.safetensors")
        with pytest.raises(CheckpointError, match=r"m.safetensors.*distilled_guidance_layer.norms"):
            load_transformer(path)

    def test_flux1_stays_what_it_was(self, tmp_path):
        path = tiny_models.save(
            tiny_models.flux_transformer().state_dict(), tmp_path / "m.safetensors"
        )
        assert type(load_transformer(path)) is FluxTransformer
        assert transformer_family(path).needs_pooled

    def test_the_published_sizes_are_the_defaults(self):
        assert ChromaConfig().vectors == 344
        with torch.device("meta"):
            model = ChromaTransformer(ChromaConfig())
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(8.9e9, rel=0.01)


LAYERS = {
    "transformer.transformer_blocks.1.attn.to_k": (HIDDEN, HIDDEN),
    "lora_unet_double_blocks_0_img_attn_qkv": (3 * HIDDEN, HIDDEN),
    "diffusion_model.single_blocks.2.linear1": (7 * HIDDEN, HIDDEN),
    "transformer.distilled_guidance_layer.layers.1.linear_2": (96, 96),
    "lora_unet_distilled_guidance_layer_in_proj": (96, 64),
    "blocks.0.attn.b_to_qkv": (3 * HIDDEN, HIDDEN),
}


def lora_of(layers: dict[str, tuple[int, int]], path):
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, (rows, columns) in layers.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    return load_lora(tiny_models.save(tensors, path))


class TestLoras:
    def test_names_of_every_spelling_are_found(self, tmp_path):
        lora = lora_of(LAYERS, tmp_path / "l.safetensors")
        match = match_lora(lora, tiny_chroma.chroma_transformer())
        assert not match.unmatched and set(match.deltas) == {
            "double_blocks.1.img_attn.qkv",
            "double_blocks.0.img_attn.qkv",
            "single_blocks.2.linear1",
            "distilled_guidance_layer.layers.1.out_layer",
            "distilled_guidance_layer.in_proj",
            "double_blocks.0.txt_attn.qkv",
        }

    def test_layers_that_only_flux1_has_are_reported(self, tmp_path):
        flux1 = LAYERS | {"diffusion_model.double_blocks.0.img_mod.lin": (6 * HIDDEN, HIDDEN)}
        lora = lora_of(flux1, tmp_path / "l.safetensors")
        match = match_lora(lora, tiny_chroma.chroma_transformer())
        assert len(match.unmatched) == 2 and len(match.deltas) == 6


class TestOtherCode:
    """What hosts and other packs do around blocks."""

    def test_patches_see_every_block_and_cost_no_bit(self):
        model, kwargs, watching = tiny_chroma.chroma_transformer(), tiny_chroma.inputs(), Watching()
        assert torch.equal(model(**kwargs, patches=watching), model(**kwargs))
        assert len(watching.seen) == 1 + len(model.offload_blocks())

        def unmodulated(tokens, state):
            return tokens, dataclasses.replace(state, vec=torch.zeros_like(state.vec))

        changed = model(**kwargs, patches=Watching(unmodulated))
        assert relative(changed, model(**kwargs)) > 1e-3

    def test_residuals_are_added_as_to_flux1(self):
        model, kwargs = tiny_chroma.chroma_transformer(), tiny_chroma.inputs()
        shape = (2, kwargs["img"].shape[1], HIDDEN)
        nothing = ControlResiduals([torch.zeros(shape)], [torch.zeros(shape)])
        assert torch.equal(model(**kwargs, control=nothing), model(**kwargs))
        something = ControlResiduals([kwargs["img"].repeat(1, 1, HIDDEN // 64)], [])
        assert relative(model(**kwargs, control=something), model(**kwargs)) > 1e-3
