"""Run inside a host's interpreter: its samplers draw the same with its own loader and with ours.

    python bridge.py COMFYUI FLUXFIT

The pocket model in float32 by either loader, small latents, few steps. Prints one line a check,
``ok NAME``, ``skip NAME`` where the host lacks a node, or ``fail NAME`` with what happened.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from in_process import CHOSEN, call, choices, folder_paths, has, module, torch, work

Tensor = torch.Tensor
STEPS, SEED = 3, 5
CHECKS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {}


def check(*needs: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Registers a check, and the host's nodes that it needs."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS[function.__name__] = function, needs
        return function

    return register


FLUX, TEXTS, VAE, MODEL, CLIP = call(
    "FluxLoaderFP8", transformer_precision="fp32", t5_precision="bf16"
)


def host_sizes() -> dict[str, Any]:
    """The transformer's sizes as this host's FLUX takes them."""
    from comfy.ldm.flux.model import FluxParams

    sizes = module("nodes.bridge.model_patcher").unet_config(FLUX.transformer)
    known = {field.name for field in dataclasses.fields(FluxParams)}
    return {name: size for name, size in sizes.items() if name in known}


def stock_model() -> Any:
    """The same file by the host's own code, in float32."""
    import comfy.model_detection as detection
    import comfy.model_patcher
    import comfy.utils

    config = detection.model_config_from_unet_config(host_sizes() | {"image_model": "flux"})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    path = folder_paths.get_full_path("diffusion_models", "fluxfit_pocket.safetensors")
    tensors = {name: t.float() for name, t in comfy.utils.load_torch_file(path).items()}
    model.load_model_weights(tensors, "")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


STOCK = stock_model()


def text(prompt: str, **more: Any) -> list:
    (found,) = call("CLIPTextEncode", clip=CLIP, text=prompt)
    return [[context, extra | more] for context, extra in found]


RED, GREEN = text("a red circle on a blue background"), text("a green square")


def latent(height: int = 8, width: int = 8, batch: int = 1) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 16, height, width)}


def picture(height: int = 8, width: int = 8) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(1, 16, height, width, generator=g)


def ksampler(model: Any, positive: list = RED, negative: list = GREEN, **more: Any) -> Tensor:
    """Latents by the stock KSampler."""
    values = {
        "seed": SEED,
        "steps": STEPS,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        "latent_image": latent(),
    } | more
    (out,) = call("KSampler", model=model, positive=positive, negative=negative, **values)
    return out["samples"]


def flux_sampler(positive: list = RED, negative: list = GREEN, **more: Any) -> Tensor:
    """Latents by our own sampler."""
    values = {"seed": SEED, "steps": STEPS, "cfg": 2.0, "latent": latent(), "denoise": 1.0} | more
    if "latent_image" in values:
        values["latent"] = values.pop("latent_image")
    return call("FluxSampler", model=FLUX, positive=positive, negative=negative, **values)[0][
        "samples"
    ]


def close(ours: Tensor, theirs: Tensor, bound: float = 5e-4) -> None:
    """Raise where two latents differ by more than a share of the largest number."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)}"
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < bound, f"differs by {error:.1e}"


def differs(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max()) > 1e-3, "changed nothing"


def same(change: Callable[[Any], Any] = lambda model: model, **more: Any) -> Tensor:
    """The stock KSampler draws the same with either model, both changed by a node; returns it."""
    ours = ksampler(change(MODEL), **more)
    close(ours, ksampler(change(STOCK), **more))
    return ours


def refused(message: str, function: Callable[[], Any]) -> None:
    try:
        function()
    except Exception as error:
        assert message in str(error), f"{error} does not say {message!r}"
    else:
        raise AssertionError("was not refused")


# ---- samplers, schedulers, guiders


@check()
def every_sampler_and_scheduler() -> None:
    samplers, schedulers = all_names()
    wrong = []
    for sampler, scheduler in [(s, "simple") for s in samplers] + [
        ("euler", s) for s in schedulers
    ]:
        try:
            same(sampler_name=sampler, scheduler=scheduler)
        except AssertionError as error:
            wrong.append(f"{sampler}, {scheduler}: {error}")
    assert not wrong, "; ".join(wrong)


def all_names() -> tuple[list[str], list[str]]:
    import comfy.samplers

    return comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


def guided(model: Any, guider: Any, sigmas: Tensor | None = None, sampler: str = "euler") -> Tensor:
    """Latents by SamplerCustomAdvanced."""
    (noise,) = call("RandomNoise", noise_seed=SEED)
    (chosen,) = call("KSamplerSelect", sampler_name=sampler)
    if sigmas is None:
        (sigmas,) = call(
            "BasicScheduler", model=model, scheduler="simple", steps=STEPS, denoise=1.0
        )
    out = call(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider,
        sampler=chosen,
        sigmas=sigmas,
        latent_image=latent(),
    )
    return out[0]["samples"]


@check("SamplerCustomAdvanced")
def guiders() -> None:
    def all_three(model: Any) -> list[Tensor]:
        (basic,) = call("BasicGuider", model=model, conditioning=RED)
        (cfg,) = call("CFGGuider", model=model, positive=RED, negative=GREEN, cfg=2.0)
        blue = text("a blue star")
        (dual,) = call(
            "DualCFGGuider",
            model=model,
            cond1=RED,
            cond2=blue,
            negative=GREEN,
            cfg_conds=2.0,
            cfg_cond2_negative=1.5,
        )
        return [guided(model, guider) for guider in (basic, cfg, dual)]

    for ours, theirs in zip(all_three(MODEL), all_three(STOCK), strict=True):
        close(ours, theirs)


@check("SamplerCustom")
def sampler_custom() -> None:
    def draw(model: Any) -> Tensor:
        (sigmas,) = call("BasicScheduler", model=model, scheduler="beta", steps=STEPS, denoise=0.7)
        (sampler,) = call("KSamplerSelect", sampler_name="dpmpp_2m")
        return call(
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=SEED,
            cfg=1.5,
            positive=RED,
            negative=GREEN,
            sampler=sampler,
            sigmas=sigmas,
            latent_image={"samples": picture()},
        )[0]["samples"]

    close(draw(MODEL), draw(STOCK))


@check("KSamplerAdvanced")
def parts_of_a_schedule() -> None:
    def draw(model: Any) -> Tensor:
        common = {
            "model": model,
            "noise_seed": SEED,
            "steps": 4,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "positive": RED,
            "negative": GREEN,
        }
        (first,) = call(
            "KSamplerAdvanced",
            add_noise="enable",
            latent_image=latent(),
            start_at_step=0,
            end_at_step=2,
            return_with_leftover_noise="enable",
            **common,
        )
        (last,) = call(
            "KSamplerAdvanced",
            add_noise="disable",
            latent_image=first,
            start_at_step=2,
            end_at_step=4,
            return_with_leftover_noise="disable",
            **common,
        )
        return last["samples"]

    close(draw(MODEL), draw(STOCK))


@check("KSamplerSelect")
def the_host_s_samplers_in_ours() -> None:
    for name in ("euler", "res_multistep", "uni_pc"):
        (sampler,) = call("KSamplerSelect", sampler_name=name)
        ours = flux_sampler(sampler_object=sampler, steps=4)
        (sigmas,) = call("BasicScheduler", model=STOCK, scheduler="simple", steps=4, denoise=1.0)
        (guider,) = call("CFGGuider", model=STOCK, positive=RED, negative=GREEN, cfg=2.0)
        close(ours, guided(STOCK, guider, sigmas, name))
    (guider,) = call("CFGGuider", model=MODEL, positive=RED, negative=GREEN, cfg=2.0)
    close(flux_sampler(guider=guider, sampler_object=sampler, steps=4), ours)
    close(flux_sampler(guider=guider, cfg=7.0), ksampler(STOCK))


# ---- nodes that change a model


@check("ModelSamplingFlux")
def model_sampling() -> None:
    plain = same()

    def shifted(model: Any) -> Any:
        (changed,) = call(
            "ModelSamplingFlux", model=model, max_shift=2.0, base_shift=0.5, width=1024, height=1024
        )
        return changed

    differs(same(shifted), plain)
    assert torch.equal(ksampler(MODEL), plain), "the model behind kept the shift"


def node(name: str, **inputs: Any) -> Callable[[Any], Any]:
    return lambda model: call(name, model=model, **inputs)[0]


@check("DifferentialDiffusion")
def differential_diffusion() -> None:
    mask = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    start = {"samples": picture(), "noise_mask": mask}
    same(node("DifferentialDiffusion"), latent_image=start)


@check("EasyCache")
def easy_cache() -> None:
    same(node("EasyCache", reuse_threshold=0.3, start_percent=0.0, end_percent=1.0), steps=6)


@check("CFGZeroStar")
def cfg_zero_star() -> None:
    differs(same(node("CFGZeroStar")), same())


@check("NAGuidance")
def normalized_attention_guidance() -> None:
    differs(same(node("NAGuidance"), cfg=1.0), same(cfg=1.0))


@check("ScaleROPE")
def scaled_positions() -> None:
    scaled = node("ScaleROPE", scale_x=1.5, shift_x=1.0, scale_y=0.5, shift_y=0.0)
    differs(same(scaled), same())


# ---- conditioning


@check("FluxGuidance")
def guidance() -> None:
    (strong,) = call("FluxGuidance", conditioning=RED, guidance=8.0)
    differs(both(positive=strong), both())
    (without,) = call("FluxDisableGuidance", conditioning=RED)
    differs(both(positive=without), both())


def both(**more: Any) -> Tensor:
    """The stock sampler with either model and FluxSampler draw the same; returns it."""
    ours = same(**more)
    close(flux_sampler(**more), ours)
    return ours


def area(conditioning: list, strength: float = 1.0, x: int = 0) -> list:
    (placed,) = call(
        "ConditioningSetArea",
        conditioning=conditioning,
        width=64,
        height=128,
        x=x,
        y=0,
        strength=strength,
    )
    return placed


def combined(*parts: list) -> list:
    return [entry for part in parts for entry in part]


@check()
def regions() -> None:
    wide = {"latent_image": latent(16, 16)}
    plain = both(**wide)
    left = area(text("a blue star"), 0.8, 64)
    differs(both(positive=combined(RED, left), **wide), plain)
    differs(both(positive=area(RED), **wide), plain)
    (shares,) = call(
        "ConditioningSetAreaPercentage",
        conditioning=GREEN,
        width=0.5,
        height=0.3,
        x=0.4,
        y=0.5,
        strength=1.5,
    )
    both(positive=combined(RED, shares), negative=combined(GREEN, left), **wide)
    (weaker,) = call("ConditioningSetAreaStrength", conditioning=shares, strength=0.3)
    both(positive=combined(RED, weaker), **wide)


@check("ConditioningSetMask")
def masks() -> None:
    wide = {"latent_image": latent(16, 16)}
    mask = torch.zeros(1, 128, 128)
    mask[:, 30:90, 20:70] = 1.0
    for bounds in ("default", "mask bounds"):
        (masked,) = call(
            "ConditioningSetMask",
            conditioning=text("a blue star"),
            mask=mask,
            strength=0.7,
            set_cond_area=bounds,
        )
        differs(both(positive=combined(RED, masked), **wide), both(**wide))


@check("ConditioningSetTimestepRange")
def spans() -> None:
    (early,) = call(
        "ConditioningSetTimestepRange", conditioning=text("a blue star"), start=0.0, end=0.4
    )
    (late,) = call("ConditioningSetTimestepRange", conditioning=RED, start=0.4, end=1.0)
    differs(both(positive=combined(early, late), steps=5), both(steps=5))


@check("ConditioningSetDefaultCombine")
def default_prompts() -> None:
    wide = {"latent_image": latent(16, 16)}
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :60] = 1.0
    (left,) = call(
        "ConditioningSetMask",
        conditioning=RED,
        mask=mask,
        strength=1.0,
        set_cond_area="default",
    )
    (found,) = call("ConditioningSetDefaultCombine", cond=left, cond_DEFAULT=GREEN)
    both(positive=found, cfg=1.0, **wide)


@check("ReferenceLatent")
def references() -> None:
    (one,) = call("ReferenceLatent", conditioning=RED, latent={"samples": picture(8, 6)})
    (two,) = call("ReferenceLatent", conditioning=one, latent={"samples": picture(5, 8)})
    differs(both(positive=one), both())
    differs(both(positive=two), both(positive=one))
    if has("FluxKontextMultiReferenceLatentMethod"):
        for method in choices("FluxKontextMultiReferenceLatentMethod", "reference_latents_method"):
            (placed,) = call(
                "FluxKontextMultiReferenceLatentMethod",
                conditioning=two,
                reference_latents_method=method,
            )
            try:
                ksampler(STOCK, positive=placed)
            except RuntimeError:  # index_timestep_zero, which the host has for FLUX.2 alone
                close(flux_sampler(positive=placed), ksampler(MODEL, positive=placed))
                continue
            both(positive=placed)


@check()
def attention_masks() -> None:
    tokens = RED[0][0].shape[1]
    bias = torch.zeros(1, tokens + 1, tokens + 1, dtype=torch.float16)
    bias[:, -1, :4] = -2.0
    masked = [[c, e | {"attention_mask": bias, "attention_mask_img_shape": (1, 1)}] for c, e in RED]
    differs(both(positive=masked), both())


@check("InpaintModelConditioning")
def inpainting() -> None:
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1.0
    positive, negative, start = call(
        "InpaintModelConditioning",
        positive=RED,
        negative=GREEN,
        vae=VAE,
        pixels=pixels,
        mask=mask,
        noise_mask=True,
    )
    both(positive=positive, negative=negative, latent_image=start)


@check()
def odd_sizes() -> None:
    for height, width in ((7, 8), (9, 11)):
        both(latent_image=latent(height, width))


@check()
def batches() -> None:
    both(latent_image=latent(batch=3))
    both(latent_image={"samples": picture().repeat(2, 1, 1, 1)}, denoise=0.6)


def stock_controlnet() -> Any:
    """A FLUX ControlNet of the host's own, of two double and one single block, random weights."""
    import comfy.controlnet
    import comfy.latent_formats
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    sizes = host_sizes() | {"depth": 2, "depth_single_blocks": 1}
    torch.manual_seed(11)
    net = ControlNetFlux(
        latent_input=True,
        control_latent_channels=16,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.manual_cast,
        **sizes,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return comfy.controlnet.ControlNet(
        net,
        compression_ratio=1,
        latent_format=comfy.latent_formats.Flux(),
        load_device=torch.device("cpu"),
        manual_cast_dtype=None,
        extra_conds=["y", "guidance"],
    )


@check("ControlNetApplyAdvanced")
def stock_controlnets() -> None:
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    positive, negative = call(
        "ControlNetApplyAdvanced",
        positive=RED,
        negative=GREEN,
        control_net=stock_controlnet(),
        image=pixels,
        strength=0.8,
        start_percent=0.0,
        end_percent=0.7,
        vae=VAE,
    )
    differs(same(positive=positive, negative=negative), same())
    refused("stock ControlNet", lambda: flux_sampler(positive=positive))


# ---- LoRAs and hooks


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
        (found,) = call(
            "ConditioningSetProperties",
            cond_NEW=conditioning,
            hooks=hooked,
            strength=1.0,
            set_cond_area="default",
        )
        return found

    plain = same(steps=4)
    once = same(positive=scheduled(RED, 1.0), steps=4)
    differs(once, plain)
    differs(same(positive=scheduled(RED, -1.0), steps=4), once)
    assert torch.equal(same(steps=4), plain), "hooks left something behind"


# ---- other packs' patches


@check()
def replaced_blocks() -> None:
    calls: list[str] = []

    def changed(model: Any) -> Any:
        model = model.clone()

        def double(args: dict, extra: dict) -> dict:
            calls.append("double")
            out = extra["original_block"](args | {"img": args["img"] * 1.1})
            return {"img": out["img"], "txt": out["txt"] * 0.9}

        def single(args: dict, extra: dict) -> dict:
            calls.append("single")
            assert args["pe"].shape[-2:] == (2, 2) and args["vec"].ndim == 2
            out = extra["original_block"](args | {"vec": args["vec"] * 1.05, "pe": args["pe"] + 0})
            return {"img": out["img"] + 0.01}

        model.set_model_patch_replace(double, "dit", "double_block", 1)
        model.set_model_patch_replace(single, "dit", "single_block", 0)
        return model

    differs(same(changed), same())
    assert calls.count("double") == calls.count("single") > 0


@check("NAGuidance")
def attention_patches() -> None:
    def changed(model: Any) -> Any:
        model = model.clone()

        def before(q: Tensor, k: Tensor, v: Tensor, pe: Any, attn_mask: Any, extra_options: dict):
            return {"q": q * 1.1, "k": k, "v": v, "pe": pe}

        def behind(out: Tensor, extra_options: dict) -> Tensor:
            begin, end = extra_options["img_slice"]
            out[:, begin:end] *= 0.95
            return out

        def inputs(args: dict) -> dict:
            return args | {"img": args["img"] * 1.02}

        model.set_model_attn1_patch(before)
        model.set_model_attn1_output_patch(behind)
        model.set_model_post_input_patch(inputs)
        return model

    differs(same(changed), same())


@check()
def attention_of_another_pack() -> None:
    def changed(model: Any) -> Any:
        model = model.clone()

        def attend(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **more: Any):
            return function(q * 0.9, k, v, heads, **more)

        model.model_options["transformer_options"]["optimized_attention_override"] = attend
        return model

    differs(same(changed), same())


@check()
def patches_of_another_model_are_refused() -> None:
    unet = MODEL.clone()
    unet.set_model_input_block_patch(lambda h, options: h)
    refused("input_block_patch", lambda: ksampler(unet))
    far = MODEL.clone()
    far.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 99)
    refused("99", lambda: ksampler(far))
    parts = MODEL.clone()
    parts.add_object_patch("diffusion_model.final_layer", torch.nn.Identity())
    refused("final_layer", lambda: ksampler(parts))
    merged = MODEL.clone()
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    merged.add_patches({key: ("diff", (torch.zeros(1),))}, 0.5, 0.5)
    refused("merged", lambda: ksampler(merged))
    flux = MODEL.model.diffusion_model
    refused("stock loader", lambda: setattr(flux, "forward_orig", lambda *args: None))
    assert ksampler(MODEL).isfinite().all()


# ---- policies


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
    (found,) = call(
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
        drawn.append(ksampler(model, positive=found))
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


# ---- text


@check()
def text_encoders() -> None:
    (own,) = call("FluxTextEncode", text_encoders=TEXTS, prompt="a green square")
    assert torch.equal(GREEN[0][0], own[0][0])
    assert torch.equal(GREEN[0][1]["pooled_output"], own[0][1]["pooled_output"])
    weighted = text("a (green:1.4) square")
    differs(weighted[0][0], GREEN[0][0])
    (skipped,) = call("CLIPSetLastLayer", clip=CLIP, stop_at_clip_layer=-2)
    (found,) = call("CLIPTextEncode", clip=skipped, text="a green square")
    differs(found[0][0], GREEN[0][0])
    (two,) = call(
        "CLIPTextEncodeFlux", clip=CLIP, clip_l="a star", t5xxl="a green square", guidance=2.0
    )
    assert two[0][1]["guidance"] == 2.0 and torch.equal(two[0][0], GREEN[0][0])
    long = text("a green square " * 100)
    assert long[0][0].shape[1] > GREEN[0][0].shape[1], "the host does not cut"


@check("LoraLoader")
def loras_of_text_encoders() -> None:
    from safetensors.torch import save_file

    width = TEXTS.encoders.clip_l.text_model.embeddings.token_embedding.embedding_dim
    g = torch.Generator().manual_seed(2)
    key = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    path = work / "models" / "loras" / "text.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            f"{key}.lora_up.weight": torch.randn(width, 4, generator=g),
            f"{key}.lora_down.weight": torch.randn(4, width, generator=g),
            f"{key}.alpha": torch.tensor(4.0),
        },
        path,
    )
    folder_paths.filename_list_cache.clear()
    _, clip = call(
        "LoraLoader",
        model=MODEL,
        clip=CLIP,
        lora_name=path.name,
        strength_model=1.0,
        strength_clip=0.6,
    )
    (theirs,) = call("CLIPTextEncode", clip=clip, text="a green square")
    _, texts, _ = call(
        "FluxFitLoraLoader",
        model=FLUX,
        text_encoders=TEXTS,
        lora=path.name,
        strength=1.0,
        strength_text=0.6,
    )[:3]
    (ours,) = call("FluxTextEncode", text_encoders=texts, prompt="a green square")
    assert torch.equal(theirs[0][1]["pooled_output"], ours[0][1]["pooled_output"])
    differs(theirs[0][1]["pooled_output"], GREEN[0][1]["pooled_output"])


if __name__ == "__main__":
    with torch.inference_mode():
        for name in CHOSEN or CHECKS:
            function, needs = CHECKS[name]
            if not all(map(has, needs)):
                print("skip", name, flush=True)
                continue
            try:
                function()
                print("ok", name, flush=True)
            except Exception as error:
                traceback.print_exc()
                told = " ".join(str(error).split())
                print("fail", name, f"{type(error).__name__}: {told}"[:500], flush=True)
