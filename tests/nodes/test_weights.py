"""Weights that are opened once: what a changed widget reads, and when it is let go."""

from __future__ import annotations

import builtins
import gc
import os
import shutil
import time
import weakref
from dataclasses import dataclass

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, host, weights
from fluxfit.nodes.weights import OpenedByNode, Wanted, stamp

from flux_core import OffloadPolicy
from flux_core.pocket import POCKET

from .node_calls import defaults

UPSCALER = "fluxfit_pocket_upscaler.safetensors"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Model files that were opened, in order."""
    opened: list[str] = []
    real = builtins.open

    def counted(file, *args, **kwargs):
        if str(file).endswith(".safetensors"):
            opened.append(os.path.basename(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", counted)
    # what other tests have open is not to be found
    monkeypatch.setattr(weights, "_opened", weakref.WeakValueDictionary())
    return opened


@dataclass
class Node:
    """A node as the host has it: one object that is run again with other widgets."""

    name: str

    def __post_init__(self) -> None:
        self.node = NODE_CLASS_MAPPINGS[self.name]()

    def run(self, **inputs):
        return getattr(self.node, self.node.FUNCTION)(**defaults(self.name, **inputs))


@pytest.mark.parametrize(
    "changed",
    [
        {"policy": OffloadPolicy("stream")},
        {"policy": OffloadPolicy("auto", ram_budget=10**9)},
        {"compute": "dequantize"},
        {"compile": True},
    ],
    ids=str,
)
def test_a_widget_that_changes_no_weights_reads_none(changed, reads):
    loader = Node("FluxLoaderFP8")
    first = loader.run()
    modules = first[0].module, first[1].module, first[2].first_stage_model
    assert len(set(reads)) == 4
    reads.clear()
    del first  # the host drops them before it runs the node again
    model, texts, vae, *_ = loader.run(**changed)
    assert reads == []
    assert (model.module, texts.module, vae.first_stage_model) == modules


def test_another_precision_of_one_part_reads_that_part_alone(reads):
    loader = Node("FluxLoaderFP8")
    loader.run()
    reads.clear()
    loader.run(t5_precision="bf16")
    assert set(reads) == {"fluxfit_pocket_t5.safetensors"}


def test_two_nodes_share_weights(reads):
    first, second = Node("FluxLoaderFP8"), Node("FluxFitTransformerLoader")
    shared = first.run()[0].module
    reads.clear()
    assert second.run(policy=OffloadPolicy("stream"))[0].module is shared
    assert reads == []


def test_each_wire_computes_as_it_says():
    loader = Node("FluxFitTransformerLoader")
    dequantized = loader.run(precision="int8", compute="dequantize")[0]
    native = loader.run(precision="int8", compute="native")[0]
    assert dequantized.module is native.module
    layer = native.module.double_blocks[0].img_attn.qkv
    for model, compute in ((dequantized, "dequantize"), (native, "native")) * 2:
        assert model.transformer.double_blocks[0].img_attn.qkv is layer
        assert layer.compute == compute


def test_weights_that_nobody_asks_for_are_let_go():
    loader = Node("FluxFitTransformerLoader")
    module = weakref.ref(loader.run()[0].module)
    assert module() is not None  # the node holds them
    seen = []

    class Loading(OpenedByNode):
        def get(self, wanted):
            def opening(one):
                gc.collect()
                seen.append(module())
                return one.open()

            return super().get(
                {k: Wanted(one.key, lambda one=one: opening(one)) for k, one in wanted.items()}
            )

    loader.node.opened.__class__ = Loading
    loader.run(precision="int8")
    assert seen == [None], "they are gone before others are opened"
    last = weakref.ref(loader.run(precision="int8")[0].module)
    del loader
    gc.collect()
    assert last() is None


def test_a_file_that_was_replaced_is_opened_anew(tmp_path):
    source = POCKET / "vae" / "fluxfit_pocket_vae.safetensors"
    copy = tmp_path / source.name
    shutil.copy(source, copy)
    before = stamp(copy)
    assert stamp(copy) == before
    os.utime(copy, ns=(1, 1))
    assert stamp(copy) != before
    (tmp_path / "model.index.json").write_text("{}")
    shards = stamp(tmp_path / "model.index.json")
    os.utime(copy, ns=(2, 2))
    assert stamp(tmp_path / "model.index.json") != shards
    one, other = (tmp_path / f"m-0000{n}-of-00002.safetensors" for n in (1, 2))
    one.write_bytes(b"")
    other.write_bytes(b"")
    shards = stamp(one)  # which stands for both
    os.utime(other, ns=(3, 3))
    assert stamp(one) != shards


def test_a_controlnet_s_numbers_read_and_encode_nothing(reads, monkeypatch):
    *_, vae, _, _ = Node("FluxLoaderFP8").run()
    encoded = []
    real = type(vae).encode
    monkeypatch.setattr(
        type(vae), "encode", lambda self, image: encoded.append(1) or real(self, image)
    )
    node = Node("FluxFitControlNet")
    image = torch.rand(1, 32, 32, 3)
    given = {"vae": vae, "image": image, "controlnet": UPSCALER}
    (first,) = node.run(**given)[0]
    reads.clear()
    (second,) = node.run(**given, strength=0.3, end=0.5)[0]
    assert second.net is first.net and torch.equal(second.cond, first.cond)
    assert reads == [] and len(encoded) == 1
    node.run(**given | {"image": image / 2})
    assert len(encoded) == 2


def test_another_strength_of_a_lora_reads_nothing(reads, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
    (tmp_path / "loras").mkdir()
    key = "lora_unet_final_layer_linear"
    tensors = {
        f"{key}.lora_up.weight": torch.ones(64, 2),
        f"{key}.lora_down.weight": torch.ones(2, 256),
    }
    save_file(tensors, tmp_path / "loras" / "a.safetensors")
    model = Node("FluxFitTransformerLoader").run()[0]
    lora = Node("FluxFitLoraLoader")
    lora.run(model=model, lora="a.safetensors")
    reads.clear()
    changed = lora.run(model=model, lora="a.safetensors", strength=0.4)[0]
    assert reads == [] and changed.loras[0][1] == 0.4


@dataclass
class Host:
    """The host's own word on what it runs, and on memory."""

    prompt: host.RunningPrompt | None = None
    free: float = 1.0

    def runs(self, number: str, *node_types: str) -> None:
        self.prompt = host.RunningPrompt(number, {str(i): t for i, t in enumerate(node_types)})

    def ends(self) -> None:
        self.prompt = None
        for _ in range(500):
            if not weights._waiting:
                return
            time.sleep(0.01)


@pytest.fixture
def running(monkeypatch) -> Host:
    fake = Host()
    monkeypatch.setattr(host, "running_prompt", lambda: fake.prompt)
    monkeypatch.setattr(host, "free_share", lambda: fake.free)
    monkeypatch.setattr(weights, "LOOK", 0.01)
    monkeypatch.setattr(weights, "_waiting", {})
    return fake


class TestAnotherGraph:
    """What the nodes of a graph that is gone held."""

    def test_the_next_graph_finds_it(self, reads, running):
        loader = Node("FluxLoaderFP8")
        loader.run()
        reads.clear()
        running.runs("2", "FluxFitTransformerLoader", "KSampler")
        del loader
        other = Node("FluxFitTransformerLoader")
        module = other.run(precision="fp8_scaled")[0].module
        assert reads == []
        running.ends()
        assert weights._waiting == {}
        assert module is other.run(precision="fp8_scaled")[0].module and reads == []

    @pytest.mark.parametrize("after", ["nothing", "a graph without us", "a graph of others", "end"])
    def test_it_is_gone_where_nobody_asks(self, after, reads, running):
        loader = Node("FluxFitTransformerLoader")
        module = weakref.ref(loader.run()[0].module)
        if after == "a graph without us":
            running.runs("2", "CheckpointLoaderSimple", "FluxSampler")
        elif after != "nothing":
            running.runs("2", "FluxFitLoraLoader")
        del loader
        gc.collect()
        assert (module() is not None) == (after in ("a graph of others", "end"))
        if after == "a graph of others":
            running.runs("3", "FluxFitLoraLoader")
        else:
            running.prompt = None
        running_before = weights._waiting
        for _ in range(500):
            if not running_before:
                break
            time.sleep(0.01)
        gc.collect()
        assert module() is None

    def test_it_is_gone_before_memory_runs_short(self, reads, running):
        loader = Node("FluxFitTransformerLoader")
        module = weakref.ref(loader.run()[0].module)
        running.runs("2", "FluxFitTransformerLoader")
        running.free = 0.4
        del loader
        assert module() is not None
        Node("FluxFitTransformerLoader").run(precision="int8")
        gc.collect()
        assert module() is None

    def test_nodes_that_ask_are_known(self):
        asking = {
            name
            for name, node in NODE_CLASS_MAPPINGS.items()
            if any(isinstance(value, OpenedByNode) for value in vars(node()).values())
        }
        assert asking == weights.ASKING
