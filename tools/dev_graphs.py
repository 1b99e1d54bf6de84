"""The graphs of ``workflows/`` that are for FLUX.1-dev and its kin and for FLUX.2, and the list of
all graphs."""

from __future__ import annotations

from tools.control_graphs import control_graphs
from tools.graphs import (
    DEV_FILES,
    DEV_SAMPLING,
    POCKET_FILES,
    PROMPT,
    SAMPLING,
    Description,
    Node,
    batch_table,
    compare_precisions,
    dev_upscale,
    drawing,
    image_to_image,
    loader,
    pocket_upscale,
    swap_the_loader,
    train_lora,
    with_report,
)
from tools.model_files import (
    CANNY_MODEL,
    DEV_MODELS,
    FILL_MODEL,
    GGUF_MODEL,
    KLEIN_MODELS,
    KONTEXT_MODEL,
    UNION_MODEL,
    with_transformer,
)
from tools.prompting_graphs import prompting_graphs

LORA_FILE = "watercolour.safetensors"


def dev_lora() -> Description:
    """FLUX.1-dev with a LoRA beside its weights."""
    graph = drawing(
        "a lighthouse on a cliff at dusk, watercolour",
        1024,
        DEV_FILES,
        DEV_MODELS,
        DEV_SAMPLING,
        "FluxFit/lora",
    )
    graph["lora"] = Node(
        "FluxFitLoraLoader",
        {"lora": LORA_FILE, "strength": 0.9},
        {"model": ("loader", 0), "text_encoders": ("loader", 1)},
    )
    graph["prompt"].wires["text_encoders"] = ("lora", 1)
    graph["sampler"].wires["model"] = ("lora", 0)
    return graph


def dev_union() -> Description:
    """FLUX.1-dev led by a picture through a union ControlNet."""
    graph = drawing(
        "a glass house in a pine forest, morning fog, photograph",
        1024,
        DEV_FILES,
        DEV_MODELS,
        DEV_SAMPLING,
        "FluxFit/controlnet_union",
    )
    graph["picture"] = Node("LoadImage", {"image": "example.png"})
    graph["control"] = Node(
        "FluxFitControlNet",
        {"controlnet": UNION_MODEL["name"], "strength": 0.6, "end": 0.6, "mode": "tile"},
        {"vae": ("loader", 2), "image": ("picture", 0)},
        models=[UNION_MODEL],
    )
    graph["sampler"].wires["control"] = ("control", 0)
    return graph


def dev_gguf() -> Description:
    """FLUX.1-dev from a GGUF file, its codes kept as they are."""
    files = DEV_FILES | {"transformer": GGUF_MODEL["name"]}
    graph = drawing(
        "a tram in the rain at night, neon lights, photograph",
        1024,
        files,
        with_transformer(GGUF_MODEL),
        DEV_SAMPLING,
        "FluxFit/gguf",
    )
    graph["loader"].values["transformer_precision"] = "as_stored"
    return graph


def fill_inpaint() -> Description:
    """A masked part of a picture, painted anew by FLUX.1-Fill."""
    files = DEV_FILES | {"transformer": FILL_MODEL["name"]}
    return loader(files, with_transformer(FILL_MODEL)) | {
        "prompt": Node(
            "FluxTextEncode",
            {"prompt": "a wooden bench in the park", "guidance": 30.0},
            {"text_encoders": ("loader", 1)},
        ),
        "picture": Node("LoadImage", {"image": "example.png"}),
        "inpaint": Node(
            "InpaintModelConditioning",
            {"noise_mask": True},
            {
                "positive": ("prompt", 0),
                "negative": ("prompt", 0),
                "vae": ("loader", 2),
                "pixels": ("picture", 0),
                "mask": ("picture", 1),
            },
        ),
        "sampler": Node(
            "FluxSampler",
            {"seed": 7, "steps": 24},
            {"model": ("loader", 0), "positive": ("inpaint", 0), "latent": ("inpaint", 2)},
        ),
        "decode": Node("VAEDecode", {}, {"samples": ("sampler", 0), "vae": ("loader", 2)}),
        "save": Node(
            "SaveImage", {"filename_prefix": "FluxFit/inpaint"}, {"images": ("decode", 0)}
        ),
    }


def kontext_edit() -> Description:
    """A picture changed as a sentence asks for, by FLUX.1 Kontext."""
    files = DEV_FILES | {"transformer": KONTEXT_MODEL["name"]}
    graph = loader(files, with_transformer(KONTEXT_MODEL))
    graph["loader"].values["transformer_precision"] = "as_stored"
    return graph | {
        "prompt": Node(
            "FluxTextEncode",
            {"prompt": "make it a watercolour painting, keep everything else", "guidance": 2.5},
            {"text_encoders": ("loader", 1)},
        ),
        "picture": Node("LoadImage", {"image": "example.png"}),
        "reference": Node(
            "FluxFitReference",
            {},
            {"positive": ("prompt", 0), "vae": ("loader", 2), "image": ("picture", 0)},
        ),
        "sampler": Node(
            "FluxSampler",
            {"seed": 7},
            {"model": ("loader", 0), "positive": ("reference", 0), "latent": ("reference", 2)},
        ),
        "decode": Node("VAEDecode", {}, {"samples": ("sampler", 0), "vae": ("loader", 2)}),
        "save": Node("SaveImage", {"filename_prefix": "FluxFit/edit"}, {"images": ("decode", 0)}),
    }


def canny() -> Description:
    """A sentence drawn along the edges of a picture, which FLUX.1-Canny reads beside the noise."""
    files = DEV_FILES | {"transformer": CANNY_MODEL["name"]}
    prompt = "a stone cottage by a lake, evening light, photograph"
    graph = drawing(
        prompt, 1024, files, with_transformer(CANNY_MODEL), DEV_SAMPLING, "FluxFit/canny"
    )
    del graph["size"]
    graph["prompt"].values["guidance"] = 30.0
    graph["picture"] = Node("LoadImage", {"image": "example.png"}, title="picture of edges")
    graph["edges"] = Node(
        "InstructPixToPixConditioning",
        {},
        {
            "positive": ("prompt", 0),
            "negative": ("prompt", 0),
            "vae": ("loader", 2),
            "pixels": ("picture", 0),
        },
    )
    graph["sampler"].wires |= {"positive": ("edges", 0), "latent": ("edges", 2)}
    return graph


def klein(prompt: str, prefix: str) -> Description:
    """FLUX.2 klein, each part by a loader of its own, and a sentence."""
    transformer, encoder, vae = KLEIN_MODELS
    policy = {"policy": ("policy", 0)}
    return {
        "policy": Node("OffloadPolicy", {"mode": "auto"}),
        "transformer": Node(
            "FluxFitTransformerLoader",
            {"transformer": transformer["name"]},
            policy,
            models=[transformer],
        ),
        "text encoder": Node(
            "FluxFitTextEncoderLoader", {"text_encoder": encoder["name"]}, policy, models=[encoder]
        ),
        "vae": Node("FluxFitVAELoader", {"vae": vae["name"]}, policy, models=[vae]),
        "prompt": Node(
            "FluxTextEncode", {"prompt": prompt}, {"text_encoders": ("text encoder", 0)}
        ),
        "sampler": Node(
            "FluxSampler",
            {"seed": 7, "steps": 4, "shift": "resolution"},
            {"model": ("transformer", 0), "positive": ("prompt", 0), "latent": ("size", 0)},
        ),
        "decode": Node("VAEDecode", {}, {"samples": ("sampler", 0), "vae": ("vae", 0)}),
        "save": Node("SaveImage", {"filename_prefix": prefix}, {"images": ("decode", 0)}),
    }


def klein_text_to_image() -> Description:
    """A sentence to a picture by FLUX.2 klein, in four steps."""
    graph = klein("a red fox asleep in fresh snow, morning light, photograph", "FluxFit/klein")
    graph["size"] = Node("EmptySD3LatentImage", {"width": 1024, "height": 1024})
    return graph


def klein_edit() -> Description:
    """A picture changed as a sentence asks for, by FLUX.2 klein."""
    graph = klein("make it a watercolour painting, keep everything else", "FluxFit/klein_edit")
    graph["picture"] = Node("LoadImage", {"image": "example.png"})
    graph["reference"] = Node(
        "FluxFitReference",
        {},
        {"positive": ("prompt", 0), "vae": ("vae", 0), "image": ("picture", 0)},
    )
    graph["sampler"].wires |= {"positive": ("reference", 0), "latent": ("reference", 2)}
    return graph


def descriptions() -> dict[str, Description]:
    graphs = {
        "text_to_image": drawing(PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/text_to_image"),
        "upscale": pocket_upscale(),
        "compare_precisions": compare_precisions(),
        "train_lora": train_lora(),
        "batch_table": batch_table(),
        "flux1_dev_fp8_offload": with_report(
            drawing(
                "a red fox asleep in fresh snow, morning light, photograph",
                1024,
                DEV_FILES,
                DEV_MODELS,
                DEV_SAMPLING,
                "FluxFit/flux1_dev",
            )
        ),
        "flux1_dev_upscaler_fp8": dev_upscale(),
        "swap_the_loader": swap_the_loader(),
        "image_to_image": image_to_image(),
        "flux1_dev_lora": dev_lora(),
        "flux1_dev_controlnet_union": dev_union(),
        "flux1_dev_gguf": dev_gguf(),
        "flux1_fill_inpaint": fill_inpaint(),
        "flux1_kontext_edit": kontext_edit(),
        "flux1_canny": canny(),
        "flux2_klein_text_to_image": klein_text_to_image(),
        "flux2_klein_edit": klein_edit(),
    }
    return graphs | prompting_graphs() | control_graphs()
