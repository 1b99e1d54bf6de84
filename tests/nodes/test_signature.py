"""Nodes are told from each other by what decides their values, and used again where that is so."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from fluxfit.nodes import headless
from fluxfit.nodes.headless import GraphRunner, WorkflowError, signatures

from flux_core.pocket import POCKET
from flux_core.receipts import Receipt, pixels_hash, read_png_texts

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
SMALL = {"FluxSampler": {"steps": 1}, "EmptySD3LatentImage": {"width": 64, "height": 64}}


def graph(name: str = "text_to_image", **values: object) -> headless.Graph:
    """A workflow, small, with other values: ``FluxSampler__seed=3``."""
    data = json.loads((API / f"{name}.json").read_text())
    for item in data.values():
        item["inputs"] |= SMALL.get(item["class_type"], {})
        for key, value in values.items():
            class_type, name = key.split("__")
            if item["class_type"] == class_type:
                item["inputs"][name] = value
    return headless.from_api(data)


def signature(graph: headless.Graph) -> str:
    """That of the node that saves."""
    headless.check(graph)
    (node,) = headless.saving_nodes(graph)
    return signatures(graph, [node])[node]


def test_what_decides_a_picture_changes_the_signature():
    changes = [
        {},
        {"FluxSampler__seed": 8},
        {"FluxSampler__cfg": 1.0},
        {"EmptySD3LatentImage__width": 128},
        {"FluxTextEncode__prompt": "a red square"},
        {"FluxLoaderFP8__transformer_precision": "int8"},
        {"OffloadPolicy__devices": "cpu"},  # pictures of a batch one by one
    ]
    assert len({signature(graph(**change)) for change in changes}) == len(changes)


def test_what_changes_no_picture_does_not():
    plain = signature(graph())
    assert signature(graph(SaveImage__filename_prefix="elsewhere")) == plain
    assert signature(graph(OffloadPolicy__mode="stream", OffloadPolicy__devices=" ")) == plain
    unsaid = graph()
    (loader,) = (step for step in unsaid.values() if step.type == "FluxLoaderFP8")
    del loader.inputs["policy"]
    assert signature(unsaid) == plain
    assert signature(graph(OffloadPolicy__devices="cpu")) == signature(
        graph(OffloadPolicy__devices="cpu,cpu:1", OffloadPolicy__mode="stream")
    )
    assert signature(graph(FluxSampler__seed="7", FluxSampler__cfg="2.5")) == plain
    renumbered = json.loads(
        json.dumps(headless.to_api(graph())).replace('["', '["n').replace('{"', '{"n', 1)
    )
    moved = {f"n{key.removeprefix('n')}": item for key, item in renumbered.items()}
    assert signature(headless.from_api(moved)) == plain


def test_the_policy_changes_no_picture():
    data = headless.to_api(graph())
    (loader,) = [key for key, item in data.items() if item["class_type"] == "FluxLoaderFP8"]
    data["90"] = {"class_type": "OffloadPolicy", "inputs": {"mode": "stream"}}
    data[loader]["inputs"]["policy"] = ["90", 0]
    assert signature(headless.from_api(data)) == signature(graph())


def test_a_file_that_was_changed_under_its_name_is_another(tmp_path, monkeypatch):
    models = tmp_path / "models"
    shutil.copytree(POCKET / "vae", models / "vae")
    (vae,) = (models / "vae").glob("*.safetensors")
    vae = vae.rename(vae.with_name("mine.safetensors"))
    monkeypatch.setenv("FLUXFIT_MODELS", str(models))
    pocket = signature(graph())
    assert signature(graph(FluxLoaderFP8__vae="mine.safetensors")) == pocket  # of its content
    vae.write_bytes(vae.read_bytes()[:-1] + b"\1")
    assert signature(graph(FluxLoaderFP8__vae="mine.safetensors")) != pocket


def test_pictures_are_files_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    data = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    with pytest.raises(WorkflowError, match=r"node 1 \(LoadImage\): 'image': no picture 'a.png'"):
        signature(headless.from_api(data))
    (tmp_path / "input" / "a.png").write_bytes(b"one")
    before = signature(headless.from_api(data))
    (tmp_path / "input" / "a.png").write_bytes(b"another")
    assert signature(headless.from_api(data)) != before


def test_nodes_run_once_for_graphs_that_share_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner, ran = GraphRunner(), Counter[str]()
    pictures = [
        runner.images(graph(**change), lambda step: ran.update([step.type]))[0]
        for change in (
            {},
            {"FluxSampler__seed": 8},
            {"FluxSampler__seed": 8, "FluxTextEncode__prompt": "a red square"},
            {},
        )
    ]
    assert ran["FluxLoaderFP8"] == 1 and ran["VAEDecode"] == ran["FluxSampler"] == 4
    # the third graph has one text in both of its prompts
    assert ran["FluxTextEncode"] == 5
    alone = GraphRunner().images(graph())[0]
    hashes = [picture.receipt.pixels for picture in pictures]
    assert hashes[0] == hashes[3] == alone.receipt.pixels and len(set(hashes)) == 3
    drawn = [entry for entry in pictures[1].receipt.did if entry["kind"] == "draw"]
    assert [entry["seed"] for entry in drawn] == [8]
    assert not (tmp_path / "output").exists()


def test_a_saved_picture_carries_graph_and_receipt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = headless.run(graph())
    (path,) = headless.saved_images(results)
    pixels, texts = read_png_texts(path)
    receipt = Receipt.parse(texts["fluxfit"])
    assert receipt.pixels == pixels_hash(pixels)
    assert json.loads(texts["prompt"]) == headless.to_api(graph())
    assert {entry["kind"] for entry in receipt.did} == {"encode", "draw", "ran", "decode"}
    assert len(receipt.files) == 4 and all(len(f["sha256"]) == 64 for f in receipt.files.values())
