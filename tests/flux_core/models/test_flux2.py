"""FLUX.2's transformer against diffusers', in every layout, precision and place."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from flux_core import (
    Conditioning,
    OffloadPolicy,
    compile_blocks,
    load_lora,
    load_transformer,
    quantize,
    save_module,
)
from flux_core.checkpoint.inspect import describe_file
from flux_core.lora import lora_applied
from flux_core.lora.match import match_lora
from flux_core.lora.trained import TrainedLora
from flux_core.models.families import FLUX2_DEV, FLUX2_KLEIN, family_of
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.blocks import blocks_of, modulations_of
from flux_core.offload.placement import placement_of
from flux_core.offload.plan import cost_of
from flux_core.offload.workload import training_work
from flux_core.quant import PRECISIONS, quantized_linears
from flux_core.quant.apply import module_bytes
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from tests import flux2_models, tiny_models
from tests.flux2_models import CONTEXT, DEV, HIDDEN, MEMBERS, diffusers_model, inputs, to_diffusers

KLEIN = dataclasses.replace(DEV, guidance_embed=False)


def text(tokens: int = 512, seed: int = 3) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(1, tokens, CONTEXT, generator=generator), None)


def request(model, prompt: Conditioning | None = None, **settings) -> DrawRequest:
    start = torch.zeros(1, 128, 4, 3)
    return DrawRequest(model, prompt or text(), start, SamplingSettings(**{"steps": 2} | settings))


@pytest.mark.parametrize("guidance", [True, False])
def test_diffusers_files_compute_the_same(guidance, tmp_path):
    theirs = diffusers_model(guidance)
    path = tiny_models.save(theirs.state_dict(), tmp_path / "model.safetensors")
    model = load_transformer(path, precision="fp32")
    assert model.family is (FLUX2_DEV if guidance else FLUX2_KLEIN)
    kwargs = inputs()
    with torch.no_grad():
        (expected,) = theirs(**to_diffusers(kwargs), return_dict=False)
        assert tiny_models.relative(model(**kwargs), expected) < 1e-5


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_loads_as_its_family(name, tmp_path):
    family, double, single, guidance = MEMBERS[name]
    config = dataclasses.replace(
        DEV, hidden_size=128, depth=double, depth_single_blocks=single, guidance_embed=guidance
    )
    expected = flux2_models.transformer(config)
    prefix = "model.diffusion_model." if guidance else ""
    path = tiny_models.save(expected.state_dict(), tmp_path / "model.safetensors", prefix)
    model = load_transformer(path, precision="fp32")
    assert model.family is family and model.config == config
    assert torch.equal(model(**inputs()), expected(**inputs()))
    assert "transformer (FLUX.2 native layout" in describe_file(path)


def test_a_model_made_by_hand_is_of_its_family():
    assert family_of(flux2_models.transformer()) is FLUX2_DEV
    assert family_of(flux2_models.transformer(KLEIN)) is FLUX2_KLEIN


class TestPrecisions:
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_every_one_loads_saves_and_comes_back(self, precision, tmp_path):
        theirs = diffusers_model(False)
        path = tiny_models.save(theirs.state_dict(), tmp_path / "model.safetensors")
        model = load_transformer(path, precision=precision)
        assert not any(
            "modulation" in name
            for name, m in model.named_modules()
            if m in set(quantized_linears(model))
        )
        kwargs = inputs()
        with torch.no_grad():
            (expected,) = theirs(**to_diffusers(kwargs), return_dict=False)
            out = model(**kwargs)
            assert tiny_models.relative(out.float(), expected) < 0.12
            again = load_transformer(
                save_module(model, tmp_path / "saved.safetensors"), precision=precision
            )
            assert torch.equal(again(**kwargs), out)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_raw_codes_are_taken_as_they_are(self, dtype, tmp_path):
        state = flux2_models.transformer().state_dict()
        raw = {k: v.to(dtype) if v.ndim == 2 else v for k, v in state.items()}
        path = tiny_models.save(raw, tmp_path / "model.safetensors")
        model = load_transformer(path, precision="as_stored")
        stored = model.get_submodule("single_blocks.1.linear1").codes
        assert torch.equal(
            stored.view(torch.uint8), raw["single_blocks.1.linear1.weight"].view(torch.uint8)
        )

    def test_a_scale_beside_codes_counts(self, tmp_path):
        state = flux2_models.transformer().state_dict()
        name = "double_blocks.0.txt_mlp.0.weight"
        scaled = state | {
            name: (state[name] * 100).to(torch.float8_e4m3fn),
            "double_blocks.0.txt_mlp.0.weight_scale": torch.tensor(0.01),
        }
        model = load_transformer(
            tiny_models.save(scaled, tmp_path / "m.safetensors"), precision="fp32"
        )
        read = model.get_submodule("double_blocks.0.txt_mlp.0").weight
        assert tiny_models.relative(read, state[name]) < 0.05

    def test_gguf(self, tmp_path):
        pytest.importorskip("gguf")
        from tests.flux_core.checkpoint.test_gguf import write

        model = flux2_models.transformer()
        path = write(tmp_path / "m.gguf", model.state_dict(), "Q8_0", "flux2")
        loaded = load_transformer(path, precision="fp32")
        assert tiny_models.relative(loaded(**inputs()), model(**inputs())) < 0.05


class TestPlaces:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_all_policies_draw_the_same_bits(self, precision):
        model = quantize(flux2_models.transformer(), precision)
        expected = sample(request(model))
        for policy in (
            OffloadPolicy("none", separate_memory=True),
            OffloadPolicy("component", separate_memory=True),
            OffloadPolicy("stream", separate_memory=True),
            OffloadPolicy("auto", vram_budget=8_000_000, separate_memory=True),
        ):
            (drawn,) = draw(OffloadRunner(policy, "cpu"), [request(model)])
            assert torch.equal(drawn, expected)

    def test_shared_modulations_are_no_block_s_and_leave_the_device(self):
        model = flux2_models.transformer()
        assert len(modulations_of(model)) == 3
        assert not any(block.modulation_layers() for block in blocks_of(model))
        cost = cost_of(model)
        parts = (cost.rest, cost.modulations, *cost.blocks)
        assert abs(sum(parts) - module_bytes(model)) < 0.01 * module_bytes(model)
        assert cost.modulations == 15 * HIDDEN * HIDDEN * 4
        placement = placement_of(model, torch.device("cpu"), separate=True)
        placement.set_resident(range(len(blocks_of(model))))
        assert placement.held < sum(parts) - cost.modulations + 100_000
        placement.evict()

    def test_modulations_are_made_before_the_first_step(self, monkeypatch):
        model = flux2_models.transformer()
        layer = type(model.single_stream_modulation)
        calls, raw = [], layer.raw
        monkeypatch.setattr(
            layer, "raw", lambda self, vec: calls.append(len(vec)) or raw(self, vec)
        )
        sample(request(model, steps=3))
        assert calls == [3, 3, 3]  # three layers, all steps at once
        with torch.no_grad():
            model(**inputs())
        assert len(calls) == 6  # once for all blocks

    def test_memory_is_predicted(self):
        config = dataclasses.replace(DEV, hidden_size=384, depth_single_blocks=3)
        model = quantize(flux2_models.transformer(config), "fp8_e4m3fn")
        start = torch.zeros(1, 128, 16, 16)
        asked = DrawRequest(model, text(), start, SamplingSettings(steps=2))
        peaks = []

        def drawn(plan):
            peaks.append(plan.peak)
            return sample(asked)

        for policy in ("component", "stream"):
            runner = OffloadRunner(OffloadPolicy(policy, separate_memory=True), "cpu")
            with LiveBytes() as counted:
                runner.run("transformer", [model], drawn, asked.work)
            assert abs(peaks[-1] - counted.peak) < 0.05 * counted.peak

    def test_compiled_blocks_compute_the_same(self):
        model, kwargs = flux2_models.transformer(), inputs()
        with torch.no_grad():
            expected = model(**kwargs)
            compile_blocks(model, "eager")
            assert tiny_models.relative(model(**kwargs), expected) < 1e-6


class TestWhatElseItReads:
    def test_a_mask_as_diffusers_has_it(self):
        theirs, kwargs = diffusers_model(), inputs()
        model = flux2_models.transformer()
        model.load_state_dict(native(theirs))
        tokens = kwargs["txt"].shape[1] + kwargs["img"].shape[1]
        mask = torch.rand(tokens, tokens, generator=torch.Generator().manual_seed(1)) > 0.3
        mask |= torch.eye(tokens, dtype=torch.bool)
        with torch.no_grad():
            (expected,) = theirs(
                **to_diffusers(kwargs),
                joint_attention_kwargs={"attention_mask": mask[None, None]},
                return_dict=False,
            )
            assert tiny_models.relative(model(**kwargs, attention_mask=mask), expected) < 1e-5

    def test_references_are_tokens_behind_ten_indices_apart(self):
        """Against diffusers, called as its pipeline calls it."""
        theirs = diffusers_model(False)
        model = flux2_models.transformer(KLEIN)
        model.load_state_dict(native(theirs))
        generator = torch.Generator().manual_seed(5)
        references = [torch.randn(1, 128, *size, generator=generator) for size in ((2, 3), (1, 4))]
        prompt = dataclasses.replace(text(), references=References(references))
        settings = {"steps": 1, "sigmas": torch.tensor([1.0, 0.0]), "seed": 2}
        drawn = sample(request(model, prompt, **settings))
        noise = torch.randn(1, 128, 4, 3, generator=torch.Generator().manual_seed(2))
        tokens, ids = [noise.flatten(2).mT], [grid(0, 4, 3)]
        for index, z in zip((10, 20), references, strict=True):
            tokens.append(z.flatten(2).mT)
            ids.append(grid(index, *z.shape[-2:]))
        txt_ids = torch.zeros(512, 4)
        txt_ids[:, 3] = torch.arange(512)
        with torch.no_grad():
            (velocity,) = theirs(
                hidden_states=torch.cat(tokens, dim=1),
                encoder_hidden_states=prompt.context,
                timestep=torch.ones(1),
                img_ids=torch.cat(ids),
                txt_ids=txt_ids,
                return_dict=False,
            )
        expected = noise - velocity[:, :12].mT.unflatten(2, (4, 3))
        assert tiny_models.relative(drawn, expected) < 1e-5

    def test_references_at_time_zero_read_another_vector(self):
        model = flux2_models.transformer()
        kwargs = inputs()
        with torch.no_grad():
            still = model(**kwargs, still_tokens=2)
            assert not torch.allclose(still, model(**kwargs))
            at_zero = kwargs | {"timesteps": torch.zeros(2)}
            assert torch.allclose(
                model(**at_zero, still_tokens=2), model(**at_zero), rtol=1e-4, atol=1e-5
            )

    def test_a_short_context_has_zeros_in_front(self):
        model = flux2_models.transformer()
        short = text(9)
        long = Conditioning(F.pad(short.context, (0, 0, 503, 0)), None)
        assert torch.equal(sample(request(model, short)), sample(request(model, long)))
        assert request(model, short).work == request(model, long).work

    def test_a_pooled_vector_is_left_out(self):
        model = flux2_models.transformer()
        pooled = dataclasses.replace(text(), pooled=torch.ones(1, 77))
        assert torch.equal(sample(request(model, pooled)), sample(request(model)))

    def test_what_belongs_to_other_models_is_refused(self):
        model = flux2_models.transformer()
        with pytest.raises(ValueError, match=r"latents have 16 channels, FLUX\.2-dev takes 128"):
            DrawRequest(model, text(), torch.zeros(1, 16, 8, 8))
        foreign = Conditioning(torch.zeros(1, 5, 64), None)
        with pytest.raises(ValueError, match="context is 64 wide, this transformer expects 48"):
            sample(request(model, foreign))


def grid(index: int, rows: int, columns: int) -> torch.Tensor:
    return torch.cartesian_prod(
        torch.tensor([index]), torch.arange(rows), torch.arange(columns), torch.tensor([0])
    )


def native(theirs) -> dict[str, torch.Tensor]:
    """diffusers' tensors in native names, by hand: q, k and v below one another."""
    model = flux2_models.transformer(
        dataclasses.replace(DEV, guidance_embed=theirs.config.guidance_embeds)
    )
    state, renamed = theirs.state_dict(), {}
    for name, recipe in model.diffusers_recipes().items():
        if recipe.names[0] in state:
            value = torch.cat([state[n] for n in recipe.names])
            renamed[name] = torch.cat(value.chunk(2)[::-1]) if recipe.transform == "swap" else value
    return renamed


class TestLoras:
    """One file of one layer in each spelling, against the weight with it added."""

    LAYERS = {
        "double_blocks.1.txt_mlp.0": "transformer_blocks.1.ff_context.linear_in",
        "single_blocks.2.linear1": "single_transformer_blocks.2.attn.to_qkv_mlp_proj",
        "single_blocks.0.linear2": "single_transformer_blocks.0.attn.to_out",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    }

    @pytest.mark.parametrize("spelling", ["diffusers", "native", "comfyui", "kohya"])
    @pytest.mark.parametrize("layer", LAYERS)
    def test_every_spelling_means_its_layer(self, layer, spelling, tmp_path):
        model, kwargs = flux2_models.transformer(), inputs()
        weight = model.get_submodule(layer).weight
        generator = torch.Generator().manual_seed(1)
        down = 0.1 * torch.randn(4, weight.shape[1], generator=generator)
        up = 0.1 * torch.randn(weight.shape[0], 4, generator=generator)
        stem, a, b = {
            "diffusers": (f"transformer.{self.LAYERS[layer]}", "lora_A", "lora_B"),
            "native": (f"base_model.model.{layer}", "lora_A", "lora_B"),
            "comfyui": (f"diffusion_model.{layer}", "lora_A", "lora_B"),
            "kohya": (f"lora_unet_{layer.replace('.', '_')}", "lora_down", "lora_up"),
        }[spelling]
        file = {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up}
        lora = load_lora(tiny_models.save(file, tmp_path / "lora.safetensors"))
        before = model(**kwargs)
        with lora_applied(model, [(lora, 0.5)]):
            with_it = model(**kwargs)
        assert torch.equal(model(**kwargs), before) and not torch.equal(with_it, before)
        weight.data += 0.5 * up @ down
        assert tiny_models.relative(with_it, model(**kwargs)) < 1e-5

    def test_a_member_of_a_fused_layer(self, tmp_path):
        model = flux2_models.transformer()
        down, up = torch.ones(2, HIDDEN), torch.ones(HIDDEN, 2)
        name = "transformer.transformer_blocks.0.attn.add_k_proj"
        file = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        match = match_lora(load_lora(tiny_models.save(file, tmp_path / "l.safetensors")), model)
        assert list(match.deltas) == ["double_blocks.0.txt_attn.qkv"] and not match.unmatched

    def test_a_lora_on_modulations_is_drawn_under_every_policy(self, tmp_path):
        model = flux2_models.transformer()
        name = "diffusion_model.single_stream_modulation.lin"
        file = {
            f"{name}.lora_A.weight": torch.full((2, HIDDEN), 0.1),
            f"{name}.lora_B.weight": torch.full((3 * HIDDEN, 2), 0.1),
        }
        lora = load_lora(tiny_models.save(file, tmp_path / "l.safetensors"))
        asked = dataclasses.replace(request(model), loras=[(lora, 1.0)])
        drawn = [
            draw(OffloadRunner(OffloadPolicy(mode, separate_memory=True), "cpu"), [asked])[0]
            for mode in ("none", "component", "stream")
        ]
        assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], sample(request(model)))


class TestTraining:
    """A LoRA on every kind of layer, the shared modulations among them."""

    def gradients(self, mode: str | None) -> torch.Tensor:
        model, kwargs = flux2_models.transformer(), inputs()
        lora = TrainedLora(model, ["attention", "mlp", "modulation"], 2, 4)
        generator = torch.Generator().manual_seed(3)
        for branch in lora.layer_branches:
            branch.up.data.normal_(0, 0.02, generator=generator)

        def run() -> None:
            model(**kwargs).square().mean().backward()

        with lora.on(model):
            if mode is None:
                run()
            else:
                work = training_work(
                    model, image_tokens=12, text_tokens=5, batch=2, on_host=False, kept=0
                )
                runner = OffloadRunner(OffloadPolicy(mode, separate_memory=True), "cpu")
                with runner.hold("training", model, work=work):
                    run()
        assert {"double_stream_modulation_img.lin", "single_blocks.0.linear2"} <= set(lora.names)
        return torch.cat([p.grad.flatten() for p in lora.parameters() if p.grad is not None])

    def test_gradients_are_the_same_wherever_weights_are(self):
        expected = self.gradients(None)
        assert expected.count_nonzero() > 0.9 * expected.numel()
        for mode in ("none", "component", "stream"):
            assert torch.equal(self.gradients(mode), expected)
