"""Chroma drawn whole: text, true guidance and sampling against diffusers, policies, memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flux_core import (
    Conditioning,
    Control,
    FluxControlNet,
    FluxPipeline,
    OffloadPolicy,
    TextEncoders,
    load_text_encoders,
    load_transformer,
    load_vae,
    quantize,
)
from flux_core.lora import LoraStack
from flux_core.models.families import family_of
from flux_core.models.text_encoding import TextEncoding, joined
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.blocks import modulations_of
from flux_core.offload.pack import named_tensors, twin
from flux_core.offload.plan import cost_of
from flux_core.pocket import pocket_file
from flux_core.sampling.latents import host_noise, pack, standardise
from flux_core.sampling.prompts import encode_prompts
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.sigmas import table_for
from tests import tiny_chroma, tiny_models
from tests.flux_core.models.test_chroma import LAYERS, lora_of
from tests.flux_core.offload.cpu_as_card import CPU, card_policy, drawn_on_card, placement_on_card

PROMPTS = ("a red circle", "a large green square on a white ground")
SHORT = dataclasses.replace(tiny_chroma.CHROMA, context_in_dim=128)


@pytest.fixture(scope="module")
def encoders() -> TextEncoders:
    """The pocket model's T5 alone."""
    return load_text_encoders(None, pocket_file("text_encoders", "_t5"), precision="fp32")


def diffusers_text_encoder(encoders: TextEncoders):
    from transformers import T5EncoderModel

    theirs = T5EncoderModel(encoders.t5.encoder.config)
    theirs.load_state_dict(encoders.t5.state_dict(), strict=False)
    return theirs.eval()


def diffusers_pipeline(encoders: TextEncoders, transformer):
    from diffusers import ChromaPipeline, FlowMatchEulerDiscreteScheduler

    pipeline = ChromaPipeline(
        FlowMatchEulerDiscreteScheduler(shift=1.0),
        tiny_models.diffusers_vae(),
        diffusers_text_encoder(encoders),
        encoders.tokenizers.t5,
        transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class TestAgainstDiffusers:
    @pytest.mark.parametrize("prompt", ["", *PROMPTS])
    def test_text_is_what_its_pipeline_reads(self, encoders, prompt):
        """The states that diffusers does not mask are ours, as many and the same."""
        pipeline = diffusers_pipeline(encoders, tiny_chroma.diffusers_transformer(SHORT))
        with torch.no_grad():
            context, mask = pipeline._get_t5_prompt_embeds([prompt], max_sequence_length=40)
        ours = encoders.encode([prompt])
        assert ours.mask is None and ours.pooled.shape == (1, 0)
        assert ours.context.shape[1] == int(mask.sum()) < 40
        assert tiny_models.relative(ours.context, context[mask.bool()][None]) < 1e-5

    @pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
    def test_latents_are_the_same(self, encoders, prompts, tmp_path):
        """The whole of it: T5 with its mask, padding masked in the transformer, true guidance.

        diffusers adds a mask of floats to the logits, where booleans mask: it is given booleans.
        """
        theirs = tiny_chroma.diffusers_transformer(SHORT)
        path = tiny_models.save(theirs.state_dict(), tmp_path / "m.safetensors")
        ours = load_transformer(path, precision="fp32")
        pipeline = diffusers_pipeline(encoders, theirs)
        settings = SamplingSettings(seed=5, steps=3, cfg=3.0)
        texts = joined(encode_prompts(OffloadRunner(None, CPU), encoders, prompts))
        assert (texts.mask is not None) == (len(prompts) > 1)
        negative = encoders.encode(["blue"])
        shape = (len(prompts), 16, 8, 6)
        request = DrawRequest(
            ours,
            Conditioning(texts.context, None, None, text_mask=texts.mask),
            torch.zeros(shape),
            settings,
            negative=Conditioning(negative.context, None, None),
        )
        drawn = sample(request)
        with torch.no_grad():
            positive = pipeline._get_t5_prompt_embeds(list(prompts), max_sequence_length=40)
            other = pipeline._get_t5_prompt_embeds(["blue"] * len(prompts), max_sequence_length=40)
            expected = pipeline(
                prompt_embeds=positive[0],
                prompt_attention_mask=positive[1].bool(),
                negative_prompt_embeds=other[0],
                negative_prompt_attention_mask=other[1].bool(),
                guidance_scale=3.0,
                num_inference_steps=3,
                sigmas=request.noise_schedule.sigmas[:-1].tolist(),
                latents=pack(host_noise(shape, 5)),
                height=64,
                width=48,
                output_type="latent",
            ).images
        assert tiny_models.relative(pack(standardise(drawn)), expected) < 1e-5


class TestText:
    def test_a_prompt_does_not_know_who_stands_beside_it(self, encoders):
        both = encoders.encode(PROMPTS)
        assert both.mask is not None
        for row, prompt in enumerate(PROMPTS):
            alone = encoders.encode([prompt]).context
            assert int(both.mask[row].sum()) == alone.shape[1]
            assert torch.equal(both.context[row][both.mask[row]], alone[0])

    def test_weights_and_long_prompts_are_read(self, encoders):
        texts = ("a red circle", "a (red:1.5) circle")
        plain, strong = (encoders.encode([text]).context for text in texts)
        assert plain.shape == strong.shape and not torch.equal(plain, strong)
        long = encoders.encode(["red " * 100]).context
        assert long.shape[1] > encoders.tokenizers.t5_length

    def test_training_cuts_what_is_too_long(self, encoders):
        literal = encoders.encode(["red (" * 100], literal=True)
        assert literal.context.shape[1] == encoders.tokenizers.t5_length + 1

    def test_encoders_of_flux1_serve_it_too(self, encoders):
        """Opened with CLIP-L they give the same, and what they give FLUX.1 stays what it was."""
        both = load_text_encoders(
            pocket_file("text_encoders", "_clip_l"),
            pocket_file("text_encoders", "_t5"),
            precision="fp32",
        )
        chroma = family_of(tiny_chroma.chroma_transformer())
        flux1 = family_of(tiny_models.flux_transformer())
        before = both.encode(PROMPTS)
        assert both.for_family(flux1) is both and encoders.for_family(chroma) is encoders
        served = both.for_family(chroma)
        assert served is both.for_family(chroma) and served.t5 is both.t5
        assert torch.equal(served.encode(PROMPTS).context, encoders.encode(PROMPTS).context)
        assert torch.equal(both.encode(PROMPTS).context, before.context)
        with pytest.raises(ValueError, match="FLUX.1-dev reads CLIP-L beside T5"):
            encoders.for_family(flux1)

    def test_joining_keeps_masks(self):
        short, long = torch.ones(1, 2, 3), torch.ones(2, 4, 3)
        masked = TextEncoding(long, torch.zeros(2, 0), torch.tensor([[1, 1, 1, 0], [1] * 4]) > 0)
        text = joined([TextEncoding(short, torch.zeros(1, 0)), masked])
        assert text.mask is not None and text.mask.sum(1).tolist() == [2, 3, 4]
        assert text.context.shape == (3, 4, 3) and not text.context[0, 2:].any()


def pipeline_of(encoders, transformer, policy=None) -> FluxPipeline:
    vae = load_vae(pocket_file("vae", "_vae"), dtype=torch.float32)
    return FluxPipeline(transformer, encoders, vae, policy=policy)


MODES = ("none", "component", "stream", "auto")


def drawn_by_all_policies(encoders, model, prompts, loras=(), modes=MODES) -> list[torch.Tensor]:
    pictures = []
    for mode in modes:
        pipeline = pipeline_of(encoders, model, OffloadPolicy(mode, separate_memory=True))
        how = {"negative_prompt": "blue", "cfg": 2.0, "width": 32, "height": 32, "steps": 2}
        pictures.append(pipeline(prompts, **how, loras=loras).images)
    return pictures


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8_scaled", "int8", "fp8_e5m2"])
def test_every_policy_gives_the_same_bits(encoders, precision):
    model = quantize(tiny_chroma.chroma_transformer(SHORT), precision)
    pictures = drawn_by_all_policies(encoders, model, PROMPTS[0])
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_loras_and_prompts_of_unlike_lengths_under_every_policy(encoders, tmp_path):
    """Layers of blocks and of the approximator; without them all is as it was."""
    model = quantize(tiny_chroma.chroma_transformer(SHORT), "int8")
    loras: LoraStack = [(lora_of(LAYERS, tmp_path / "l.safetensors"), 0.1)]
    pictures = drawn_by_all_policies(encoders, model, list(PROMPTS), loras)
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    (without,) = drawn_by_all_policies(encoders, model, list(PROMPTS), modes=MODES[:1])
    fresh = quantize(tiny_chroma.chroma_transformer(SHORT), "int8")
    (expected,) = drawn_by_all_policies(encoders, fresh, list(PROMPTS), modes=MODES[:1])
    assert torch.equal(without, expected) and not torch.equal(without, pictures[0])


class TestMemory:
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        config = dataclasses.replace(
            tiny_chroma.CHROMA,
            hidden_size=768,
            depth=2,
            depth_single_blocks=6,
            approximator_hidden=512,
        )
        return quantize(tiny_chroma.chroma_transformer(config), "fp8_e4m3fn")

    @pytest.mark.parametrize("mode", ["none", "auto"])
    def test_the_peak_is_as_predicted(self, model, mode):
        """``auto`` within less than the whole, so that it streams."""
        cost = cost_of(model)
        budget = int(0.7 * cost.all_blocks) + 45_000_000 if mode == "auto" else None
        runner = OffloadRunner(card_policy(mode, vram_budget=budget), CPU)
        _, predicted, counted = drawn_on_card(model, runner)
        placement_on_card(model, CPU).evict()
        assert counted == pytest.approx(predicted, rel=0.05)
        assert budget is None or counted <= budget

    def test_a_small_picture_has_room_for_the_approximator(self, monkeypatch):
        """Where a step takes less than making the modulations did, of weights that are copied."""

        def copied(layer, device):
            return twin(layer, {id(t): t.clone() for *_, t in named_tensors(layer)})

        monkeypatch.setattr("flux_core.offload.modulations.copied_to", copied)
        config = dataclasses.replace(tiny_chroma.CHROMA, approximator_hidden=512)
        model = quantize(tiny_chroma.chroma_transformer(config), "fp8_e4m3fn")
        runner = OffloadRunner(card_policy("component"), CPU)
        request = DrawRequest(
            model,
            Conditioning(torch.zeros(1, 4, tiny_models.CONTEXT), None),
            torch.zeros(1, 16, 4, 4),
            SamplingSettings(steps=16),
        )
        work = request.work
        with LiveBytes() as counted:
            runner.run("transformer", [model], lambda plan: sample(request), work)
        predicted = runner.report.parts["transformer"].predicted
        assert counted.peak == pytest.approx(predicted, rel=0.05)

    def test_the_approximator_never_waits_on_the_device(self, model):
        (layer,) = modulations_of(model)
        assert layer is model.distilled_guidance_layer
        cost = cost_of(model)
        placement = placement_on_card(model, CPU)
        placement.set_resident(range(len(cost.blocks)))
        assert placement.held == cost.all_blocks
        placement.set_resident(range(len(cost.blocks)), modulations=True)
        assert placement.held == cost.all_blocks + cost.modulations == placement.size
        placement.evict()


class TestRequests:
    @pytest.fixture
    def model(self):
        return tiny_chroma.chroma_transformer()

    @pytest.fixture
    def start(self) -> torch.Tensor:
        return torch.zeros(1, 16, 4, 4)

    def test_sigmas_are_the_host_s(self, model):
        table = table_for(family_of(model))
        assert (table.mu, table.size) == (1.15, 10_000)

    def test_controlnets_are_refused_with_the_reason(self, model, start):
        net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER))
        text = Conditioning(torch.zeros(1, 4, tiny_models.CONTEXT), None)
        with pytest.raises(ValueError, match="Chroma takes no ControlNets: those of FLUX.1 were"):
            DrawRequest(model, text, start, controls=[Control(net, start)])

    def test_a_pooled_vector_of_flux1_is_let_be(self, model, start):
        context = torch.randn(1, 4, tiny_models.CONTEXT, generator=torch.Generator().manual_seed(1))
        drawn = [
            sample(
                DrawRequest(model, Conditioning(context, pooled), start, SamplingSettings(steps=1))
            )
            for pooled in (None, torch.ones(1, 768))
        ]
        assert torch.equal(*drawn)

    def test_what_is_masked_changes_nothing(self, model, start):
        context = torch.randn(1, 6, tiny_models.CONTEXT, generator=torch.Generator().manual_seed(1))
        mask = torch.tensor([[True] * 4 + [False] * 2])
        settings = SamplingSettings(steps=2)

        def drawn(context, mask=None):
            return sample(
                DrawRequest(model, Conditioning(context, None, text_mask=mask), start, settings)
            )

        with pytest.raises(ValueError, match=r"text_mask is \(1, 5\), expected one for each of 6"):
            drawn(context, mask[:, :5])
        masked = drawn(context, mask)
        assert tiny_models.relative(masked, drawn(context[:, :4])) < 1e-5
        assert tiny_models.relative(masked, drawn(context)) > 1e-4

    def test_references_and_masks_stand_together(self, model, start):
        context = torch.randn(1, 6, tiny_models.CONTEXT, generator=torch.Generator().manual_seed(1))
        mask = torch.tensor([[True] * 4 + [False] * 2])
        refs = References([torch.ones(1, 16, 4, 6)], "index_timestep_zero")

        def drawn(context, mask=None):
            text = Conditioning(context, None, text_mask=mask, references=refs)
            return sample(DrawRequest(model, text, start, SamplingSettings(steps=2)))

        assert tiny_models.relative(drawn(context, mask), drawn(context[:, :4])) < 1e-5


def test_a_fault_leaves_everything_as_it_was(encoders):
    model = quantize(tiny_chroma.chroma_transformer(SHORT), "int8")
    pipeline = pipeline_of(encoders, model, OffloadPolicy("stream", separate_memory=True))
    settings = {"cfg": 2.0, "width": 32, "height": 32, "steps": 3}
    expected = pipeline(PROMPTS[0], **settings).images

    def stop(step, total, picture):
        if step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(PROMPTS[0], **settings, callback=stop)
    assert model.precomputed is None
    assert torch.equal(pipeline(PROMPTS[0], **settings).images, expected)
