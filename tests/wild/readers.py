"""Every reader of files, with a small whole file for it and how such a file is damaged."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from fluxfit.nodes import headless
from PIL import Image
from safetensors.torch import save

from flux_core import (
    PrecisionPlan,
    load_clip_l,
    load_ip_adapter,
    load_redux,
    load_t5,
    load_transformer,
    load_vae,
    load_vision_encoder,
)
from flux_core.checkpoint.gguf import GGUFFile
from flux_core.checkpoint.inspect import describe_file
from flux_core.checkpoint.load import outline
from flux_core.errors import FileError
from flux_core.lora import load_lora, match_lora
from flux_core.lora.match import lora_report, refuse_unmatched
from flux_core.models.config import TransformerConfig, VAEConfig
from flux_core.models.prompt import read_embedding
from flux_core.models.tokenizers import Tokenizers
from flux_core.models.transformer import FluxTransformer
from flux_core.models.vae import AutoEncoder
from flux_core.pictures import image_and_mask, upright_size
from flux_core.pocket import pocket_file
from flux_core.train import read_config
from flux_core.train.config import DataConfig
from flux_core.train.dataset import DataProblems, read_items
from flux_core.train.state import read_checkpoint, read_run
from tests import adapter_files, tiny_models

from .batch_files import (
    read_lines,
    read_manifest,
    read_table,
    write_lines,
    write_manifest,
    write_table,
)
from .flux2_files import (
    flux2_bytes,
    flux2_vae_bytes,
    language_bytes,
    read_language_tokenizer,
    read_tokenizer_inside,
    write_gguf_tokenizer,
    write_language_tokenizer,
    write_tokenizer_inside,
)
from .mutations import as_json, damaged_bytes, damaged_safetensors, damaged_text, damaged_tree

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = TransformerConfig(
    vec_in_dim=8, context_in_dim=8, hidden_size=128, depth=1, depth_single_blocks=1, mlp_ratio=1.0
)
TINY_VAE = VAEConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1)


@dataclass(frozen=True)
class Reader:
    """One kind of file: ``write`` puts a damaged one into a folder, ``read`` opens it there."""

    name: str
    write: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]


@lru_cache
def small_model() -> FluxTransformer:
    model = tiny_models.flux_transformer(SMALLEST)
    return model.bfloat16()


@lru_cache
def transformer_bytes() -> bytes:
    return save(dict(small_model().state_dict()), metadata={"format": "pt"})


@lru_cache
def lora_bytes() -> bytes:
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.randn(4, 128),
        f"{name}.lora_B.weight": torch.randn(128, 4),
        f"{name}.alpha": torch.tensor(2.0),
        f"{name}.dora_scale": torch.ones(128, 1),
    }
    settings = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})
    return save(tensors, metadata={"lora_adapter_metadata": settings})


@lru_cache
def pocket_bytes(part: str, suffix: str) -> bytes:
    return pocket_file(part, suffix).read_bytes()


@lru_cache
def vae_bytes() -> bytes:
    return save(dict(tiny_models.randomise(AutoEncoder(TINY_VAE)).state_dict()))


@lru_cache
def vision_bytes() -> bytes:
    state = adapter_files.siglip_vision().state_dict()
    return save({f"vision_model.{name}": tensor for name, tensor in state.items()})


@lru_cache
def gguf_bytes() -> bytes:
    import gguf

    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / "fluxfit_grammar.gguf"
    writer = gguf.GGUFWriter(str(path), "flux")
    for name, tensor in small_model().state_dict().items():
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    raw = path.read_bytes()
    path.unlink()
    return raw


def one_file(name: str, raw: Callable[[], bytes], damage: Callable[..., bytes]):
    def write(folder: Path, rng: random.Random) -> None:
        (folder / name).write_bytes(damage(raw(), rng))

    return write


def json_file(name: str, tree: Callable[[], Any]):
    """A JSON file, damaged as a tree or as a text."""

    def write(folder: Path, rng: random.Random) -> None:
        whole = tree()
        if rng.random() < 0.75:
            raw = as_json(damaged_tree(whole, rng))
        else:
            raw = damaged_text(as_json(whole), rng)
        (folder / name).write_bytes(raw)

    return write


def write_index(folder: Path, rng: random.Random) -> None:
    tensors = {k: v.float() for k, v in small_model().state_dict().items()}
    tiny_models.save_shards(tensors, folder, count=2)
    path = folder / "model.safetensors.index.json"
    json_file(path.name, lambda: json.loads(path.read_text()))(folder, rng)


def write_tokenizers(folder: Path, rng: random.Random) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(ROOT / "assets/pocket/text_encoders" / name, folder / name)
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    raw = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(as_json(damaged_tree(json.loads(raw), rng)))
    else:
        path.write_bytes(damaged_text(raw, rng))


def write_dataset(folder: Path, rng: random.Random) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (70, 64)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text("a red circle")
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}]
    what = rng.randrange(3)
    if what == 0:
        table = b'file_name,text\na.png,one\nb.png,"two, three"\n'
        (folder / "metadata.csv").write_bytes(damaged_text(table, rng))
    elif what == 1:
        lines = [as_json(damaged_tree(row, rng) if rng.random() < 0.5 else row) for row in rows]
        (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    else:
        (folder / "a.txt").write_bytes(damaged_text(b"a red circle", rng))
        (folder / "b.png").write_bytes(damaged_bytes((folder / "b.png").read_bytes(), rng))


def read_dataset(folder: Path) -> object:
    return read_items([DataConfig(folder=str(folder), resolutions=(64,))], DataProblems())


def write_picture(folder: Path, rng: random.Random) -> None:
    kinds = "RGB png,RGB jpg,P gif,RGBA webp,I;16 png,RGB tif,RGB bmp,L png,CMYK jpg"
    mode, ending = rng.choice(kinds.split(",")).split()
    content = io.BytesIO()
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    Image.new(mode, (24, 16)).save(content, format=formats.get(ending, ending.upper()))
    (folder / f"p.{ending}").write_bytes(damaged_bytes(content.getvalue(), rng))


def read_picture(folder: Path) -> object:
    (path,) = folder.iterdir()
    upright_size(path)
    return image_and_mask(path)


SETTINGS = {
    "name": "x",
    "steps": 3,
    "lora": {"rank": 2, "alpha": 1.0, "targets": ["attention"]},
    "optimizer": {"learning_rate": 1e-4, "betas": [0.9, 0.99]},
    "data": [{"folder": "d", "resolutions": [64]}],
    "samples": {"prompts": ["a"], "seed": 1},
}
TOML = b"""name = "x"
steps = 3
[lora]
rank = 2
[[data]]
folder = "d"
resolutions = [64]
"""
YAML = b"""name: x
lora: {rank: 2}
data:
  - folder: d
    resolutions: [64]
"""
STATE = {"__dict__": [["learner", {"__dict__": [["step", 3], ["p", {"__tensor__": "p"}]]}]]}


def write_state(folder: Path, rng: random.Random) -> None:
    json_file("state.json", lambda: STATE)(folder, rng)
    raw = save({"p": torch.ones(3)})
    damage = damaged_safetensors if rng.random() < 0.5 else lambda raw, rng: raw
    (folder / "state.safetensors").write_bytes(damage(raw, rng))


def read_adapter(folder: Path) -> object:
    lora = load_lora(folder / "adapter_model.safetensors")
    match = match_lora(lora, small_model())
    refuse_unmatched(lora, [match])
    return lora_report(lora, [match])


def write_adapter(folder: Path, rng: random.Random) -> None:
    raw = lora_bytes()
    if rng.random() < 0.6:
        raw = damaged_safetensors(raw, rng)
    else:
        config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 3}, "peft_type": "LORA"}
        json_file("adapter_config.json", lambda: config)(folder, rng)
    (folder / "adapter_model.safetensors").write_bytes(raw)


def page() -> Any:
    return json.loads((ROOT / "workflows/text_to_image.json").read_text())


def api() -> Any:
    return json.loads((ROOT / "workflows/api/text_to_image.json").read_text())


def read_workflow(folder: Path) -> object:
    return headless.check(headless.read_workflow(folder / "w.json"))


def safetensors_reader(name: str, raw: Callable[[], bytes], read: Callable[[Path], object]):
    write = one_file("m.safetensors", raw, damaged_safetensors)
    return Reader(name, write, lambda folder: read(folder / "m.safetensors"))


def inspected_and_read(read: Callable[[Path], object]) -> Callable[[Path], object]:
    def both(path: Path) -> object:
        with contextlib.suppress(FileError):
            describe_file(path)
        return read(path)

    return both


READERS = (
    safetensors_reader("transformer", transformer_bytes, inspected_and_read(load_transformer)),
    safetensors_reader(
        "transformer as stored",
        transformer_bytes,
        lambda p: load_transformer(p, precision="as_stored"),
    ),
    safetensors_reader("inspect", transformer_bytes, describe_file),
    safetensors_reader(
        "clip_l", lambda: pocket_bytes("text_encoders", "_clip_l"), inspected_and_read(load_clip_l)
    ),
    safetensors_reader(
        "t5", lambda: pocket_bytes("text_encoders", "_t5"), inspected_and_read(load_t5)
    ),
    safetensors_reader("vae", vae_bytes, inspected_and_read(load_vae)),
    safetensors_reader(
        "redux", lambda: save(adapter_files.redux()), inspected_and_read(load_redux)
    ),
    safetensors_reader("clip_vision", vision_bytes, inspected_and_read(load_vision_encoder)),
    safetensors_reader(
        "ip_adapter", lambda: save(adapter_files.xlabs()), inspected_and_read(load_ip_adapter)
    ),
    safetensors_reader(
        "wide ip_adapter",
        lambda: save(adapter_files.instantx()),
        inspected_and_read(load_ip_adapter),
    ),
    safetensors_reader("FLUX.2", flux2_bytes, inspected_and_read(load_transformer)),
    safetensors_reader("FLUX.2 vae", flux2_vae_bytes, inspected_and_read(load_vae)),
    safetensors_reader(
        "language model", language_bytes, inspected_and_read(lambda p: outline(p, "language_model"))
    ),
    Reader("language tokenizer", write_language_tokenizer, read_language_tokenizer),
    Reader("tokenizer inside", write_tokenizer_inside, read_tokenizer_inside),
    Reader("tokenizer in gguf", write_gguf_tokenizer, read_tokenizer_inside),
    safetensors_reader("embedding", lambda: save({"clip_l": torch.ones(2, 8)}), read_embedding),
    Reader("lora", write_adapter, read_adapter),
    Reader(
        "gguf",
        one_file("m.gguf", gguf_bytes, damaged_bytes),
        lambda folder: (GGUFFile(folder / "m.gguf"), load_transformer(folder / "m.gguf")),
    ),
    Reader("index", write_index, load_transformer),
    Reader(
        "tokenizers",
        write_tokenizers,
        lambda folder: Tokenizers.load(folder / "tokenizer", folder / "tokenizer_2"),
    ),
    Reader(
        "precision plan",
        json_file("p.json", lambda: json.loads(PrecisionPlan("int8", {"a": "bf16"}).to_json())),
        lambda folder: PrecisionPlan.load(folder / "p.json"),
    ),
    Reader(
        "settings json",
        json_file("c.json", lambda: SETTINGS),
        lambda folder: read_config(folder / "c.json"),
    ),
    Reader(
        "settings toml",
        one_file("c.toml", lambda: TOML, damaged_text),
        lambda folder: read_config(folder / "c.toml"),
    ),
    Reader(
        "settings yaml",
        one_file("c.yaml", lambda: YAML, damaged_text),
        lambda folder: read_config(folder / "c.yaml"),
    ),
    Reader("run", json_file("config.json", lambda: SETTINGS), read_run),
    Reader("checkpoint", write_state, read_checkpoint),
    Reader("dataset", write_dataset, read_dataset),
    Reader("picture", write_picture, read_picture),
    Reader("page", json_file("w.json", page), read_workflow),
    Reader("api", json_file("w.json", api), read_workflow),
    Reader("table", write_table, read_table),
    Reader("lines of a grid", write_lines, read_lines),
    Reader("manifest", write_manifest, read_manifest),
)
