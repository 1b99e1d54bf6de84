"""Files that graphs for the real models ask for, and where they are to be had.

Copies that ask for no account, where there are such: the host's own templates name them too.
"""

from __future__ import annotations

from collections.abc import Sequence

Model = dict[str, str]

HUGGING_FACE = "https://huggingface.co"
DEV_MODELS: list[Model] = [
    {
        "name": "flux1-dev.safetensors",
        "url": f"{HUGGING_FACE}/Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors",
        "directory": "diffusion_models",
    },
    {
        "name": "clip_l.safetensors",
        "url": f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors",
        "directory": "text_encoders",
    },
    {
        "name": "t5xxl_fp16.safetensors",
        "url": f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main/"
        "t5xxl_fp16.safetensors",
        "directory": "text_encoders",
    },
    {
        "name": "ae.safetensors",
        "url": f"{HUGGING_FACE}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/"
        "split_files/vae/ae.safetensors",
        "directory": "vae",
    },
]
UPSCALER_MODEL = {
    "name": "flux1-dev-controlnet-upscaler.safetensors",
    "url": f"{HUGGING_FACE}/jasperai/Flux.1-dev-Controlnet-Upscaler/resolve/main/"
    "diffusion_pytorch_model.safetensors",
    "directory": "controlnet",
}
UNION_MODEL = {
    "name": "flux1-dev-controlnet-union-pro-2.safetensors",
    "url": f"{HUGGING_FACE}/Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0/resolve/main/"
    "diffusion_pytorch_model.safetensors",
    "directory": "controlnet",
}
GGUF_MODEL = {
    "name": "flux1-dev-Q8_0.gguf",
    "url": f"{HUGGING_FACE}/city96/FLUX.1-dev-gguf/resolve/main/flux1-dev-Q8_0.gguf",
    "directory": "diffusion_models",
}
FILL_MODEL = {
    "name": "flux1-fill-dev.safetensors",
    "url": f"{HUGGING_FACE}/Comfy-Org/flux1-dev/resolve/main/split_files/"
    "diffusion_models/flux1-fill-dev.safetensors",
    "directory": "diffusion_models",
}
CANNY_MODEL = {
    "name": "flux1-canny-dev.safetensors",
    "url": f"{HUGGING_FACE}/Comfy-Org/flux1-dev/resolve/main/split_files/"
    "diffusion_models/flux1-canny-dev.safetensors",
    "directory": "diffusion_models",
}
KONTEXT_MODEL = {
    "name": "flux1-dev-kontext_fp8_scaled.safetensors",
    "url": f"{HUGGING_FACE}/Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files/"
    "diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors",
    "directory": "diffusion_models",
}
CHROMA_MODEL = {
    "name": "Chroma1-HD-fp8mixed.safetensors",
    "url": f"{HUGGING_FACE}/Comfy-Org/Chroma1-HD_repackaged/resolve/main/split_files/"
    "diffusion_models/Chroma1-HD-fp8mixed.safetensors",
    "directory": "diffusion_models",
}
KLEIN_MODELS: list[Model] = [
    {
        "name": name,
        "url": f"{HUGGING_FACE}/Comfy-Org/Flux-2-Klein-4B/resolve/main/split_files/{folder}/{name}",
        "directory": folder,
    }
    for folder, name in (
        ("diffusion_models", "flux-2-klein-4b.safetensors"),
        ("text_encoders", "qwen_3_4b.safetensors"),
        ("vae", "flux2-vae.safetensors"),
    )
]
SIGLIP_MODEL = {
    "name": "sigclip_vision_patch14_384.safetensors",
    "url": f"{HUGGING_FACE}/Comfy-Org/sigclip_vision_384/resolve/main/"
    "sigclip_vision_patch14_384.safetensors",
    "directory": "clip_vision",
}
REDUX_MODEL = {
    "name": "flux1-redux-dev.safetensors",
    "url": f"{HUGGING_FACE}/Comfy-Org/Flux1-Redux-Dev/resolve/main/flux1-redux-dev.safetensors",
    "directory": "style_models",
}
CLIP_VISION_MODEL = {
    "name": "clip_vision_l.safetensors",
    "url": f"{HUGGING_FACE}/openai/clip-vit-large-patch14/resolve/main/model.safetensors",
    "directory": "clip_vision",
}
IP_ADAPTER_MODEL = {
    "name": "flux-ip-adapter.safetensors",
    "url": f"{HUGGING_FACE}/XLabs-AI/flux-ip-adapter/resolve/main/ip_adapter.safetensors",
    "directory": "ipadapter",
}


def with_transformer(model: Model) -> list[Model]:
    """The files of dev with another transformer."""
    return [model, *DEV_MODELS[1:]]


def files_note(models: Sequence[Model], more: str = "") -> str:
    """What a graph's note says of its files, in Markdown."""
    lines = ["**Files:** into ComfyUI's `models` folder:", ""]
    for model in models:
        line = f"- [{model['directory']}/{model['name']}]({model['url']})"
        if not model["url"].endswith(f"/{model['name']}"):
            line += ", which is called otherwise there: rename it"
        lines.append(line)
    return "\n".join(lines) + (f"\n- {more}" if more else "")
