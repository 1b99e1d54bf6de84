"""The command line: ``python FluxFit run | generate | train | inspect | ...``.

The folder may have any name and need not be installed: this file opens it as the package
``fluxfit``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "fluxfit"


def open_package() -> None:
    """Make this folder importable as ``fluxfit``, as the host does under a name of its own."""
    if PACKAGE in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="fluxfit", description="FLUX.1 in the memory you have.")
    top.add_argument("--models", type=Path, help="a folder laid out as ComfyUI's models")
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run a workflow file (UI or API format)")
    run.add_argument("workflow", type=Path)
    run.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE",
                     help="change a value; NODE is its number or class")  # fmt: skip

    generate = commands.add_parser("generate", help="draw a sentence with the pocket model")
    generate.add_argument("prompt")
    generate.add_argument("--negative", default="")
    generate.add_argument("--cfg", type=float, default=2.5)
    generate.add_argument("--steps", type=int, default=30)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--width", type=int, default=256)
    generate.add_argument("--height", type=int, default=256)
    generate.add_argument("--precision", default="bf16")
    generate.add_argument("--offload", default="component")
    generate.add_argument("--out", type=Path, default=Path("output"))

    inspect = commands.add_parser("inspect", help="say what a checkpoint holds")
    inspect.add_argument("file", type=Path)

    plan = commands.add_parser("plan", help="what a card will do with FLUX.1-dev")
    plan.add_argument("--vram", type=float, help="gigabytes; without it, a table over common ones")
    plan.add_argument("--link", type=float, default=25, help="GB/s; PCIe 3, 4, 5: 12.5, 25, 55")
    plan.add_argument("--tflops", type=float, default=70, help="of linear layers, effective")
    plan.add_argument("--ram", type=float, help="gigabytes of host memory")
    plan.add_argument("--steps", type=int, default=28)
    plan.add_argument("--width", type=int, default=1024)
    plan.add_argument("--height", type=int, default=1024)
    plan.add_argument("--precision", default="fp8_scaled")

    train = commands.add_parser("train", help="train a LoRA")
    train.add_argument("config", type=Path, help="a .toml, .yaml or .json file")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--quantize", metavar="PRECISION",
                       help="of the base: one of ours, float8_e4m3fn or float8_e5m2")  # fmt: skip

    merge = commands.add_parser("merge", help="add LoRAs to a transformer's weights")
    merge.add_argument("file", type=Path)
    merge.add_argument("--lora", action="append", required=True, metavar="FILE[=STRENGTH]")
    merge.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "fp32"))
    merge.add_argument("--out", type=Path, required=True)
    merge.add_argument("--overwrite", action="store_true")

    quantize = commands.add_parser(
        "quantize", help="write a checkpoint's part at one byte a weight"
    )
    quantize.add_argument("file", type=Path)
    quantize.add_argument("--part", choices=("transformer", "controlnet", "t5"),
                          help="which one, where the file holds several")  # fmt: skip
    quantize.add_argument("--precision", default="int8")
    quantize.add_argument("--plan", type=Path, help="a precision plan instead, a JSON file")
    quantize.add_argument("--calibrate", action="append", metavar="PROMPT", default=[],
                          help="round a transformer for what it reads while it draws this; "
                          "several are better (needs --clip-l and --t5)")  # fmt: skip
    quantize.add_argument("--clip-l", type=Path)
    quantize.add_argument("--t5", type=Path)
    quantize.add_argument("--side", type=int, default=1024, help="in pixels, of what is drawn")
    quantize.add_argument("--steps", type=int, default=4, help="of what is drawn")
    quantize.add_argument("--out", type=Path, required=True)
    quantize.add_argument("--overwrite", action="store_true")
    return top


def run(args: argparse.Namespace) -> None:
    from fluxfit.nodes import headless, host

    graph = headless.read_workflow(args.workflow)
    for assignment in args.set:
        headless.set_value(graph, assignment)
    started = time.monotonic()
    results = headless.run(graph)
    print(host.total)
    for path in headless.saved_images(results):
        print(f"picture: {path}")
    print(f"took {time.monotonic() - started:.1f} s")


def generate(args: argparse.Namespace) -> None:
    from fluxfit.nodes import host
    from fluxfit.nodes import stock_nodes as standins

    from flux_core import FluxPipeline, OffloadPolicy
    from flux_core.pocket import POCKET_SAMPLING

    pipeline = FluxPipeline.from_pocket(
        precision=args.precision, policy=OffloadPolicy(args.offload)
    )
    with host.progress(args.steps, "drawing") as bar:
        drawn = pipeline(
            args.prompt, negative_prompt=args.negative, cfg=args.cfg, width=args.width,
            height=args.height, steps=args.steps, seed=args.seed, shift=POCKET_SAMPLING["shift"],
            callback=lambda step, total, _: bar.update(step + 1),
        )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    print(drawn.report)
    print(f"picture: {standins.save_png(drawn.images[0], args.out.resolve() / 'generate')}")


def inspect(args: argparse.Namespace) -> None:
    from flux_core.checkpoint.inspect import describe_file

    print(describe_file(args.file))


#: What DiffSynth-Studio's trainer calls them.
DIFFSYNTH_PRECISIONS = {"float8_e4m3fn": "fp8_e4m3fn", "float8_e5m2": "fp8_e5m2"}


def train(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from fluxfit.nodes import host

    from flux_core.report.pictures import to_pil
    from flux_core.train import Trainer, TrainingModels, read_config
    from flux_core.train.plots import times_histogram

    config = read_config(args.config)
    if args.quantize:
        precision = DIFFSYNTH_PRECISIONS.get(args.quantize, args.quantize)
        config = replace(config, model=replace(config.model, precision=precision))
    parts = TrainingModels.open(config.model, config.offload.policy.ram_budget)
    with host.stages() as told, host.deferred_interrupt() as check:

        def tell(news) -> None:
            if trainer.workers.main:
                told(str(news), news.done, news.all)
            check()

        trainer = Trainer(config, parts, host.device(), on_event=tell)
        trained = trainer.run(args.resume)
    if not trained.files:  # another process writes them
        return
    side = max(config.data[0].resolutions)
    picture = to_pil(times_histogram(config.objective, side * side // 256))
    picture.save(config.folder / "timesteps.png")
    print(trained.report)
    for path in trained.files:
        print(f"LoRA: {path}")


def merge(args: argparse.Namespace) -> None:
    from flux_core import load_transformer, save_module
    from flux_core.checkpoint.inspect import describe_file
    from flux_core.checkpoint.reader import open_source
    from flux_core.lora import load_lora, match_lora, merge_loras

    refuse_existing(args)
    stack = []
    for said in args.lora:
        path, equals, strength = said.rpartition("=")
        try:
            stack.append((load_lora(path if equals else said), float(strength) if equals else 1.0))
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            raise ValueError(f"--lora {said}: strength is {strength!r}, not a number") from error
    notes = open_source(args.file).metadata
    module = merge_loras(load_transformer(args.file, precision=args.precision), stack)
    for lora, _ in stack:
        print(match_lora(lora, module))
    kept = {k: v for k, v in notes.items() if k.startswith("fluxfit.latent")}
    save_module(module, args.out, metadata=kept)
    print(describe_file(args.out))


def refuse_existing(args: argparse.Namespace) -> None:
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists already: choose another name or --overwrite")


def quantize(args: argparse.Namespace) -> None:
    from fluxfit.nodes import host

    from flux_core import (
        PrecisionPlan,
        load_controlnet,
        load_t5,
        load_transformer,
        save_module,
    )
    from flux_core.checkpoint.detect import describe, find_parts
    from flux_core.checkpoint.inspect import describe_file
    from flux_core.checkpoint.reader import open_source
    from flux_core.quant.precision import as_plan

    loaders = {"transformer": load_transformer, "controlnet": load_controlnet, "t5": load_t5}
    refuse_existing(args)
    source = open_source(args.file)
    parts = find_parts(source)
    kinds = [part.kind for part in parts if part.kind in loaders]
    if not kinds:
        raise ValueError(
            f"{args.file}: expected a transformer, ControlNet or T5, "
            f"found {describe(source, parts)}"
        )
    precision = PrecisionPlan.load(args.plan) if args.plan else args.precision
    metadata = {k: v for k, v in source.metadata.items() if k.startswith("fluxfit.")}
    kind = args.part or kinds[0]
    if args.calibrate and (kind != "transformer" or args.clip_l is None or args.t5 is None):
        raise ValueError("--calibrate is for a transformer, and needs --clip-l and --t5 to draw")
    if args.calibrate:
        precision = as_plan(precision)  # a wrong name is told before anything is drawn
    with host.progress(200, "quantizing") as bar:
        module = loaders[kind](
            args.file, precision="bf16" if args.calibrate else precision,
            progress=lambda i, n: bar.update(100 * i // n),
        )  # fmt: skip
        if args.calibrate:
            module = calibrated(args, module, precision)
        save_module(
            module, args.out, metadata=metadata,
            progress=lambda i, n: bar.update(100 + 100 * i // n),
        )  # fmt: skip
    print(describe_file(args.out))


def calibrated(args: argparse.Namespace, transformer, precision):
    """The transformer quantized for what it reads while it draws some prompts."""
    import torch
    from fluxfit.nodes import host
    from fluxfit.nodes.calibration import observe_drawing as while_drawing
    from fluxfit.nodes.text import FluxTextEncode
    from fluxfit.nodes.wires import FluxModel, FluxTextEncoders

    from flux_core import OffloadPolicy, load_text_encoders, record_second_moments
    from flux_core.calibration.calibrate import calibrated_copy
    from flux_core.sampling.images import check_size

    check_size(args.side, args.side)
    policy = OffloadPolicy()
    encoders = FluxTextEncoders(load_text_encoders(args.clip_l, args.t5), policy)
    prompts = [FluxTextEncode().encode(encoders, text, 3.5)[0] for text in args.calibrate]
    second_moments = while_drawing(
        "drawing to calibrate", FluxModel(transformer, policy), prompts,
        {"samples": torch.zeros(1, 16, args.side // 8, args.side // 8)}, args.steps, 0,
        lambda draw: record_second_moments(transformer, draw),
    )  # fmt: skip
    return calibrated_copy(transformer, precision, second_moments, host.device())


#: Gigabytes, link in GB/s and effective TFLOP/s of linear layers, as such cards commonly have them.
CARDS = (
    (6, 12.5, 25, "PCIe 3 x16"),
    (8, 12.5, 40, "PCIe 4 x8"),
    (10, 25, 60, "PCIe 4 x16"),
    (12, 25, 60, "PCIe 4 x16"),
    (16, 25, 100, "PCIe 4 x16"),
    (24, 25, 165, "PCIe 4 x16"),
)
KEPT_FREE = 0.6  # gigabytes of a card that the driver and the desktop take


def plan(args: argparse.Namespace) -> None:
    from flux_core.offload.estimate import plan_picture
    from flux_core.offload.machine import Machine
    from flux_core.quant import PRECISIONS
    from flux_core.sampling.images import check_size

    check_size(args.width, args.height)
    if args.precision not in PRECISIONS:
        raise ValueError(
            f"precision is {args.precision!r}, expected one of {', '.join(PRECISIONS)}"
        )
    for name in ("vram", "link", "tflops", "ram"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}, expected more than 0")
    print(f"FLUX.1-dev in {args.precision}, {args.width}x{args.height}, {args.steps} steps")
    cards = CARDS
    if args.vram:
        cards = ((args.vram, args.link, args.tflops, f"{args.link:g} GB/s"),)
    for vram, link, tflops, name in cards:
        found = plan_picture(
            Machine(link * 1e9, tflops * 1e12), vram=(vram - KEPT_FREE) * 1e9,
            ram=args.ram and args.ram * 1e9, width=args.width, height=args.height,
            steps=args.steps, precision=args.precision,
        )  # fmt: skip
        said = f"{vram:>4g} GB, {tflops:g} TFLOP/s ({name}): {found}"
        print(said + f", {found.seconds(args.steps):.0f} s a picture" * found.fits)


COMMANDS = {
    "plan": plan,
    "run": run,
    "generate": generate,
    "inspect": inspect,
    "merge": merge,
    "train": train,
    "quantize": quantize,
}


def main() -> int:
    open_package()
    args = parser().parse_args()
    if args.models is not None:
        os.environ["FLUXFIT_MODELS"] = str(args.models)
    try:
        COMMANDS[args.command](args)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        print(f"fluxfit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fluxfit: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
