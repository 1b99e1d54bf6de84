"""FLUX.2's language models against transformers' and what diffusers' pipelines make of them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from flux_core import CheckpointError, OffloadPolicy, load_language_encoders, load_t5
from flux_core.checkpoint.inspect import describe_file
from flux_core.models.language_encoders import LanguageTextEncoders
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.pocket import POCKET
from flux_core.quant import PRECISIONS, quantized_linears
from flux_core.sampling.prompts import encode_prompts, t5_work
from tests import flux2_models, tiny_models

PROMPTS = ["a red (circle:1.3) on blue", ""]


@pytest.fixture(scope="module")
def qwen():
    return flux2_models.qwen_model()


@pytest.fixture(scope="module")
def folder(qwen, tmp_path_factory) -> Path:
    """As Hugging Face has it: text_encoder and tokenizer beside each other."""
    root = tmp_path_factory.mktemp("klein")
    tiny_models.save_shards(qwen.state_dict(), make(root / "text_encoder"))
    flux2_models.qwen_tokenizer().save_pretrained(root / "tokenizer")
    return root


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def opened(folder) -> LanguageTextEncoders:
    return load_language_encoders(folder / "text_encoder", precision="fp32")


def their_embeds(qwen, prompts=PROMPTS) -> torch.Tensor:
    from diffusers import Flux2KleinPipeline

    with torch.no_grad():
        return Flux2KleinPipeline._get_qwen3_prompt_embeds(
            qwen, flux2_models.qwen_tokenizer(), list(prompts)
        )


def test_qwen_s_context_is_what_diffusers_makes(opened, qwen, folder, caplog):
    encoding = opened.encode(PROMPTS)
    assert encoding.pooled.shape == (2, 0) and encoding.context.shape == (2, 512, 96)
    assert tiny_models.relative(encoding.context, their_embeds(qwen)) < 1e-5
    caplog.set_level(logging.WARNING)
    load_language_encoders(folder / "text_encoder", precision="fp32")
    assert not caplog.records  # layers that nobody reads are no surprise


def test_mistral_s_context_is_what_diffusers_makes(tmp_path):
    from diffusers import Flux2Pipeline

    theirs, tokenizer = flux2_models.mistral_model(), flux2_models.mistral_tokenizer()
    path = tiny_models.save(theirs.state_dict(), tmp_path / "mistral.safetensors")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    ours = load_language_encoders(path, precision="fp32")
    assert ours.kind.name == "mistral" and len(ours.language.layers) == 30
    with torch.no_grad():
        expected = Flux2Pipeline._get_mistral_3_small_prompt_embeds(
            theirs, tokenizer, list(PROMPTS)
        )
    assert tiny_models.relative(ours.encode(PROMPTS).context, expected) < 1e-5


@pytest.mark.parametrize(
    "prefix", ["model.", "", "language_model.model.", "text_encoders.qwen3_4b.transformer.model."]
)
def test_every_place_in_a_file(prefix, qwen, folder, opened, tmp_path):
    state = {
        name.removeprefix("model."): value
        for name, value in qwen.state_dict().items()
        if name.startswith("model.")
    }
    path = tiny_models.save(state, tmp_path / "file.safetensors", prefix)
    ours = load_language_encoders(path, precision="fp32", tokenizer=folder / "tokenizer")
    assert torch.equal(ours.encode(["cat"]).context, opened.encode(["cat"]).context)
    assert "Qwen3, 32 wide, states 9, 18, 27" in describe_file(path)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision(precision, folder, qwen):
    ours = load_language_encoders(folder / "text_encoder", precision=precision)
    assert (len(list(quantized_linears(ours))) == 27 * 7) is (
        precision not in ("bf16", "fp16", "fp32")
    )
    context = ours.encode(["a cat"]).context.float()
    assert context.isfinite().all()
    assert tiny_models.relative(context, their_embeds(qwen, ["a cat"])) < 0.35


@pytest.mark.parametrize("layout", ["comfy_quant", "scale_weight"])
def test_float8_with_scales_as_the_host_s_files_have_it(layout, qwen, folder, opened, tmp_path):
    state = {}
    for name, value in qwen.state_dict().items():
        if value.ndim != 2 or "_proj" not in name:
            state[name] = value
            continue
        stem, scale = name.removesuffix(".weight"), value.abs().max() / 448
        state[name] = (value / scale).to(torch.float8_e4m3fn)
        if layout == "comfy_quant":
            note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
            state |= {f"{stem}.weight_scale": scale, f"{stem}.comfy_quant": note}
        else:
            state[f"{stem}.scale_weight"] = scale
    if layout == "scale_weight":
        state["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    path = tiny_models.save(state, tmp_path / "scaled.safetensors")
    expected = opened.encode(["a cat"]).context
    for precision in ("fp32", "as_stored"):
        ours = load_language_encoders(path, precision=precision, tokenizer=folder / "tokenizer")
        context = ours.encode(["a cat"]).context.float()
        assert tiny_models.relative(context, expected) < 0.2
    assert len(list(quantized_linears(ours))) == 27 * 7


def test_every_policy_gives_the_same_bits(folder):
    expected = None
    for mode in ("none", "component", "stream"):
        ours = load_language_encoders(folder / "text_encoder", precision="fp8_scaled")
        runner = OffloadRunner(OffloadPolicy(mode, separate_memory=True), "cpu")
        first, again = encode_prompts(runner, ours, ["a cat", "a cat"])
        assert again is first
        expected = first.context if expected is None else expected
        assert torch.equal(first.context, expected)


def test_memory_is_predicted(opened):
    work = t5_work(opened.language, 512)
    ids, there = torch.zeros(1, 512, dtype=torch.long), torch.ones(1, 512, dtype=torch.bool)
    with LiveBytes() as counted, torch.no_grad():
        opened.language(ids, there)
    assert abs(work.activations - counted.peak) < 0.05 * counted.peak


def test_a_long_prompt_has_more_context_and_training_cuts_it(opened, caplog):
    prompt = "word " * 150
    assert opened.context_length([prompt, "a"]) == opened.encode([prompt]).context.shape[1] > 700
    assert opened.tokens_at_once([prompt]) == opened.context_length([prompt])
    caplog.set_level(logging.WARNING)
    assert opened.encode([prompt], literal=True).context.shape[1] == 512
    assert "Qwen3 reads 512 of" in caplog.text
    with pytest.raises(ValueError, match="expected at most 4096"):
        opened.encode(["word " * 2000])


def test_gguf_has_its_own_names(qwen, folder, opened, tmp_path):
    pytest.importorskip("gguf")
    from flux_core.checkpoint.gguf import QWEN_BLOCK, QWEN_NAMES
    from tests.flux_core.checkpoint.test_gguf import write

    renamed = {}
    for name, value in qwen.state_dict().items():
        stem, _, kind = name.removeprefix("model.").rpartition(".")
        names = {ours: theirs for theirs, ours in QWEN_NAMES.items()}
        if stem.startswith("layers."):
            _, number, inner = stem.split(".", 2)
            blocks = {ours: theirs for theirs, ours in QWEN_BLOCK.items()}
            renamed[f"blk.{number}.{blocks[inner]}.{kind}"] = value
        else:
            renamed[f"{names[stem]}.{kind}"] = value
    path = write(tmp_path / "qwen.gguf", renamed, "F16", "qwen3")
    ours = load_language_encoders(path, precision="fp32", tokenizer=folder / "tokenizer")
    context = ours.encode(["a cat"]).context
    assert tiny_models.relative(context, opened.encode(["a cat"]).context) < 0.01


class TestWhatIsNot:
    def test_a_file_of_another_kind(self, qwen, folder, opened, tmp_path):
        state = qwen.state_dict()
        path = tiny_models.save(state, tmp_path / "qwen.safetensors")
        with pytest.raises(CheckpointError, match="expected a T5 encoder, found a language model"):
            load_t5(path)
        few = {k: v for k, v in state.items() if ".layers." not in k or int(k.split(".")[2]) < 9}
        path = tiny_models.save(few, tmp_path / "few.safetensors")
        with pytest.raises(CheckpointError, match="has 9 layers, FLUX.2 reads 27 of Qwen3"):
            load_language_encoders(path, tokenizer=folder / "tokenizer")
        biased = state | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(256)}
        path = tiny_models.save(biased, tmp_path / "biased.safetensors")
        with pytest.raises(CheckpointError, match="found a language model"):
            load_language_encoders(path, tokenizer=folder / "tokenizer")

    def test_a_tokenizer_of_another_model(self, folder, opened, tmp_path):
        with pytest.raises(CheckpointError, match="expected tokenizer.json, or vocab.json"):
            load_language_encoders(folder / "text_encoder", tokenizer=tmp_path)
        flux2_models.mistral_tokenizer().save_pretrained(tmp_path / "tokenizer")
        with pytest.raises(CheckpointError, match=r"no '<\|endoftext\|>': it is not that of Qwen3"):
            load_language_encoders(folder / "text_encoder", tokenizer=tmp_path / "tokenizer")
        larger = flux2_models.qwen_tokenizer()
        larger.add_tokens([f"word{i}" for i in range(200)])
        with pytest.raises(ValueError, match="they do not belong together"):
            LanguageTextEncoders(opened.language, larger)

    def test_no_tokenizer_says_where_it_was_looked_for(self, qwen, tmp_path):
        path = tiny_models.save(qwen.state_dict(), tmp_path / "deep" / "qwen.safetensors")
        with pytest.raises(FileNotFoundError, match="no tokenizer for .*expected one in"):
            load_language_encoders(path)

    def test_clip_s_tokenizer_beside_it_is_passed_by(self, qwen, folder, opened, tmp_path):
        """Folders of FLUX.1's encoders have one under the same name."""
        models = tmp_path / "text_encoders"
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(POCKET / "text_encoders" / name, models / name)
        tiny_models.save(qwen.state_dict(), models / "qwen.safetensors")
        with pytest.raises(FileNotFoundError, match="that in .*tokenizer is of another text enc"):
            load_language_encoders(models / "qwen.safetensors")
        for name in ("tokenizer", "tokenizer_2"):
            with pytest.raises(CheckpointError, match="it is not that of Qwen3"):
                load_language_encoders(models / "qwen.safetensors", tokenizer=models / name)
        shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
        encoders = load_language_encoders(models / "qwen.safetensors", precision="fp32")
        ours, theirs = (each.encode(["a cat"]).context for each in (encoders, opened))
        assert torch.equal(ours, theirs)
