"""Measuring, plans and calibrating."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flux_core import OffloadPolicy, PrecisionPlan, load_transformer
from flux_core.quant import QuantizedLinear, quantized_names
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
    values = defaults("FluxFitMeasurePrecision", steps=1, **given)
    return node("FluxFitMeasurePrecision").measure(
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
        assert node("FluxFitPrecisionPlan").load("mine.json") == (plan,)
        values = defaults("FluxSampler", steps=2)
        drawn = {}
        for name, options in (
            ("bf16", {"precision": "bf16"}),
            ("plain", {"precision": "fp8_e5m2"}),
            ("planned", {"precision": "bf16", "plan": plan}),
        ):
            model = node("FluxFitTransformerLoader").load(POCKET, compute="auto", **options)[0]
            drawn[name], report = node("FluxSampler").sample(
                model=model, positive=positive, latent=empty(), **values
            )["result"]
            if name != "bf16":
                assert "layers fp8_e5m2, dequantize" in report
        exact = drawn["bf16"]["samples"]
        errors = {k: float((v["samples"] - exact).norm()) for k, v in drawn.items()}
        assert errors["bf16"] == 0 < errors["planned"] < errors["plain"]

    def test_a_quantized_model_is_refused(self, positive):
        model = node("FluxFitTransformerLoader").load(POCKET, "int8", "auto")
        with pytest.raises(ValueError, match="is quantized to int8.*load it so"):
            measured(model, positive)

    @pytest.mark.parametrize("name", ["../mine", "/etc/mine"])
    def test_names_stay_in_their_folder(self, loaded, positive, name):
        with pytest.raises(ValueError, match="leaves the folder"):
            measured(loaded, positive, save_as=name)
        with pytest.raises(ValueError, match="leaves the folder"):
            node("FluxFitPrecisionPlan").load(name)


def calibrated(loaded, positive, **given):
    values = defaults("FluxFitCalibrate", steps=2, **given)
    return node("FluxFitCalibrate").calibrate(
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
        nearest = node("FluxFitTransformerLoader").load(POCKET, "fp8_scaled", "auto")[0]
        values = defaults("FluxSampler", steps=4)
        drawn = [
            node("FluxSampler").sample(model=m, positive=positive, latent=empty(), **values)[
                "result"
            ][0]
            for m in (loaded[0], tuned_model, nearest)
        ]
        exact, near, far = (latent["samples"] for latent in drawn)
        assert (near - exact).norm() < 0.7 * (far - exact).norm()
        node("FluxFitSaveQuantized").save("tuned", False, model=tuned_model)
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
        (control,) = node("FluxFitControlNet").make(
            image=torch.rand(1, 64, 64, 3),
            vae=loaded[2],
            **defaults("FluxFitControlNet", controlnet=UPSCALER, precision="bf16"),
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
        model = node("FluxFitTransformerLoader").load(POCKET, "int8", "auto")
        with pytest.raises(ValueError, match="is quantized to int8.*load it so"):
            calibrated(model, positive)
