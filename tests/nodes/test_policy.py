"""OffloadPolicy and the memory report."""

from __future__ import annotations

import pytest
from fluxfit.nodes import NODE_CLASS_MAPPINGS

from flux_core import OffloadPolicy
from tests.nodes.node_calls import empty, sample


class TestMemory:
    def test_a_policy_is_what_its_widgets_say(self):
        node = NODE_CLASS_MAPPINGS["OffloadPolicy"]()
        policy, words = node.make(
            mode="stream", vram_budget=6.0, slots=3, ram_budget=8.0, t5_mode="none"
        )
        assert policy == OffloadPolicy(
            "stream", 6_000_000_000, 3, 8_000_000_000, parts={"t5": "none"}
        )
        assert words == "stream, 6 GB of the card, 8 GB of the host, t5: none"
        assert node.make(mode="stream")[0].vram_budget is None
        several, words = node.make(mode="auto", devices="cuda:0, cuda:1")
        assert several.devices == ("cuda:0", "cuda:1")
        assert words == "auto, on cuda:0 and cuda:1 together"
        with pytest.raises(ValueError, match="devices has 'both', expected names such as cuda:0"):
            node.make(mode="auto", devices="both")
        with pytest.raises(ValueError, match="t5 mode is 'fast'"):
            node.make(mode="auto", t5_mode="fast")

    def test_the_report_shows_each_part_s_last_run(self, loaded, positive):
        latents, _ = sample(loaded, positive, empty())
        image = loaded[2].decode(latents["samples"])
        shown = NODE_CLASS_MAPPINGS["FluxFitMemoryReport"]().show(image)
        passed, drawn, shown_text = shown["result"]
        assert passed is image and drawn.shape == (1, 560, 1000, 3) and drawn.std() > 0.05
        assert (
            "transformer" in shown_text
            and "VAE decoder" in shown_text
            and shown["ui"]["text"] == (shown_text,)
        )
