"""ControlNets as nodes."""

from __future__ import annotations

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless
from fluxfit.nodes.control import enlarge

from flux_core import OffloadPolicy
from tests.nodes.node_calls import empty, sample


class TestControl:
    def test_the_upscaler_s_latent_fits_the_sampler(self, loaded, positive):
        node = NODE_CLASS_MAPPINGS["ControlNetUpscalerFP8"]()
        image = torch.rand(1, 20, 16, 3)
        control, latent, enlarged = node.make(
            vae=loaded[2],
            image=image,
            controlnet="fluxfit_pocket_upscaler.safetensors",
            precision="fp8_scaled",
            strength=1.0,
            start=0.0,
            end=1.0,
            upscale_factor=4.0,
            tile_blur=2.0,
        )
        assert enlarged.shape == (1, 80, 64, 3)
        assert latent["samples"].shape == (1, 16, 10, 8)
        plain = sample(loaded, positive, empty() | {"samples": torch.zeros(1, 16, 10, 8)})[0]
        drawn = sample(loaded, positive, latent, control=control)[0]
        assert not torch.equal(plain["samples"], drawn["samples"])

    def test_start_after_end_is_refused(self, loaded):
        node = NODE_CLASS_MAPPINGS["FluxFitControlNet"]()
        with pytest.raises(ValueError, match="start is 0.9, after its end 0.1"):
            node.make(
                mode="none",
                vae=loaded[2],
                image=torch.rand(1, 16, 16, 3),
                strength=1.0,
                controlnet="fluxfit_pocket_upscaler.safetensors",
                precision="bf16",
                start=0.9,
                end=0.1,
            )

    def test_a_mask_is_refused_where_it_is_not_read(self, loaded):
        node = NODE_CLASS_MAPPINGS["FluxFitControlNet"]()
        with pytest.raises(ValueError, match=r"upscaler\.safetensors: .* reads no mask: unwire it"):
            node.make(
                mode="none",
                vae=loaded[2],
                image=torch.rand(1, 16, 16, 3),
                strength=1.0,
                controlnet="fluxfit_pocket_upscaler.safetensors",
                precision="bf16",
                start=0.0,
                end=1.0,
                mask=torch.ones(1, 16, 16),
            )

    @pytest.mark.parametrize("blur", [1.0, 4.0])
    def test_enlarging_keeps_a_flat_picture_flat(self, blur):
        flat = torch.full((1, 26, 26, 3), 0.4)
        assert torch.allclose(enlarge(flat, 3.0, blur), torch.full((1, 80, 80, 3), 0.4), atol=1e-5)

    def test_a_controlnet_may_have_a_policy_of_its_own(self, loaded):
        node = NODE_CLASS_MAPPINGS["ControlNetUpscalerFP8"]
        values = {
            name: options.get("default", kind[0])
            for name, (kind, options) in headless.input_specs(node).items()
            if headless.is_widget(kind)
        }
        picture = torch.rand(1, 16, 16, 3)
        own = OffloadPolicy("stream")
        (control,), *_ = node().make(vae=loaded[2], image=picture, policy=own, **values)
        assert control.policy is own
