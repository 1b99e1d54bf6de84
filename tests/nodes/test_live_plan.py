"""What the page is told while a policy's widgets turn."""

from __future__ import annotations

import pytest
import torch
from fluxfit.nodes import live_plan as module
from fluxfit.nodes.live_plan import live_plan
from fluxfit.nodes.plan_options import options_of

from flux_core.offload.plan import UNKNOWN
from flux_core.sampling.estimate import plan_picture
from flux_core.units import readable_seconds
from tests import adapter_files, tiny_models

POCKET = {
    "transformer": "fluxfit_pocket.safetensors",
    "transformer_precision": "int8",
    "clip_l": "fluxfit_pocket_clip_l.safetensors",
    "clip_l_precision": "bf16",
    "t5": "fluxfit_pocket_t5.safetensors",
    "t5_precision": "fp8_scaled",
    "vae": "fluxfit_pocket_vae.safetensors",
    "vae_precision": "bf16",
}


def plan(policy=None, **more):
    return live_plan({"policy": policy or {}, **more})


def text(answer) -> str:
    return "\n".join([answer["title"], *answer["lines"]])


def test_it_speaks_of_flux1_dev_where_nothing_is_wired():
    answer = plan({"mode": "stream", "vram_budget": 6.0})
    assert answer["fits"] and answer["title"] == "FLUX.1-dev in fp8_scaled, 1024x1024"
    assert "of 57 blocks stay" in text(answer) and "streamed a step" in text(answer)


def test_it_speaks_of_the_model_that_is_wired():
    answer = plan({"mode": "none"}, loader=POCKET, width=256, height=128, batch=2)
    assert answer["title"] == "fluxfit_pocket in int8, 256x128, 2 pictures"
    assert "blocks stay" in text(answer) and "57" not in text(answer)
    alone = {"transformer": POCKET["transformer"], "precision": "fp8_scaled", "compute": "auto"}
    assert plan(loader=alone)["title"].startswith("fluxfit_pocket in fp8_scaled")


def test_it_changes_with_the_widgets():
    some = [text(plan({"mode": "auto", "vram_budget": budget})) for budget in (4.0, 8.0, 40.0)]
    assert len(set(some)) == 3
    assert "does not fit" in text(plan({"mode": "none", "vram_budget": 1.0}))
    assert not plan({"mode": "none", "vram_budget": 1.0})["fits"]


def test_it_is_the_first_device_s_share_where_several_draw():
    about = {"loader": POCKET, "width": 256, "height": 256, "batch": 4}
    alone = plan({"mode": "none"}, **about)
    one, two = (plan({"mode": "none", "devices": d}, **about) for d in ("cpu", "cpu,cpu:1"))
    assert "the first of 2: cpu, cpu:1" in two["lines"]
    assert not any("the first of" in line for line in [*one["lines"], *alone["lines"]])
    # pictures one by one take less memory than a batch, and half of them half the time
    steps = [next(line for line in answer["lines"] if "a step" in line) for answer in (one, two)]
    assert len({*steps, alone["lines"][2]}) >= 2
    assert alone["lines"][0] != one["lines"][0] or alone["lines"][2] == one["lines"][2]
    with pytest.raises(ValueError, match="devices names cuda:7, and torch sees"):
        plan({"devices": "cpu,cuda:7"}, **about)


def test_it_says_what_it_assumes():
    assert "nothing has run here yet" in text(plan())


def test_files_are_outlined_once(monkeypatch):
    module._outlines.clear()
    outlined = []
    real = module.outline
    monkeypatch.setattr(module, "outline", lambda *args: outlined.append(args) or real(*args))
    for budget in (0.1, 0.2, 0.3):
        plan({"vram_budget": budget}, loader=POCKET)
    assert len(outlined) == 4
    for kind in ("bf16", "fp32", "fp8_e5m2", "fp8_e4m3fn", "fp16", "int8", "fp8_scaled"):
        plan(loader=POCKET | {"transformer_precision": kind})
    assert len(module._outlines) <= module.KEPT


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"policy": {"mode": "fast"}}, "offload mode is 'fast'"),
        ({"policy": {"budget": 1}}, "has no input 'budget'"),
        ({"policy": {}, "width": -8}, "width is -8"),
        ({"policy": {}, "width": float("nan")}, "width is nan"),
        ({"policy": {}, "height": "tall"}, "height is 'tall'"),
        ({"policy": {}, "loader": {"transformer": "../x"}}, "leaves the model folders"),
        ({"policy": {}, "loader": {"transformer": "x"}}, "no file 'x'"),
        (
            {"policy": {}, "loader": POCKET | {"transformer_precision": "int3"}},
            "precision is 'int3'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(question, message):
    with pytest.raises((ValueError, OSError), match=message):
        live_plan(question)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0042, "0.0042 s"), (0.051, "0.051 s"), (0.1, "0.10 s"), (12.345, "12.35 s"), (0, "0 s")],
)
def test_short_steps_keep_their_digits(seconds, text):
    assert readable_seconds(seconds) == text


def graph(*nodes, sampler="FluxSampler", wired=("model", "positive"), **values):
    """What the page sends of a graph: the sampler, and what stands before it, nearest first."""
    first = {"type": sampler, "values": values, "wired": list(wired), "behind": []}
    entries = [first]
    for kind, behind, widgets, *more in nodes:
        inputs = list(more[0]) if more else []
        entries.append({"type": kind, "values": widgets, "wired": inputs, "behind": [behind]})
    return entries


NEGATIVE = ("model", "positive", "negative")


class TestWhatIsWired:
    """The plan is that of the run: its request is counted by what counts a real one."""

    def drawing(self, *nodes, width=256, height=256, **more):
        question = {"loader": POCKET, "width": width, "height": height, "steps": 4}
        question |= {"nodes": graph(*nodes, **more)} if nodes or more else {}
        answer = plan({"mode": "none"}, **question)
        return text(answer)

    def planned(self, *nodes, width=256, height=256, **more):
        models, _ = module.models_of(POCKET)
        options = options_of({"nodes": graph(*nodes, **more)}, models.transformer, height, width)
        about = {"width": width, "height": height, "models": models, "options": options}
        return plan_picture(UNKNOWN, vram=80e9, steps=4, **about)

    def bytes_of(self, *nodes, **more):
        drawn = self.planned(*nodes, **more)
        return drawn.drawing.activations, drawn.step

    def test_a_plain_graph_is_planned_as_without_it(self):
        assert self.drawing(cfg=1.0) == self.drawing()
        assert self.drawing(cfg=3.0) == self.drawing(), "there is no negative prompt"

    def test_guidance(self):
        plain = self.bytes_of(cfg=1.0)
        guided = self.bytes_of(cfg=3.0, wired=NEGATIVE)
        assert guided[1] == pytest.approx(2 * plain[1])
        half = self.bytes_of(("FluxFitGuidance", "model", {"end": 0.49}), cfg=3.0, wired=NEGATIVE)
        assert half[1] == pytest.approx(1.5 * plain[1])
        nag = ("FluxFitNAG", "model", {"scale": 4.0})
        assert self.bytes_of(nag, wired=NEGATIVE)[0] > plain[0]
        assert self.bytes_of(nag) == plain
        shown = self.drawing(nag, cfg=2.0, wired=NEGATIVE)
        assert "counted: cfg, NAG" in shown

    def test_references_and_what_they_attend_to(self):
        plain = self.bytes_of(cfg=1.0)
        one = ("FluxFitReference", "positive", {"size": "drawn"})
        apart = ("FluxFitReferenceAttention", "model", {"attention": "self"})
        joint, kept = self.bytes_of(one), self.bytes_of(one, apart)
        assert joint[0] > plain[0] and joint[1] > 1.5 * plain[1]
        assert kept[0] > plain[0] and kept[1] == pytest.approx(plain[1])
        large = self.bytes_of(("ReferenceLatent", "positive", {}))
        assert large[0] > joint[0]
        elsewhere = ("FluxFitReference", "negative", {"size": "drawn"})
        assert self.bytes_of(elsewhere) == plain
        assert "counted: 2 references" in self.drawing(one, one)

    def test_windows_and_a_second_run(self):
        size = {"width": 512, "height": 512}
        tiles = ("FluxFitTiledDrawing", "model", {"tile_size": 256, "overlap": 64, "feather": 64})
        whole, tiled = self.bytes_of(cfg=1.0, **size), self.bytes_of(tiles, **size)
        assert tiled[0] < whole[0]
        window = self.bytes_of(cfg=1.0)
        assert tiled[1] == pytest.approx(9 * window[1])
        again = {"sampler": "FluxFitHiresFix", "scale": 2.0, "enlarge": "bicubic"}
        assert self.bytes_of(**again)[0] == pytest.approx(whole[0], rel=0.02)
        assert "counted: tiles of 256, a second run, 2x" in self.drawing(tiles, **again)

    def test_regions_and_pictures_in_the_prompt(self):
        region = ("FluxFitRegion", "positive", {})
        plain = self.bytes_of(cfg=1.0)
        assert self.bytes_of(region, region)[1] > self.bytes_of(region)[1] > plain[1]
        redux = ("FluxFitRedux", "positive", {"grid": 9})
        assert self.bytes_of(redux)[1] > plain[1]
        shown = self.drawing(region, region, redux)
        assert "counted: 2 regions, 81 Redux tokens" in shown

    def test_loras_and_where_they_count(self, tmp_path, monkeypatch):
        models, _ = module.models_of(POCKET)
        width = models.transformer.config.hidden_size
        name = "diffusion_model.single_blocks.0.linear2"
        inside = models.transformer.single_blocks[0].linear2.in_features
        factors = {"lora_A.weight": torch.ones(64, inside), "lora_B.weight": torch.ones(width, 64)}
        file = {f"{name}.{what}": tensor for what, tensor in factors.items()}
        tiny_models.save(file, tmp_path / "loras" / "one.safetensors")
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
        lora = ("FluxFitLoraLoader", "model", {"lora": "one.safetensors", "strength": 0.5})

        def held(*nodes):
            question = {"nodes": graph(*nodes)}
            options = options_of(question, models.transformer, 256, 256)
            planned = plan_picture(
                UNKNOWN, vram=80e9, width=256, height=256, models=models, options=options
            )
            return planned.drawing.weights, planned.drawing.activations

        plain, with_lora = held(), held(lora)
        added = with_lora[0] - plain[0]
        assert 2 * 64 * (inside + width) <= added <= 2 * 64 * (inside + width) + 4096
        off = ("FluxFitLoraLoader", "model", {"lora": "one.safetensors", "on": False})
        assert held(off) == plain
        control = ("FluxFitLoraControl", "model", {"blocks": "", "schedule": ""}, ["mask"])
        assert held(control, lora)[1] > with_lora[1]
        assert "counted: 1 LoRA" in self.drawing(lora)
        missing = ("FluxFitLoraLoader", "model", {"lora": "none.safetensors"})
        with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
            self.drawing(missing)

    def test_adapters_hold_keys_and_values(self, tmp_path, monkeypatch):
        models, _ = module.models_of(POCKET)
        config = models.transformer.config
        file = adapter_files.widened(
            adapter_files.xlabs(config.depth), config.context_in_dim, config.hidden_size
        )
        tiny_models.save(file, tmp_path / "ipadapter" / "x.safetensors")
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
        loader = ("FluxFitIPAdapterLoader", "model", {"ip_adapter": "x.safetensors"})
        one = ("FluxFitApplyIPAdapter", "model", {"weight": 0.7})
        plain, single, double = (
            self.bytes_of(*nodes, loader)[0] for nodes in ((), (one,), (one, one))
        )
        assert plain < single < double
        nothing = ("FluxFitApplyIPAdapter", "model", {"weight": 0.0})
        assert self.bytes_of(nothing, loader)[0] == plain
        both = (*one, ["negative_output"])
        shown = [self.bytes_of(n, loader, wired=NEGATIVE, cfg=2.5)[0] for n in (one, both)]
        assert shown[0] < shown[1]

    def test_controlnets_stand_beside_the_transformer(self):
        values = {"controlnet": "fluxfit_pocket_upscaler.safetensors", "precision": "bf16"}
        net = ("FluxFitControlNet", "control", {**values, "strength": 0.5})
        assert "counted: 1 ControlNet" in self.drawing(net)
        weights = [self.planned(*nodes).drawing.weights for nodes in ((), (net,))]
        assert weights[1] > 1.02 * weights[0]
        off = ("FluxFitControlNet", "control", {**values, "strength": 0.0})
        assert self.planned(off) == self.planned()
        upscaler = ("ControlNetUpscalerFP8", "upscaler", values)
        again = {"sampler": "FluxFitHiresFix", "scale": 1.5}
        assert self.bytes_of(upscaler, **again)[0] > self.bytes_of(**again)[0]

    @pytest.mark.parametrize(
        ("nodes", "message"),
        [
            ([{"type": "FluxSampler"}], "nodes has something that is no node"),
            (["FluxSampler"], "nodes has something that is no node"),
            (graph(("FluxFitTiledDrawing", "model", {"tile_size": 70})), "tile"),
            (graph(("FluxFitNAG", "model", {"scale": -1.0})), "NAG's scale is -1.0"),
        ],
    )
    def test_what_a_run_would_refuse_is_said(self, nodes, message):
        with pytest.raises((ValueError, TypeError), match=message):
            plan(loader=POCKET, nodes=nodes)
