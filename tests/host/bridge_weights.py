"""LoRAs, hooks and policies. Checks of ``bridge.py``."""

from __future__ import annotations

from typing import Any

from bridge_setup import (
    FLUX,
    GREEN,
    MODEL,
    RED,
    Tensor,
    check,
    close,
    differs,
    ksampler,
    latent,
    refused,
    same,
)
from in_process import call, folder_paths, torch, work


def lora_file(name: str, kind: str, seed: int = 0) -> str:
    """A LoRA for some layers of the pocket transformer, in the host's folder."""
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, size: float = 0.1) -> Tensor:
        return torch.randn(rows, columns, generator=g) * size

    tensors: dict[str, Tensor] = {}
    dim = int(FLUX.transformer.img_in.out_features)

    def low_rank(key: str, rows: int, columns: int) -> None:
        tensors[f"{key}.lora_up.weight"] = matrix(rows, 4)
        tensors[f"{key}.lora_down.weight"] = matrix(4, columns)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)

    if kind == "kohya":
        low_rank("lora_unet_double_blocks_0_img_attn_qkv", 3 * dim, dim)
        low_rank("lora_unet_single_blocks_1_linear1", 3 * dim + 4 * dim, dim)
        low_rank("lora_unet_final_layer_linear", 64, dim)
    elif kind == "diffusers":
        for part in ("to_q", "to_k", "to_v"):
            key = f"transformer.transformer_blocks.1.attn.{part}"
            tensors[f"{key}.lora_B.weight"] = matrix(dim, 3)
            tensors[f"{key}.lora_A.weight"] = matrix(3, dim)
        key = "transformer.norm_out.linear"
        tensors[f"{key}.lora_B.weight"] = matrix(2 * dim, 3)
        tensors[f"{key}.lora_A.weight"] = matrix(3, dim)
    elif kind == "dora":
        low_rank("lora_unet_double_blocks_1_txt_mlp_0", 4 * dim, dim)
        tensors["lora_unet_double_blocks_1_txt_mlp_0.dora_scale"] = matrix(4 * dim, 1).abs() + 0.5
    elif kind == "loha":
        key = "lora_unet_single_blocks_0_linear2"
        for n in (1, 2):
            tensors[f"{key}.hada_w{n}_a"] = matrix(dim, 3, 0.3)
            tensors[f"{key}.hada_w{n}_b"] = matrix(3, 5 * dim, 0.3)
        tensors[f"{key}.alpha"] = torch.tensor(3.0)
    elif kind == "lokr":
        key = "lora_unet_double_blocks_0_img_mlp_2"
        tensors[f"{key}.lokr_w1"] = matrix(4, 4, 0.3)
        tensors[f"{key}.lokr_w2"] = matrix(dim // 4, dim, 0.1)
    elif kind == "diff":
        key = "diffusion_model.double_blocks.0.img_attn.proj"
        tensors[f"{key}.diff"] = matrix(dim, dim, 0.02)
        tensors[f"{key}.diff_b"] = matrix(1, dim)[0]
    elif kind == "oft":
        key = "lora_unet_double_blocks_0_img_attn_proj"
        tensors[f"{key}.oft_blocks"] = torch.randn(4, dim // 4, dim // 4, generator=g) * 0.01
    path = work / "models" / "loras" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    folder_paths.filename_list_cache.clear()
    return path.name


def with_lora(model: Any, file: str, strength: float = 1.0) -> Any:
    (changed,) = call("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=strength)
    return changed


@check("LoraLoaderModelOnly")
def loras() -> None:
    plain = ksampler(MODEL)
    for kind in ("kohya", "diffusers", "dora", "loha", "lokr", "diff"):
        file = lora_file(kind, kind)
        try:
            differs(same(lambda model, file=file: with_lora(model, file, 0.7)), plain)
        except AssertionError as error:
            raise AssertionError(f"{kind}: {error}") from error
    files = [lora_file(f"two{n}", kind, n) for n, kind in enumerate(("kohya", "diffusers"))]
    same(lambda model: with_lora(with_lora(model, files[0], 0.5), files[1], -0.8))
    assert torch.equal(ksampler(MODEL), plain), "LoRAs left something behind"


@check("LoraLoaderModelOnly")
def a_lora_without_a_form_beside_weights() -> None:
    file = lora_file("oft", "oft")
    refused("oft adapter", lambda: ksampler(with_lora(MODEL, file)))
    assert ksampler(MODEL).isfinite().all()


@check("CreateHookLora")
def hooks() -> None:
    file = lora_file("hook", "kohya", 4)

    def scheduled(conditioning: list, second: float) -> list:
        (hooked,) = call("CreateHookLora", lora_name=file, strength_model=1.0, strength_clip=0.0)
        (frames,) = call("CreateHookKeyframe", strength_mult=0.2, start_percent=0.0)
        (frames,) = call(
            "CreateHookKeyframe", prev_hook_kf=frames, strength_mult=second, start_percent=0.5
        )
        (hooked,) = call("SetHookKeyframes", hooks=hooked, hook_kf=frames)
        (hooked_prompt,) = call(
            "ConditioningSetProperties",
            cond_NEW=conditioning,
            hooks=hooked,
            strength=1.0,
            set_cond_area="default",
        )
        return hooked_prompt

    plain = same(steps=4)
    once = same(positive=scheduled(RED, 1.0), steps=4)
    differs(once, plain)
    differs(same(positive=scheduled(RED, -1.0), steps=4), once)
    assert torch.equal(same(steps=4), plain), "hooks left something behind"


@check()
def policies_draw_the_same_bits() -> None:
    file = lora_file("bits", "kohya", 9)
    expected = None
    for mode, budget in (("none", 0.0), ("component", 0.0), ("stream", 0.0), ("auto", 0.02)):
        (policy, _) = call("OffloadPolicy", mode=mode, vram_budget=budget)
        model = call(
            "FluxFitTransformerLoader",
            precision="int8",
            policy=separate(policy),
        )[1]
        drawn = ksampler(with_lora(model, file, 0.7))
        expected = drawn if expected is None else expected
        assert torch.equal(drawn, expected), mode


def separate(policy: Any) -> Any:
    """The CPU as if its memory were a card's, so that blocks are copied."""
    from dataclasses import replace

    return replace(policy, separate_memory=True)


@check("CreateHookLora")
def hooks_draw_the_same_bits_streamed() -> None:
    file = lora_file("bits2", "kohya", 9)
    (hooked,) = call("CreateHookLora", lora_name=file, strength_model=1.0, strength_clip=0.0)
    (hooked_prompt,) = call(
        "ConditioningSetProperties",
        cond_NEW=RED,
        hooks=hooked,
        strength=1.0,
        set_cond_area="default",
    )
    drawn = []
    for mode in ("none", "stream"):
        (policy, _) = call("OffloadPolicy", mode=mode)
        model = call("FluxFitTransformerLoader", precision="int8", policy=separate(policy))[1]
        drawn.append(ksampler(model, positive=hooked_prompt))
    assert torch.equal(*drawn)
    differs(drawn[0], ksampler(model))


@check()
def an_error_in_a_run_leaves_the_model_whole() -> None:
    before = ksampler(MODEL)

    def stop(*_: Any) -> Any:
        raise RuntimeError("stop here")

    broken = MODEL.clone()
    broken.set_model_patch_replace(stop, "dit", "double_block", 1)
    refused("stop here", lambda: ksampler(broken))
    assert torch.equal(ksampler(MODEL), before)


@check()
def what_is_dropped_is_gone_at_once() -> None:
    """Without the collector of circles, which may come after gigabytes more are opened."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        flux, texts, vae, model, clip = call(
            "FluxLoaderFP8", transformer_precision="fp8_e5m2", vae_precision="fp32"
        )
        (positive,) = call("CLIPTextEncode", clip=clip, text="a red circle")
        ksampler(model, positive=positive)
        parts = {
            "transformer": flux.module,
            "text encoders": texts.module,
            "VAE": vae.first_stage_model,
            "the host's model": model.model,
            "the host's CLIP": clip.cond_stage_model,
        }
        seen = {name: weakref.ref(part) for name, part in parts.items()}
        del flux, texts, vae, model, clip, positive, parts
        left = [name for name, ref in seen.items() if ref() is not None]
        assert not left, f"still there: {left}"
    finally:
        gc.enable()


@check("KSamplerSelect")
def where_a_lora_counts() -> None:
    """Weights a block count with the host's samplers; what they do not draw is refused."""
    (loaded, _, _) = call("FluxFitLoraLoader", model=FLUX, lora=lora_file("where", "kohya", 12))
    (sampler,) = call("KSamplerSelect", sampler_name="euler")

    def drawn(model: Any, **more: Any) -> Tensor:
        values = {"seed": 5, "steps": 3, "cfg": 2.0, "negative": GREEN, "latent": latent()} | more
        return call("FluxSampler", model=model, positive=RED, **values)[0]["samples"]

    def controlled(**more: Any) -> Any:
        return call("FluxFitLoraControl", model=loaded, **more)[0]

    weighted = controlled(blocks="single: 0, outside: 0.5")
    ours = drawn(weighted, sampler_object=sampler)
    close(ours, drawn(weighted))
    differs(ours, drawn(loaded, sampler_object=sampler))
    for more in ({"schedule": "0:1, 1:0"}, {"mask": torch.ones(1, 8, 8)}):
        model = controlled(**more)
        differs(drawn(model, steps=2), drawn(FLUX, steps=2))
        refused("FluxSampler's own samplers draw", lambda m=model: drawn(m, sampler_object=sampler))
