"""Redux's tokens in a prompt, against the host's StyleModelApply and diffusers' pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import Conditioning, OffloadPolicy, load_redux, load_vision_encoder
from flux_core.offload import OffloadRunner
from flux_core.sampling.conditioning import AttentionBias
from flux_core.sampling.redux import (
    ATTENTION_BIAS,
    MULTIPLY,
    append_tokens,
    merged,
    on_grid,
    redux_tokens,
    with_tokens,
)
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from flux_core.sampling.vision import encode_vision
from tests import adapter_files, tiny_models

CPU = torch.device("cpu")
TEXT = 5


def conditioning(seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, TEXT, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
    )


def picture_tokens(count: int = 1, side: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, side * side, tiny_models.CONTEXT, generator=generator)


def style_model_apply(context, keys, cond, strength, strength_type):
    """ComfyUI's StyleModelApply, written anew: what it does to one entry of CONDITIONING."""
    cond = cond.flatten(0, 1)[None]
    n, text = cond.shape[1], context.shape[1]
    if strength_type == "multiply":
        cond = cond * strength
    keys = dict(keys)
    if "attention_mask" in keys or (strength_type == "attn_bias" and strength != 1.0):
        bias = torch.log(torch.tensor([strength if strength_type == "attn_bias" else 1.0]))
        rows, columns = keys.get("attention_mask_img_shape", (1, 1))
        image = rows * columns
        mask = keys.get("attention_mask")
        if mask is None:
            mask = torch.zeros((1, text + image, text + image), dtype=torch.float16)
        if mask.dtype == torch.bool:
            mask = torch.log(mask.half())
        new = torch.zeros((1, text + n + image, text + n + image), dtype=torch.float16)
        new[:, :text, :text] = mask[:, :text, :text]
        new[:, :text, text + n :] = mask[:, :text, text:]
        new[:, text + n :, :text] = mask[:, text:, :text]
        new[:, text + n :, text + n :] = mask[:, text:, text:]
        new[:, :text, text : text + n] = bias
        new[:, text + n :, text : text + n] = bias
        keys |= {"attention_mask": new, "attention_mask_img_shape": (rows, columns)}
    return torch.cat([context, cond], dim=1), keys


class TestTheHosts:
    @pytest.mark.parametrize("masked", ["none", "bias", "bool"])
    def test_style_model_apply_twice(self, masked):
        """Two pictures after one another, with and without a mask that was there before."""
        context, keys, attention = conditioning().context, {}, None
        side = 2 if masked != "none" else 1
        if masked != "none":
            mask = torch.randn(1, TEXT + 6, TEXT + 6)
            mask = mask > -1 if masked == "bool" else mask
            keys = {"attention_mask": mask, "attention_mask_img_shape": (2, 3)}
            attention = AttentionBias(mask, 2, 3)
        ours = context
        for strength, kind in ((0.4, ATTENTION_BIAS), (1.0, ATTENTION_BIAS), (0.7, MULTIPLY)):
            for count in (side, 2):
                tokens = picture_tokens(count)
                context, keys = style_model_apply(context, keys, tokens, strength, kind)
                ours, attention = append_tokens(
                    ours, attention, merged(list(tokens)), strength, kind
                )
                assert torch.equal(ours, context)
                assert torch.equal(attention.values, keys["attention_mask"])
                shape = (attention.rows, attention.columns)
                assert shape == keys["attention_mask_img_shape"]

    def test_a_strength_of_one_needs_no_mask_and_of_zero_hides(self):
        context = conditioning().context
        tokens = merged(list(picture_tokens()))
        assert append_tokens(context, None, tokens, 1.0, ATTENTION_BIAS)[1] is None
        assert append_tokens(context, None, tokens, 0.5, MULTIPLY)[1] is None
        _, attention = append_tokens(context, None, tokens, 0.0, ATTENTION_BIAS)
        hidden = attention.values[0, 0, TEXT : TEXT + 16]
        assert bool((hidden == -torch.inf).all())

    def test_hidden_tokens_draw_as_if_they_were_not_there(self):
        model = tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False)
        prompt, tokens = conditioning(), merged(list(picture_tokens()))
        drawn = {}
        for name, each in {
            "plain": prompt,
            "hidden": with_tokens(prompt, tokens, 0.0, ATTENTION_BIAS),
            "half": with_tokens(prompt, tokens, 0.5, ATTENTION_BIAS),
            "whole": with_tokens(prompt, tokens, 1.0, ATTENTION_BIAS),
        }.items():
            asked = DrawRequest(model, each, torch.zeros(1, 16, 6, 8), SamplingSettings(steps=2))
            drawn[name] = draw(OffloadRunner(None, CPU), [asked])[0]
        assert tiny_models.relative(drawn["hidden"], drawn["plain"]) < 1e-5
        apart = [tiny_models.relative(drawn[n], drawn["plain"]) for n in ("half", "whole")]
        assert 1e-3 < apart[0] < apart[1]


def test_it_is_diffusers_pipeline(tmp_path):
    """From pictures to the blended prompt: three of them with weights that sum to one."""
    from diffusers import FluxPriorReduxPipeline
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import CLIPTextConfig, CLIPTextModel, SiglipImageProcessor

    vision, file = adapter_files.siglip_vision(), adapter_files.redux()
    theirs = ReduxImageEncoder(adapter_files.SIGLIP_EMBED, tiny_models.CONTEXT)
    theirs.load_state_dict(file)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=10,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    pipeline = FluxPriorReduxPipeline(
        vision, SiglipImageProcessor(size={"height": 64, "width": 64}), theirs, text_encoder=text
    )
    pictures, weights = adapter_files.picture(count=3), [0.5, 0.3, 0.2]
    prompt = conditioning()
    with torch.no_grad():
        expected = pipeline(
            [(255 * picture).round().byte().numpy() for picture in pictures],
            prompt_embeds=prompt.context.expand(3, -1, -1).clone(),
            pooled_prompt_embeds=prompt.pooled.expand(3, -1).clone(),
            prompt_embeds_scale=weights,
            pooled_prompt_embeds_scale=weights,
        )
    runner = OffloadRunner(OffloadPolicy("stream", separate_memory=True), CPU)
    encoder = load_vision_encoder(
        adapter_files.host_vision(vision, tmp_path / "v.safetensors"), precision="fp32"
    )
    redux = load_redux(tiny_models.save(file, tmp_path / "r.safetensors"), precision="fp32")
    seen = encode_vision(runner, encoder, pictures, crop=False)
    tokens = on_grid(redux_tokens(runner, redux, seen.tokens))
    ours = with_tokens(prompt, merged(tokens, weights, "sum"))
    assert tiny_models.relative(ours.context, expected.prompt_embeds) < 1e-5
    assert tiny_models.relative(ours.pooled, expected.pooled_prompt_embeds) < 1e-5


class TestGrids:
    def test_fewer_tokens_are_averages(self):
        tokens = picture_tokens(2, side=6)
        plane = tokens.unflatten(1, (6, 6))
        for grid, pool in ((3, 2), (2, 3), (1, 6)):
            blocks = plane.unflatten(2, (grid, pool)).unflatten(1, (grid, pool)).mean((2, 4))
            actual = torch.stack(on_grid(tokens, grid))
            assert tiny_models.relative(actual, blocks.flatten(1, 2)) < 1e-6
        odd = torch.stack(on_grid(tokens, 4))
        expected = F.interpolate(plane.movedim(-1, 1), (4, 4), mode="area").flatten(2)
        assert tiny_models.relative(odd, expected.transpose(1, 2)) < 1e-6
        for whole in (0, 6):
            assert torch.equal(torch.stack(on_grid(tokens, whole)), tokens)

    def test_masks_leave_tokens_out_and_weigh_the_rest(self):
        tokens = picture_tokens(2, side=4)
        left = torch.zeros(1, 16, 16)
        left[:, :, :8] = 1
        kept = on_grid(tokens, mask=left)
        expected = tokens.unflatten(1, (4, 4))[:, :, :2].flatten(1, 2)
        assert torch.equal(torch.stack(kept), expected)
        quarter = torch.zeros(1, 16, 16)
        quarter[:, :, :4] = 1  # of the four tokens that become one, two count
        halved = torch.stack(on_grid(tokens, 2, quarter))
        expected = tokens.unflatten(1, (4, 4))[:, :, 0].unflatten(1, (2, 2)).mean(2)
        assert tiny_models.relative(halved, expected) < 1e-6
        both = torch.cat([left, 1 - quarter])
        assert [len(each) for each in on_grid(tokens, mask=both)] == [8, 12]

    def test_masks_are_cut_as_pictures_are(self):
        tokens, wide = picture_tokens(side=4), torch.zeros(1, 8, 16)
        wide[:, :, :4] = 1  # outside of the square in the middle
        with pytest.raises(ValueError, match="covers nothing"):
            on_grid(tokens, mask=wide)
        assert len(on_grid(tokens, mask=wide, crop=False)[0]) == 4

    def test_what_cannot_be_is_refused(self):
        tokens, context = picture_tokens(), conditioning().context
        odd, wide = torch.zeros(1, 17, 4), torch.zeros(1, 4, 9)
        for call, message in (
            (lambda: on_grid(tokens, 5), "grid of a picture's tokens"),
            (lambda: on_grid(odd, 2), "17 tokens, which are no square"),
            (lambda: on_grid(tokens, mask=torch.ones(3, 4, 4)), "3 masks for 1 pictures"),
            (lambda: merged([odd[0], wide[0]], merge="sum"), "cannot be summed"),
            (lambda: merged([odd[0]], [1.0, 2.0]), "2 weights for 1 pictures"),
            (lambda: merged([odd[0]], merge="mean"), "merge is 'mean'"),
            (lambda: append_tokens(context, None, wide), "9 wide, the prompt's 48"),
            (lambda: append_tokens(context, None, wide, 1.0, "add"), "strength_type is 'add'"),
            (lambda: append_tokens(context, None, wide, -1.0), "strength of a picture"),
        ):
            with pytest.raises(ValueError, match=message) as raised:
                call()
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize("policy", ["none", "component", "stream"])
def test_a_biased_prompt_counts_its_mask_and_has_the_same_bits(policy):
    model = tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False)
    prompt = with_tokens(conditioning(), merged(list(picture_tokens())), 0.5, ATTENTION_BIAS)
    asked = DrawRequest(model, prompt, torch.zeros(1, 16, 48, 48), SamplingSettings(steps=2))
    expected = sample(asked)
    plain = replace(asked, positive=replace(prompt, attention=None))
    tokens = TEXT + 16 + 24 * 24
    work = asked.work
    assert work.activations - plain.work.activations == 4 * tokens**2
    runner = OffloadRunner(OffloadPolicy(policy, separate_memory=True), CPU)
    seen = []
    runner.run("transformer", [model], lambda _: seen.append(sample(asked)), work)
    assert torch.equal(seen[0], expected)
