"""Other packs' patches, and text encoders. Checks of ``bridge.py``."""

from __future__ import annotations

from typing import Any

from bridge_setup import (
    CLIP,
    FLUX,
    GREEN,
    MODEL,
    TEXTS,
    Tensor,
    check,
    differs,
    ksampler,
    refused,
    same,
    text,
)
from in_process import call, folder_paths, torch, work


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


@check()
def text_encoders() -> None:
    (own,) = call("FluxTextEncode", text_encoders=TEXTS, prompt="a green square")
    assert torch.equal(GREEN[0][0], own[0][0])
    assert torch.equal(GREEN[0][1]["pooled_output"], own[0][1]["pooled_output"])
    weighted = text("a (green:1.4) square")
    differs(weighted[0][0], GREEN[0][0])
    (skipped,) = call("CLIPSetLastLayer", clip=CLIP, stop_at_clip_layer=-2)
    (encoded,) = call("CLIPTextEncode", clip=skipped, text="a green square")
    differs(encoded[0][0], GREEN[0][0])
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
