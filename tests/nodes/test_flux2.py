"""FLUX.2 through nodes: each part from its own file, drawn as the pipeline draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, host
from fluxfit.nodes.headless.stock_custom import STOCK_CUSTOM

from flux_core import CheckpointError
from flux_core.sampling.latents import host_noise
from tests import flux2_models, tiny_models, training_runs
from tests.flux_core.test_flux2_pipeline import open_parts, save_parts, their_parts
from tests.nodes.node_calls import SETTINGS, defaults, node

FOLDERS = {"transformer": "diffusion_models", "vae": "vae", "text_encoder": "text_encoders"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models as a person has them: a file of each part in its model folder."""
    root = tmp_path_factory.mktemp("models")
    parts = their_parts(dev=False)
    save_parts(parts, root / "whole")
    for name, place in FOLDERS.items():
        tiny_models.save(parts[name].state_dict(), root / place / "klein.safetensors")
    parts["tokenizer"].save_pretrained(root / "text_encoders" / "tokenizer")
    return root


@pytest.fixture
def wires(folder, monkeypatch):
    monkeypatch.setenv("FLUXFIT_MODELS", str(folder))
    model, _ = node("FluxFitTransformerLoader").load("klein.safetensors", "fp32", "auto")
    texts, _ = node("FluxFitTextEncoderLoader").load("klein.safetensors", "fp32", "auto")
    (vae,) = node("FluxFitVAELoader").load("klein.safetensors", "fp32")
    return model, texts, vae


def empty(width: int = 96, height: int = 64):
    return STOCK_CUSTOM["EmptyFlux2LatentImage"]().make(width, height, 1)[0]


def drawn(wires, latent=None, **options):
    model, texts, _ = wires
    (positive,) = node("FluxTextEncode").encode(texts, "a cat", 3.5)
    settings = {**SETTINGS, "steps": 4, "seed": 7} | options
    return node("FluxSampler").sample(model, positive, latent or empty(), **settings)["result"][0]


def test_the_graph_draws_what_the_pipeline_draws(wires, folder):
    latent = drawn(wires)
    assert latent["samples"].shape == (1, 128, 4, 6)
    picture = wires[2].decode(latent["samples"])
    ours = open_parts(folder / "whole")
    expected = ours("a cat", width=96, height=64, steps=4, seed=7, shift="resolution").images
    assert torch.equal(picture, expected)
    again = wires[2].encode(picture)
    assert again.shape == (1, 128, 4, 6) and wires[2].latent_channels == 128


def test_the_stock_scheduler_s_sigmas_are_those_of_the_resolution(wires):
    (sigmas,) = STOCK_CUSTOM["Flux2Scheduler"]().make(4, 96, 64)
    by_sigmas = drawn(wires, sigmas=sigmas)["samples"]
    assert tiny_models.relative(by_sigmas, drawn(wires)["samples"]) < 1e-5


def test_an_empty_latent_of_another_model_is_one_of_the_same_picture(wires):
    other = {"samples": torch.zeros(1, 16, 8, 12), "downscale_ratio_spacial": 8}
    latent = drawn(wires, other)
    assert torch.equal(latent["samples"], drawn(wires)["samples"])
    assert "downscale_ratio_spacial" not in latent


def test_a_stock_encoder_s_conditioning_is_read(wires):
    """It has no pooled vector that anybody reads, and says which tokens are padding."""
    model, texts, _ = wires
    context = texts.encoders.encode(["a cat"]).context
    mask = torch.ones(1, 512)
    extra = {"pooled_output": torch.zeros(1, 9), "attention_mask": mask, "guidance": 3.5}
    settings = {**SETTINGS, "steps": 4, "seed": 7}
    stock = node("FluxSampler").sample(model, [[context, extra]], empty(), **settings)
    assert torch.equal(stock["result"][0]["samples"], drawn(wires)["samples"])


def test_reference_latents_are_read_as_flux_2_places_them(wires):
    model, texts, _ = wires
    (positive,) = node("FluxTextEncode").encode(texts, "a cat", 3.5)
    reference = host_noise((1, 128, 4, 6), 3)
    results = []
    for more in (
        {},
        {"reference_latents": [reference]},
        {"reference_latents": [reference], "reference_latents_method": "index"},
        {"reference_latents": [reference], "reference_latents_method": "offset"},
    ):
        prompt = [[positive[0][0], positive[0][1] | more]]
        out = node("FluxSampler").sample(model, prompt, empty(), **SETTINGS)["result"][0]
        results.append(out["samples"])
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[1], results[0]) and not torch.equal(results[1], results[3])


@pytest.mark.parametrize("method", ["auto", "index"])
def test_flux_reference_places_its_picture_as_the_family_does(wires, method):
    model, texts, vae = wires
    (positive,) = node("FluxTextEncode").encode(texts, "a cat", 3.5)
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    (by_node, _, size) = node("FluxFitReference").refer(positive, vae, picture, "own", method)
    by_hand = [[c, e | {"reference_latents": [vae.encode(picture)]}] for c, e in positive]
    results = []
    for prompt, latent in ((by_node, size), (by_hand, empty())):
        out = node("FluxSampler").sample(model, prompt, latent, **SETTINGS)["result"][0]
        results.append(out["samples"])
    assert results[0].shape == (1, 128, 4, 6) and torch.equal(*results)


def test_previews_show_two_pixels_a_side_of_a_latent():
    from fluxfit.nodes.preview import preview

    latents = torch.zeros(1, 128, 4, 6)
    latents[:, 12:16] = torch.tensor([2.0, 0.0, 0.0, 0.0]).view(4, 1, 1)  # channel 3, upper left
    picture = preview(latents)
    assert picture.size == (12, 8)
    assert picture.getpixel((0, 0)) > picture.getpixel((1, 0)) == picture.getpixel((0, 1))


def test_a_lora_stays_with_the_transformer(wires, folder, tmp_path):
    model, texts, _ = wires
    key = "diffusion_model.single_blocks.0.linear2"
    file = {f"{key}.lora_A.weight": torch.ones(2, 512), f"{key}.lora_B.weight": torch.ones(128, 2)}
    tiny_models.save(file, folder / "loras" / "one.safetensors")
    loader = node("FluxFitLoraLoader")
    changed, same_texts, report = loader.load(model, "one.safetensors", 1.0, 1.0, True, texts)
    assert "2 tensors applied to 1 layers" in report
    assert same_texts.module is texts.module and len(changed.loras) == 1


class TestTokenizers:
    def test_the_host_s_own_serves_qwen(self, folder, tmp_path, monkeypatch):
        from fluxfit.nodes.part_loaders import tokenizer_folder

        alone = tiny_models.save(
            {"model.layers.0.self_attn.q_norm.weight": torch.ones(128)}, tmp_path / "q.safetensors"
        )
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        with pytest.raises(FileNotFoundError, match="no tokenizer"):
            tokenizer_folder(alone)
        shipped = tmp_path / "comfy" / "text_encoders" / "qwen25_tokenizer"
        shipped.mkdir(parents=True)
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
        assert tokenizer_folder(alone) == shipped == host.host_qwen_tokenizer()
        other = tiny_models.save({"a": torch.ones(1)}, tmp_path / "m.safetensors")
        with pytest.raises(FileNotFoundError, match="no tokenizer"):
            tokenizer_folder(other)

    @pytest.mark.parametrize("split_as", ["", "llama-bpe", "gpt-2"])
    def test_one_that_is_not_known_is_passed_over(self, split_as, tmp_path, monkeypatch):
        pytest.importorskip("gguf")
        from fluxfit.nodes.part_loaders import tokenizer_folder

        from tests.flux_core.checkpoint.test_gguf import write

        lists = {"tokenizer__ggml__tokens": ["a", "b"], "tokenizer__ggml__merges": ["a b"]}
        lists["tokenizer__ggml__pre"] = split_as
        for name in ("q", "m"):
            (tmp_path / name).mkdir()
        norm = {"blk.0.attn_q_norm.weight": torch.ones(128)}
        qwen = write(tmp_path / "q" / "q.gguf", norm, "F16", "qwen3", **lists)
        mistral = write(tmp_path / "m" / "m.gguf", {}, "F16", "llama", **lists)
        shipped = tmp_path / "comfy" / "text_encoders" / "qwen25_tokenizer"
        shipped.mkdir(parents=True)
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
        assert tokenizer_folder(qwen) == shipped
        with pytest.raises(CheckpointError, match=r"m\.gguf: .* split.* text.*put the folder"):
            tokenizer_folder(mistral)
        for path in (qwen, mistral):
            folder = path.parent / "tokenizer"
            flux2_models.qwen_tokenizer().save_pretrained(folder)
            assert tokenizer_folder(path) == folder

    def test_a_file_of_another_part_is_named(self, folder, monkeypatch):
        monkeypatch.setenv("FLUXFIT_MODELS", str(folder))
        name = "fluxfit_pocket_clip_l.safetensors"
        with pytest.raises((CheckpointError, FileNotFoundError), match="fluxfit_pocket_clip_l"):
            node("FluxFitTextEncoderLoader").load(name, "bf16", "auto")

    def test_that_of_the_file_comes_first(self, tmp_path):
        from fluxfit.nodes.part_loaders import tokenizer_folder

        flux2_models.qwen_tokenizer().save_pretrained(tmp_path / "tokenizer")
        file = {"tekken_model": torch.zeros(4, dtype=torch.uint8)}
        path = tiny_models.save(file, tmp_path / "m.safetensors")
        assert tokenizer_folder(path) is None
        other = tiny_models.save({"a": torch.ones(1)}, tmp_path / "a.safetensors")
        assert tokenizer_folder(other) == tmp_path / "tokenizer"


def test_its_clip_serves_stock_nodes(wires, monkeypatch, folder):
    """Without a host, the same as our own node."""
    texts, clip = node("FluxFitTextEncoderLoader").load("klein.safetensors", "fp32", "auto")
    assert clip is texts


def test_tokens_on_the_clip_wire_are_the_encoder_s(wires):
    from fluxfit.nodes.bridge.language_clip import ROWS, HostLanguageModel, LanguageTokenizer

    texts = wires[1]
    model, tokenizer = HostLanguageModel(texts), LanguageTokenizer(texts.module)
    pairs = tokenizer.tokenize_with_weights("a (cat:1.2)")
    assert [token[1] for token in pairs[ROWS][0]] == [1.0] * len(pairs[ROWS][0])
    context, pooled = model.encode_token_weights(pairs)
    expected = texts.module.encode(["a (cat:1.2)"]).context
    assert torch.equal(context, expected) and pooled is None
    long = tokenizer.tokenize_with_weights("word " * 150, return_word_ids=True)
    assert model.encode_token_weights(long)[0].shape[1] == len(long[ROWS][0]) > 512
    assert "".join(text for _, text in tokenizer.untokenize(pairs[ROWS][0])).count("(cat:1.2)") == 1
    names = set(model.state_dict())
    assert "language_model.transformer.model.layers.0.mlp.up_proj.weight" in names


def test_a_lora_is_trained_from_the_three_loaders(wires, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training_runs.write_pictures(tmp_path / "input" / "flat", count=2)
    sizes = {"folder": "flat", "resolution": 64, "bucket_step": 16}
    dataset = node("FluxFitDataset").open(**defaults("FluxFitDataset", **sizes))["result"][0]
    more = {"steps": 2, "learning_rate": 0.01, "timesteps": "resolution_shift"}
    (settings, _) = node("FluxFitTrainSettings").make(**defaults("FluxFitTrainSettings", **more))
    model, texts, vae = wires
    asked = {"sample_prompts": "a cat", "sample_every": 0, "sample_steps": 2}
    with torch.inference_mode():  # as the host does
        trained, _, samples, path = node("FluxFitTrainLora").train(
            model,
            texts,
            vae,
            dataset=dataset,
            settings=settings,
            **defaults("FluxFitTrainLora", name="mine", **asked),
        )["result"]
    assert samples.shape == (1, 64, 64, 3) and Path(path).is_file()
    assert not torch.equal(drawn((trained, texts, vae))["samples"], drawn(wires)["samples"])


def test_both_loaders_are_nodes():
    assert {"FluxFitTextEncoderLoader", "FluxFitVAELoader"} <= set(NODE_CLASS_MAPPINGS)
