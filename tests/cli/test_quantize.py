"""`quantize`: files, plans, calibration."""

from __future__ import annotations

import json

import pytest
import torch

from flux_core import load_transformer
from flux_core.quant import quantized_linears

POCKET = "fluxfit_pocket.safetensors"


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUXFIT_MODELS", raising=False)


# long: one file through every option of the command
def test_the_command_quantizes_a_file(tmp_path, capsys, monkeypatch):
    import sys

    from fluxfit import __main__ as command_line
    from fluxfit.nodes import host

    source = host.POCKET / "diffusion_models" / POCKET
    out = tmp_path / "q.safetensors"
    monkeypatch.setattr(
        sys, "argv", ["fluxfit", "quantize", str(source), "--precision", "int8", "--out", str(out)]
    )
    assert command_line.main() == 0
    assert "transformer" in capsys.readouterr().out
    assert load_transformer(out, precision="as_stored")
    assert command_line.main() == 2
    assert "exists already" in capsys.readouterr().err
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "fluxfit_precision_plan": 1,
                "precision": "int8",
                "layers": {"double_blocks.0.img_mod.lin": "bf16"},
            }
        )
    )
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "fluxfit",
            "quantize",
            str(source),
            "--plan",
            str(plan),
            "--out",
            str(tmp_path / "p.safetensors"),
        ],
    )
    assert command_line.main() == 0
    again = load_transformer(tmp_path / "p.safetensors", precision="as_stored")
    assert isinstance(again.double_blocks[0].img_mod.lin, torch.nn.Linear)
    texts = host.POCKET / "text_encoders"
    tuned = tmp_path / "t.safetensors"
    wanted = [
        "fluxfit",
        "quantize",
        str(source),
        "--precision",
        "int8",
        "--out",
        str(tuned),
        "--calibrate",
        "a red circle",
        "--calibrate",
        "a blue square on yellow",
        "--clip-l",
        str(texts / "fluxfit_pocket_clip_l.safetensors"),
        "--side",
        "64",
        "--steps",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", wanted)
    assert command_line.main() == 2
    assert "needs --clip-l and --t5" in capsys.readouterr().err and not tuned.exists()
    wanted += ["--t5", str(texts / "fluxfit_pocket_t5.safetensors")]
    assert command_line.main() == 0
    opened = [load_transformer(p, precision="as_stored") for p in (tuned, out)]
    pairs = list(zip(*map(quantized_linears, opened), strict=True))
    assert pairs and not any(torch.equal(a.codes, b.codes) for a, b in pairs)
    assert all(torch.equal(a.scale, b.scale) for a, b in pairs)
