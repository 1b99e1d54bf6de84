"""What the page is told while a policy's widgets turn."""

from __future__ import annotations

import pytest
from fluxfit.nodes import live_plan as module
from fluxfit.nodes.live_plan import live_plan

from flux_core.units import readable_seconds

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
