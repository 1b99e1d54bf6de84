"""Nodes with FLUX.1's kin: Chroma, which reads T5 alone, and Flex.2, which reads pictures."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, host, live_plan
from fluxfit.nodes.conditioning import CONTROL_PICTURE, conditioning_of
from fluxfit.nodes.headless.stock_loaders import STOCK_LOADERS
from fluxfit.nodes.headless.stock_sampling import STOCK_SAMPLING
from fluxfit.nodes.loaders import NO_FILE, SAME_FILE, choices
from safetensors.torch import load_file

from flux_core.sampling.latents import pack
from tests import tiny_chroma, tiny_models
from tests.nodes.node_calls import empty, node, sample

CLIP_L, T5 = "fluxfit_pocket_clip_l.safetensors", "fluxfit_pocket_t5.safetensors"
VAE, POCKET = "fluxfit_pocket_vae.safetensors", "fluxfit_pocket.safetensors"
CHROMA = dataclasses.replace(tiny_chroma.CHROMA, context_in_dim=128)
FLEX = dataclasses.replace(
    tiny_models.DEV,
    depth=8,
    depth_single_blocks=1,
    in_channels=196,
    vec_in_dim=192,
    context_in_dim=128,
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A person's model folders with the two."""
    folder = tmp_path / "diffusion_models"
    tiny_models.save(
        tiny_chroma.chroma_transformer(CHROMA).state_dict(), folder / "chroma.safetensors"
    )
    tiny_models.save(tiny_models.flux_transformer(FLEX).state_dict(), folder / "flex2.safetensors")
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))


def load(transformer: str, clip_l: str):
    loader = NODE_CLASS_MAPPINGS["FluxLoaderFP8"]()
    return loader.load(transformer, "fp8_scaled", clip_l, "bf16", T5, "bf16", VAE, "bf16")


def test_no_file_may_be_chosen_for_clip_l_alone():
    assert choices("clip_l")[-1] == NO_FILE and NO_FILE not in choices("t5") + choices("vae")


class TestChroma:
    @pytest.mark.parametrize("clip_l", [CLIP_L, SAME_FILE])
    def test_clip_l_is_not_opened_whatever_is_chosen(self, files, clip_l):
        assert load("chroma.safetensors", clip_l)[1].module.clip_l is None

    def test_it_draws_from_t5_alone(self, files):
        loaded = load("chroma.safetensors", NO_FILE)
        assert loaded[1].module.modules_used == [loaded[1].module.t5]
        encode = node("FluxTextEncode").encode
        (positive,), (negative,) = encode(loaded[1], "a ring", 3.5), encode(loaded[1], "", 3.5)
        ((context, extra),) = positive
        assert extra == {"pooled_output": None}  # as the host's own encoder of Chroma has it
        assert negative[0][0].shape == (1, 2, 128) and context.shape[1] > 2
        drawn = [
            sample(loaded, positive, empty(), cfg=cfg, negative=negative, steps=2)[0]["samples"]
            for cfg in (1.0, 3.0)
        ]
        assert drawn[0].isfinite().all() and not torch.equal(*drawn)

    def test_conditioning_of_the_host_s_encoders_is_drawn(self, files):
        """As short as the prompt, and without a pooled vector or guidance; or FLUX's own."""
        loaded = load("chroma.safetensors", NO_FILE)
        context = torch.randn(1, 7, 128, generator=torch.Generator().manual_seed(0))
        plain = sample(loaded, [[context, {"pooled_output": None}]], empty())[0]["samples"]
        extra = {"pooled_output": torch.ones(1, 768), "guidance": 9.0}
        assert torch.equal(sample(loaded, [[context, extra]], empty())[0]["samples"], plain)

    def test_stock_nodes_open_and_draw_it_without_the_host(self, files, tmp_path):
        stock = STOCK_LOADERS | STOCK_SAMPLING
        (clip,) = stock["CLIPLoader"]().load(T5, "chroma")
        (((context, extra),),) = stock["CLIPTextEncode"]().encode("a ring", clip)
        ((own, _),) = node("FluxTextEncode").encode(clip, "a ring", 3.5)[0]
        assert torch.equal(context, own[:, :-1]) and extra == {"pooled_output": None}
        parts = {
            "model.diffusion_model.": tmp_path / "diffusion_models" / "chroma.safetensors",
            "text_encoders.t5xxl.transformer.": host.model_path(T5, "text_encoders"),
            "vae.": host.model_path(VAE, "vae"),
        }
        everything = {
            prefix + name: tensor
            for prefix, path in parts.items()
            for name, tensor in load_file(path).items()
        }
        path = tiny_models.save(everything, tmp_path / "checkpoints" / "all.safetensors")
        (path.parent / "tokenizer_2").symlink_to(host.POCKET / "text_encoders" / "tokenizer_2")
        model, clip, _ = stock["CheckpointLoaderSimple"]().load("all.safetensors")
        assert clip.module.clip_l is None and not model.transformer.family.needs_pooled
        (encoded,) = stock["CLIPTextEncode"]().encode("a ring", clip)
        drawn = sample((model,), encoded, empty(), steps=1)[0]["samples"]
        assert drawn.isfinite().all()

    def test_flux1_needs_clip_l(self):
        with pytest.raises(ValueError, match=r"fluxfit_pocket.* FLUX.1-dev, which reads CLIP-L"):
            load(POCKET, NO_FILE)

    def test_the_live_plan_counts_no_clip_l(self, files):
        loader = {"transformer": "chroma.safetensors", "transformer_precision": "int8"}
        for clip_l in (NO_FILE, CLIP_L):
            models, name = live_plan.models_of(loader | {"clip_l": clip_l, "t5": T5, "vae": VAE})
            assert models.clip_l is None and name == "chroma in int8"
        answer = live_plan.live_plan({"loader": loader | {"t5": T5, "vae": VAE}})
        assert answer["fits"]


class TestFlex:
    @pytest.fixture
    def loaded(self, files):
        return load("flex2.safetensors", CLIP_L)

    def test_pictures_stand_on_the_prompt_and_are_drawn(self, loaded):
        (text,) = node("FluxTextEncode").encode(loaded[1], "a ring", 3.5)
        apply = node("FluxFitFlexControl").apply
        picture, mask = torch.rand(1, 64, 64, 3), torch.zeros(1, 64, 64)
        mask[:, :32] = 1
        conds = [
            text,
            *apply(text, loaded[2], 1.0, 1.0, control_image=picture),
            *apply(text, loaded[2], 0.5, 0.4, control_image=picture),
            *apply(text, loaded[2], 1.0, 1.0, image=picture, mask=mask),
        ]
        (entry,) = conditioning_of(conds[2])
        assert entry.control is not None and entry.control.strength == 0.5
        assert entry.control.end == 0.4 and entry.control.start == 0.0
        assert CONTROL_PICTURE not in text[0][1]
        drawn = [sample(loaded, cond, empty())[0]["samples"] for cond in conds]
        assert not any(torch.equal(other, drawn[0]) for other in drawn[1:])

    def test_a_picture_without_its_mask_is_refused(self, loaded):
        with pytest.raises(ValueError, match="image and mask belong together"):
            node("FluxFitFlexControl").apply(
                [[torch.zeros(1, 2, 128), {}]], loaded[2], 1.0, 1.0, image=torch.zeros(1, 8, 8, 3)
            )

    def test_the_host_s_noise_has_the_same_beside_it(self, loaded):
        from fluxfit.nodes.bridge.concat import flex_latents

        from flux_core.sampling.conditioning import ControlPicture
        from flux_core.sampling.prepared import extra_of

        model, noise = loaded[0].transformer, torch.zeros(2, 16, 8, 8)
        control = ControlPicture(torch.rand(1, 16, 8, 8), 0.5)
        picture, mask = torch.rand(1, 16, 8, 8), torch.rand(1, 1, 64, 64)
        text = [[torch.zeros(1, 2, 128), {"concat_latent_image": picture, "concat_mask": mask}]]
        text[0][1][CONTROL_PICTURE] = control
        expected, outside = extra_of(conditioning_of(text)[0], model, noise.shape)
        given = flex_latents(model, text[0][1] | {"noise": noise})
        assert outside is None and expected is not None
        assert torch.equal(pack(given), pack(expected))
        text[0][1][CONTROL_PICTURE] = dataclasses.replace(control, end=0.5)
        with pytest.raises(ValueError, match="counts up to 0.5 of the steps"):
            flex_latents(model, text[0][1] | {"noise": noise})
        blank = flex_latents(model, {"noise": noise})
        assert blank[:, 16].eq(1).all() and math.isclose(float(blank.sum()), 2 * 64)
