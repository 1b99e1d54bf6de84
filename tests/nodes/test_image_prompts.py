"""Nodes and the pipeline with pictures as prompts: Redux and IP-Adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fluxfit.nodes.conditioning import conditioning_of
from torch import nn

from flux_core import (
    FluxPipeline,
    IPAdapterPrompt,
    OffloadPolicy,
    ReduxPrompt,
    load_ip_adapter,
    load_redux,
    load_vision_encoder,
)
from flux_core.sampling.adapters import AppliedAdapter
from tests import adapter_files, tiny_models
from tests.nodes.node_calls import defaults, empty, node, sample

PICTURE = adapter_files.picture(80, 64)


@pytest.fixture(scope="module")
def pocket() -> FluxPipeline:
    return FluxPipeline.from_pocket(precision="fp32")


@pytest.fixture(scope="module")
def models(tmp_path_factory, pocket) -> Path:
    """A models folder with files for the pocket model."""
    folder = tmp_path_factory.mktemp("models")
    config = pocket.transformer.config
    context, hidden = config.context_in_dim, config.hidden_size
    adapter_files.host_vision(
        adapter_files.siglip_vision(), folder / "clip_vision" / "siglip.safetensors"
    )
    adapter_files.host_vision(
        adapter_files.clip_vision(), folder / "clip_vision" / "clip.safetensors"
    )
    file = adapter_files.redux(context)
    tiny_models.save(file, folder / "style_models" / "redux.safetensors")
    blocks = config.depth + config.depth_single_blocks
    for name, file in (
        ("xlabs/ipadapters/xlabs", adapter_files.xlabs(config.depth)),
        ("ipadapter-flux/instantx", adapter_files.instantx(blocks)),
    ):
        tiny_models.save(
            adapter_files.widened(file, context, hidden), folder / f"{name}.safetensors"
        )
    return folder


@pytest.fixture(autouse=True)
def in_folder(models, monkeypatch):
    monkeypatch.setenv("FLUXFIT_MODELS", str(models))


def vision(name: str):
    values = defaults("FluxFitVisionLoader", vision=f"{name}.safetensors", precision="fp32")
    return node("FluxFitVisionLoader").load(**values)[0]


def style_model():
    values = defaults("FluxFitReduxLoader", redux="redux.safetensors", precision="fp32")
    return node("FluxFitReduxLoader").load(**values)[0]


def with_redux(positive, **options):
    values = defaults("FluxFitRedux", conditioning=positive, style_model=style_model(), **options)
    return node("FluxFitRedux").apply(**values)[0]


class HostRedux(nn.Module):
    """The host's STYLE_MODEL and CLIP_VISION, as far as its nodes call them."""

    def __init__(self, models: Path) -> None:
        super().__init__()
        self.redux = load_redux(models / "style_models" / "redux.safetensors", precision="fp32")
        self.siglip = load_vision_encoder(
            models / "clip_vision" / "siglip.safetensors", precision="fp32"
        )

    def get_cond(self, seen):
        return self.redux(seen.last_hidden_state)

    def encode_image(self, image, crop=True):
        from flux_core.models.vision import vision_pixels

        seen = type("Output", (), {})()
        with torch.no_grad():
            pixels = vision_pixels(image, self.siglip.config, crop)
            seen.last_hidden_state = self.siglip(pixels).tokens
        seen.image_embeds = seen.last_hidden_state  # as the host has it for SigLIP
        return seen


class TestRedux:
    def test_pictures_are_words_for_the_sampler(self, loaded, positive):
        plain = sample(loaded, positive, empty())[0]["samples"]
        siglip = vision("siglip")
        text = positive[0][0].shape[1]
        drawn = {}
        for name, options, tokens in (
            ("all", {}, 16),
            ("fewer", {"grid": 2}, 4),
            ("bias", {"strength": 0.5, "strength_type": "attn_bias"}, 16),
            ("masked", {"mask": torch.eye(64)[None].repeat_interleave(1, 0)}, 4),
        ):
            cond = with_redux(positive, clip_vision=siglip, image=PICTURE, **options)
            assert cond[0][0].shape[1] == text + tokens or name == "masked"
            assert ("attention_mask" in cond[0][1]) == (name == "bias")
            drawn[name] = sample(loaded, cond, empty())[0]["samples"]
            assert tiny_models.relative(drawn[name], plain) > 1e-4
        assert len({float(each.sum()) for each in drawn.values()}) == len(drawn)

    def test_the_hosts_wires_give_the_same(self, models, positive):
        host = HostRedux(models)
        ours = with_redux(positive, clip_vision=vision("siglip"), image=PICTURE)
        seen = host.encode_image(PICTURE)
        values = defaults("FluxFitRedux", conditioning=positive, style_model=host)
        for wires in ({"clip_vision_output": seen}, {"clip_vision": host, "image": PICTURE}):
            with torch.no_grad():
                theirs = node("FluxFitRedux").apply(**values, **wires)[0]
            assert tiny_models.relative(theirs[0][0], ours[0][0]) < 1e-6

    def test_stock_nodes_take_our_wires(self, positive):
        """What CLIPVisionEncode and StyleModelApply call, and what they make of it."""
        seen = vision("siglip").encode_image(PICTURE, crop=True)
        assert seen["last_hidden_state"] is seen.last_hidden_state
        tokens = style_model().get_cond(seen).flatten(0, 1)[None]
        text, more = positive[0][0].shape[1], tokens.shape[1]
        size = text + more + 1
        bias = torch.zeros(1, size, size, dtype=torch.float16)
        bias[:, :text, text : text + more] = bias[:, -1:, text : text + more] = -0.5
        keys = {"attention_mask": bias, "attention_mask_img_shape": (1, 1)}
        entry = [torch.cat([positive[0][0], tokens], dim=1), positive[0][1] | keys]
        (read,) = conditioning_of([entry])
        assert read.attention is not None and torch.equal(read.attention.values, bias)

    def test_a_graph_of_stock_nodes_runs_without_the_host(self, positive):
        from fluxfit.nodes.headless.graph import KNOWN_NODES

        def run(name, **inputs):
            stock = KNOWN_NODES[name]()
            return getattr(stock, stock.FUNCTION)(**inputs)[0]

        encoder = run("CLIPVisionLoader", clip_name="siglip.safetensors")
        seen = run("CLIPVisionEncode", clip_vision=encoder, image=PICTURE, crop="center")
        values = {
            "conditioning": positive,
            "style_model": run("StyleModelLoader", style_model_name="redux.safetensors"),
            "clip_vision_output": seen,
            "strength": 0.6,
            "strength_type": "attn_bias",
        }
        stock = run("StyleModelApply", **values)
        assert stock[0][0].shape[1] == positive[0][0].shape[1] + 16
        ours = with_redux(
            positive,
            clip_vision=vision("siglip"),
            image=PICTURE,
            strength=0.6,
            strength_type="attn_bias",
        )
        assert tiny_models.relative(stock[0][0], ours[0][0]) < 1e-2  # in bf16
        assert torch.equal(stock[0][1]["attention_mask"], ours[0][1]["attention_mask"])

    def test_a_graph_without_a_picture_says_so(self, positive):
        with pytest.raises(ValueError, match="wire clip_vision_output, or clip_vision and image"):
            with_redux(positive)


def ip_adapter(name: str):
    values = defaults("FluxFitIPAdapterLoader", ip_adapter=f"{name}.safetensors", precision="fp32")
    return node("FluxFitIPAdapterLoader").load(**values)[0]


def applied(model, name: str, encoder: str, **options):
    values = defaults("FluxFitApplyIPAdapter", model=model, ip_adapter=ip_adapter(name))
    values |= {"clip_vision": vision(encoder), "image": PICTURE} | options
    return node("FluxFitApplyIPAdapter").apply(**values)[0]


class TestIPAdapters:
    def test_chained_ones_draw_and_leave_the_model_alone(self, loaded, positive):
        plain = sample(loaded, positive, empty())[0]["samples"]
        one = applied(loaded[0], "xlabs", "clip", weight=0.8)
        two = applied(one, "instantx", "siglip", crop="none", end=0.5)
        assert [len(model.adapters) for model in (loaded[0], one, two)] == [0, 1, 2]
        drawn = [
            sample((model, *loaded[1:]), positive, empty())[0]["samples"] for model in (one, two)
        ]
        assert tiny_models.relative(drawn[0], plain) > 1e-3
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(sample(loaded, positive, empty())[0]["samples"], plain)
        silent = applied(loaded[0], "xlabs", "clip", weight=0.0)
        assert torch.equal(sample((silent, *loaded[1:]), positive, empty())[0]["samples"], plain)

    def test_what_does_not_belong_is_refused(self, models, loaded, positive):
        host = HostRedux(models)
        for options, message in (
            ({"clip_vision": vision("siglip")}, "reads 24 numbers"),
            ({"clip_vision": host}, "no vector of the whole picture"),
            ({"image": None}, "there is no picture"),
            ({"start": 0.9, "end": 0.1}, "start"),
        ):
            with pytest.raises(ValueError, match=message):
                applied(loaded[0], "xlabs", "clip", **options)
        model = applied(loaded[0], "xlabs", "clip")
        with pytest.raises(ValueError, match="guider draws with a model of its own"):
            sample((model, *loaded[1:]), positive, empty(), guider=object())


class TestPipeline:
    def test_both_kinds_at_once_under_all_policies(self, models, pocket):
        siglip, clip = (
            load_vision_encoder(models / "clip_vision" / f"{name}.safetensors", precision="fp32")
            for name in ("siglip", "clip")
        )
        redux = load_redux(models / "style_models" / "redux.safetensors", precision="fp32")
        adapter = load_ip_adapter(
            models / "xlabs" / "ipadapters" / "xlabs.safetensors", precision="fp32"
        )
        shown = [
            ReduxPrompt(redux, siglip, PICTURE, strength=0.6, strength_type="attn_bias", grid=2),
            IPAdapterPrompt(
                adapter, clip, PICTURE, weight=0.7, end=0.9, negative_image=1 - PICTURE
            ),
        ]
        options = {"width": 64, "height": 64, "steps": 2, "cfg": 2.0}
        drawn = []
        for mode in ("none", "component", "stream"):
            pocket.policy = OffloadPolicy(mode, separate_memory=True)
            result = pocket("a red circle", image_prompts=shown, **options)
            drawn.append(result.images)
            parts = {"vision encoder", "redux"}
            assert parts <= set(result.report.parts)
        assert all(torch.equal(each, drawn[0]) for each in drawn)
        assert not torch.equal(pocket("a red circle", **options).images, drawn[0])
        only = pocket("a red circle", image_prompts=shown[:1], **options).images
        assert not torch.equal(only, drawn[0])

    def test_what_is_wrong_is_told_before_anything_runs(self, models, pocket):
        clip = load_vision_encoder(models / "clip_vision" / "clip.safetensors", precision="fp32")
        redux = load_redux(models / "style_models" / "redux.safetensors", precision="fp32")
        adapter = load_ip_adapter(
            models / "ipadapter-flux" / "instantx.safetensors", precision="fp32"
        )
        fits = ReduxPrompt(redux, clip, PICTURE)  # of one width, by chance
        for wrong, message in (
            (IPAdapterPrompt(adapter, clip, PICTURE), "gives 24 numbers.* reads 128"),
            (PICTURE, "expected a ReduxPrompt or an IPAdapterPrompt"),
            (replace(fits, encoder=redux), "expected a VisionEncoder"),
            (replace(fits, strength=-1), "strength of a picture"),
            (replace(fits, merge="mean"), "merge is"),
            (replace(fits, image="fox.png"), "picture of an image prompt"),
        ):
            with pytest.raises(ValueError, match=message) as raised:
                pocket("a red circle", image_prompts=[wrong], width=64, height=64)
            assert "\n" not in str(raised.value)
        assert AppliedAdapter(adapter, torch.zeros(2, 128)).tokens == 2 * 6
