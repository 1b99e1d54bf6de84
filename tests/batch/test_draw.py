"""Jobs drawn by the pocket model: the bits that they have alone, and what is read for them."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from fluxfit.batch.draw import Drawer, picture_name
from fluxfit.batch.jobs import Job
from fluxfit.batch.workers import attempt
from fluxfit.nodes import headless
from fluxfit.nodes.headless import KNOWN_NODES, from_api

from flux_core.receipts import Receipt, pixels_hash, read_png_texts

from .fake_batch import api_graph, draw_batch, entries, pictures

PRECISIONS, PROMPTS = ("bf16", "fp16"), ("a red circle", "a green square")
MAPPING = {"precision": "2.transformer_precision", "prompt": "3.prompt"}


@pytest.fixture(scope="module")
def opened():
    """A runner that keeps the weights open, which others then share."""
    runner = headless.GraphRunner()
    runner.images(from_api(api_graph()))
    return runner


@pytest.fixture
def calls(monkeypatch):
    """How often nodes of each kind run."""
    counts: Counter[str] = Counter()
    for kind in ("FluxLoaderFP8", "FluxTextEncode", "FluxSampler"):
        node = KNOWN_NODES[kind]
        original = getattr(node, node.FUNCTION)

        def counted(self, *args, kind=kind, original=original, **kwargs):
            counts[kind] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(node, node.FUNCTION, counted)
    return counts


def test_models_and_prompts_are_read_as_rarely_as_possible(calls, tmp_path):
    rows = list(itertools.product((1, 2), PROMPTS, PRECISIONS))  # the worst order
    table = "seed,prompt,precision\n" + "".join(f"{s},{p},{w}\n" for s, p, w in rows)
    drawer = Drawer(api_graph())
    summary = draw_batch(tmp_path, drawer, table=table, mapping=MAPPING)  # type: ignore[arg-type]
    assert summary.drawn == calls["FluxSampler"] == 8
    assert calls["FluxLoaderFP8"] == 2
    assert calls["FluxTextEncode"] == 2 * (2 + 1)  # with each model both prompts, and no prompt
    drawn = entries(tmp_path)
    assert len({entry["pixels"][0] for entry in drawn}) == 8
    for entry in (drawn[2], drawn[-1]):
        data, values = api_graph(), entry["values"]
        data["6"]["inputs"]["seed"] = values["seed"]
        data["3"]["inputs"]["prompt"] = values["prompt"]
        data["2"]["inputs"]["transformer_precision"] = values["precision"]
        (alone,) = headless.GraphRunner().images(from_api(data))
        assert entry["pixels"] == [alone.receipt.pixels]


def test_a_picture_says_which_job_it_is(tmp_path, opened):
    draw_batch(tmp_path, Drawer(api_graph()), grid=("seed=1",))  # type: ignore[arg-type]
    (path,) = (tmp_path / "out").rglob("*.png")
    pixels, texts = read_png_texts(path)
    receipt = Receipt.parse(texts["fluxfit"])
    assert receipt.job == {"id": path.stem, "values": {"6.seed": 1}}
    assert receipt.pixels == pixels_hash(pixels) == entries(tmp_path)[0]["pixels"][0]
    assert json.loads(texts["prompt"])["6"]["inputs"]["seed"] == 1


def test_private_pictures_have_no_word_of_their_prompts(opened):
    job = Job(24 * "a", 1, {"3.prompt": "a secret"})
    (drawn,) = Drawer(api_graph(), private=True).draw(job)
    assert drawn.content is not None and b"secret" not in drawn.content
    assert b"prompt" not in drawn.content


def test_a_job_may_have_several_pictures(tmp_path, opened):
    data = api_graph()
    data["5"]["inputs"]["batch_size"] = 2
    data["9"] = {"class_type": "SaveImage", "inputs": dict(data["8"]["inputs"])}
    draw_batch(tmp_path, Drawer(data), graph=data, grid=("seed=1",))  # type: ignore[arg-type]
    (entry,) = entries(tmp_path)
    names = [f"{entry['job']}_{node}_{index}.png" for node in (8, 9) for index in (0, 1)]
    assert [name.rpartition("/")[2] for name in entry["files"]] == names
    assert sorted(pictures(tmp_path)) == sorted(names)
    assert entry["pixels"][:2] == entry["pixels"][2:] and len(set(entry["pixels"])) == 2


def test_what_a_node_refuses_is_not_worth_another_try():
    drawer = Drawer(api_graph())
    result = attempt(drawer, Job(24 * "a", 1, {"6.sampler": "oiler"}), "local")
    assert result.error is not None and "node 6 (FluxSampler): 'sampler'" in result.error
    assert not result.retryable and not result.drawn


@pytest.mark.parametrize("node", ["/../../../../a", "..\\..\\a", "a/b", "12:3"])
def test_pictures_stay_in_their_folder_whatever_nodes_are_called(node):
    name = picture_name("a" * 24, node, 1, 2)
    assert name.startswith("a" * 24 + "_") and name.endswith("_1.png")
    assert not set(name) & set("/\\:")
