"""Previews."""

from __future__ import annotations

import torch
from fluxfit.nodes.preview import preview


class TestSampler:
    def test_previews_are_pictures_of_the_latent_s_size(self):
        assert preview(torch.randn(2, 16, 6, 8)).size == (8, 6)
