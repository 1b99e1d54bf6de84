"""Faults injected into drawing, and the pictures after them.

    python -m tests.wild.faults --count 1000

At a call drawn at random of loading, encoding, a block, a copy, an allocation, decoding, saving or
a callback something is raised: an error of the system, of torch, memory that ran out, an interrupt.
After it the next picture has the bits that it should have, memory is where it was, and no file is
left behind. Ends with 1 where it is not so, saying which fault it was.
"""

from __future__ import annotations

import argparse
import errno
import gc
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fluxfit.nodes.headless.stock_nodes import save_png
from safetensors.torch import save_file

from flux_core import FluxPipeline, OffloadPolicy, load_lora
from flux_core import files as files_module
from flux_core.checkpoint.reader import SafetensorsFile
from flux_core.lora import apply as lora_apply
from flux_core.models.blocks import DoubleStreamBlock, SingleStreamBlock
from flux_core.models.text_encoders import ClipEncoder, T5Encoder
from flux_core.models.vae import AutoEncoder
from flux_core.offload import ring as ring_module
from flux_core.offload.placement import Placement
from flux_core.offload.ring import Ring
from flux_core.pocket import pocket_file
from flux_core.quant import QuantizedLinear
from flux_core.receipts import saved_pixels
from flux_core.sampling import settings as settings_module

#: Where something may go wrong: an owner, and the name of what is called there.
POINTS: dict[str, tuple[Any, str]] = {
    "load": (SafetensorsFile, "read"),
    "encode T5": (T5Encoder, "forward"),
    "encode CLIP": (ClipEncoder, "forward"),
    "double block": (DoubleStreamBlock, "forward"),
    "single block": (SingleStreamBlock, "forward"),
    "product": (QuantizedLinear, "forward"),
    "copy": (Ring, "fill"),
    "buffer": (ring_module, "Slot"),
    "residents": (Placement, "set_resident"),
    "LoRA": (lora_apply, "attach"),
    "noise": (settings_module, "host_noise"),
    "decode": (AutoEncoder, "decode"),
    "save": (files_module, "sync"),
    "save's name": (files_module.os, "link"),
}
FAULTS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("a kernel failed"),
    lambda: torch.OutOfMemoryError("CUDA out of memory (injected)"),
    lambda: OSError(errno.ENOSPC, "No space left on device"),
    lambda: MemoryError(),
    lambda: KeyboardInterrupt(),
    lambda: ValueError("injected"),
)
PROMPT = "a red circle on a blue background"


@contextmanager
def injected(point: str, call: int, fault: Callable[[], BaseException]) -> Iterator[Counter[str]]:
    """The ``call``-th call of a point raises a fault; gives how often each point was called."""
    counts: Counter[str] = Counter()
    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in POINTS.items()}

    def counting(name: str, original: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            if name == point and counts[name] == call:
                raise fault()
            return original(*args, **kwargs)

        return called

    try:
        for name, (owner, attribute) in POINTS.items():
            setattr(owner, attribute, counting(name, originals[name]))
        yield counts
    finally:
        for name, (owner, attribute) in POINTS.items():
            setattr(owner, attribute, originals[name])


class Drawing:
    """A pipeline that draws one small picture and saves it, under a policy."""

    def __init__(self, policy: OffloadPolicy, folder: Path) -> None:
        self.folder, self.tiled = folder, False
        self.pipeline = FluxPipeline.from_pocket(precision="int8", policy=policy)
        self.lora = load_lora(small_lora(folder.parent / "lora.safetensors", self.pipeline))
        self.expected = self.draw()

    def draw(self, callback: Callable[..., None] | None = None) -> torch.Tensor:
        """A picture (H, W, 3), also saved; its text is encoded and a file is opened each time."""
        self.pipeline.text_encoders.encodings.clear()
        SafetensorsFile(pocket_file("vae", "_vae")).read("decoder.conv_in.weight")
        drawn = self.pipeline(
            PROMPT,
            width=64,
            height=64,
            steps=2,
            seed=1,
            loras=[(self.lora, 0.7)],
            cfg=2.0 if self.pipeline.policy.devices else 1.0,
            callback=callback,
        )
        self.tiled = drawn.report.parts["VAE decoder"].tile is not None
        save_png(saved_pixels(drawn.images[0]), self.folder / "picture")
        shutil.rmtree(self.folder)
        return drawn.images[0]

    def held(self) -> int:
        """Bytes of all tensors that are alive."""
        gc.collect()
        seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors()}
        return sum(seen.values())


def tensors() -> Iterator[torch.Tensor]:
    for thing in gc.get_objects():
        is_tensor = issubclass(type(thing), torch.Tensor)  # proxies say what they stand for
        if is_tensor and thing.layout == torch.strided and thing.device.type == "cpu":
            yield thing


def small_lora(path: Path, pipeline: FluxPipeline) -> Path:
    """A LoRA on one layer of the transformer and one of T5."""
    file = {}
    for prefix, module, name in (
        ("transformer.", pipeline.transformer, "double_blocks.0.img_attn.proj"),
        ("text_encoder_2.", pipeline.text_encoders.t5, "encoder.block.0.layer.0.SelfAttention.q"),
    ):
        layer = module.get_submodule(name)
        generator = torch.Generator().manual_seed(3)
        down = 0.1 * torch.randn(2, layer.in_features, generator=generator)  # type: ignore[arg-type]
        up = 0.1 * torch.randn(layer.out_features, 2, generator=generator)  # type: ignore[arg-type]
        file |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(file, path)
    return path


POLICIES = {
    "none": OffloadPolicy("none"),
    "component": OffloadPolicy("component", separate_memory=True),
    "stream": OffloadPolicy("stream", separate_memory=True),
    "auto": OffloadPolicy("auto", vram_budget=20_000_000, separate_memory=True),
    "two devices": OffloadPolicy("stream", separate_memory=True, devices="cpu,cpu:1"),
}


def fault_after(drawing: Drawing, rng: random.Random, calls: Counter[str], baseline: int) -> str:
    """Inject one fault and draw again; what is wrong afterwards, empty where nothing is."""
    point = rng.choice([*sorted(calls), "callback"])
    fault = rng.choice(FAULTS)
    call = rng.randint(1, calls.get(point, 2))
    what = f"{type(fault()).__name__} at call {call} of {point}"

    def callback(step: int, *_: object) -> None:
        if point == "callback" and step + 1 == call:
            raise fault()

    drawing.folder.mkdir(exist_ok=True)
    try:
        with injected(point, call, fault):
            picture = drawing.draw(callback)
    except BaseException as raised:
        if not isinstance(raised, (type(fault()), OSError, ValueError)):
            return f"{what}: raised {type(raised).__name__}: {raised}"
    else:
        # out of memory, a picture is decoded once more in tiles, which differ at their seams
        if not drawing.tiled and not torch.equal(picture, drawing.expected):
            return f"{what}: got over it with another picture"
    left = [p.name for p in drawing.folder.rglob("*") if p.suffix == ".partial"]
    if left:
        return f"{what}: left {left}"
    shutil.rmtree(drawing.folder, ignore_errors=True)
    if not torch.equal(drawing.draw(), drawing.expected):
        return f"{what}: the next picture is another"
    held = drawing.held()
    if held > baseline + 100_000:
        return f"{what}: {held - baseline} bytes more are held"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults injected into drawing.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wrong = 0
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, policy) in enumerate(POLICIES.items()):
            drawing = Drawing(policy, Path(folder) / name)
            with injected("", 0, FAULTS[0]) as calls:
                drawing.draw()
            drawing.draw()
            baseline = drawing.held()
            rng = random.Random(f"{args.seed} {name}")
            share = args.count * (number + 1) // len(POLICIES) - args.count * number // len(
                POLICIES
            )
            for _ in range(share):
                problem = fault_after(drawing, rng, calls, baseline)
                seen[name] += 1
                if problem:
                    wrong += 1
                    print(f"{name}: {problem}", flush=True)
            print(f"{name}: {seen[name]} faults over {dict(calls)}", flush=True)
    print(f"{seen.total()} faults: {wrong} with something wrong afterwards")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
