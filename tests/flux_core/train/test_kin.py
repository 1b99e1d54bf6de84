"""Training on FLUX.2 and Chroma, from settings to a file that other programs read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flux_core import FluxPipeline, load_lora
from flux_core.lora.match import linears_of, match_lora
from flux_core.models.families import CHROMA, FLUX2_KLEIN, empirical_mu, family_of
from flux_core.models.text_encoding import TextEncoding
from flux_core.train import Trainer, TrainingModels
from flux_core.train.config import (
    ConfigError,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SamplesConfig,
    TrainConfig,
    ValidationConfig,
)
from flux_core.train.noise_levels import SHIFTED_STEPS, draw_times
from flux_core.train.objective import predict_velocity
from flux_core.train.settings import from_mapping, to_mapping
from flux_core.train.state import refuse_changes
from tests import flux2_models, training_runs
from tests.cli.command_line import call
from tests.kin_files import chroma_files, flux2_files
from tests.tiny_models import relative

FILES = {"FLUX.2": flux2_files, "Chroma": chroma_files}
PROMPT = "red, number 0"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, str]]:
    """The files of each model by the fields that name them."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in FILES.items()}


def cache_of(files: dict[str, str]) -> str:
    """Where captions and pictures are kept for all runs of a model."""
    return str(Path(files["transformer"]).parent / "cache")


def settings(files: dict[str, str], tmp_path: Path, precision: str, **more) -> TrainConfig:
    """A run of some steps on five flat pictures."""
    config = training_runs.train_config(
        tmp_path,
        steps=8,
        cache=cache_of(files),
        model=ModelConfig(**files, precision=precision, text_precision="fp32"),
        lora=LoraConfig(rank=4, targets=("attention", "mlp", "modulation")),
        objective=ObjectiveConfig(timesteps="resolution_shift"),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        validation=ValidationConfig(every=4, share=0.4, levels=2),
        samples=SamplesConfig((PROMPT,), width=64, height=64, steps=2),
    )
    if "t5" in files:  # its blocks have no modulations
        config = dataclasses.replace(config, lora=LoraConfig(rank=4))
    return dataclasses.replace(config, **more)


@pytest.mark.parametrize("precision", ["fp32", "fp8_scaled"])
@pytest.mark.parametrize("name", FILES)
def test_a_lora_learns_and_its_file_draws_what_was_trained(name, precision, files, tmp_path):
    config = settings(files[name], tmp_path, precision)
    models = TrainingModels.open(config.model)
    family = family_of(models.transformer)
    assert family is {"FLUX.2": FLUX2_KLEIN, "Chroma": CHROMA}[name]
    before = {key: value.clone() for key, value in models.transformer.state_dict().items()}
    done = Trainer(config, models).run()
    for key, value in models.transformer.state_dict().items():
        assert torch.equal(value.view(torch.uint8), before[key].view(torch.uint8)), key
    losses = [loss for _, loss in done.history.validation]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.95 * losses[0]

    pipeline = FluxPipeline(models.transformer, models.encoders, models.vae)
    drawn = {"width": 64, "height": 64, "steps": 2, "guidance": config.samples.guidance}
    plain = pipeline(PROMPT, **drawn).images[0]
    for path in done.files:  # in 16 bits
        lora = load_lora(path)
        match = match_lora(lora, models.transformer)
        assert not match.unmatched and not match.refused
        with_it = pipeline(PROMPT, loras=[(lora, 1.0)], **drawn).images[0]
        assert relative(with_it, done.samples[0]) < 0.1 * relative(with_it, plain)
        with safe_open(path, "pt") as opened:
            assert opened.metadata()["ss_base_model_version"] == family.lora_base
            assert set(opened.keys()) <= host_names(models.transformer, path.stem)


def host_names(transformer, stem: str) -> set[str]:
    """The tensors of LoRAs that ComfyUI reads: kohya's of every layer, and diffusers' of blocks,
    by the names that it maps to the layers of FLUX.1's blocks and FLUX.2's."""
    if stem.endswith("kohya"):
        stems = {"lora_unet_" + name.replace(".", "_") for name in linears_of(transformer)}
        kinds = ("lora_down.weight", "lora_up.weight", "alpha")
        return {f"{stem}.{kind}" for stem in stems for kind in kinds}
    config = transformer.config
    double = (
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
        *(f"attn.add_{name}_proj" for name in "qkv"),
        *(f"{ff}.net.{layer}" for ff in ("ff", "ff_context") for layer in ("0.proj", "2")),
        *(f"{ff}.linear_{way}" for ff in ("ff", "ff_context") for way in ("in", "out")),
    )
    single = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"),
        *("attn.to_qkv_mlp_proj", "attn.to_out"),
    )
    stems = {f"transformer_blocks.{i}.{name}" for i in range(config.depth) for name in double}
    for i in range(config.depth_single_blocks):
        stems |= {f"single_transformer_blocks.{i}.{name}" for name in single}
    # these it reads of kohya's file alone
    kinds = ("double_stream_modulation_img", "double_stream_modulation_txt")
    stems |= {f"{kind}.linear" for kind in (*kinds, "single_stream_modulation")}
    return {f"transformer.{stem}.lora_{side}.weight" for stem in stems for side in "AB"}


def test_dev_is_told_a_guidance_and_klein_reads_none():
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(1, 128, 2, 3, generator=generator)
    text = TextEncoding(
        torch.randn(1, 7, flux2_models.CONTEXT, generator=generator), torch.zeros(1, 0)
    )
    for dev in (True, False):
        config = dataclasses.replace(flux2_models.DEV, guidance_embed=dev)
        model = flux2_models.transformer(config)
        with torch.no_grad():
            low, high = (
                predict_velocity(
                    model, noisy, torch.tensor([0.5]), text, guidance, flux2_models.TOKENS
                )
                for guidance in (1.0, 4.0)
            )
        assert torch.equal(low, high) != dev


class TestNoiseLevels:
    @pytest.mark.parametrize("tokens", [256, 4096, 8000])
    def test_they_are_shifted_as_the_family_s_are(self, tokens):
        def times(family, **more) -> torch.Tensor:
            config = ObjectiveConfig(**more)
            return draw_times(config, 1000, tokens, torch.Generator().manual_seed(0), family)

        plain = times(FLUX2_KLEIN)
        factor = torch.exp(torch.tensor(empirical_mu(tokens, SHIFTED_STEPS)))
        expected = factor * plain / (1 + (factor - 1) * plain)
        drawn = times(FLUX2_KLEIN, timesteps="resolution_shift")
        assert torch.allclose(drawn, expected, atol=1e-5)
        flux1 = draw_times(
            ObjectiveConfig("resolution_shift"), 1000, tokens, torch.Generator().manual_seed(0)
        )
        assert torch.equal(times(CHROMA, timesteps="resolution_shift"), flux1)
        # beyond 4300 tokens both grow alike
        assert torch.allclose(drawn, flux1, atol=1e-2) == (tokens > 4300)


class TestSettings:
    def test_a_command_trains_from_a_file(self, files, tmp_path):
        pictures = training_runs.write_pictures(tmp_path / "pictures")
        model = "\n".join(f"{name} = {json.dumps(path)}" for name, path in files["FLUX.2"].items())
        (tmp_path / "run.toml").write_text(
            f'name = "fox"\nsteps = 2\noutput = "{tmp_path}/out"\n'
            f'cache = "{cache_of(files["FLUX.2"])}"\n[model]\n{model}\n'
            f'precision = "fp8_scaled"\ntext_precision = "fp32"\n[[data]]\nfolder = "{pictures}"\n'
            'resolutions = [64]\nstep = 16\n[objective]\ntimesteps = "resolution_shift"\n'
        )
        done = call("train", str(tmp_path / "run.toml"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        names = {path.name for path in (tmp_path / "out" / "fox").glob("*.safetensors")}
        assert names == {"fox.safetensors", "fox_kohya.safetensors"}

    def test_a_language_model_named_t5_is_opened_as_before(self, files, tmp_path):
        renamed = {{"language_model": "t5"}.get(k, k): v for k, v in files["FLUX.2"].items()}
        model = ModelConfig(**renamed, precision="fp32", text_precision="fp32")
        assert TrainingModels.open(model).encoders.kind.name == "qwen3"
        config = training_runs.train_config(tmp_path, model=model)
        before = to_mapping(config)
        del before["model"]["language_model"]
        refuse_changes(config, from_mapping(TrainConfig, before))

    def test_what_is_missing_is_named(self, files):
        with pytest.raises(ConfigError, match=r"t5 of Chroma, language_model of FLUX\.2"):
            ModelConfig(transformer="a.safetensors", vae="b.safetensors")
        chroma = dict(files["Chroma"], language_model="c.safetensors")
        del chroma["t5"]
        with pytest.raises(ConfigError, match="model.t5 is empty, and Chroma reads T5"):
            TrainingModels.open(ModelConfig(**chroma))
