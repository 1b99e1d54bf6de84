"""ControlNet layouts that diffusers does not know: pixels (XLabs) and a mask beside the latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flux_core import (
    Conditioning,
    Control,
    FluxControlNet,
    load_controlnet,
    load_transformer,
)
from flux_core.models.transformer import ControlResiduals, residual
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from tests import tiny_models

PIXELS = replace(tiny_models.UPSCALER, cond_channels=64, hint=True)


MASKED = replace(tiny_models.UPSCALER, cond_channels=68)


def saved(config, tmp_path) -> FluxControlNet:
    net = tiny_models.randomise(FluxControlNet(config), seed=2)
    path = tiny_models.save(net.state_dict(), tmp_path / "net.safetensors")
    return load_controlnet(path, precision="fp32")


def drawn(control: Control) -> torch.Tensor:
    transformer = tiny_models.flux_transformer()
    g = torch.Generator().manual_seed(0)
    words = Conditioning(
        torch.randn(1, 5, tiny_models.CONTEXT, generator=g),
        torch.randn(1, tiny_models.POOLED, generator=g),
    )
    settings = SamplingSettings(sigmas=torch.tensor([1.0, 0.5, 0.0]))
    start = torch.zeros(1, 16, 4, 6)
    return sample(DrawRequest(transformer, words, start, settings, controls=[control]))


def test_pixels_are_read_by_the_stem_and_residuals_recur(tmp_path):
    net = saved(PIXELS, tmp_path)
    assert net.config.hint and not net.wants_mask
    kwargs = tiny_models.inputs(batch=1)
    residuals = net(**kwargs, cond=torch.rand(1, 3, 32, 48))
    assert residuals.cyclic and residuals.double[0].shape == (1, 6, tiny_models.HIDDEN)
    first = drawn(Control(net, torch.zeros(1, 3, 32, 48)))
    other = drawn(Control(net, torch.ones(1, 3, 16, 24)))  # any size is brought to the drawing's
    assert first.isfinite().all() and not torch.equal(first, other)


def test_the_mask_is_a_channel_of_its_own(tmp_path):
    net = saved(MASKED, tmp_path)
    assert net.wants_mask
    cond, mask = torch.zeros(1, 16, 4, 6), torch.zeros(1, 1, 32, 48)
    kept = drawn(Control(net, cond, mask=mask))
    mask[..., :16, :] = 1
    assert not torch.equal(kept, drawn(Control(net, cond, mask=mask)))
    everything = drawn(Control(net, cond, mask=torch.ones(1, 1, 32, 48)))
    assert torch.equal(everything, drawn(Control(net, cond)))


@pytest.mark.parametrize(
    ("blocks", "cyclic", "order"),
    [(4, False, [0, 0, 1, 1]), (5, False, [0, 0, 0, 1, 1]), (5, True, [0, 1, 0, 1, 0])],
)
def test_two_residuals_serve_many_blocks(blocks, cyclic, order):
    two = [torch.tensor(0), torch.tensor(1)]
    assert [int(residual(two, i, blocks, cyclic)) for i in range(blocks)] == order


def test_several_nets_of_unlike_depth_add_up():
    model, kwargs = (
        tiny_models.flux_transformer(),
        tiny_models.inputs(batch=1),
    )
    one = ControlResiduals([torch.randn(1, 6, tiny_models.HIDDEN)], [])
    two = ControlResiduals(
        [torch.randn(1, 6, tiny_models.HIDDEN)] * 3, [torch.randn(1, 6, tiny_models.HIDDEN)]
    )
    both = ControlResiduals([one.double[0] + r for r in two.double], two.single)
    with torch.no_grad():
        output = model(**kwargs, control=[one, two])
        assert tiny_models.relative(output, model(**kwargs, control=both)) < 1e-5


CONTROLNETS = {
    "upscaler": {},
    "single blocks and modes": {"single": 3, "modes": 10},
    "no guidance": {"guidance": False, "single": 1},
}


@pytest.mark.parametrize("layout", ["diffusers", "native", "shards"])
@pytest.mark.parametrize("kind", CONTROLNETS)
def test_controlnet_and_its_residuals_equal_diffusers(kind, layout, tmp_path):
    theirs = tiny_models.diffusers_controlnet(**CONTROLNETS[kind])
    path = tiny_models.save(theirs.state_dict(), tmp_path / "c.safetensors")
    ours = load_controlnet(path, precision="fp32")
    if layout == "native":
        ours = load_controlnet(
            tiny_models.save(ours.state_dict(), tmp_path / "n.safetensors"), precision="fp32"
        )
    if layout == "shards":
        path = tiny_models.save_shards(theirs.state_dict(), tmp_path / "folder")
        ours = load_controlnet(path, precision="fp32")
    base = tiny_models.diffusers_transformer()
    our_base = load_transformer(
        tiny_models.save(base.state_dict(), tmp_path / "b.safetensors"), precision="fp32"
    )
    kwargs = tiny_models.inputs()
    cond = torch.randn(kwargs["img"].shape, generator=torch.Generator().manual_seed(3))
    extra, mode = {}, None
    if CONTROLNETS[kind].get("modes"):
        mode = 6
        extra["controlnet_mode"] = torch.full((2, 1), mode)
    guided = CONTROLNETS[kind].get("guidance", True)
    for_net = kwargs if guided else kwargs | {"guidance": None}
    with torch.no_grad():
        double, single = theirs(
            **tiny_models.to_diffusers(for_net), controlnet_cond=cond, **extra, return_dict=False
        )
        residuals = ours(**for_net, cond=cond, mode=mode)
        expected = base(
            **tiny_models.to_diffusers(kwargs),
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
            return_dict=False,
        )[0]
        result = our_base(**kwargs, control=residuals)
    assert len(residuals.double) == len(double)
    for a, b in zip(residuals.double, double, strict=True):
        assert tiny_models.relative(a, b) < 1e-5
    for a, b in zip(residuals.single, single or [], strict=True):
        assert tiny_models.relative(a, b) < 1e-5
    assert tiny_models.relative(result, expected) < 1e-5
