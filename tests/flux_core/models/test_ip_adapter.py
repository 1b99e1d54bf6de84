"""IP-Adapters against diffusers' (XLabs) and against the formulas of InstantX's public code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flux_core import CheckpointError, FluxTransformer, load_ip_adapter, load_transformer
from flux_core.models.ip_adapter import IPAdapter
from flux_core.models.layers import apply_rotary, rotary_table
from flux_core.models.patches import DOUBLE, SINGLE
from flux_core.sampling.adapters import PlacedAdapter, PlacedAdapters
from tests import adapter_files, tiny_chroma, tiny_models

HEADS = tiny_models.HEADS


def embeds(width: int, count: int = 1, seed: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def placed(adapter: IPAdapter, vectors: Tensor, scale: float, inputs: dict) -> PlacedAdapter:
    """An adapter on tokens of these inputs."""
    keys, values = adapter(vectors)
    image, text = inputs["img"].shape[1], inputs["txt"].shape[1]
    scales = {DOUBLE: torch.full((1, image, 1), scale)}
    if adapter.config.wide:
        scales[SINGLE] = torch.full((1, text + image, 1), scale)
    return PlacedAdapter(keys, values, scales, adapter.config.wide, tiny_models.DEV.depth)


@pytest.fixture
def xlabs(tmp_path) -> IPAdapter:
    path = tiny_models.save(adapter_files.xlabs(), tmp_path / "xlabs.safetensors")
    return load_ip_adapter(path, precision="fp32")


@pytest.fixture
def instantx(tmp_path) -> IPAdapter:
    path = tiny_models.save(adapter_files.instantx(), tmp_path / "instantx.safetensors")
    return load_ip_adapter(path, precision="fp32")


def as_diffusers(file: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """XLabs' file as diffusers' pipeline hands it to its transformer."""
    result: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in file.items():
        first, _, rest = name.partition(".")
        if first == "ip_adapter_proj_model":
            result["image_proj"][rest] = tensor
        else:
            rest = rest.replace("processor.ip_adapter_double_stream_", "")
            rest = rest.replace("k_proj", "to_k_ip").replace("v_proj", "to_v_ip")
            result["ip_adapter"][rest] = tensor
    return result


#: Families with FLUX.1's blocks: modules with their tiny models, ours and diffusers'.
KIN = (tiny_models, tiny_chroma)


def new_model(kin: Any) -> FluxTransformer:
    return tiny_chroma.chroma_transformer() if kin is tiny_chroma else kin.flux_transformer()


@torch.no_grad()
@pytest.mark.parametrize("kin", KIN)
def test_two_of_xlabs_kind_equal_diffusers(kin, tmp_path, xlabs):
    files = [adapter_files.xlabs(), adapter_files.xlabs(seed=9)]
    other = load_ip_adapter(
        tiny_models.save(files[1], tmp_path / "other.safetensors"), precision="fp32"
    )
    theirs = kin.diffusers_transformer()
    path = tiny_models.save(theirs.state_dict(), tmp_path / "transformer.safetensors")
    ours = load_transformer(path, precision="fp32")
    theirs._load_ip_adapter_weights([as_diffusers(file) for file in files])
    vectors, scales = [embeds(adapter_files.EMBED, seed=n) for n in (8, 9)], [0.7, -0.4]
    for processor in theirs.attn_processors.values():
        processor.scale = scales
    inputs = kin.inputs(batch=1)
    plain = ours(**inputs)
    adapters = [
        placed(adapter, vector, scale, inputs)
        for adapter, vector, scale in zip((xlabs, other), vectors, scales, strict=True)
    ]
    expected = theirs(
        **kin.to_diffusers(inputs),
        joint_attention_kwargs={"ip_adapter_image_embeds": [v[None] for v in vectors]},
    ).sample
    actual = ours(**inputs, adapters=PlacedAdapters(adapters))
    assert tiny_models.relative(actual, expected) < 1e-5
    assert tiny_models.relative(actual, plain) > 1e-2


def norm(x: Tensor, scale: Tensor | float = 1.0, eps: float = 1e-6) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * scale


def heads(x: Tensor) -> Tensor:
    """(B, L, H * d) to (B, H, L, d)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of (B, H, L, d), to (B, L, H * d)."""
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class InstantX:
    """What InstantX's code does to FLUX.1's blocks, written once more over our weights."""

    def __init__(self, model: FluxTransformer, file: dict, vectors: Tensor, scale: float) -> None:
        self.model, self.file, self.scale = model, file, scale
        hidden = F.linear(vectors, file["image_proj.proj.0.weight"], file["image_proj.proj.0.bias"])
        tokens = F.linear(
            F.gelu(hidden), file["image_proj.proj.2.weight"], file["image_proj.proj.2.bias"]
        )
        tokens = tokens.reshape(-1, tiny_models.CONTEXT)[None]
        weight, bias = (file[f"image_proj.norm.{kind}"] for kind in ("weight", "bias"))
        self.tokens = F.layer_norm(tokens, (tiny_models.CONTEXT,), weight, bias)

    def added(self, number: int, q: Tensor) -> Tensor:
        """What layer ``number`` adds for queries (B, H, L, d), (B, L, H * d)."""
        k, v = (self.tokens @ self.file[f"ip_adapter.{number}.to_{x}_ip.weight"].T for x in "kv")
        return self.scale * softmax_attention(q, norm(heads(k), eps=1e-5), heads(v))

    def qkv(self, projected: Tensor, qk: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (heads(x) for x in projected.chunk(3, dim=-1))
        return norm(q, qk.query_norm.scale), norm(k, qk.key_norm.scale), v

    def rotated(self, x: Tensor) -> Tensor:
        return apply_rotary(x.transpose(1, 2), self.rotary).transpose(1, 2)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax_attention(self.rotated(q), self.rotated(k), v)

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        model = self.model
        vec = model.modulation_state(
            inputs["timesteps"], inputs["y"], inputs["guidance"], still=False
        )
        img, txt = model.img_in(inputs["img"]), model.txt_in(inputs["txt"])
        ids = torch.cat([inputs["txt_ids"], inputs["img_ids"]])
        self.rotary = rotary_table(ids, model.axes_dim, model.theta)
        start, number = txt.shape[1], 0
        for block in model.double_blocks:
            i1, i2, t1, t2 = model.modulations(block, vec)
            ours = self.qkv(block.img_attn.qkv(i1.modulate(img)), block.img_attn.norm)
            texts = self.qkv(block.txt_attn.qkv(t1.modulate(txt)), block.txt_attn.norm)
            joint = self.attention(
                *(torch.cat(two, dim=2) for two in zip(texts, ours, strict=True))
            )
            image_out = joint[:, start:] + self.added(number, ours[0])
            img = img + i1.gate * block.img_attn.proj(image_out)
            img = img + i2.gate * block.img_mlp(i2.modulate(img))
            txt = txt + t1.gate * block.txt_attn.proj(joint[:, :start])
            txt = txt + t2.gate * block.txt_mlp(t2.modulate(txt))
            number += 1
        x = torch.cat([txt, img], dim=1)
        for block in model.single_blocks:
            (mod,) = model.modulations(block, vec)
            projected = block.linear1(mod.modulate(x))
            q, k, v = self.qkv(projected[..., : 3 * tiny_models.HIDDEN], block.norm)
            out = self.attention(q, k, v) + self.added(number, q)
            rest = F.gelu(projected[..., 3 * tiny_models.HIDDEN :], approximate="tanh")
            x = x + mod.gate * block.linear2(torch.cat([out, rest], dim=-1))
            number += 1
        return model.final_layer(x[:, start:], vec)


@torch.no_grad()
@pytest.mark.parametrize("kin", KIN)
def test_instantx_kind_equals_its_formulas(kin, instantx):
    model = new_model(kin)
    inputs = kin.inputs(batch=2)
    vectors = embeds(adapter_files.SIGLIP_EMBED, count=2)
    expected = InstantX(model, adapter_files.instantx(), vectors, 0.6)(inputs)
    adapters = PlacedAdapters([placed(instantx, vectors, 0.6, inputs)])
    actual = model(**inputs, adapters=adapters)
    assert tiny_models.relative(actual, expected) < 1e-5
    assert tiny_models.relative(actual, model(**inputs)) > 1e-2


@torch.no_grad()
def test_a_scale_of_zero_changes_nothing(instantx, xlabs):
    model, inputs = tiny_models.flux_transformer(), tiny_models.inputs()
    vectors = (embeds(adapter_files.SIGLIP_EMBED), embeds(adapter_files.EMBED))
    adapters = [
        placed(adapter, vector, 0.0, inputs)
        for adapter, vector in zip((instantx, xlabs), vectors, strict=True)
    ]
    silent = model(**inputs, adapters=PlacedAdapters(adapters))
    assert tiny_models.relative(silent, model(**inputs)) < 1e-6


@torch.no_grad()
def test_compiled_blocks_take_other_weights_without_compiling(instantx):
    from flux_core import compile_blocks

    model, inputs = tiny_models.flux_transformer(), tiny_models.inputs(batch=1)
    vectors = embeds(adapter_files.SIGLIP_EMBED)
    expected = [
        model(**inputs, adapters=PlacedAdapters([placed(instantx, vectors, scale, inputs)]))
        for scale in (0.0, 0.3, 0.9)
    ]
    compile_blocks(model, "eager")
    torch._dynamo.reset()
    for scale, eager in zip((0.0, 0.3, 0.9), expected, strict=True):
        with torch._dynamo.config.patch(error_on_recompile=scale > 0):
            adapters = PlacedAdapters([placed(instantx, vectors, scale, inputs)])
            actual = model(**inputs, adapters=adapters)
        assert tiny_models.relative(actual, eager) < 1e-5


class TestFiles:
    def test_spellings_of_both_kinds_are_one(self, tmp_path, xlabs, instantx):
        spelled = {}
        for name, tensor in adapter_files.xlabs().items():
            name = name.replace("ip_adapter_proj_model", "image_proj").replace("processor.", "")
            name = name.replace("double_blocks", "ip_adapter")
            name = name.replace("ip_adapter_double_stream_k_proj", "to_k_ip")
            spelled[name.replace("ip_adapter_double_stream_v_proj", "to_v_ip")] = tensor
        path = tiny_models.save(spelled, tmp_path / "spelled.safetensors")
        other = load_ip_adapter(path, precision="fp32")
        assert other.config == xlabs.config and not other.config.wide
        assert all(
            torch.equal(a, b) for a, b in zip(other.parameters(), xlabs.parameters(), strict=True)
        )
        assert instantx.config.wide and not instantx.config.bias
        assert instantx.config.tokens == adapter_files.WIDE_TOKENS
        assert replace(xlabs.config, tokens=16).tokens == 16

    @pytest.mark.parametrize("precision", ["bf16", "fp8_scaled", "fp8_e4m3fn", "int8"])
    def test_every_precision_is_near(self, tmp_path, instantx, precision):
        path = tmp_path / "instantx.safetensors"
        vectors = embeds(adapter_files.SIGLIP_EMBED)
        near = load_ip_adapter(path, precision=precision)
        for a, b in zip(near(vectors), instantx(vectors), strict=True):
            assert tiny_models.relative(a, b) < 0.12
        if precision != "bf16":
            small = sum(t.nbytes for t in (*near.parameters(), *near.buffers()))
            assert small < 0.4 * sum(t.nbytes for t in instantx.parameters())

    def test_wrong_files_are_refused_in_a_line(self, tmp_path):
        missing = adapter_files.xlabs()
        del missing["double_blocks.1.processor.ip_adapter_double_stream_v_proj.weight"]
        odd = adapter_files.xlabs()
        odd["ip_adapter_proj_model.proj.weight"] = torch.zeros(50, adapter_files.EMBED)
        nan = adapter_files.instantx()
        nan["ip_adapter.2.to_k_ip.weight"][0, 0] = torch.nan
        for name, file, message in (
            ("missing", missing, "lacks 1 of .*layers.1.to_v.weight"),
            ("odd", odd, "50 rows, expected a multiple of 48"),
            ("nan", nan, "ip_adapter.2.to_k_ip.weight"),
            ("redux", adapter_files.redux(), "expected an IP-Adapter, found a FLUX.1 Redux model"),
        ):
            path = tiny_models.save(file, tmp_path / f"{name}.safetensors")
            with pytest.raises(CheckpointError, match=message) as raised:
                load_ip_adapter(path)
            assert "\n" not in str(raised.value) and name in str(raised.value)

    def test_a_pickle_is_not_opened(self, tmp_path):
        path = tmp_path / "ip-adapter.bin"
        torch.save({"image_proj": {}, "ip_adapter": {}}, path)
        with pytest.raises(CheckpointError, match="safetensors"):
            load_ip_adapter(path)
