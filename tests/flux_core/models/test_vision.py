"""Vision encoders and Redux against transformers' and diffusers'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flux_core import CheckpointError, load_redux, load_vision_encoder
from flux_core.models.vision import vision_pixels
from flux_core.models.vision_config import VisionConfig
from flux_core.offload import OffloadPolicy, OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.redux import redux_tokens, redux_work
from flux_core.sampling.vision import encode_vision, vision_work
from tests import adapter_files, tiny_models

MODELS = {"clip": adapter_files.clip_vision, "siglip": adapter_files.siglip_vision}
CPU = torch.device("cpu")


def saved(model: nn.Module, folder: Path) -> Path:
    """A folder as Hugging Face has it."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}
    tiny_models.save(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_both_layouts_equal_transformers(tmp_path, kind):
    theirs = MODELS[kind]()
    pixels = torch.randn(2, 3, theirs.config.image_size, theirs.config.image_size)
    expected = theirs(pixels)
    pooled = expected.pooler_output if kind == "siglip" else expected.image_embeds
    for path in (
        saved(theirs, tmp_path / "folder"),
        adapter_files.host_vision(theirs, tmp_path / "sigclip_vision_patch14.safetensors"),
    ):
        ours = load_vision_encoder(path, precision="fp32")
        assert ours.config.image_size == theirs.config.image_size
        seen = ours(pixels)
        assert tiny_models.relative(seen.tokens, expected.last_hidden_state) < 1e-5
        assert tiny_models.relative(seen.pooled, pooled) < 1e-5
        assert seen.tokens.shape[1] == ours.config.tokens
        assert seen.pooled.shape[1] == ours.config.pooled_width


def test_a_file_without_the_pooling_head_has_no_vector(tmp_path):
    path = adapter_files.host_vision(adapter_files.siglip_vision(pooling=False), tmp_path / "s.sft")
    encoder = load_vision_encoder(path, precision="fp32")
    seen = encode_vision(OffloadRunner(None, CPU), encoder, adapter_files.picture())
    assert seen.pooled is None and encoder.config.pooled_width == 0


def published(**sizes: int | bool) -> dict[str, tuple[int, ...]]:
    """Native shapes of a public encoder."""
    width, grid, patch = sizes["width"], sizes["grid"], sizes["patch"]
    shapes = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (grid**2 + sizes["clip"], width),
    }
    for i in range(sizes["depth"]):
        shapes[f"encoder.layers.{i}.mlp.fc1.weight"] = (4 * width, width)
    if sizes["clip"]:
        shapes |= {"embeddings.class_embedding": (width,), "visual_projection.weight": (768, width)}
    return shapes


def test_sizes_of_published_encoders_are_read_from_shapes():
    for sizes, side, heads, tokens in (
        ({"width": 1152, "grid": 27, "patch": 14, "depth": 27, "clip": False}, 384, 16, 729),
        ({"width": 1152, "grid": 32, "patch": 16, "depth": 27, "clip": False}, 512, 16, 1024),
        ({"width": 768, "grid": 14, "patch": 16, "depth": 12, "clip": False}, 224, 12, 196),
        ({"width": 1024, "grid": 16, "patch": 14, "depth": 24, "clip": True}, 224, 16, 257),
        ({"width": 1024, "grid": 24, "patch": 14, "depth": 24, "clip": True}, 336, 16, 577),
        ({"width": 1280, "grid": 16, "patch": 14, "depth": 32, "clip": True}, 224, 16, 257),
    ):
        config = VisionConfig.from_shapes(published(**sizes))
        assert (config.image_size, config.num_heads, config.tokens) == (side, heads, tokens)
        assert config.siglip != sizes["clip"] and config.depth == sizes["depth"]


class TestPixels:
    """Of transformers' processors at 8 bits; of ComfyUI by its formula, to the bit."""

    def processed(self, kind: str, images: Tensor, side: int) -> Tensor:
        from transformers import CLIPImageProcessor, SiglipImageProcessor

        if kind == "clip":
            processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
        else:
            processor = SiglipImageProcessor(size={"height": side, "width": side})
        arrays = [(255 * image).round().byte().numpy() for image in images]
        return processor(images=arrays, return_tensors="pt").pixel_values

    @pytest.mark.parametrize("kind", MODELS)
    def test_they_are_transformers(self, kind):
        config = VisionConfig(image_size=56, siglip=kind == "siglip")
        step = 1 / 255 / 0.26  # of 8 bits, after the division by the deviation
        for height, width in ((56, 56), (80, 120), (120, 80), (48, 32)):
            smooth = adapter_files.picture(8, 8).movedim(-1, 1)
            images = nn.functional.interpolate(smooth, (height, width), mode="bilinear")
            images = (255 * images).round().movedim(1, -1) / 255
            actual = vision_pixels(images, config, crop=kind == "clip")
            expected = self.processed(kind, images, 56)
            bound = 1e-5 if (height, width) == (56, 56) else 1.5 * step
            assert float((actual - expected).abs().max()) < bound, (height, width)

    @pytest.mark.parametrize("crop", [True, False])
    def test_they_are_the_hosts(self, crop):
        config = VisionConfig(image_size=56)
        images = adapter_files.picture(70, 100, count=2)
        x = images.movedim(-1, 1)
        size = (round(56 / 70 * 70), round(56 / 70 * 100)) if crop else (56, 56)
        x = nn.functional.interpolate(x, size=size, mode="bicubic", antialias=True)
        left = (x.shape[3] - 56) // 2
        x = torch.clip(255.0 * x[:, :, :, left : left + 56], 0, 255).round() / 255.0
        assert torch.equal(vision_pixels(images, config, crop), (x - 0.5) / 0.5)


class TestOffload:
    @pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "fp8_scaled"])
    @pytest.mark.parametrize("kind", MODELS)
    def test_every_policy_sees_the_same_and_every_precision_nearly(self, tmp_path, kind, precision):
        path = adapter_files.host_vision(MODELS[kind](), tmp_path / "vision.safetensors")
        images = adapter_files.picture(count=2)
        exact = encode_vision(
            OffloadRunner(None, CPU), load_vision_encoder(path, precision="fp32"), images
        )
        encoder = load_vision_encoder(path, precision=precision)
        seen = [
            encode_vision(OffloadRunner(OffloadPolicy(m, separate_memory=True), CPU), encoder, one)
            for m in ("none", "component", "stream")
            for one in (images, images[:1])
        ]
        for each in seen:
            count = len(each.tokens)
            assert torch.equal(each.tokens, seen[0].tokens[:count])
            assert torch.equal(each.pooled, seen[0].pooled[:count])
        assert tiny_models.relative(seen[0].tokens, exact.tokens) < 0.1

    @pytest.mark.parametrize("mode", ["none", "stream"])
    def test_bytes_are_predicted(self, tmp_path, mode):
        theirs = adapter_files.siglip_vision()
        path = adapter_files.host_vision(theirs, tmp_path / "vision.safetensors")
        encoder = load_vision_encoder(path, precision="fp32")
        runner = OffloadRunner(OffloadPolicy(mode, separate_memory=True), CPU)
        plan = runner.plan([encoder], vision_work(encoder))
        pixels = torch.zeros(1, 3, 64, 64)
        with LiveBytes() as counted:
            runner.run("v", [encoder], lambda _: encoder(pixels.clone()), vision_work(encoder))
        assert abs(counted.peak - plan.peak) < 0.05 * plan.peak
        assert (plan.streamed > 0) == (mode == "stream")


class TestRedux:
    @torch.no_grad()
    def test_it_is_diffusers(self, tmp_path):
        from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

        file = adapter_files.redux()
        theirs = ReduxImageEncoder(adapter_files.SIGLIP_EMBED, tiny_models.CONTEXT)
        theirs.load_state_dict(file)
        ours = load_redux(tiny_models.save(file, tmp_path / "redux.safetensors"), precision="fp32")
        tokens = torch.randn(2, 9, adapter_files.SIGLIP_EMBED)
        expected = theirs(tokens).image_embeds
        assert tiny_models.relative(ours(tokens), expected) < 1e-6
        for mode in ("none", "component", "stream"):
            runner = OffloadRunner(OffloadPolicy(mode, separate_memory=True), CPU)
            assert tiny_models.relative(redux_tokens(runner, ours, tokens), expected) < 1e-6

    @pytest.mark.parametrize("precision", ["bf16", "int8", "fp8_scaled", "fp8_e5m2"])
    def test_every_precision_is_near(self, tmp_path, precision):
        path = tiny_models.save(adapter_files.redux(), tmp_path / "redux.safetensors")
        tokens = torch.randn(1, 9, adapter_files.SIGLIP_EMBED)
        runner = OffloadRunner(None, CPU)
        exact = redux_tokens(runner, load_redux(path, precision="fp32"), tokens)
        near = redux_tokens(runner, load_redux(path, precision=precision), tokens)
        assert tiny_models.relative(near, exact) < 0.2

    def test_bytes_are_predicted(self, tmp_path):
        path = tiny_models.save(adapter_files.redux(), tmp_path / "redux.safetensors")
        redux = load_redux(path, precision="fp32")
        runner = OffloadRunner(OffloadPolicy("none", separate_memory=True), CPU)
        plan = runner.plan([redux], redux_work(redux, 700))
        with LiveBytes() as counted:
            features = torch.zeros(1, 700, adapter_files.SIGLIP_EMBED)
            runner.run("r", [redux], lambda _: redux(features), redux_work(redux, 700))
        assert abs(counted.peak - plan.peak) < 0.05 * plan.peak


def test_wrong_files_are_refused_in_a_line(tmp_path):
    state = {f"vision_model.{k}": v for k, v in adapter_files.siglip_vision().state_dict().items()}
    patches = "vision_model.embeddings.patch_embedding.weight"
    missing = {k: v for k, v in state.items() if "layers.1.mlp.fc2" not in k}
    flat = state | {patches: state[patches].flatten(1)}
    odd = {k: v[:15] if "position_embedding" in k else v for k, v in state.items()}
    redux = adapter_files.redux()
    half = {k: v for k, v in redux.items() if k != "redux_up.bias"}
    for name, load, file, message in (
        ("missing", load_vision_encoder, missing, "lacks 2 of"),
        ("flat", load_vision_encoder, flat, "expected a vision encoder"),
        ("odd", load_vision_encoder, odd, "15 patches of 14x14 pixels, expected a square"),
        ("redux", load_vision_encoder, redux, "found a FLUX.1 Redux model"),
        ("vision", load_redux, state, "expected a FLUX.1 Redux model, found a vision encoder"),
        ("half", load_redux, half, "lacks 1 of 4 tensors: redux_up.bias"),
    ):
        path = tiny_models.save(file, tmp_path / f"{name}.safetensors")
        with pytest.raises(CheckpointError, match=message) as raised:
            load(path)
        assert "\n" not in str(raised.value) and name in str(raised.value)
