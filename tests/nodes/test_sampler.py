"""FluxSampler: latents in and out, conditioning, masks, interrupts."""

from __future__ import annotations

import pytest
import torch
from fluxfit.nodes import host
from fluxfit.nodes.sampler import start_latents

from tests.nodes.node_calls import SETTINGS, empty, node, sample


class TestSampler:
    def test_latents_come_out_raw_and_decode(self, loaded, positive):
        latent, report = sample(loaded, positive, empty())
        assert latent["samples"].shape == (1, 16, 8, 8)
        assert loaded[2].decode(latent["samples"]).shape == (1, 64, 64, 3)
        assert "transformer" in report

    def test_an_empty_latent_of_four_channels_is_widened(self, loaded, positive):
        wide = sample(loaded, positive, empty())[0]["samples"]
        assert torch.equal(wide, sample(loaded, positive, empty(4))[0]["samples"])

    def test_latents_of_another_model_are_refused(self, loaded, positive):
        with pytest.raises(ValueError, match="latents have 4 channels, FLUX.1-[a-z]+ takes 16"):
            sample(loaded, positive, {"samples": torch.ones(1, 4, 8, 8)})

    def test_odd_sizes_are_drawn(self, loaded, positive):
        for height, width in ((7, 8), (8, 7), (7, 7), (1, 1)):
            latent = {"samples": torch.zeros(1, 16, height, width)}
            drawn = sample(loaded, positive, latent)[0]["samples"]
            assert drawn.shape == (1, 16, height, width)
            assert drawn.isfinite().all()

    def test_the_host_s_conditioning_fits(self, loaded, positive):
        context, extra = positive[0]
        stock = [[context, {"pooled_output": extra["pooled_output"], "guidance": 3.5}]]
        a = sample(loaded, positive, empty())[0]["samples"]
        assert torch.equal(a, sample(loaded, stock, empty())[0]["samples"])
        with pytest.raises(ValueError, match="no pooled CLIP vector"):
            sample(loaded, [[context, {}]], empty())
        wide = [[torch.zeros(1, 7, 4096), extra]]
        with pytest.raises(ValueError, match=r"T5 context is 4096 wide, this transformer expects"):
            sample(loaded, wide, empty())

    def test_batch_index_picks_the_noise_of_one_picture(self, loaded, positive):
        latent = empty() | {"batch_index": [1]}
        one = sample(loaded, positive, latent)[0]["samples"]
        assert not torch.equal(one, sample(loaded, positive, empty())[0]["samples"])

    def test_sigmas_from_a_wire_replace_the_schedule(self, loaded, positive):
        from flux_core.models.families import FLUX1_DEV
        from flux_core.sampling.sigmas import make_sigmas, table_for

        sigmas = make_sigmas(table_for(FLUX1_DEV, "resolution", 16), "simple", 3)
        a = sample(loaded, positive, empty())[0]["samples"]
        b = sample(loaded, positive, empty(), sigmas=sigmas, steps=50)[0]["samples"]
        assert torch.equal(a, b)

    def test_a_noise_mask_keeps_the_rest(self, loaded, positive):
        start = loaded[2].encode(torch.full((1, 64, 64, 3), 0.3))
        mask = torch.zeros(1, 64, 64)
        mask[:, :32] = 1
        drawn = sample(loaded, positive, {"samples": start, "noise_mask": mask})[0]["samples"]
        assert torch.allclose(drawn[:, :, 6:], start[:, :, 6:], atol=1e-4)
        assert not torch.allclose(drawn[:, :, :2], start[:, :, :2], atol=0.1)

    def test_an_interrupt_ends_the_run_at_any_step(self, loaded, positive, monkeypatch):
        calls = []

        def update(self, done, preview=None):
            calls.append(done)
            if len(calls) == 2:
                raise InterruptedError

        monkeypatch.setattr(host.Progress, "update", update)
        with pytest.raises(InterruptedError):
            sample(loaded, positive, empty())
        assert calls == [0, 1]

    def test_zero_latents_start_from_the_middle_of_the_standardised_range(self, loaded):
        assert start_latents(torch.zeros(1, 4, 8, 8), loaded[0]).shape == (1, 16, 8, 8)


class TestWhatItShows:
    def test_memory_and_time_of_the_run(self, loaded, positive):
        shown = run_node(loaded, positive)["ui"]["text"][0]
        assert "MB predicted" in shown and "s a step" in shown and "mode component" in shown

    def test_nothing_drawn_is_said(self, loaded, positive):
        shown = run_node(loaded, positive, sigmas=torch.tensor([]))["ui"]["text"][0]
        assert "a step" not in shown


class TestPartsOfASchedule:
    def test_two_runs_over_split_sigmas_are_one(self, loaded, positive):
        sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
        whole = sample(loaded, positive, empty(), sigmas=sigmas)[0]["samples"]
        first = sample(loaded, positive, empty(), sigmas=sigmas[:3])[0]
        last = sample(loaded, positive, first, sigmas=sigmas[2:], add_noise=False)[0]["samples"]
        assert float((last - whole).abs().max()) < 1e-3 * float(whole.abs().max())
        again = sample(loaded, positive, first, sigmas=sigmas[2:])[0]["samples"]
        assert not torch.allclose(again, whole, atol=0.1)

    def test_no_sigmas_give_the_latent_back(self, loaded, positive):
        start = {"samples": torch.randn(1, 16, 8, 8)}
        for sigmas in (torch.tensor([]), torch.tensor([0.0])):
            drawn = sample(loaded, positive, start, sigmas=sigmas)[0]["samples"]
            assert torch.allclose(drawn, start["samples"], atol=1e-5)


class TestWithoutTheHost:
    @pytest.mark.parametrize("name", ["sampler_object", "guider"])
    def test_its_samplers_and_guiders_are_refused(self, name, loaded, positive):
        with pytest.raises(ValueError, match="ComfyUI's: they work inside of it alone"):
            sample(loaded, positive, empty(), **{name: object()})


def run_node(loaded, positive, **options):
    return node("FluxSampler").sample(loaded[0], positive, empty(), **{**SETTINGS, **options})
