"""The nodes around precision: measuring, plans, saving, comparing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless

from flux_core import OffloadPolicy, PrecisionPlan, load_transformer
from flux_core.quant import QuantizedLinear, quantized_linears, quantized_names
from tests.nodes.node_calls import defaults, node

POCKET = "fluxfit_pocket.safetensors"
UPSCALER = "fluxfit_pocket_upscaler.safetensors"


@pytest.fixture(scope="module")
def loaded():
    return node("FluxLoaderFP8").load(
        **defaults("FluxLoaderFP8", transformer_precision="bf16", t5_precision="int8")
    )


@pytest.fixture(scope="module")
def positive(loaded):
    return node("FluxTextEncode").encode(loaded[1], "a red circle on white", 3.5)[0]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUXFIT_MODELS", raising=False)


def empty(side=64):
    return {"samples": torch.zeros(1, 16, side // 8, side // 8)}


def measured(loaded, positive, **given):
    values = defaults("FluxMeasurePrecision", steps=1, **given)
    return node("FluxMeasurePrecision").measure(
        model=loaded[0], positive=positive, latent=empty(), **values
    )


class TestMeasuring:
    def test_plan_keeps_the_budget_and_the_layers_that_lose_most(self, loaded, positive):
        plan, picture, text = measured(loaded, positive, bits_per_weight=9.0)
        assert PrecisionPlan.from_json(text) == plan
        assert plan.precision == "int8" and set(plan.layers.values()) == {"bf16"}
        sizes = {
            n: m.weight.numel()
            for n, m in loaded[0].transformer.named_modules()
            if isinstance(m, torch.nn.Linear) and "_blocks" in n
        }
        kept = sum(sizes[name] for name in plan.layers)
        assert 0 < kept <= sum(sizes.values()) / 8
        assert picture.ndim == 4 and picture.shape[-1] == 3 and 0 <= picture.min() < picture.max()

    def test_budget_of_eight_bits_keeps_none_and_sixteen_keeps_all(self, loaded, positive):
        assert not measured(loaded, positive, bits_per_weight=8.0)[0].layers
        plan, _, _ = measured(loaded, positive, bits_per_weight=16.0)
        linears = [
            n
            for n, m in loaded[0].transformer.named_modules()
            if isinstance(m, torch.nn.Linear) and "_blocks" in n
        ]
        assert sorted(plan.layers) == sorted(linears)

    def test_plan_is_kept_loaded_again_and_draws_nearer(self, loaded, positive, tmp_path):
        plan, _, _ = measured(
            loaded, positive, bits_per_weight=12.0, save_as="mine", precision="fp8_e5m2"
        )
        assert node("FluxPrecisionPlan").load("mine.json") == (plan,)
        values = defaults("FluxSampler", steps=2)
        drawn = {}
        for name, options in (
            ("bf16", {"precision": "bf16"}),
            ("plain", {"precision": "fp8_e5m2"}),
            ("planned", {"precision": "bf16", "plan": plan}),
        ):
            model = node("FluxTransformerLoader").load(POCKET, compute="auto", **options)[0]
            drawn[name], report = node("FluxSampler").sample(
                model=model, positive=positive, latent=empty(), **values
            )
            if name != "bf16":
                assert "layers fp8_e5m2, dequantize" in report
        exact = drawn["bf16"]["samples"]
        errors = {k: float((v["samples"] - exact).norm()) for k, v in drawn.items()}
        assert errors["bf16"] == 0 < errors["planned"] < errors["plain"]

    def test_a_quantized_model_is_refused(self, positive):
        model = node("FluxTransformerLoader").load(POCKET, "int8", "auto")
        with pytest.raises(ValueError, match="is quantized to int8.*load it so"):
            measured(model, positive)

    @pytest.mark.parametrize("name", ["../mine", "/etc/mine"])
    def test_names_stay_in_their_folder(self, loaded, positive, name):
        with pytest.raises(ValueError, match="leaves the folder"):
            measured(loaded, positive, save_as=name)
        with pytest.raises(ValueError, match="leaves the folder"):
            node("FluxPrecisionPlan").load(name)


class TestSaving:
    def test_each_part_goes_to_its_folder_and_opens_again(self, loaded, tmp_path):
        model = node("FluxTransformerLoader").load(POCKET, "int8", "auto")[0]
        report = node("FluxSaveQuantized").save(
            "mine", False, model=model, text_encoders=loaded[1]
        )["result"][0]
        assert len(report.splitlines()) == 2
        saved = tmp_path / "output" / "diffusion_models" / "mine.safetensors"
        again = load_transformer(saved, precision="as_stored")
        pairs = zip(model.transformer.modules(), again.modules(), strict=True)
        assert all(
            torch.equal(a.codes, b.codes) for a, b in pairs if isinstance(a, QuantizedLinear)
        )
        assert (tmp_path / "output" / "clip" / "mine_t5.safetensors").is_file()

    def test_a_file_is_not_replaced_unasked(self, loaded, tmp_path):
        save = node("FluxSaveQuantized").save
        save("mine", False, model=loaded[0])
        with pytest.raises(FileExistsError, match=r"mine\.safetensors exists already"):
            save("mine", False, model=loaded[0])
        save("mine", True, model=loaded[0])

    def test_nothing_wired_and_bad_names_are_refused(self, loaded):
        with pytest.raises(ValueError, match="nothing is wired in"):
            node("FluxSaveQuantized").save("mine", False)
        with pytest.raises(ValueError, match="leaves the folder"):
            node("FluxSaveQuantized").save("../../mine", False, model=loaded[0])


class TestComparing:
    def test_compare_says_how_near(self):
        a = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))
        b = (a + 0.01).clamp(0, 1)
        sheet, shown_text = node("FluxCompare").compare(a, b, "one", "two", 8.0)
        assert sheet.shape[0] == 1 and sheet.shape[2] >= 3 * 48
        assert shown_text == "PSNR 40.0 dB, SSIM 1.000"
        assert node("FluxCompare").compare(a, a, "one", "two", 8.0)[1] == "the same to the bit"

    def test_unlike_sizes_are_refused_with_both(self):
        a, b = torch.zeros(1, 32, 48, 3), torch.zeros(1, 32, 32, 3)
        with pytest.raises(ValueError, match="32x32 and 48x32"):
            node("FluxCompare").compare(a, b, "a", "b", 8.0)
        with pytest.raises(ValueError, match="1 pictures against 2"):
            node("FluxCompare").compare(a, a.repeat(2, 1, 1, 1), "a", "b", 8.0)

    def test_grid_has_every_picture_and_a_label_for_each(self):
        images = {f"image_{i}": torch.full((1, 20, 30, 3), i / 8) for i in (1, 2, 4)}
        sheet, report = node("FluxGrid").lay("first\nsecond", 2, True, **images)
        lines = report.splitlines()
        assert [line.split(":")[0] for line in lines] == ["first", "second", "image_4"]
        assert "PSNR" in lines[1] and "PSNR" not in lines[0]
        for i in (1, 2, 4):
            assert bool(((sheet[0] - round(i / 8 * 255) / 255).abs() < 1e-3).all(-1).sum() >= 600)


def test_gguf_files_are_offered(monkeypatch, tmp_path):
    folder = tmp_path / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    (folder / "flux1-dev-Q8_0.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path / "models"))
    specs = headless.input_specs(NODE_CLASS_MAPPINGS["FluxTransformerLoader"])
    assert "flux1-dev-Q8_0.gguf" in specs["transformer"][0]


# long: one file through every option of the command
def test_the_command_quantizes_a_file(tmp_path, capsys, monkeypatch):
    import sys

    from fluxfit import __main__ as command_line
    from fluxfit.nodes import host

    source = host.POCKET / "diffusion_models" / POCKET
    out = tmp_path / "q.safetensors"
    monkeypatch.setattr(
        sys, "argv", ["fluxfit", "quantize", str(source), "--precision", "int8", "--out", str(out)]
    )
    assert command_line.main() == 0
    assert "transformer" in capsys.readouterr().out
    assert load_transformer(out, precision="as_stored")
    assert command_line.main() == 1
    assert "exists already" in capsys.readouterr().err
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "fluxfit_precision_plan": 1,
                "precision": "int8",
                "layers": {"double_blocks.0.img_mod.lin": "bf16"},
            }
        )
    )
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "fluxfit",
            "quantize",
            str(source),
            "--plan",
            str(plan),
            "--out",
            str(tmp_path / "p.safetensors"),
        ],
    )
    assert command_line.main() == 0
    again = load_transformer(tmp_path / "p.safetensors", precision="as_stored")
    assert isinstance(again.double_blocks[0].img_mod.lin, torch.nn.Linear)
    texts = host.POCKET / "text_encoders"
    tuned = tmp_path / "t.safetensors"
    wanted = [
        "fluxfit",
        "quantize",
        str(source),
        "--precision",
        "int8",
        "--out",
        str(tuned),
        "--calibrate",
        "a red circle",
        "--calibrate",
        "a blue square on yellow",
        "--clip-l",
        str(texts / "fluxfit_pocket_clip_l.safetensors"),
        "--side",
        "64",
        "--steps",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", wanted)
    assert command_line.main() == 1
    assert "needs --clip-l and --t5" in capsys.readouterr().err and not tuned.exists()
    wanted += ["--t5", str(texts / "fluxfit_pocket_t5.safetensors")]
    assert command_line.main() == 0
    opened = [load_transformer(p, precision="as_stored") for p in (tuned, out)]
    pairs = list(zip(*map(quantized_linears, opened), strict=True))
    assert pairs and not any(torch.equal(a.codes, b.codes) for a, b in pairs)
    assert all(torch.equal(a.scale, b.scale) for a, b in pairs)


def calibrated(loaded, positive, **given):
    values = defaults("FluxCalibrate", steps=2, **given)
    return node("FluxCalibrate").calibrate(
        model=loaded[0], positive=positive, latent=empty(), **values
    )


def codes_of(model):
    return [m.codes for m in model.transformer.modules() if isinstance(m, QuantizedLinear)]


class TestCalibrating:
    def test_it_draws_nearer_and_leaves_the_model_as_it_was(self, loaded, positive, tmp_path):
        state = {k: v.clone() for k, v in loaded[0].transformer.state_dict().items()}
        tuned_model, none = calibrated(loaded, positive)
        assert none == ()
        now = loaded[0].transformer.state_dict()
        assert state.keys() == now.keys() and all(torch.equal(state[k], now[k]) for k in state)
        ours = {t.untyped_storage().data_ptr() for t in now.values()}
        theirs = tuned_model.transformer.state_dict().values()
        assert not any(t.untyped_storage().data_ptr() in ours for t in theirs)
        nearest = node("FluxTransformerLoader").load(POCKET, "fp8_scaled", "auto")[0]
        values = defaults("FluxSampler", steps=4)
        drawn = [
            node("FluxSampler").sample(model=m, positive=positive, latent=empty(), **values)[0]
            for m in (loaded[0], tuned_model, nearest)
        ]
        exact, near, far = (latent["samples"] for latent in drawn)
        assert (near - exact).norm() < 0.7 * (far - exact).norm()
        node("FluxSaveQuantized").save("tuned", False, model=tuned_model)
        saved = tmp_path / "output" / "diffusion_models" / "tuned.safetensors"
        assert load_transformer(saved, precision="as_stored").state_dict().keys() == {
            *tuned_model.transformer.state_dict()
        }

    def test_streamed_it_comes_out_the_same(self, loaded, positive):
        expected = codes_of(calibrated(loaded, positive, precision="int8")[0])
        streamed = (replace(loaded[0], policy=OffloadPolicy("stream")), *loaded[1:])
        opened = codes_of(calibrated(streamed, positive, precision="int8")[0])
        assert expected and all(map(torch.equal, opened, expected))

    def test_a_plan_and_a_controlnet_are_followed(self, loaded, positive):
        plan = PrecisionPlan("int8", {"single_blocks.0.linear1": "bf16"})
        (control,) = node("FluxControlNet").make(
            image=torch.rand(1, 64, 64, 3),
            vae=loaded[2],
            **defaults("FluxControlNet", controlnet=UPSCALER, precision="bf16"),
        )
        tuned_model, controls = calibrated(loaded, positive, plan=plan, control=control)
        assert quantized_names(tuned_model.transformer) == {"int8"}
        assert isinstance(
            tuned_model.transformer.get_submodule("single_blocks.0.linear1"), torch.nn.Linear
        )
        (tuned,) = controls
        assert quantized_names(tuned.net) == {"fp8_scaled"}
        assert not quantized_names(control[0].net) and tuned.strength == control[0].strength

    def test_a_quantized_model_is_refused(self, positive):
        model = node("FluxTransformerLoader").load(POCKET, "int8", "auto")
        with pytest.raises(ValueError, match="is quantized to int8.*load it so"):
            calibrated(model, positive)
