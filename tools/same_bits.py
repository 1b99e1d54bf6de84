"""Hashes of what the pocket model draws and learns, to compare two versions of the code.

    python -m tools.same_bits > before.txt      # then change something
    python -m tools.same_bits | diff before.txt -

Every line is a setting and the SHA-256 of its picture's or its LoRA's bytes. A change that is
to leave behaviour as it is leaves every line as it is, on one machine with one torch.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from flux_core import FluxPipeline, OffloadPolicy, load_lora
from flux_core.train import Trainer, TrainingModels, read_config

PRECISIONS = ("bf16", "fp16", "fp32", "int8", "fp8_scaled", "fp8_e4m3fn", "fp8_e5m2")
MODES = ("none", "component", "stream", "auto")
PROMPT = "a red circle on a blue background"
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """
name = "bits"
steps = 4
batch = 2
output = {output!r}
[model]
precision = {precision!r}
[[data]]
folder = {data!r}
resolutions = [128]
[lora]
rank = 4
[optimizer]
learning_rate = 2e-3
warmup = 1
[offload]
mode = {mode!r}
[samples]
prompts = ["a red crescent on a blue background"]
every = 4
width = 128
height = 128
steps = 3
cfg = 2.5
"""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def of_picture(images: torch.Tensor) -> str:
    """The hash of pictures (B, H, W, 3) float32."""
    return digest(images.contiguous().numpy().tobytes())


def of_tensors(path: Path) -> str:
    """The hash of a file's tensors; its metadata name the folder that it was written to."""
    tensors = sorted(load_file(path).items())
    return digest(
        b"".join(
            name.encode() + t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in tensors
        )
    )


def train(folder: Path, precision: str, mode: str) -> Path:
    """Train a LoRA for four steps; returns its folder."""
    text = SETTINGS.format(
        output=str(folder),
        data=str(ROOT / "assets" / "datasets" / "crescent"),
        precision=precision,
        mode=mode,
    )
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    config = read_config(path)
    Trainer(config, TrainingModels.open(config.model)).run()
    return folder / "bits"


def main() -> None:
    torch.set_num_threads(1)
    for precision in PRECISIONS:
        for mode in MODES:
            drawn = FluxPipeline.from_pocket(precision=precision, policy=OffloadPolicy(mode))(
                PROMPT, width=128, height=128, steps=4, cfg=2.5, seed=3
            )
            print(f"picture {precision} {mode} {of_picture(drawn.images)}", flush=True)
    pipeline = FluxPipeline.from_pocket()
    for sampler in ("heun", "dpmpp_2m", "euler_ancestral"):
        for shift in ("host", "resolution", "diffsynth"):
            drawn = pipeline(
                PROMPT,
                width=144,
                height=112,
                steps=4,
                sampler=sampler,
                shift=shift,
                scheduler="beta",
                seed=5,
                batch_size=2,
            )
            print(f"picture {sampler} {shift} {of_picture(drawn.images)}", flush=True)
    again = pipeline(
        PROMPT,
        image=drawn.images[:1],
        mask=torch.ones(1, 112, 144).triu(),
        denoise=0.6,
        steps=3,
        seed=2,
        negative_prompt="a square",
        cfg=3.0,
    )
    print(f"picture masked {of_picture(again.images)}", flush=True)
    for precision, mode in (("bf16", "none"), ("fp8_scaled", "stream"), ("int8", "component")):
        with tempfile.TemporaryDirectory() as folder:
            run = train(Path(folder), precision, mode)
            for path in sorted(run.glob("*.safetensors")):
                print(f"lora {precision} {mode} {path.name} {of_tensors(path)}")
            for path in sorted((run / "samples").glob("*.png")):
                print(f"sample {precision} {mode} {path.name} {digest(path.read_bytes())}")
            lora = load_lora(run / "bits.safetensors")
        for mode in MODES:
            drawn = FluxPipeline.from_pocket(precision=precision, policy=OffloadPolicy(mode))(
                PROMPT, width=128, height=128, steps=3, seed=3, loras=[(lora, 0.8)]
            )
            print(f"with lora {precision} {mode} {of_picture(drawn.images)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
