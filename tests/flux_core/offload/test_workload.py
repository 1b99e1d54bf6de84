"""Bytes that a training step takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flux_core import OffloadPolicy, load_lora, quantize
from flux_core.lora import lora_applied
from flux_core.models.compile import compile_blocks, compiled_forward
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.workload import transformer_bytes
from flux_core.quant import forget_matrices
from tests import flux2_models, tiny_models
from tests.flux_core.offload.training_step import Step


class Elsewhere:
    """Stands for ``OnHost`` where the CPU is the card: its copy is not counted."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.copy = tensor.detach().numpy().copy()

    def back(self) -> torch.Tensor:
        return torch.from_numpy(self.copy).clone()


@pytest.mark.parametrize("on_host", [False, True])
def test_predicted_bytes_are_what_a_step_takes(on_host, monkeypatch):
    """Tokens enough for activations to be most of it."""
    monkeypatch.setattr("flux_core.offload.gradient_checkpointing.OnHost", Elsewhere)
    step = Step("fp8_scaled", torch.float32)  # 16 bits are cast on some CPUs, which counts
    step.inputs = tiny_models.inputs(height=32, width=32, text=64)
    with step.lora.on(step.model):
        work = step.work(on_host)
        runner = OffloadRunner(OffloadPolicy("none", separate_memory=True), "cpu")
        with runner.hold("training", step.model, work=work):
            step.run()
            step.lora.zero_grad(set_to_none=True)
            with LiveBytes() as counted:
                step.run()
    gradients_seen = counted.peak - sum(p.nbytes for p in step.lora.parameters())  # their gradients
    assert abs(gradients_seen - work.activations) < 0.06 * gradients_seen


@pytest.mark.parametrize("kind", ["double_blocks", "single_blocks"])
def test_what_loras_take_is_counted_in_whatever_block_it_is(kind, tmp_path):
    """The block whose LoRAs are the largest need not be the one where they take the most."""
    small, wide = {
        "double_blocks": ("txt_attn.qkv", "img_mlp.0"),
        "single_blocks": ("linear2", "linear1"),
    }[kind]
    other = {"double_blocks": "depth_single_blocks", "single_blocks": "depth"}[kind]
    model = tiny_models.flux_transformer(replace(tiny_models.DEV, **{other: 0}))

    def size_with(*ranks: tuple[str, int]) -> int:
        file = {}
        for name, rank in ranks:
            layer = model.get_submodule(name)
            file[f"{name}.lora_A.weight"] = torch.zeros(rank, layer.in_features)
            file[f"{name}.lora_B.weight"] = torch.zeros(layer.out_features, rank)
        lora = load_lora(tiny_models.save(file, tmp_path / f"{len(file)}{ranks}.safetensors"))
        with lora_applied(model, [(lora, 1.0)]):
            return transformer_bytes(model, 256, 16, 1)

    most = size_with((f"{kind}.1.{wide}", 2))
    assert most > size_with((f"{kind}.0.{small}", 64))
    for first, second in ((0, 1), (1, 0)):
        both = (f"{kind}.{first}.{small}", 64), (f"{kind}.{second}.{wide}", 2)
        assert size_with(*both) == most


@pytest.mark.parametrize("alike", [True, False])
def test_counting_leaves_blocks_to_be_compiled(alike):
    """Blocks of two layouts are counted one after another, by one function of their class."""
    torch._dynamo.reset()
    compiled_forward.cache_clear()
    model = tiny_models.flux_transformer().requires_grad_(False)
    if not alike:
        quantize(model.double_blocks[1], "int8")
        quantize(model.single_blocks[1], "int8")
    counter = CompileCounter()
    compile_blocks(model, counter)  # type: ignore[arg-type]
    try:
        transformer_bytes(model, 64, 16, 1)
        with torch.no_grad():
            model(**tiny_models.inputs(height=16, width=16, text=16))
        assert counter.frame_count >= 2
    finally:
        compile_blocks(model, "")
        torch._dynamo.reset()


@pytest.mark.parametrize("make", [flux2_models.transformer, tiny_models.flux_transformer])
def test_what_int8_rotates_by_is_counted_for_every_model(make):
    """It stays on a card from the first product on, whichever model that was of."""
    models = [quantize(make().bfloat16(), "int8") for _ in range(2)]
    sizes = {transformer_bytes(model, 64, 16, 1) for model in models}
    assert len(sizes) == 1
    tokens = {"img": 64, "txt": 16}
    inputs = {
        name: torch.randn(1, tokens.get(name[:3], 1), *value.shape[2:])
        for name, value in models[0].meta_inputs(64, 16, 1).items()
        if name in tokens
    }
    axes = len(models[0].axes_dim)
    inputs |= {f"{name}_ids": torch.zeros(count, axes) for name, count in tokens.items()}
    width = models[0].config.vec_in_dim
    inputs |= {"timesteps": torch.ones(1), "y": torch.zeros(1, width), "guidance": torch.ones(1)}
    forget_matrices("cpu")
    with torch.no_grad(), LiveBytes() as counted:
        models[0](**inputs)
    (predicted,) = sizes
    assert abs(counted.peak - predicted) < 0.05 * counted.peak
