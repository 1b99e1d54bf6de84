"""LoRA nodes and the command that merges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless
from fluxfit.nodes.wires import FluxModel, FluxTextEncoders

from flux_core import FluxPipeline, OffloadPolicy, load_transformer
from flux_core.lora import BlockWeights, LoraUse, StrengthSchedule
from flux_core.pocket import pocket_file
from tests import tiny_models
from tests.cli.command_line import call
from tests.nodes.node_calls import defaults, node

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A models folder with a LoRA for the pocket model's transformer and T5, in kohya's names."""
    models_folder = tmp_path_factory.mktemp("models")
    pipeline = FluxPipeline.from_pocket(precision="fp32")
    generator = torch.Generator().manual_seed(0)
    file = {}
    for prefix, module in (
        ("lora_unet", pipeline.transformer),
        ("lora_te3", pipeline.text_encoders.t5),
    ):
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear):
                key = f"{prefix}_{name.replace('.', '_')}"
                down = torch.randn(4, layer.in_features, generator=generator)
                up = torch.randn(layer.out_features, 4, generator=generator)
                file |= {f"{key}.lora_down.weight": 0.1 * down, f"{key}.lora_up.weight": 0.1 * up}
    tiny_models.save(file, models_folder / "loras" / "strong.safetensors")
    tiny_models.save(
        {
            "lora_unet_nothing.lora_down.weight": torch.zeros(2, 2),
            "lora_unet_nothing.lora_up.weight": torch.zeros(2, 2),
        },
        models_folder / "loras" / "foreign.safetensors",
    )
    return models_folder


@pytest.fixture
def loaded(models, monkeypatch):
    monkeypatch.setenv("FLUXFIT_MODELS", str(models))
    pipeline = FluxPipeline.from_pocket(precision="int8")
    policy = OffloadPolicy("stream")
    return (
        FluxModel(pipeline.transformer, policy),
        FluxTextEncoders(pipeline.text_encoders, policy),
    )


def drawn(model, encoders, **options):
    encode = NODE_CLASS_MAPPINGS["FluxTextEncode"]()
    (positive,) = encode.encode(encoders, "a red circle", 3.5)
    settings = {
        "seed": 1,
        "steps": 2,
        "cfg": 1.0,
        "sampler": "euler",
        "scheduler": "simple",
        "shift": "host",
        "denoise": 1.0,
    }
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    node = NODE_CLASS_MAPPINGS["FluxSampler"]()
    return node.sample(model, positive, latent, **settings | options)["result"][0]["samples"]


def test_a_lora_changes_the_picture_and_only_behind_its_node(loaded):
    model, encoders = loaded
    node = NODE_CLASS_MAPPINGS["FluxFitLoraLoader"]
    assert "strong.safetensors" in node.INPUT_TYPES()["required"]["lora"][0]
    plain = drawn(model, encoders)
    with_lora, with_text, report_text = node().load(
        model, "strong.safetensors", 0.8, 0.5, True, encoders
    )
    assert "tensors applied" in report_text and "not matched" not in report_text
    changed = drawn(with_lora, with_text)
    assert not torch.equal(changed, plain)
    assert not torch.equal(drawn(with_lora, encoders), changed)
    assert torch.equal(drawn(model, encoders), plain)
    off = node().load(model, "strong.safetensors", 0.8, 0.5, False, encoders)
    assert off[:2] == (model, encoders)
    twice, _, _ = node().load(with_lora, "strong.safetensors", -0.8, 1.0, True)
    assert len(twice.loras) == 2 and twice.loras[0][0] is twice.loras[1][0]
    undone = drawn(twice, encoders)  # the same added and taken away: to rounding
    assert (
        tiny_models.relative(undone, plain)
        < 0.05
        < tiny_models.relative(drawn(with_lora, encoders), plain)
    )


def test_a_lora_of_another_model_is_an_error_that_shows_keys(loaded):
    node = NODE_CLASS_MAPPINGS["FluxFitLoraLoader"]()
    with pytest.raises(ValueError, match=r"nothing of it fits this model: found lora_unet_nothing"):
        node.load(loaded[0], "foreign.safetensors", 1.0, 1.0, True)
    with pytest.raises(FileNotFoundError, match="missing"):
        node.load(loaded[0], "missing.safetensors", 1.0, 1.0, True)


def test_merged_is_the_same_as_beside(models, loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, encoders = loaded
    full = load_transformer(pocket_file("diffusion_models"), precision="fp32")
    model = FluxModel(full, OffloadPolicy("none"))
    with_branch, _, _ = NODE_CLASS_MAPPINGS["FluxFitLoraLoader"]().load(
        model, "strong.safetensors", 0.3, 1.0, True
    )
    merge = NODE_CLASS_MAPPINGS["FluxFitMergeLoras"]()
    (path,) = merge.merge(with_branch, "mine", False)
    merged = load_transformer(path, precision="fp32")
    expected = drawn(with_branch, encoders)
    assert tiny_models.relative(drawn(FluxModel(merged, model.policy), encoders), expected) < 1e-3
    with pytest.raises(FileExistsError, match="exists already"):
        merge.merge(with_branch, "mine", False)
    with pytest.raises(ValueError, match="no LoRA on this model"):
        merge.merge(model, "other", False)
    with pytest.raises(ValueError, match="load it in bf16 to merge"):
        merge.merge(
            FluxModel(loaded[0].transformer, model.policy, loras=with_branch.loras), "b", False
        )
    command = [
        "merge",
        str(pocket_file("diffusion_models")),
        "--precision",
        "fp32",
        "--lora",
        f"{models / 'loras' / 'strong.safetensors'}=0.3",
        "--out",
        str(tmp_path / "by_command.safetensors"),
    ]
    done = call(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensors applied to" in done.stdout
    again = load_transformer(tmp_path / "by_command.safetensors", precision="fp32")
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), merged.parameters(), strict=True)
    )
    command[command.index("--lora") + 1] += "x"
    command[-1] = str(tmp_path / "none.safetensors")
    done = call(*command, cwd=tmp_path)
    assert done.returncode == 2 and "strength is '0.3x', not a number" in done.stderr


def test_the_nodes_are_known_to_the_headless_runner():
    assert {"FluxFitLoraLoader", "FluxFitMergeLoras"} <= set(headless.KNOWN_NODES)


class TestControl:
    """FluxFitLoraControl changes the LoRA before it; ``strong`` is on every layer."""

    def control(self, model, **options):
        return node("FluxFitLoraControl").control(
            **defaults("FluxFitLoraControl", model=model) | options
        )

    @pytest.fixture
    def chained(self, loaded):
        load = NODE_CLASS_MAPPINGS["FluxFitLoraLoader"]().load
        model, encoders, _ = load(loaded[0], "strong.safetensors", 0.2, 0.2, True, loaded[1])
        return load(model, "strong.safetensors", 0.3, 0.3, True, encoders)[:2]

    def test_it_changes_the_last_lora_of_the_wire(self, chained):
        mask = torch.ones(1, 32, 32)
        model, none = self.control(chained[0], blocks="double: 0.5", schedule="0:1, 1:0", mask=mask)
        first, last = model.loras
        assert none is None and first == chained[0].loras[0]
        assert last.lora is chained[0].loras[1][0] and last.strength == 0.3
        assert last.blocks == BlockWeights.parse("double: 0.5")
        assert last.schedule == StrengthSchedule.parse("0:1, 1:0")
        assert torch.equal(last.region.mask, mask) and last.region.text == 1
        (kept, _) = self.control(model)
        assert kept.loras[1] == LoraUse(*chained[0].loras[1])  # texts that are empty say nothing

    def test_each_of_them_changes_the_picture(self, chained):
        model, encoders = chained
        mask = torch.zeros(1, 8, 8)
        mask[:, :, 4:] = 1
        forms = [{}, {"blocks": "single"}, {"schedule": "0:1, 0.9:0"}, {"mask": mask}]
        pictures = [drawn(self.control(model, **form)[0], encoders) for form in forms]
        assert torch.equal(pictures[0], drawn(model, encoders))
        for i, picture in enumerate(pictures):
            assert all(tiny_models.relative(picture, other) > 1e-3 for other in pictures[:i])
        assert torch.equal(pictures[0], drawn(model, encoders))

    def test_weights_for_text_encoders_need_their_wire(self, chained, loaded):
        model, encoders = chained
        with pytest.raises(ValueError, match="wire text_encoders through"):
            self.control(model, blocks="t5: 0")
        with pytest.raises(ValueError, match="not from the loader of .*strong.safetensors"):
            self.control(model, blocks="t5: 0", text_encoders=loaded[1])
        changed, texts = self.control(model, blocks="t5: 0", text_encoders=encoders)
        assert len(texts.loras) == 2 and texts.loras[0] == encoders.loras[0]
        load = NODE_CLASS_MAPPINGS["FluxFitLoraLoader"]().load
        once = load(loaded[0], "strong.safetensors", 0.2, 0.2, True, loaded[1])[1]
        assert torch.equal(drawn(changed, texts), drawn(changed, once))
        assert not torch.equal(drawn(changed, texts), drawn(changed, encoders))

    def test_what_is_wrong_is_named(self, chained, loaded):
        for options, message in (
            ({"blocks": "double 99: 1"}, "double 99 is past this model's last one"),
            ({"blocks": "1, 2"}, "are 2 numbers"),
            ({"schedule": "x"}, "'x' is no point"),
            ({"mask": 7 * torch.ones(1, 2, 2)}, "mask has values from 7"),
        ):
            with pytest.raises(ValueError, match=message):
                self.control(chained[0], **options)
        with pytest.raises(ValueError, match="no LoRA on this model"):
            self.control(loaded[0])
