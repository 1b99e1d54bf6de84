"""Pages as strangers have them: reroutes, values, subgraphs, bypasses, and what is malformed."""

from __future__ import annotations

import copy
import json

import pytest
from fluxfit.nodes import headless
from fluxfit.nodes.headless import Link, WorkflowError
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.nodes.pages import FIELDS, ROOT, link_of, node, opened, page

__all__ = ["page"]


def chain(page: dict, count: int, **more) -> None:
    """So many nodes one behind the other before the picture is saved."""
    last = 10
    for i in range(count):
        number, new = 2000 + i, 9000 + i
        item = {
            "id": number,
            "type": "Reroute",
            "inputs": [{"name": "", "type": "*", "link": last}],
            "outputs": [{"name": "", "type": "IMAGE", "links": [new]}],
        }
        page["nodes"].append(item | more)
        link_of(page, last)[3:5] = [number, 0]
        page["links"].append([new, number, 0, 8, 0, "IMAGE"])
        last = new
    node(page, 8)["inputs"][0]["link"] = last


class TestWhatThePageResolves:
    @pytest.mark.parametrize("count", [1, 2, 1500])
    def test_reroutes_are_stepped_over(self, page, count):
        chain(page, count)
        assert opened(page)["8"].inputs["images"] == Link("7", 0)

    @pytest.mark.parametrize("kind", ["SaveAudio", "rgthree's", "Reroute"])
    def test_what_is_bypassed_is_stepped_over_whatever_it_is(self, page, kind):
        chain(page, 2, type=kind, mode=4)
        assert opened(page)["8"].inputs["images"] == Link("7", 0)

    def test_set_and_get_nodes_are_a_wire(self, page):
        link = link_of(page, 10)
        link[3:5] = [50, 0]
        page["nodes"] += [
            {
                "id": 50,
                "type": "SetNode",
                "widgets_values": ["picture"],
                "inputs": [{"name": "IMAGE", "type": "IMAGE", "link": 10}],
                "outputs": [{"name": "*", "type": "*", "links": None}],
            },
            {
                "id": 51,
                "type": "GetNode",
                "widgets_values": ["picture"],
                "inputs": [],
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [60]}],
            },
        ]
        page["links"].append([60, 51, 0, 8, 0, "IMAGE"])
        node(page, 8)["inputs"][0]["link"] = 60
        assert opened(page)["8"].inputs["images"] == Link("7", 0)

    def test_a_primitive_nodes_value_counts_and_not_the_widgets(self, page):
        page["nodes"].append(
            {"id": 40, "type": "PrimitiveNode", "widgets_values": [7, "fixed"], "outputs": []}
        )
        page["links"].append([70, 40, 0, 6, 9, "INT"])
        node(page, 6)["inputs"].append(
            {"name": "steps", "type": "INT", "link": 70, "widget": {"name": "steps"}}
        )
        assert opened(page)["6"].inputs["steps"] == 7

    @pytest.mark.parametrize("kind", ["Note", "MarkdownNote"])
    def test_notes_groups_and_bookmarks_are_no_part_of_it(self, page, kind):
        page["nodes"].append({"id": 60, "type": kind, "widgets_values": ["read me"]})
        page["groups"] = [{"title": "x", "bounding": [0, 0, 1, 1]}]
        page["extra"] = {"bookmarks": [1], "ds": {"scale": 1}}
        assert "60" not in opened(page)

    def test_what_is_muted_is_gone_with_its_wires(self, page):
        node(page, 4)["mode"] = 2  # the negative prompt, which need not be
        graph = opened(page)
        assert "4" not in graph and "negative" not in graph["6"].inputs
        node(page, 3)["mode"] = 2
        with pytest.raises(WorkflowError, match=r"node 6 .*no value or wire for positive"):
            opened(page)

    @pytest.mark.parametrize(
        "kinds, outputs, expected",
        [
            (["CONDITIONING", "CONDITIONING", "VAE"], ["CONDITIONING", "CONDITIONING"], ("3", "4")),
            (["VAE", "CONDITIONING", "CONDITIONING"], ["CONDITIONING", "CONDITIONING"], ("3", "3")),
            (["CONDITIONING", "VAE", "CONDITIONING"], ["CONDITIONING", "CONDITIONING"], ("3", "3")),
            (["*", "CONDITIONING"], ["CONDITIONING", "CONDITIONING"], ("3", "4")),
            (["CONDITIONING", "CONDITIONING"], ["*", "*"], ("3", "4")),
        ],
    )
    def test_a_bypass_takes_the_input_of_its_own_place_first(self, page, kinds, outputs, expected):
        wires = iter((31, 32))
        inputs = [
            {"name": f"i{n}", "type": k, "link": None if k == "VAE" else next(wires)}
            for n, k in enumerate(kinds)
        ]
        page["nodes"].append(
            {
                "id": 30,
                "type": "Whatever",
                "mode": 4,
                "inputs": inputs,
                "outputs": [
                    {"name": "", "type": k, "links": [n]}
                    for k, n in zip(outputs, (5, 7), strict=True)
                ],
            }
        )
        for place, number in enumerate((5, 7)):
            link_of(page, number)[1:3] = [30, place]
        page["links"] += [[31, 3, 0, 30, 0, "X"], [32, 4, 0, 30, 1, "X"]]
        inputs_of = opened(page)["6"].inputs
        origins = inputs_of["positive"].node, inputs_of["negative"].node
        assert origins == expected

    def test_only_what_outputs_need_matters(self, page):
        page["nodes"] += [
            {"id": 70, "type": "SomethingOfAnotherPack", "inputs": [], "outputs": []},
            {"id": 71, "type": "FluxSampler", "inputs": [], "outputs": []},
        ]
        graph = opened(page)
        assert "70" in graph
        node(page, 3)["type"] = "TextOfAnotherPack"
        message = r"no 'TextOfAnotherPack' \(node 3\) without ComfyUI: open this workflow there"
        with pytest.raises(WorkflowError, match=message):
            opened(page)

    def test_widgets_that_were_added_since_have_their_defaults(self, page):
        full = opened(page)["6"].inputs
        for count in range(3, len(node(page, 6)["widgets_values"])):
            older = copy.deepcopy(page)
            node(older, 6)["widgets_values"] = node(page, 6)["widgets_values"][:count]
            inputs = opened(older)["6"].inputs
            assert full.keys() - inputs.keys() <= {"add_noise"}  # whose default the node has
        node(page, 6)["widgets_values"] = None
        assert full.keys() - opened(page)["6"].inputs.keys() <= {"add_noise"}

    def test_links_as_objects_and_nulls_for_lists(self, page):
        expected = {key: step.inputs for key, step in opened(page).items()}
        page["links"] = [dict(zip(FIELDS, link, strict=True)) for link in page["links"]]
        for item in page["nodes"]:
            for name in ("inputs", "outputs", "widgets_values", "properties"):
                item[name] = item.get(name) or None
        assert {key: step.inputs for key, step in opened(page).items()} == expected

    @pytest.mark.parametrize("key", ["workflow", "prompt"])
    def test_a_picture_that_was_saved_with_it(self, page, key, tmp_path):
        expected, about = opened(page), PngInfo()
        prompt = json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text())
        text = json.dumps(page if key == "workflow" else prompt)
        about.add_text(key, text)
        Image.new("RGB", (8, 8)).save(tmp_path / "p.png", pnginfo=about)
        assert headless.read_workflow(tmp_path / "p.png").keys() == expected.keys()
        exif = Image.Exif()
        exif[0x0110 if key == "prompt" else 0x010F] = f"{key}:{text}"
        Image.new("RGB", (8, 8)).save(tmp_path / "p.webp", exif=exif)  # as the host's WebP has it
        assert headless.read_workflow(tmp_path / "p.webp").keys() == expected.keys()
        Image.new("RGB", (8, 8)).save(tmp_path / "q.png")
        with pytest.raises(WorkflowError, match="q.png: is a picture without a workflow"):
            headless.read_workflow(tmp_path / "q.png")

    def test_what_a_host_notes_of_a_run_may_be_no_number(self, page, tmp_path):
        path = tmp_path / "p.json"
        prompt = json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text())
        for item in prompt.values():
            item["is_changed"] = [float("nan")]
        path.write_text(json.dumps(prompt))
        assert headless.read_workflow(path).keys() == opened(page).keys()
        prompt["6"]["inputs"]["cfg"] = float("nan")
        path.write_text(json.dumps(prompt))
        with pytest.raises(WorkflowError, match="'cfg' is nan, expected a number"):
            headless.check(headless.read_workflow(path))

    def test_a_byte_order_mark_is_no_part_of_a_file(self, page, tmp_path):
        path = tmp_path / "page.json"
        path.write_text(json.dumps(page), encoding="utf-8-sig")
        assert headless.read_workflow(path).keys() == opened(page).keys()


class TestRings:
    @pytest.mark.parametrize("kind, mode", [("Reroute", 0), ("Whatever", 4)])
    def test_a_node_that_reads_itself_is_one(self, page, kind, mode):
        inputs = [{"name": "", "type": "IMAGE", "link": 100}]
        outputs = [{"name": "", "type": "IMAGE", "links": [100, 200]}]
        own = {"id": 20, "type": kind, "mode": mode, "inputs": inputs, "outputs": outputs}
        page["nodes"].append(own)
        page["links"] += [[100, 20, 0, 20, 0, "IMAGE"], [200, 20, 0, 8, 0, "IMAGE"]]
        node(page, 8)["inputs"][0]["link"] = 200
        with pytest.raises(WorkflowError, match="ring"):
            opened(page)

    @pytest.mark.parametrize("kind, mode", [("Reroute", 0), ("Whatever", 4)])
    def test_wires_that_run_in_a_ring_are_refused(self, page, kind, mode):
        for a, b in ((20, 21), (21, 20)):
            page["nodes"].append(
                {
                    "id": a,
                    "type": kind,
                    "mode": mode,
                    "inputs": [{"name": "", "type": "IMAGE", "link": 100 + b}],
                    "outputs": [{"name": "", "type": "IMAGE", "links": [100 + a]}],
                }
            )
            page["links"].append([100 + a, a, 0, b, 0, "IMAGE"])
        page["links"].append([200, 20, 0, 8, 0, "IMAGE"])
        node(page, 8)["inputs"][0]["link"] = 200
        with pytest.raises(WorkflowError, match="ring"):
            opened(page)

    def test_a_long_chain_is_no_recursion(self):
        scale = {"upscale_method": "nearest-exact", "scale_by": 1.0}
        api: dict = {"0": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}
        for i in range(1, 3000):
            inputs = {"image": [str(i - 1), 0], **scale}
            api[str(i)] = {"class_type": "ImageScaleBy", "inputs": inputs}
        api["end"] = {"class_type": "PreviewImage", "inputs": {"images": ["2999", 0]}}
        order = headless.check(headless.parse(api))
        assert order == [*map(str, range(3000)), "end"]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda p: p["nodes"].append(3),
        lambda p: p["nodes"].append({"id": 99}),
        lambda p: p["nodes"].append({"id": None, "type": "X"}),
        lambda p: p["nodes"].append(dict(p["nodes"][0])),
        lambda p: p["links"].append([1, 2]),
        lambda p: p["links"].append("x"),
        lambda p: p["links"].append([10, 7, None, 8, 0, "IMAGE"]),
        lambda p: p.update(links={"a": 1}),
        lambda p: p.update(definitions=[1]),
        lambda p: p.update(definitions={"subgraphs": [3]}),
        lambda p: p["nodes"][0].update(inputs={"a": 1}),
        lambda p: p["nodes"][0].update(outputs=[1]),
        lambda p: p["nodes"][0].update(mode="never"),
        lambda p: p["nodes"][0].update(properties=[1]),
        lambda p: p["nodes"][0].update(widgets_values=5),
    ],
)
def test_what_is_malformed_is_one_error(page, break_it):
    break_it(page)
    with pytest.raises(WorkflowError) as raised:
        opened(page)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x", None, [], {}, "1e400"])
def test_numbers_that_are_none_are_refused(page, value):
    api = json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text())
    sampler = next(item for item in api.values() if item["class_type"] == "FluxSampler")
    for name in ("steps", "cfg", "seed", "denoise"):
        broken = copy.deepcopy(api)
        for item in broken.values():
            if item["class_type"] == sampler["class_type"]:
                item["inputs"][name] = value
        with pytest.raises(WorkflowError, match=f"'{name}' is"):
            headless.check(headless.parse(broken))
