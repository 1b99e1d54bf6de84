"""Foreign layouts as tables: which tensors of a file make one native tensor, and how.

A table is built forward, from the native names, for the number of blocks at hand; whatever a file
holds beyond it is reported by the loader. Three ways to make a tensor exist:

    rows   several are stacked along the first axis (q, k and v; in single blocks also the MLP)
    swap   its two halves change places (diffusers keeps scale before shift in ``norm_out``)
    copy   it is taken as it is; a 1x1 convolution may have been a Linear
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .config import Shapes, count_blocks


@dataclass(frozen=True)
class Recipe:
    """How one native tensor is made of a file's tensors: of ``copy``, of ``rows`` of several one
    below another, of one with its halves ``swap``-ped, or of the ``third`` of one's rows."""

    names: tuple[str, ...]
    transform: str = "copy"
    third: int = 0

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """The native shape; raises ``KeyError`` where a tensor is missing."""
        members = [shapes[name] for name in self.names]
        if self.transform == "rows":
            return (sum(s[0] for s in members), *members[0][1:])
        if self.transform == "third":
            return (members[0][0] // 3, *members[0][1:])
        return members[0]


Recipes = dict[str, Recipe]

BODY = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
DOUBLE_ROWS = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
SINGLE_ROWS = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
WEIGHT_AND_BIAS = ("weight", "bias")


def block(native: str, foreign: str, plain: Mapping, rows: Mapping, norms: Mapping) -> Recipes:
    table: Recipes = {}
    for ours, theirs in plain.items():
        for kind in WEIGHT_AND_BIAS:
            table[f"{native}.{ours}.{kind}"] = Recipe((f"{foreign}.{theirs}.{kind}",))
    for ours, parts in rows.items():
        for kind in WEIGHT_AND_BIAS:
            names = tuple(f"{foreign}.{part}.{kind}" for part in parts)
            table[f"{native}.{ours}.{kind}"] = Recipe(names, "rows")
    for ours, theirs in norms.items():
        table[f"{native}.{ours}.scale"] = Recipe((f"{foreign}.{theirs}.weight",))
    return table


def diffusers_body(double: int, single: int) -> Recipes:
    """The transformer in diffusers' names, with so many double and single blocks."""
    table: Recipes = {}
    for ours, theirs in BODY.items():
        for kind in WEIGHT_AND_BIAS:
            table[f"{ours}.{kind}"] = Recipe((f"{theirs}.{kind}",))
    for kind in WEIGHT_AND_BIAS:
        table[f"final_layer.adaLN_modulation.1.{kind}"] = Recipe(
            (f"norm_out.linear.{kind}",), "swap"
        )
    for i in range(double):
        table |= block(
            f"double_blocks.{i}", f"transformer_blocks.{i}", DOUBLE, DOUBLE_ROWS, DOUBLE_NORMS
        )
    for i in range(single):
        table |= block(
            f"single_blocks.{i}",
            f"single_transformer_blocks.{i}",
            SINGLE,
            SINGLE_ROWS,
            SINGLE_NORMS,
        )
    return table


FLUX2_BODY = {
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
FLUX2_DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
FLUX2_SINGLE = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}


def diffusers_flux2_body(double: int, single: int) -> Recipes:
    """FLUX.2's transformer in diffusers' names, with so many double and single blocks."""
    table: Recipes = {f"{ours}.weight": Recipe((f"{o}.weight",)) for ours, o in FLUX2_BODY.items()}
    table["final_layer.adaLN_modulation.1.weight"] = Recipe(("norm_out.linear.weight",), "swap")
    kinds = (
        ("double_blocks", "", double, FLUX2_DOUBLE, DOUBLE_ROWS, DOUBLE_NORMS),
        ("single_blocks", "single_", single, FLUX2_SINGLE, {}, SINGLE_NORMS),
    )
    for native_name, prefix, count, *tables in kinds:
        for i in range(count):
            some = block(f"{native_name}.{i}", f"{prefix}transformer_blocks.{i}", *tables)
            table |= {name: recipe for name, recipe in some.items() if not name.endswith(".bias")}
    return table


def diffusers_flux2(shapes: Shapes) -> Recipes:
    """FLUX.2 in diffusers' names."""
    double = count_blocks(shapes, "transformer_blocks.")
    single = count_blocks(shapes, "single_transformer_blocks.")
    return present(diffusers_flux2_body(double, single), shapes)


def diffusers_transformer(shapes: Shapes) -> Recipes:
    """FLUX.1 in diffusers' names; serves its ControlNets too."""
    double = count_blocks(shapes, "transformer_blocks.")
    single = count_blocks(shapes, "single_transformer_blocks.")
    return present(diffusers_body(double, single), shapes)


#: What a ControlNet has of its own, in diffusers' names.
CONTROLNET_OWN = {
    f"pos_embed_input.{kind}": Recipe((f"controlnet_x_embedder.{kind}",))
    for kind in WEIGHT_AND_BIAS
}


def diffusers_controlnet(shapes: Shapes) -> Recipes:
    """A diffusers ControlNet: the transformer's names and a few of its own."""
    same = (
        "controlnet_blocks.",
        "controlnet_single_blocks.",
        "controlnet_mode_embedder.",
        "input_hint_block.",
    )
    kept = {name: Recipe((name,)) for name in shapes if name.startswith(same)}
    return diffusers_transformer(shapes) | CONTROLNET_OWN | kept


def native(shapes: Shapes) -> Recipes:
    """The native layout; newer files call the scale of a norm its weight."""
    table: Recipes = {}
    for name in shapes:
        ours = name
        if name.endswith(("query_norm.weight", "key_norm.weight")):
            ours = name.removesuffix("weight") + "scale"
        table[ours] = Recipe((name,))
    return table


def t5(shapes: Shapes) -> Recipes:
    """T5's encoder, whose one embedding goes by two names."""
    table = native(shapes)
    twin = table.pop("encoder.embed_tokens.weight", None)
    if twin is not None:
        table.setdefault("shared.weight", twin)
    return table


def t5_stack(shapes: Shapes) -> Recipes:
    """T5's encoder without the model around it."""
    return {
        "shared.weight" if name == "embed_tokens.weight" else f"encoder.{name}": Recipe((name,))
        for name in shapes
    }


def clip_flat(shapes: Shapes) -> Recipes:
    """CLIP's text model as transformers 5.6 and later write it."""
    return {f"text_model.{name}": Recipe((name,)) for name in shapes}


#: OpenAI's names in a layer of CLIP.
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def openai_clip_layers(count: int) -> Recipes:
    """So many layers of CLIP's text model in OpenAI's names."""
    table: Recipes = {}
    for i in range(count):
        ours, theirs = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in WEIGHT_AND_BIAS:
            for mine, other in CLIP_LAYER.items():
                table[f"{ours}.{mine}.{kind}"] = Recipe((f"{theirs}.{other}.{kind}",))
            for n, member in enumerate("qkv"):
                table[f"{ours}.self_attn.{member}_proj.{kind}"] = Recipe(
                    (f"{theirs}.attn.in_proj_{kind}",), "third", n
                )
    return table


def openai_clip(shapes: Shapes) -> Recipes:
    """CLIP's text model in OpenAI's names."""
    table = openai_clip_layers(count_blocks(shapes, "transformer.resblocks."))
    table["text_model.embeddings.token_embedding.weight"] = Recipe(("token_embedding.weight",))
    table["text_model.embeddings.position_embedding.weight"] = Recipe(("positional_embedding",))
    for kind in WEIGHT_AND_BIAS:
        table[f"text_model.final_layer_norm.{kind}"] = Recipe((f"ln_final.{kind}",))
    return table


def vision_native(shapes: Shapes) -> Recipes:
    """A vision encoder, alone or in a whole CLIP or SigLIP, as ComfyUI and transformers have it."""
    prefix, projection = "vision_model.", "visual_projection.weight"
    table = {n.removeprefix(prefix): Recipe((n,)) for n in shapes if n.startswith(prefix)}
    if projection in shapes:
        table[projection] = Recipe((projection,))
    return table


#: The public spellings of what an IP-Adapter has beside its layers, and in them.
IP_ADAPTER_PARTS = (("ip_adapter_proj_model.", "image_proj."), ("image_proj.", "image_proj."))
IP_ADAPTER_LAYERS = (
    ("processor.ip_adapter_double_stream_k_proj.", "to_k."),
    ("processor.ip_adapter_double_stream_v_proj.", "to_v."),
    ("ip_adapter_double_stream_k_proj.", "to_k."),
    ("ip_adapter_double_stream_v_proj.", "to_v."),
    ("processor.to_k_ip.", "to_k."),
    ("processor.to_v_ip.", "to_v."),
    ("to_k_ip.", "to_k."),
    ("to_v_ip.", "to_v."),
)


def ip_adapter(shapes: Shapes) -> Recipes:
    """An IP-Adapter in XLabs' names, or as diffusers and converters call both kinds."""
    table: Recipes = {}
    for name in shapes:
        for theirs, ours in IP_ADAPTER_PARTS:
            if name.startswith(theirs):
                table[ours + name[len(theirs) :]] = Recipe((name,))
        owner, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if owner in ("double_blocks", "ip_adapter") and number.isdigit():
            for theirs, ours in IP_ADAPTER_LAYERS:
                if inner.startswith(theirs):
                    table[f"layers.{number}.{ours}{inner[len(theirs) :]}"] = Recipe((name,))
    return table


#: What a VAE may have around encoder and decoder, by where it is native.
VAE_AROUND = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}


def vae_around(shapes: Shapes) -> Recipes:
    """What a VAE has beside encoder and decoder: convolutions and statistics."""
    table: Recipes = {}
    for name in shapes:
        for theirs, ours in VAE_AROUND.items():
            if name.startswith((theirs, ours)):
                table[ours + name.removeprefix(ours).removeprefix(theirs)] = Recipe((name,))
        if name.startswith("bn."):
            table[name] = Recipe((name,))
    return table


def native_vae(shapes: Shapes) -> Recipes:
    """The autoencoder in its native names."""
    around = vae_around(shapes)
    outside = {name for recipe in around.values() for name in recipe.names}
    return {name: r for name, r in native(shapes).items() if name not in outside} | around


#: diffusers' names in the VAE's attention, newer and older.
VAE_ATTENTION = {
    "norm": ("group_norm",),
    "q": ("to_q", "query"),
    "k": ("to_k", "key"),
    "v": ("to_v", "value"),
    "proj_out": ("to_out.0", "proj_attn"),
}


def diffusers_vae(shapes: Shapes) -> Recipes:
    """The autoencoder in diffusers' names, whose decoder counts its levels from the coarsest."""
    levels = count_blocks(shapes, "encoder.down_blocks.")
    blocks = count_blocks(shapes, "encoder.down_blocks.0.resnets.")
    renamed: dict[str, str] = {}
    for side, ours, theirs, count in (
        ("encoder", "down", "down_blocks", blocks),
        ("decoder", "up", "up_blocks", blocks + 1),
    ):
        for i in range(levels):
            foreign = i if side == "encoder" else levels - 1 - i
            for j in range(count):
                renamed[f"{side}.{ours}.{i}.block.{j}"] = f"{side}.{theirs}.{foreign}.resnets.{j}"
            step = "downsample" if side == "encoder" else "upsample"
            renamed[f"{side}.{ours}.{i}.{step}"] = f"{side}.{theirs}.{foreign}.{step}rs.0"
        renamed[f"{side}.mid.block_1"] = f"{side}.mid_block.resnets.0"
        renamed[f"{side}.mid.block_2"] = f"{side}.mid_block.resnets.1"
        renamed[f"{side}.conv_in"] = f"{side}.conv_in"
        renamed[f"{side}.conv_out"] = f"{side}.conv_out"
        renamed[f"{side}.norm_out"] = f"{side}.conv_norm_out"
    table: Recipes = {}
    for ours, theirs in renamed.items():
        for name in shapes:
            if name.startswith(theirs + "."):
                rest = name[len(theirs) :].replace("conv_shortcut", "nin_shortcut")
                table[ours + rest] = Recipe((name,))
    for side in ("encoder", "decoder"):
        for ours, theirs in VAE_ATTENTION.items():
            for kind in WEIGHT_AND_BIAS:
                names = [f"{side}.mid_block.attentions.0.{name}.{kind}" for name in theirs]
                name = next((name for name in names if name in shapes), names[0])
                table[f"{side}.mid.attn_1.{ours}.{kind}"] = Recipe((name,))
    return table | vae_around(shapes)


def present(table: Recipes, shapes: Shapes) -> Recipes:
    """Without recipes of which the file holds nothing (no guidance in schnell, say)."""
    return {k: r for k, r in table.items() if any(name in shapes for name in r.names)}


def native_shapes(table: Recipes, shapes: Shapes) -> Shapes:
    """Native shapes of everything that the file makes; raises ``KeyError`` for a missing tensor."""
    return {name: recipe.shape(shapes) for name, recipe in table.items()}


#: Of all parts but transformers, whose families have theirs (``families``).
KEYMAPS = {
    ("controlnet", "native"): native,
    ("controlnet", "diffusers"): diffusers_controlnet,
    ("vae", "native"): native_vae,
    ("vae", "diffusers"): diffusers_vae,
    ("clip_l", "native"): native,
    ("clip_l", "transformers 5"): clip_flat,
    ("clip_l", "openai"): openai_clip,
    ("t5", "native"): t5,
    ("t5", "stack"): t5_stack,
    ("style_model", "native"): native,
    ("clip_vision", "native"): vision_native,
    ("clip_vision", "transformers 5"): native,
    ("ip_adapter", "XLabs"): ip_adapter,
    ("ip_adapter", "diffusers"): ip_adapter,
    ("language_model", "native"): native,
}

__all__ = ["KEYMAPS", "Recipe", "Recipes", "native_shapes"]
