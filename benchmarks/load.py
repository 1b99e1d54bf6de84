"""How much memory loading a quantized file takes: peak of the process against the file's size.

    python -m benchmarks.load --gigabytes 2 --precision int8

Writes a transformer of FLUX.1's width with as many blocks as the size asks for (random
weights), and loads it in a fresh process, as stored. Needs Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from flux_core import FluxTransformer, quantize, save_module
from flux_core.models.config import TransformerConfig
from flux_core.quant import FORMATS, QuantizedLinear

DOUBLE_BLOCK = 340e6  # bytes at one byte a weight, modulation included
#: The peak is Linux's VmHWM: getrusage's starts at the peak of the process that started this one.
LOAD = """
import re, sys, time
from flux_core import load_transformer
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
start = time.perf_counter()
model = load_transformer(sys.argv[1], precision="as_stored")
seconds = time.perf_counter() - start
print(peak() - before, seconds)
"""


def write(path: Path, config: TransformerConfig, precision: str) -> Path:
    """A file of random weights, made layer by layer."""
    with torch.device("meta"):
        model = quantize(FluxTransformer(config), precision)
    quantized: dict[tuple[int, int], dict[str, Tensor]] = {}  # searching codes takes long
    for layer in list(model.modules()):
        if isinstance(layer, QuantizedLinear):
            shape = layer.out_features, layer.in_features
            if shape not in quantized:
                quantized[shape] = layer.format.quantize(torch.randn(shape) / 50)
            layer.set_tensors({name: tensor.clone() for name, tensor in quantized[shape].items()})
    for name, p in list(model.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        value = torch.zeros(p.shape, dtype=torch.bfloat16)
        new = torch.nn.Parameter(value, requires_grad=False)
        setattr(model.get_submodule(owner), attribute, new)
    return save_module(model, path)


def growth(path: Path) -> tuple[float, float]:
    """Bytes by which a fresh process grew at its peak, and seconds, while loading a file."""
    command = [sys.executable, "-c", LOAD, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(printed[0]) * 1024, float(printed[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--precision", default="int8", choices=list(FORMATS))
    args = parser.parse_args()
    blocks = max(1, -(-int(args.gigabytes * 1e9) // int(DOUBLE_BLOCK)))
    config = TransformerConfig(depth=blocks, depth_single_blocks=0)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "large.safetensors", config, args.precision)
        size = path.stat().st_size
        peak, seconds = growth(path)
    print(
        f"{args.precision}: a file of {size / 1e9:.2f} GB is loaded with a peak of "
        f"{peak / 1e9:.2f} GB ({(peak - size) / 1e9:+.2f} GB) in {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
