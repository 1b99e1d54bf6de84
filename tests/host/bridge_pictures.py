"""Pictures as prompts, by the host's nodes and by ours. Checks of ``bridge.py``."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bridge_conditioning import both
from bridge_setup import FLUX, GREEN, RED, check, close, differs, flux_sampler
from in_process import call, module, torch
from safetensors.torch import save_file

import flux_core

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
WIDTH, SIDE, PATCH, DEPTH = 128, 64, 14, 3
FOLDER = Path(tempfile.mkdtemp())


def normal(*shape: int, mean: float = 0.0) -> Any:
    return mean + 0.05 * torch.randn(shape, generator=GENERATOR)


GENERATOR = torch.Generator().manual_seed(3)


def vision_file() -> Path:
    """A SigLIP of three layers in the host's layout, without a pooling head."""
    tensors = {
        "embeddings.patch_embedding.weight": normal(WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": normal(WIDTH),
        "embeddings.position_embedding.weight": normal((SIDE // PATCH) ** 2, WIDTH),
        "post_layernorm.weight": normal(WIDTH, mean=1.0),
        "post_layernorm.bias": normal(WIDTH),
    }
    for i in range(DEPTH):
        layer = f"encoder.layers.{i}"
        for name in ("layer_norm1", "layer_norm2"):
            tensors[f"{layer}.{name}.weight"] = normal(WIDTH, mean=1.0)
            tensors[f"{layer}.{name}.bias"] = normal(WIDTH)
        for name, rows, columns in (
            *((f"self_attn.{x}_proj", WIDTH, WIDTH) for x in ("q", "k", "v", "out")),
            ("mlp.fc1", 96, WIDTH),
            ("mlp.fc2", WIDTH, 96),
        ):
            tensors[f"{layer}.{name}.weight"] = normal(rows, columns)
            tensors[f"{layer}.{name}.bias"] = normal(rows)
    path = FOLDER / "siglip.safetensors"
    save_file({f"vision_model.{name}": t.contiguous() for name, t in tensors.items()}, path)
    return path


def redux_file(context: int) -> Path:
    path = FOLDER / "redux.safetensors"
    shapes = {"redux_up": (3 * context, WIDTH), "redux_down": (context, 3 * context)}
    tensors = {f"{name}.weight": normal(*shape) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": normal(shape[0]) for name, shape in shapes.items()}
    save_file(tensors, path)
    return path


def host_vision(path: Path) -> Any:
    """The host's own encoder with the same weights, in float32."""
    import comfy.clip_vision
    import comfy.utils

    config = {
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": WIDTH,
        "image_size": SIDE,
        "intermediate_size": 96,
        "model_type": "siglip_vision_model",
        "num_attention_heads": WIDTH // 64,
        "num_hidden_layers": DEPTH,
        "patch_size": PATCH,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    place = FOLDER / "siglip.json"
    place.write_text(json.dumps(config))
    model = comfy.clip_vision.ClipVisionModel(str(place))
    model.model.float()
    missing, unknown = model.load_sd(comfy.utils.load_torch_file(str(path)))
    assert not missing and not unknown, (missing, unknown)
    return model


def host_redux(path: Path, context: int) -> Any:
    """The host's own Redux with the same weights."""
    import comfy.ldm.flux.redux
    import comfy.sd
    import comfy.utils

    model = comfy.ldm.flux.redux.ReduxImageEncoder(WIDTH, context)
    model.load_state_dict(comfy.utils.load_torch_file(str(path)))
    return comfy.sd.StyleModel(model)


@check("CLIPVisionEncode", "StyleModelApply")
def redux() -> None:
    """Stock and own nodes, on stock and own models: one conditioning, drawn the same."""
    wires = module("nodes.vision")
    context = FLUX.transformer.config.context_in_dim
    files = vision_file(), redux_file(context)
    policy = flux_core.OffloadPolicy("stream", separate_memory=True)
    vision = wires.HostVision(flux_core.load_vision_encoder(files[0], precision="fp32"), policy)
    style = wires.HostStyleModel(flux_core.load_redux(files[1], precision="fp32"), policy)
    models = {"ours": (vision, style)}
    models["theirs"] = host_vision(files[0]), host_redux(files[1], context)
    image = torch.rand(2, 70, 90, 3, generator=GENERATOR)
    plain = both()
    for crop in ("center", "none"):
        seen = {
            name: call("CLIPVisionEncode", clip_vision=encoder, image=image, crop=crop)[0]
            for name, (encoder, _) in models.items()
        }
        close(seen["ours"].last_hidden_state, seen["theirs"].last_hidden_state)
        for strength, kind in ((0.7, "multiply"), (0.4, "attn_bias")):
            options = {"strength": strength, "strength_type": kind, "conditioning": RED}
            conds = []
            for name, (_, model) in models.items():
                more = options | {"style_model": model, "clip_vision_output": seen[name]}
                conds += [call("StyleModelApply", **more)[0], call("FluxFitRedux", **more)[0]]
            for each in conds[1:]:
                close(each[0][0], conds[0][0][0])
                masks = [entry[0][1].get("attention_mask") for entry in (each, conds[0])]
                assert (masks[0] is None) == (masks[1] is None) == (kind == "multiply")
                if masks[0] is not None:
                    assert torch.equal(*masks)
            drawn = both(positive=conds[0])
            close(both(positive=conds[1]), drawn)
            differs(drawn, plain)


def ip_adapter_file(wide: bool) -> Path:
    """An IP-Adapter of either kind for the pocket model."""
    config = FLUX.transformer.config
    context, hidden = config.context_in_dim, config.hidden_size
    tensors = {"norm.weight": normal(context, mean=1.0), "norm.bias": normal(context)}
    blocks = config.depth + (config.depth_single_blocks if wide else 0)
    for name, rows, columns in (
        (("proj.0", 2 * WIDTH, WIDTH), ("proj.2", 6 * context, 2 * WIDTH))
        if wide
        else (("proj", 4 * context, WIDTH),)
    ):
        tensors |= {f"{name}.weight": normal(rows, columns), f"{name}.bias": normal(rows)}
    tensors = {f"image_proj.{name}": tensor for name, tensor in tensors.items()}
    for i in range(blocks):
        for kind in "kv":
            name = f"ip_adapter.{i}.to_{kind}_ip"
            tensors[f"{name}.weight"] = 4 * normal(hidden, context)
            if not wide:
                tensors[f"{name}.bias"] = normal(hidden)
    path = FOLDER / f"ip_adapter_{wide}.safetensors"
    save_file(tensors, path)
    return path


@check("KSamplerSelect", "ConditioningCombine")
def ip_adapters() -> None:
    """FluxSampler draws the same by its own samplers and by the host's."""
    core = module("nodes.ip_adapter")
    (euler,) = call("KSamplerSelect", sampler_name="euler")
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :7] = 1
    model = FLUX
    for wide, more in ((False, {"end": 0.6}), (True, {"mask": mask, "start": 0.2})):
        adapter = flux_core.load_ip_adapter(ip_adapter_file(wide), precision="fp32")
        embeds, negative = normal(2, WIDTH), normal(1, WIDTH)
        applied = core.AppliedAdapter(adapter, 20 * embeds, 0.9, negative=20 * negative, **more)
        model = dataclasses.replace(model, adapters=(*model.adapters, applied))
        for options in ({}, {"negative": GREEN, "cfg": 2.0}):
            plain = flux_sampler(**options)
            own = flux_sampler(model=model, **options)
            close(flux_sampler(model=model, sampler_object=euler, **options), own)
            differs(own, plain)
    assert FLUX.adapters == ()
