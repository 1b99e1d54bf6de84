"""Small files under the names that the templates for the real models ask for, and small graphs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flux_core import FluxTransformer, load_transformer
from flux_core.pocket import POCKET
from tests import adapter_files, tiny_chroma, tiny_models
from tests.flux_core.test_flux2_pipeline import their_parts
from tests.tiny_models import randomise

TRANSFORMER = POCKET / "diffusion_models" / "fluxfit_pocket.safetensors"
ENCODERS, CONTROLNET = POCKET / "text_encoders", POCKET / "controlnet"
#: What is the pocket model itself.
LINKS = {
    "diffusion_models/flux1-dev.safetensors": TRANSFORMER,
    "diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors": TRANSFORMER,
    "text_encoders/clip_l.safetensors": ENCODERS / "fluxfit_pocket_clip_l.safetensors",
    "text_encoders/t5xxl_fp16.safetensors": ENCODERS / "fluxfit_pocket_t5.safetensors",
    "text_encoders/tokenizer": ENCODERS / "tokenizer",
    "text_encoders/tokenizer_2": ENCODERS / "tokenizer_2",
    "vae/ae.safetensors": POCKET / "vae" / "fluxfit_pocket_vae.safetensors",
    "controlnet/flux1-dev-controlnet-upscaler.safetensors": CONTROLNET
    / "fluxfit_pocket_upscaler.safetensors",
    "controlnet/flux1-dev-controlnet-union-pro-2.safetensors": CONTROLNET
    / "fluxfit_pocket_upscaler.safetensors",
}
RANK = 4


def write_small_models(models: Path, inputs: Path) -> None:
    """Put them among a host's models, and a picture with a hole among its inputs."""
    for name, source in LINKS.items():
        link = models / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(source, target_is_directory=source.is_dir())
    pocket = load_transformer(TRANSFORMER, precision="fp32")
    fill = randomise(FluxTransformer(replace(pocket.config, in_channels=384)), deviation=0.02)
    save_file(fill.state_dict(), models / "diffusion_models" / "flux1-fill-dev.safetensors")
    canny = randomise(FluxTransformer(replace(pocket.config, in_channels=128)), deviation=0.02)
    save_file(canny.state_dict(), models / "diffusion_models" / "flux1-canny-dev.safetensors")
    context, hidden = pocket.config.context_in_dim, pocket.config.hidden_size
    chroma = tiny_chroma.chroma_transformer(replace(tiny_chroma.CHROMA, context_in_dim=context))
    name = "Chroma1-HD-fp8mixed.safetensors"
    tiny_models.save(chroma.state_dict(), models / "diffusion_models" / name)
    write_image_prompts(models, context, hidden, pocket.config.depth)
    write_small_klein(models)
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for name, module in pocket.named_modules():
        if isinstance(module, torch.nn.Linear) and "_blocks." in name:
            lora[f"transformer.{name}.lora_A.weight"] = module.in_features, RANK
            lora[f"transformer.{name}.lora_B.weight"] = RANK, module.out_features
    tensors = {
        name: 0.02 * torch.randn(shape[::-1], generator=generator) for name, shape in lora.items()
    }
    (models / "loras").mkdir(exist_ok=True)
    save_file(tensors, models / "loras" / "watercolour.safetensors")
    write_gguf(pocket, models / "diffusion_models" / "flux1-dev-Q8_0.gguf")
    picture = Image.radial_gradient("L").resize((128, 128))
    inputs.mkdir(exist_ok=True)
    Image.merge("RGBA", (picture, picture.rotate(90), picture, picture)).save(
        inputs / "example.png"
    )


def write_small_klein(models: Path) -> None:
    """FLUX.2 klein in miniature; its tokenizer is inside of the file, since CLIP's is beside it."""
    parts = their_parts(dev=False)
    tokenizer = parts["tokenizer"].backend_tokenizer.to_str().encode()
    inside = {"tokenizer_json": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)}
    for name, part, more in (
        ("diffusion_models/flux-2-klein-4b.safetensors", "transformer", {}),
        ("text_encoders/qwen_3_4b.safetensors", "text_encoder", inside),
        ("vae/flux2-vae.safetensors", "vae", {}),
    ):
        tiny_models.save(parts[part].state_dict() | more, models / name)


def write_image_prompts(models: Path, context: int, hidden: int, depth: int) -> None:
    """Encoders that see pictures, Redux and an IP-Adapter, for a transformer of these sizes."""
    for encoder, name in (
        (adapter_files.siglip_vision(), "sigclip_vision_patch14_384"),
        (adapter_files.clip_vision(), "clip_vision_l"),
    ):
        adapter_files.host_vision(encoder, models / "clip_vision" / f"{name}.safetensors")
    redux = models / "style_models" / "flux1-redux-dev.safetensors"
    tiny_models.save(adapter_files.redux(context), redux)
    adapter = adapter_files.widened(adapter_files.xlabs(depth), context, hidden)
    tiny_models.save(adapter, models / "ipadapter" / "flux-ip-adapter.safetensors")


def write_gguf(model: FluxTransformer, path: Path) -> None:
    """The model's weights as city96's converter lays them out, in full precision."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "flux")
    for name, tensor in model.state_dict().items():
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def small(prompt: dict[str, Any]) -> dict[str, Any]:
    """A graph with small pictures and two steps."""
    prompt = copy.deepcopy(prompt)
    numbers = {
        "steps": 2,
        "second_steps": 1,
        "width": 128,
        "height": 128,
        "upscale_factor": 1.0,
        "batch": 1,
        "warmup": 0,
        "sample_every": 0,
    }
    for item in prompt.values():
        inputs = item["inputs"]
        for name, number in numbers.items():
            # sizes in pixels are whole numbers, those of a region are shares of the picture
            kinds = int if name in ("width", "height") else (int, float)
            if isinstance(inputs.get(name), kinds):
                inputs[name] = number
        if inputs.get("size") == "preferred":  # a reference's, which is a megapixel
            inputs["size"] = "own"
    return prompt
