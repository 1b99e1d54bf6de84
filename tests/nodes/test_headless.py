"""The headless runner: both formats, and everything that can be wrong with a graph."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless
from fluxfit.nodes.headless import WorkflowError
from fluxfit.nodes.headless.graph import PREFIXED
from fluxfit.nodes.headless.page import NOTES
from PIL import Image

from tests.host.small_models import small, write_small_models

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
POCKET = (
    "text_to_image",
    "swap_the_loader",
    "image_to_image",
    "upscale",
    "compare_precisions",
    "train_lora",
    "batch_table",
    "regions",
    "hires_fix",
    "large_picture",
    "inpaint_crop_stitch",
    "reference_edit",
    "redux_variation",
    "nag",
    "guidance_options",
    "lora_control",
    "soft_inpaint",
)
#: Those that draw something else than a picture of the pocket model's own size.
OTHER_SIZES = {
    "compare_precisions",
    "train_lora",
    "batch_table",
    "hires_fix",
    "large_picture",
    "lora_control",
    "soft_inpaint",
}
#: What makes a graph quick and leaves it what it is.
FEW_STEPS = {
    "FluxSampler": {"steps": 2},
    "KSampler": {"steps": 2},
    "FluxFitCalibrate": {"steps": 2},
    "FluxFitHiresFix": {"steps": 1, "second_steps": 1},
    "FluxFitTrainSettings": {"steps": 2, "batch": 1},
    "FluxFitTrainLora": {"sample_steps": 1},
    "FluxFitTable": {"table": "(none)", "grid": "seed=1..2", "mapping": ""},
}
NEED_FILES = (
    "flux1_dev_fp8_offload",
    "flux1_dev_upscaler_fp8",
    "flux1_dev_lora",
    "flux1_dev_controlnet_union",
    "flux1_dev_gguf",
    "flux1_fill_inpaint",
    "flux1_kontext_edit",
    "flux1_canny",
    "flux1_redux_variation",
    "flux1_ip_adapter",
    "chroma_text_to_image",
    "flux2_klein_text_to_image",
    "flux2_klein_edit",
)


@pytest.fixture
def api() -> dict:
    return json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text())


@pytest.fixture
def page() -> dict:
    return json.loads((ROOT / "workflows" / "text_to_image.json").read_text())


@pytest.fixture(scope="module")
def small_files(tmp_path_factory) -> Path:
    """A folder with models and an input picture under the names that graphs ask for."""
    folder = tmp_path_factory.mktemp("small")
    write_small_models(folder / "models", folder / "input")
    return folder


def node(api: dict, class_type: str) -> dict:
    return next(item for item in api.values() if item["class_type"] == class_type)


def drawn_quickly(name: str) -> list[Path]:
    """The pictures that a shipped graph for the pocket model writes in few steps."""
    graph = headless.read_workflow(ROOT / "workflows" / name)
    for step in graph.values():
        step.inputs |= FEW_STEPS.get(step.type, {})
    return headless.saved_images(headless.run(graph))


def refused(data: dict, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        headless.check(headless.parse(data))


class TestWorkflowFiles:
    def test_each_use_has_one(self):
        assert {p.stem for p in WORKFLOWS} == {*POCKET, *NEED_FILES}

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
    def test_both_formats_describe_one_graph(self, path):
        ui = headless.read_workflow(path)
        prompt = headless.read_workflow(path.parent / "api" / path.name)
        assert ui.keys() == prompt.keys()
        for key, step in ui.items():
            assert (step.type, step.inputs) == (prompt[key].type, prompt[key].inputs)

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
    def test_links_and_widgets_fit_the_nodes(self, path):
        data = json.loads(path.read_text())
        nodes = {n["id"]: n for n in data["nodes"]}
        assert data["last_node_id"] == max(nodes)
        assert data["last_link_id"] == len(data["links"])
        for number, source, slot, target, place, kind in data["links"]:
            assert number in nodes[source]["outputs"][slot]["links"]
            assert nodes[target]["inputs"][place]["link"] == number
            assert nodes[source]["outputs"][slot]["type"] == kind
            assert nodes[target]["inputs"][place]["type"] == kind
        for item in data["nodes"]:
            if item["type"] in NOTES:
                continue
            node_class = headless.KNOWN_NODES[item["type"]]
            specs = headless.input_specs(node_class)
            wired = [n for n, (kind, _) in specs.items() if not headless.is_widget(kind)]
            assert [i["name"] for i in item["inputs"]] == wired
            assert [o["type"] for o in item["outputs"]] == list(node_class.RETURN_TYPES)
            count = len(specs) - len(wired)
            count += sum(headless.adds_control(n, o) for n, (_, o) in specs.items())
            count += item["type"] == "LoadImage"  # the upload button
            assert len(item["widgets_values"]) == count

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
    def test_no_node_lies_on_another(self, path):
        title = 30  # pixels above a node's place
        boxes = [(n["id"], *n["pos"], *n["size"]) for n in json.loads(path.read_text())["nodes"]]
        for (a, x, y, w, h), (b, u, v, o, p) in itertools.combinations(boxes, 2):
            apart = x + w <= u or u + o <= x or y + h <= v - title or v + p <= y - title
            assert apart, f"nodes {a} and {b}"

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
    def test_every_workflow_has_a_thumbnail(self, path):
        with Image.open(path.with_suffix(".jpg")) as picture:
            assert picture.size == (512, 512)

    def test_seeds_have_another_widget_behind_them_as_in_the_page(self):
        assert headless.adds_control("seed", {}) and headless.adds_control("noise_seed", {})
        assert not headless.adds_control("seed", {"control_after_generate": False})
        assert not headless.adds_control("steps", {})
        assert headless.adds_control("steps", {"control_after_generate": True})

    @pytest.mark.parametrize("name", NEED_FILES)
    def test_real_weights_are_named_with_an_address(self, name):
        data = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
        for item in data["nodes"]:
            for model in item["properties"].get("models", []):
                assert model["name"] in item["widgets_values"]
                assert model["url"].startswith("https://huggingface.co/")
        message = (
            r"'(flux1|flux-2|Chroma1)-[\w.-]+', a file to get from https://.* into models/diffusion"
        )
        refused(data, message)

    @pytest.mark.parametrize("name", POCKET)
    def test_pocket_workflows_run(self, name, tmp_path, monkeypatch):
        """From the page's format; the other describes the same graph, as a test above says."""
        monkeypatch.chdir(tmp_path)
        for path in drawn_quickly(f"{name}.json"):
            with Image.open(path) as picture:
                assert picture.size == (256, 256) or name in OTHER_SIZES
                assert len(picture.getcolors(2**20)) > 1
        assert not list(tmp_path.rglob("*.partial"))

    def test_both_formats_draw_the_same_pictures(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for path in ("text_to_image.json", "regions.json"):
            pictures = []
            for written in (drawn_quickly(path), drawn_quickly(f"api/{path}")):
                with Image.open(written[0]) as picture:
                    pictures.append(picture.tobytes())
            assert pictures[0] == pictures[1]

    @pytest.mark.parametrize("name", NEED_FILES)
    def test_those_for_real_weights_run_on_small_ones(
        self, name, small_files, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FLUXFIT_MODELS", str(small_files / "models"))
        (tmp_path / "input").symlink_to(small_files / "input", target_is_directory=True)
        data = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
        for path in headless.saved_images(headless.run(headless.from_api(small(data)))):
            with Image.open(path) as picture:
                assert len(picture.convert("RGB").getcolors(2**20)) > 1


class TestBadGraphs:
    def test_a_missing_node_is_named(self, api):
        node(api, "FluxSampler")["class_type"] = "FluxMagic"
        refused(api, "no 'FluxMagic'.*open this workflow there")

    def test_a_cycle_is_shown(self, api):
        decode = next(k for k, v in api.items() if v["class_type"] == "VAEDecode")
        node(api, "VAEDecode")["inputs"]["samples"] = [decode, 0]
        refused(api, f"cycle: {decode} -> {decode}")

    def test_a_wire_of_the_wrong_type(self, api):
        loader = next(k for k, v in api.items() if v["class_type"] == "FluxLoaderFP8")
        node(api, "FluxSampler")["inputs"]["positive"] = [loader, 0]
        refused(api, r"'positive' takes CONDITIONING, but node 2 .* gives FLUX_MODEL")

    def test_an_output_that_is_not_there(self, api):
        node(api, "FluxSampler")["inputs"]["positive"] = ["3", 7]
        refused(api, r"node 3 \(FluxTextEncode\) has no output 7")

    def test_a_wire_from_nowhere(self, api):
        node(api, "FluxSampler")["inputs"]["positive"] = ["99", 0]
        refused(api, "comes from node 99, which is not in the graph")

    def test_a_missing_input(self, api):
        del node(api, "FluxSampler")["inputs"]["latent"]
        refused(api, r"node 6 \(FluxSampler\): no value or wire for latent")

    def test_a_value_where_a_wire_belongs(self, api):
        node(api, "FluxSampler")["inputs"]["positive"] = "a cat"
        refused(api, "'positive' needs a wire of type CONDITIONING")

    @pytest.mark.parametrize(
        ("class_type", "name", "value", "message"),
        [
            ("FluxSampler", "steps", 0, "'steps' is 0, expected 1 to 1000"),
            ("FluxSampler", "steps", "many", "'steps' is 'many', expected INT"),
            ("FluxSampler", "sampler", "magic", "'sampler' is 'magic', expected one of euler"),
            ("EmptySD3LatentImage", "width", 250, "'width' is 250, expected a multiple of 16"),
            ("FluxLoaderFP8", "vae", "../ae.safetensors", "'vae' is '../ae.safetensors'"),
        ],
    )
    def test_values_out_of_range(self, class_type, name, value, message, api):
        node(api, class_type)["inputs"][name] = value
        refused(api, message)

    def test_nothing_to_show(self, api):
        api = {k: v for k, v in api.items() if v["class_type"] != "SaveImage"}
        refused(api, "no node writes a result")

    def test_files_that_are_no_workflow(self, tmp_path):
        for text, message in (
            ("[]", "neither a workflow"),
            ("{", "cannot be read as a JSON"),
            ("{}", "neither"),
        ):
            path = tmp_path / "w.json"
            path.write_text(text)
            with pytest.raises(WorkflowError, match=f"w.json: .*{message}"):
                headless.read_workflow(path)
        with pytest.raises(WorkflowError, match="no such file"):
            headless.read_workflow(tmp_path / "none.json")

    def test_nothing_runs_before_the_whole_graph_is_checked(self, api, monkeypatch):
        node(api, "SaveImage")["inputs"]["filename_prefix"] = "x"
        node(api, "SaveImage")["inputs"]["images"] = ["3", 0]
        loaded = []
        monkeypatch.setattr(
            NODE_CLASS_MAPPINGS["FluxLoaderFP8"], "load", lambda *a, **k: loaded.append(1)
        )
        with pytest.raises(WorkflowError):
            headless.run(headless.parse(api))
        assert not loaded


class TestPageFormat:
    def test_a_bypassed_node_is_stepped_over_and_a_muted_one_dropped(self, page):
        before = headless.parse(copy.deepcopy(page))
        encode = {
            "id": 90,
            "type": "ImageBlur",
            "mode": 4,
            "inputs": [{"name": "image", "type": "IMAGE", "link": 91}],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [92]}],
            "widgets_values": [1, 1.0],
        }
        save = next(n for n in page["nodes"] if n["type"] == "SaveImage")
        old = next(link for link in page["links"] if link[3] == save["id"])
        page["links"] += [[91, old[1], old[2], 90, 0, "IMAGE"], [92, 90, 0, save["id"], 0, "IMAGE"]]
        save["inputs"][0]["link"] = 92
        page["nodes"].append(encode)
        assert headless.parse(page)[str(save["id"])].inputs == before[str(save["id"])].inputs
        encode["mode"] = 2
        graph = headless.parse(page)
        assert "90" not in graph
        with pytest.raises(WorkflowError, match="no value or wire for images"):
            headless.check(graph)

    def test_notes_are_left_out(self, page):
        page["nodes"].append({"id": 80, "type": "MarkdownNote", "widgets_values": ["hello"]})
        assert "80" not in headless.parse(page)

    def test_too_many_widget_values_are_reported(self, page):
        page["nodes"][0]["widgets_values"] += [1, 2]
        with pytest.raises(WorkflowError, match=r"OffloadPolicy\): 2 widget values more"):
            headless.parse(page)


class TestSet:
    def test_by_class_and_by_number(self, api):
        graph = headless.parse(api)
        headless.set_value(graph, "FluxSampler.seed=12")
        headless.set_value(graph, "3.prompt=a = b")
        headless.check(graph)
        assert graph["6"].inputs["seed"] == 12 and graph["3"].inputs["prompt"] == "a = b"

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("FluxSampler.seed", "expected NODE.INPUT=VALUE"),
            ("Nobody.seed=1", "no node called 'Nobody'"),
            ("FluxSampler.speed=1", "has no input 'speed'"),
        ],
    )
    def test_what_fits_nothing_is_refused(self, assignment, message, api):
        with pytest.raises(WorkflowError, match=message):
            headless.set_value(headless.parse(api), assignment)


def test_saving_never_overwrites_and_stays_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save = headless.KNOWN_NODES["SaveImage"]()
    picture = torch.rand(1, 16, 16, 3)
    names = [save.save(picture, "a/b")["ui"]["images"][0] for _ in range(2)]
    assert [Path(n).name for n in names] == ["b_00001.png", "b_00002.png"]
    with pytest.raises(ValueError, match="leaves the folder"):
        save.save(picture, "../../b")


@pytest.mark.parametrize("form", ["api", "ui", "preview"])
def test_a_saved_picture_carries_the_graph_that_drew_it(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "input" / "a.png"
    picture.parent.mkdir()
    Image.new("RGB", (32, 16), "red").save(picture)
    data = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    if form == "ui":
        wire = [{"name": "images", "type": "IMAGE", "link": 9}]
        load = {"id": 1, "type": "LoadImage", "widgets_values": ["a.png", "image"]}
        save = {"id": 2, "type": "SaveImage", "inputs": wire, "widgets_values": ["x"]}
        data = {"nodes": [load, save], "links": [[9, 1, 0, 2, 0, "IMAGE"]]}
    if form == "preview":
        data["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    graph = headless.parse(data)
    if form != "preview":
        headless.set_value(graph, "SaveImage.filename_prefix=y")
    (path,) = headless.saved_images(headless.run(graph))
    again = headless.read_workflow(path)
    assert {step.id: (step.type, step.inputs) for step in again.values()} == {
        step.id: (step.type, step.inputs) for step in graph.values()
    }
    (second,) = headless.saved_images(headless.run(again))
    assert Path(second).name == ("preview_00002.png" if form == "preview" else "y_00002.png")


@pytest.mark.parametrize("form", ["api", "ui", "set"])
def test_an_input_under_its_old_name_keeps_its_value(form):
    values = {"mode": "auto"} | ({} if form == "set" else {"clip_mode": "stream"})
    data = {"7": {"class_type": "OffloadPolicy", "inputs": values}}
    if form == "ui":
        node = {"id": 7, "type": "OffloadPolicy", "widgets_values": values}
        data = {"nodes": [node], "links": []}
    graph = headless.parse(data)
    if form == "set":
        headless.set_value(graph, "7.clip_mode=stream")
    assert graph["7"].inputs == {"mode": "auto", "clip_l_mode": "stream"}


@pytest.mark.parametrize("name", PREFIXED)
@pytest.mark.parametrize("form", ["api", "ui"])
def test_a_node_under_its_old_name_is_found(form, name):
    data = {"1": {"class_type": name, "inputs": {}}}
    if form == "ui":
        data = {"nodes": [{"id": 1, "type": name}], "links": []}
    assert headless.parse(data)["1"].type in headless.KNOWN_NODES
