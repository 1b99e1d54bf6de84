"""FLUX.1's transformer in other libraries, offloaded in their own ways, to be timed beside ours.

Each way opens a model of random weights and returns what runs one step. Libraries that are not
installed are left out, with the reason.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

Step = Callable[[], object]
#: Opens a model on a device and returns one step of it.
KernelChoice = Callable[[], Step]


def randomise(model: nn.Module) -> nn.Module:
    """Random weights in bfloat16 on the host, for a model that was built on meta."""
    model = model.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
    for p in model.parameters():
        p.normal_(0, 0.02)
    return model.eval()


# long: one library's calls in the order in which it wants them
def diffusers_ways(args: argparse.Namespace, device: torch.device) -> dict[str, KernelChoice]:
    """In bfloat16: resident, the whole model moved for each picture, group offloading."""
    from diffusers import FluxTransformer2DModel

    side = args.side // 16
    inputs = {
        "hidden_states": torch.randn(1, side * side, 64, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, args.text, 4096, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(1, 768, dtype=torch.bfloat16),
        "timestep": torch.tensor([0.6]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(side * side, 3),
        "txt_ids": torch.zeros(args.text, 3),
    }
    there = {name: value.to(device) for name, value in inputs.items()}

    def opened(prepare: Callable[[nn.Module], object]) -> Step:
        with torch.device("meta"):
            model = FluxTransformer2DModel(
                in_channels=64,
                num_layers=args.double,
                num_single_layers=args.single,
                attention_head_dim=128,
                num_attention_heads=args.hidden // 128,
                joint_attention_dim=4096,
                pooled_projection_dim=768,
                guidance_embeds=True,
            )
        model = randomise(model)
        moved = prepare(model)
        if not callable(moved):
            return lambda: model(**there)
        # a picture of so many steps pays for one move there and one back
        turns = iter(range(1 << 30))

        def step() -> object:
            out = model(**there)
            if next(turns) % args.steps == args.steps - 1:
                moved()
            return out

        return step

    def model_offload(model: nn.Module) -> Callable[[], None]:
        from accelerate import cpu_offload_with_hook

        _, hook = cpu_offload_with_hook(model, device)
        return hook.offload

    group = {"onload_device": device, "offload_device": torch.device("cpu"), "use_stream": True}
    prepared: dict[str, Callable[[nn.Module], object]] = {
        "all resident": lambda m: m.to(device) and None,
        "model offload": model_offload,
        "leaf group offload, stream": lambda m: m.enable_group_offload(
            offload_type="leaf_level", **group
        ),
        "block group offload, stream": lambda m: m.enable_group_offload(
            offload_type="block_level", num_blocks_per_group=1, **group
        ),
    }
    return {f"diffusers bf16, {name}": partial(opened, how) for name, how in prepared.items()}


# long: one library's calls in the order in which it wants them
def diffsynth_ways(args: argparse.Namespace, device: torch.device) -> dict[str, KernelChoice]:
    """DiffSynth-Studio's ``vram_limit``: float8 on the host, layers kept on the card up to it."""
    try:
        from diffsynth.core.vram.layers import (  # pyright: ignore[reportMissingImports]
            AutoWrappedLinear,
            AutoWrappedModule,
            enable_vram_management,
        )
        from diffsynth.models.flux_dit import (  # pyright: ignore[reportMissingImports]
            FluxDiT,
            RMSNorm,
        )
        from diffsynth.pipelines.flux_image import (  # pyright: ignore[reportMissingImports]
            model_fn_flux_image,
        )
    except Exception as error:  # it imports much, and any of that may be missing
        print(f"DiffSynth-Studio is left out: {type(error).__name__}: {error}")
        return {}
    if args.hidden != 3072 or args.single != 38:
        print("DiffSynth-Studio is left out: its model has FLUX.1's own size only")
        return {}
    side, dtype = args.side // 8, torch.bfloat16
    inputs = {
        "latents": torch.randn(1, 16, side, side, dtype=dtype),
        "timestep": torch.tensor([600.0]),
        "guidance": torch.tensor([3.5]),
        "prompt_emb": torch.randn(1, args.text, 4096, dtype=dtype),
        "pooled_prompt_emb": torch.randn(1, 768, dtype=dtype),
        "text_ids": torch.zeros(1, args.text, 3, dtype=dtype),
    }
    there = {name: value.to(device) for name, value in inputs.items()}
    places: dict[str, object] = {
        "offload_dtype": torch.float8_e4m3fn,
        "offload_device": "cpu",
        "onload_dtype": torch.float8_e4m3fn,
        "onload_device": "cpu",
        "preparing_dtype": torch.float8_e4m3fn,
        "preparing_device": str(device),
        "computation_dtype": dtype,
        "computation_device": str(device),
    }

    def opened(limit: float | None) -> Step:
        with torch.device("meta"):
            model = FluxDiT(num_blocks=args.double)
        model = randomise(model)
        layers = {nn.Linear: AutoWrappedLinear, RMSNorm: AutoWrappedModule}
        model = enable_vram_management(model, layers, places, vram_limit=limit)
        for module in model.modules():
            if hasattr(module, "offload"):
                module.offload()
        for module in model.modules():
            if hasattr(module, "onload"):
                module.onload()
        return lambda: model_fn_flux_image(model, **there)

    limits = args.budgets or [6.0]
    return {
        f"DiffSynth-Studio fp8, vram_limit {limit:g} GB": partial(opened, limit * 1e9 / 2**30)
        for limit in limits
    }
