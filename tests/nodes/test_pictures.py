"""Comparing pictures."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.node_calls import node


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUXFIT_MODELS", raising=False)


class TestComparing:
    def test_compare_says_how_near(self):
        a = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))
        b = (a + 0.01).clamp(0, 1)
        sheet, shown_text = node("FluxFitCompare").compare(a, b, "one", "two", 8.0)
        assert sheet.shape[0] == 1 and sheet.shape[2] >= 3 * 48
        assert shown_text == "PSNR 40.0 dB, SSIM 1.000"
        assert node("FluxFitCompare").compare(a, a, "one", "two", 8.0)[1] == "the same to the bit"

    def test_unlike_sizes_are_refused_with_both(self):
        a, b = torch.zeros(1, 32, 48, 3), torch.zeros(1, 32, 32, 3)
        with pytest.raises(ValueError, match="32x32 and 48x32"):
            node("FluxFitCompare").compare(a, b, "a", "b", 8.0)
        with pytest.raises(ValueError, match="1 pictures against 2"):
            node("FluxFitCompare").compare(a, a.repeat(2, 1, 1, 1), "a", "b", 8.0)

    def test_grid_has_every_picture_and_a_label_for_each(self):
        images = {f"image_{i}": torch.full((1, 20, 30, 3), i / 8) for i in (1, 2, 4)}
        sheet, report = node("FluxFitGrid").lay("first\nsecond", 2, True, **images)
        lines = report.splitlines()
        assert [line.split(":")[0] for line in lines] == ["first", "second", "image_4"]
        assert "PSNR" in lines[1] and "PSNR" not in lines[0]
        for i in (1, 2, 4):
            assert bool(((sheet[0] - round(i / 8 * 255) / 255).abs() < 1e-3).all(-1).sum() >= 600)
