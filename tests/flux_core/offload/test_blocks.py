"""Offloading asks; it knows no class of models, blocks, layers or LoRAs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flux_core import OffloadPolicy
from flux_core.offload import OffloadRunner, Work
from flux_core.offload.modulations import PrecomputedModulations
from flux_core.offload.plan import cost_of
from flux_core.offload.workload import sampling_work, training_work

CPU = torch.device("cpu")
OFFLOAD = Path(__file__).resolve().parents[3] / "flux_core" / "offload"


class Precomputed(nn.Module):
    """A layer of the new kind whose output is known before a run."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.lin = nn.Linear(width, width)

    def raw(self, vec: Tensor) -> Tensor:
        return self.lin(vec)

    def forward(self, vec: Tensor) -> Tensor:
        return self.raw(vec)


class GatedBlock(nn.Module):
    """A kind of block that nobody has seen: three products, and a gate made of a vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.scale = Precomputed(width)

    def modulation_layers(self) -> list[nn.Module]:
        return [self.scale]

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        weights = sum(layer.weight.numel() for layer in (self.up, self.gate, self.down))
        return 2.0 * weights * image_tokens, 0.0

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x + scale * self.down(self.up(x) * self.gate(x).sigmoid())


class NewModel(nn.Module):
    part = "transformer"

    def __init__(self, width: int = 64, depth: int = 6) -> None:
        super().__init__()
        self.width, self.precomputed = width, None
        self.first = nn.Linear(width, width)
        self.layers = nn.ModuleList(GatedBlock(width) for _ in range(depth))

    def offload_blocks(self) -> list[nn.Module]:
        return list(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.first.weight.dtype

    def meta_inputs(self, image_tokens: int, text_tokens: int, batch: int) -> dict[str, Tensor]:
        x = torch.empty(batch, image_tokens + text_tokens, self.width, device="meta")
        return {"x": x, "vec": torch.empty(batch, self.width, device="meta")}

    def block_input_bytes(self, image_tokens: int, text_tokens: int, batch: int) -> int:
        return 4 * batch * (image_tokens + text_tokens) * self.width

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.layers:
            scale = (
                block.scale(vec) if self.precomputed is None else self.precomputed.of(block.scale)
            )
            x = block(x, scale if x.ndim == 2 else scale[:, None])
        return x


@pytest.fixture
def model() -> NewModel:
    torch.manual_seed(0)
    return NewModel().requires_grad_(False)


@pytest.mark.parametrize("mode", ["none", "component", "stream", "auto"])
def test_a_new_kind_of_block_is_planned_and_streamed_with_the_same_bits(model, mode):
    x, vec = torch.randn(3, 64), torch.randn(3, 64)
    expected = model(x, vec)
    cost = cost_of(model)
    budget = cost.all_blocks - 2 * cost.largest if mode == "auto" else None
    runner = OffloadRunner(OffloadPolicy(mode, vram_budget=budget, separate_memory=True), CPU)
    for _ in range(2):
        result = runner.run("new", [model], lambda _: model(x, vec), Work(image_tokens=3))
        assert torch.equal(result, expected)
    part = runner.report.parts["new"]
    assert bool(part.streamed) == (mode in ("stream", "auto"))
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_what_it_computes_before_a_run_is_precomputed(model):
    vecs = {(sigma, "positive"): torch.randn(2, 64) for sigma in (1.0, 0.5)}
    precomputed = PrecomputedModulations(model, vecs)
    for key, vec in vecs.items():
        assert precomputed.select(key)
        for block in model.layers:
            assert torch.allclose(precomputed.of(block.scale), block.scale(vec), atol=1e-6)
    assert not precomputed.select((0.25, "positive"))


def test_its_cost_is_what_it_says(model):
    cost = cost_of(model, image_tokens=100)
    assert len(cost.blocks) == 6 and len(set(cost.blocks)) == 1
    assert cost.modulations == 6 * 4 * (64 * 64 + 64)
    assert cost.seconds[0] > 0
    assert cost_of(model, image_tokens=200).seconds[0] == pytest.approx(2 * cost.seconds[0])


def test_a_model_that_says_nothing_has_no_blocks():
    cost = cost_of(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    assert not cost.blocks and cost.rest and not cost.modulations


def core_imports(path: Path) -> set[str]:
    """What a file of offload/ takes from other folders of the core, as ``folder.module.name``."""
    taken: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            taken |= {f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            taken |= {alias.name for alias in node.names if alias.name.startswith("flux_core")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flux_core"):
            taken.add(str(node.module))
    return taken


@pytest.mark.parametrize("path", sorted(OFFLOAD.glob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_taken_from_models_or_loras(path):
    """Three functions of quant/, how numbers are checked and read, and what notes are all that
    offload/ imports; for the rest it asks."""
    allowed = {"quant.kernels_used", "quant.set_compute", "quant.forget_matrices"}
    allowed |= {"bounds.check_number", "bounds.brief", "units.readable_bytes"}
    allowed |= {"record.note", "record.read_from"}
    assert core_imports(path) <= allowed


def test_the_bytes_of_a_run_are_counted_of_what_a_model_says():
    """A transformer of other blocks and other inputs than FLUX.1's."""
    model = NewModel(width=32, depth=5).requires_grad_(False)
    tokens = {"image_tokens": 7, "text_tokens": 3, "batch": 2}
    few, many = (sampling_work(model, **tokens, vectors=v).activations for v in (1, 4))
    assert many - few == 3 * 2 * 5 * 32 * 4  # of five blocks, two pictures, a vector more
    larger = sampling_work(model, **tokens | {"image_tokens": 70}, vectors=1)
    assert larger.activations > few
    for layer in model.modules():
        if isinstance(layer, Precomputed):
            layer.requires_grad_(True)
    kept, back = (
        training_work(model, **tokens, on_host=on_host, kept=100).activations
        for on_host in (False, True)
    )
    assert kept - back == 5 * model.block_input_bytes(**tokens)
