"""A report drawn over time."""

from __future__ import annotations

import pytest

from flux_core import FluxPipeline, OffloadPolicy
from flux_core.offload.report import MemoryReport
from flux_core.report.timeline import timeline


def test_a_streamed_run_is_drawn():
    pipeline = FluxPipeline.from_pocket(policy=OffloadPolicy("stream"))
    report = pipeline("a red circle", width=64, height=64, steps=2).report
    picture = timeline(report)
    assert picture.shape == (560, 1000, 3)
    assert picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0.05


def test_an_empty_report_is_refused():
    with pytest.raises(ValueError, match="nothing has run yet"):
        timeline(MemoryReport(device="cpu"))
