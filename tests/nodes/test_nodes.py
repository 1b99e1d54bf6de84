"""The nodes' faces, and their values against stock ones."""

from __future__ import annotations

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, headless, host
from fluxfit.nodes.control import enlarge
from fluxfit.nodes.loaders import SAME_FILE
from fluxfit.nodes.preview import preview
from fluxfit.nodes.sampler import start_latents
from fluxfit.nodes.wires import conditioning_of

from flux_core import OffloadPolicy

SETTINGS = {
    "seed": 5,
    "steps": 3,
    "cfg": 1.0,
    "sampler": "euler",
    "scheduler": "simple",
    "shift": "resolution",
    "denoise": 1.0,
}


@pytest.fixture(scope="module")
def loaded():
    node = NODE_CLASS_MAPPINGS["FluxLoaderFP8"]
    values = {
        name: options.get("default", kind[0])
        for name, (kind, options) in headless.input_specs(node).items()
        if headless.is_widget(kind)
    }
    return node().load(**values, policy=OffloadPolicy("component"))


@pytest.fixture(scope="module")
def positive(loaded):
    encode = NODE_CLASS_MAPPINGS["FluxTextEncode"]()
    return encode.encode(loaded[1], "a red circle on white", 3.5)[0]


def empty(channels=16, side=64, batch=1):
    return {"samples": torch.zeros(batch, channels, side // 8, side // 8)}


def sample(loaded, positive, latent, **options):
    node = NODE_CLASS_MAPPINGS["FluxSampler"]()
    return node.sample(loaded[0], positive, latent, **{**SETTINGS, **options})


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
class TestFaces:
    def test_everything_is_explained(self, name):
        node = NODE_CLASS_MAPPINGS[name]
        assert len(node.DESCRIPTION) > 40 and node.CATEGORY.startswith("FluxFit")
        assert NODE_DISPLAY_NAME_MAPPINGS[name]
        assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        for key, (_, options) in headless.input_specs(node).items():
            assert len(options.get("tooltip", "")) > 10, key

    def test_numbers_have_ranges_with_a_default_inside(self, name):
        for key, (kind, options) in headless.input_specs(NODE_CLASS_MAPPINGS[name]).items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], key

    def test_the_function_takes_every_input(self, name):
        import inspect

        node = NODE_CLASS_MAPPINGS[name]
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert takes_all or set(headless.input_specs(node)) <= set(parameters)


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

    def test_odd_sizes_are_refused(self, loaded, positive):
        with pytest.raises(ValueError, match="must be multiples of 16"):
            sample(loaded, positive, {"samples": torch.zeros(1, 16, 7, 8)})

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

    def test_previews_are_pictures_of_the_latent_s_size(self):
        assert preview(torch.randn(2, 16, 6, 8)).size == (8, 6)

    def test_zero_latents_start_from_the_middle_of_the_standardised_range(self, loaded):
        assert start_latents(torch.zeros(1, 4, 8, 8), loaded).shape == (1, 16, 8, 8)


class TestVAE:
    def test_tiles_give_nearly_the_whole_picture(self, loaded):
        vae = loaded[2]
        latents = vae.encode(torch.rand(1, 128, 128, 3).round())
        whole = vae.decode(latents)
        tiles = vae.decode_tiled(latents, tile_x=12, tile_y=12, overlap=4, tile_t=None)
        assert tiles.shape == whole.shape and (tiles - whole).abs().mean() < 0.05
        again = vae.encode_tiled(whole, tile_x=96, tile_y=96, overlap=32, tile_t=64)
        assert again.shape == latents.shape

    def test_sides_are_cut_to_multiples_of_eight(self, loaded):
        assert loaded[2].encode(torch.rand(1, 70, 37, 4)).shape == (1, 16, 8, 4)
        assert loaded[2].spacial_compression_decode() == 8


class TestControl:
    def test_the_upscaler_s_latent_fits_the_sampler(self, loaded, positive):
        node = NODE_CLASS_MAPPINGS["ControlNetUpscalerFP8"]()
        image = torch.rand(1, 20, 16, 3)
        control, latent, enlarged = node.make(
            vae=loaded[2],
            image=image,
            controlnet="fluxfit_pocket_upscaler.safetensors",
            precision="fp8_scaled",
            strength=1.0,
            start=0.0,
            end=1.0,
            upscale_factor=4.0,
            tile_blur=2.0,
        )
        assert enlarged.shape == (1, 80, 64, 3)
        assert latent["samples"].shape == (1, 16, 10, 8)
        plain = sample(loaded, positive, empty() | {"samples": torch.zeros(1, 16, 10, 8)})[0]
        drawn = sample(loaded, positive, latent, control=control)[0]
        assert not torch.equal(plain["samples"], drawn["samples"])

    def test_start_after_end_is_refused(self, loaded):
        node = NODE_CLASS_MAPPINGS["FluxControlNet"]()
        with pytest.raises(ValueError, match="start is 0.9, after end 0.1"):
            node.make(
                mode="none",
                vae=loaded[2],
                image=torch.rand(1, 16, 16, 3),
                strength=1.0,
                controlnet="fluxfit_pocket_upscaler.safetensors",
                precision="bf16",
                start=0.9,
                end=0.1,
            )

    @pytest.mark.parametrize("blur", [1.0, 4.0])
    def test_enlarging_keeps_a_flat_picture_flat(self, blur):
        flat = torch.full((1, 26, 26, 3), 0.4)
        assert torch.allclose(enlarge(flat, 3.0, blur), torch.full((1, 80, 80, 3), 0.4), atol=1e-5)


class TestFolders:
    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..\\x"])
    def test_names_that_climb_out_are_refused(self, name):
        with pytest.raises(ValueError, match="leaves the model folders"):
            host.model_path(name, "vae")

    def test_links_that_climb_out_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path / "models"))
        (tmp_path / "models" / "vae").mkdir(parents=True)
        (tmp_path / "secret.safetensors").write_bytes(b"x")
        (tmp_path / "models" / "vae" / "a.safetensors").symlink_to(tmp_path / "secret.safetensors")
        with pytest.raises(FileNotFoundError, match=r"no file 'a.safetensors'"):
            host.model_path("a.safetensors", "vae")

    def test_a_person_s_own_models_come_with_the_pocket_ones(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
        (tmp_path / "vae" / "sub").mkdir(parents=True)
        (tmp_path / "vae" / "sub" / "mine.safetensors").write_bytes(b"x")
        assert {"sub/mine.safetensors", "fluxfit_pocket_vae.safetensors"} <= set(
            host.model_names("vae")
        )

    def test_one_file_can_serve_all_parts(self, tmp_path, monkeypatch):
        from safetensors.torch import save_file

        from flux_core.checkpoint.reader import SafetensorsFile

        parts = {
            "model.diffusion_model.": ("diffusion_models", ""),
            "vae.": ("vae", "_vae"),
            "text_encoders.clip_l.transformer.": ("text_encoders", "_clip_l"),
            "text_encoders.t5xxl.transformer.": ("text_encoders", "_t5"),
        }
        everything = {}
        for prefix, (folder, suffix) in parts.items():
            file = SafetensorsFile(host.POCKET / folder / f"fluxfit_pocket{suffix}.safetensors")
            everything |= {prefix + name: file.read(name) for name in file.entries}
        checkpoints_folder = tmp_path / "checkpoints"
        checkpoints_folder.mkdir()
        save_file(everything, checkpoints_folder / "all.safetensors")
        for name in ("tokenizer", "tokenizer_2"):
            (checkpoints_folder / name).symlink_to(host.POCKET / "text_encoders" / name)
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
        node = NODE_CLASS_MAPPINGS["FluxLoaderFP8"]()
        loaded = node.load(
            "all.safetensors", "bf16", SAME_FILE, "bf16", SAME_FILE, "bf16", SAME_FILE, "bf16"
        )
        positive = NODE_CLASS_MAPPINGS["FluxTextEncode"]().encode(loaded[1], "a ring", 3.5)[0]
        assert sample(loaded, positive, empty())[0]["samples"].isfinite().all()


def test_conditioning_of_something_else_is_refused():
    with pytest.raises(ValueError, match="positive is dict, expected CONDITIONING"):
        conditioning_of({})


class TestMemory:
    def test_a_policy_says_what_it_will_take(self):
        node = NODE_CLASS_MAPPINGS["OffloadPolicy"]()
        answer = node.make("stream", vram_budget=6.0, slots=3, ram_budget=8.0, t5_mode="none")
        policy, shown_text = answer["result"]
        assert policy == OffloadPolicy(
            "stream", 6_000_000_000, 3, 8_000_000_000, parts={"t5": "none"}
        )
        assert (
            "FLUX.1-dev" in shown_text
            and "peak 5." in shown_text
            and answer["ui"]["text"] == (shown_text,)
        )
        least = node.make("stream")["result"]
        assert least[0].vram_budget is None and "57 blocks stay" in least[1]
        with pytest.raises(ValueError, match="t5 mode is 'fast'"):
            node.make("auto", t5_mode="fast")

    def test_the_report_shows_each_part_s_last_run(self, loaded, positive):
        latents, _ = sample(loaded, positive, empty())
        image = loaded[2].decode(latents["samples"])
        shown = NODE_CLASS_MAPPINGS["FluxMemoryReport"]().show(image)
        passed, drawn, shown_text = shown["result"]
        assert passed is image and drawn.shape == (1, 560, 1000, 3) and drawn.std() > 0.05
        assert (
            "transformer" in shown_text
            and "VAE decoder" in shown_text
            and shown["ui"]["text"] == (shown_text,)
        )

    def test_a_controlnet_may_have_a_policy_of_its_own(self, loaded):
        node = NODE_CLASS_MAPPINGS["ControlNetUpscalerFP8"]
        values = {
            name: options.get("default", kind[0])
            for name, (kind, options) in headless.input_specs(node).items()
            if headless.is_widget(kind)
        }
        picture = torch.rand(1, 16, 16, 3)
        own = OffloadPolicy("stream")
        (control,), *_ = node().make(vae=loaded[2], image=picture, policy=own, **values)
        assert control.policy is own

    def test_the_vae_decodes_in_tiles_where_the_budget_asks_for_it(self, loaded):
        latents = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
        whole = loaded[2].decode(latents)
        assert host.latest.parts["VAE decoder"].tile is None
        small = type(loaded[2])(
            loaded[2].first_stage_model, OffloadPolicy("component", vram_budget=60_000_000)
        )
        tiled = small.decode(latents)
        assert host.latest.parts["VAE decoder"].tile in (32, 48)
        assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
