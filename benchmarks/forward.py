"""Time the transformer's forward against diffusers' on the same weights.

Both run in turn in one process, so that a busy machine slows them alike; the figure is the ratio of
medians (below 1: ours is faster). ``python -m benchmarks.forward --device cuda --full`` takes
FLUX.1-dev's real size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from flux_core import load_transformer
from flux_core.sampling.latents import image_ids, text_ids

SMALL = {"heads": 8, "double": 2, "single": 4, "side": 64, "text": 128}
FULL = {"heads": 24, "double": 19, "single": 38, "side": 128, "text": 512}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_pair(size: dict, precision: str, device: str):
    """diffusers' model and ours with its weights."""
    theirs = FluxTransformer2DModel(
        num_layers=size["double"],
        num_single_layers=size["single"],
        num_attention_heads=size["heads"],
        guidance_embeds=True,
    )
    theirs = theirs.to(DTYPES[precision]).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(theirs.state_dict(), path)
        ours = load_transformer(path, precision=precision, device=device)
    return theirs.to(device), ours


def make_calls(size: dict, precision: str, device: str):
    theirs, ours = make_pair(size, precision, device)
    dtype, tokens = DTYPES[precision], size["side"] ** 2 // 4
    img = torch.randn(1, tokens, 64, device=device, dtype=dtype)
    txt = torch.randn(1, size["text"], 4096, device=device, dtype=dtype)
    y = torch.randn(1, 768, device=device, dtype=dtype)
    t, guidance = torch.tensor([0.6], device=device), torch.tensor([3.5], device=device)
    ids = {
        "img_ids": image_ids(size["side"], size["side"]).to(device),
        "txt_ids": text_ids(size["text"]).to(device),
    }
    return {
        "diffusers": lambda: theirs(
            hidden_states=img,
            encoder_hidden_states=txt,
            pooled_projections=y,
            timestep=t.to(dtype),
            guidance=guidance.to(dtype),
            **ids,
            return_dict=False,
        )[0],
        "FluxFit": lambda: ours(img=img, txt=txt, y=y, timesteps=t, guidance=guidance, **ids),
    }


def seconds(call, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def compare(size: dict, precision: str, device: str, runs: int) -> str:
    calls = make_calls(size, precision, device)
    difference = (calls["FluxFit"]().float() - calls["diffusers"]().float()).abs().mean()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs):
        for name in list(calls)[:: 1 if run % 2 else -1]:  # each goes first every other time
            times[name].append(seconds(calls[name], device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["FluxFit"] / medians["diffusers"]
    return (
        f"{precision}: FluxFit {medians['FluxFit']:.3f} s, diffusers {medians['diffusers']:.3f} s, "
        f"ratio {ratio:.2f} (median of {runs}; mean difference {difference:.1e})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--full", action="store_true", help="FLUX.1-dev's real size")
    args = parser.parse_args()
    for precision in DTYPES:
        print(compare(FULL if args.full else SMALL, precision, args.device, args.runs), flush=True)


if __name__ == "__main__":
    main()
