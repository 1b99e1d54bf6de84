"""LoRAs with regions: tokens by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flux_core.lora import LoraRegion, LoraUse, merge_loras
from flux_core.lora.rows import IMAGE, RowFactors
from flux_core.lora.schedule import StrengthSchedule
from flux_core.sampling.conditioning import Region
from flux_core.sampling.lora_factors import LoraFactors, token_mask
from flux_core.sampling.prepared import PreparedPrompt, prepare_prompt
from flux_core.sampling.references import References
from flux_core.sampling.regions import place_prompt
from flux_core.sampling.sigmas import SigmaTable
from tests import tiny_models
from tests.flux_core.lora.lora_files import new_model
from tests.flux_core.lora.lora_kinds import every_kind
from tests.flux_core.sampling.lora_runs import (
    CPU,
    EDGE,
    drawn,
    prompt,
    request,
)


class ByToken:
    """The reference: what each LoRA adds to a plain layer, token by token, by hooks.

    ``masks`` are of each LoRA (B, L); a LoRA is ``(lora, strength, text, modulation)``.
    """

    def __init__(self, model, loras, masks: list[Tensor], text_tokens: int) -> None:
        self.model, self.loras, self.masks, self.text_tokens = model, loras, masks, text_tokens
        self.handles = []

    def __enter__(self) -> ByToken:
        merged = [merge_loras(copy.deepcopy(self.model), [(lora, 1.0)]) for lora, *_ in self.loras]
        for name, layer in self.model.named_modules():
            if isinstance(layer, torch.nn.Linear):
                changes = [
                    (m.get_submodule(name).weight - layer.weight,
                     m.get_submodule(name).bias - layer.bias)
                    for m in merged
                ]  # fmt: skip
                hook = self.linear_hook(name, changes)
            elif name.endswith("_norm"):
                hook = self.norm_hook(name, [m.get_submodule(name).scale for m in merged])
            else:
                continue
            self.handles.append(layer.register_forward_hook(hook))
            self.handles.append(layer.register_forward_pre_hook(lambda *_: None))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def factor(self, number: int, name: str, x: Tensor) -> Tensor | float:
        """What a LoRA counts at the rows of x (B, T, ...)."""
        _, strength, text, modulation = self.loras[number]
        if x.ndim == 2 or "mod" in name:
            return strength * modulation
        mask = torch.full(x.shape[:2], text)
        first = 0 if name.startswith(("double", "img_in", "final")) else self.text_tokens
        if "txt_" not in name:
            mask[:, first : first + self.masks[number].shape[1]] = self.masks[number]
        return strength * mask[..., None]

    def linear_hook(self, name: str, changes: list[tuple[Tensor, Tensor]]):
        def hook(_, inputs, out):
            (x,) = inputs
            for number, (weight, bias) in enumerate(changes):
                out = out + self.factor(number, name, x) * (x @ weight.T + bias)
            return out

        return hook

    def norm_hook(self, name: str, scales: list[Tensor]):
        def hook(layer, inputs, _):
            (x,) = inputs  # (B, T, H, d)
            scale = layer.scale
            for number, target in enumerate(scales):
                scale = scale + self.factor(number, name, x)[..., None] * (target - scale)
            return scale * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

        return hook


def token_means(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Means (B, rows * columns) of a mask (B, H, W) whose sides are multiples of those."""
    batch, height, width = mask.shape
    cells = mask.view(batch, rows, height // rows, columns, width // columns)
    return cells.mean(dim=(2, 4)).flatten(1)


def prepared_prompt(height: int, width: int, area=None) -> PreparedPrompt:
    region = Region() if area is None else Region(area=area)
    asked = request(new_model(), size=(1, 16, height, width))
    placed = place_prompt(replace(prompt(), region=region), height, width)
    table, shape = asked.noise_schedule.table, asked.latents.shape
    return prepare_prompt(placed, "positive 0", asked.transformer, table, shape, CPU, True)


class TestRegions:
    @pytest.mark.parametrize("count", [1, 2])
    def test_a_region_is_an_addition_token_by_token(self, count):
        """A batch of two with a mask of each, several LoRAs, prompts of unlike length, guidance."""
        model = new_model()
        generator = torch.Generator().manual_seed(5)
        masks = [torch.rand(2, 16, 24, generator=generator), torch.rand(1, 4, 6)][:count]
        numbers = [(0.4, 0.7, 0.5), (-0.2, 0.0, 1.0)]
        loras = [(every_kind(model, 40 * i), *numbers[i]) for i in range(count)]
        stack = [
            LoraUse(lora, strength, region=LoraRegion(mask, text, modulation))
            for (lora, strength, text, modulation), mask in zip(loras, masks, strict=True)
        ]
        options = {"size": (2, 16, 4, 6), "sampler": "heun", "steps": 2}
        ours = drawn(request(model, stack, **options))
        tokens = [token_means(mask, 2, 3) for mask in masks]
        with ByToken(model, loras, tokens, 5):
            expected = drawn(request(model, **options))
        plain = drawn(request(model, **options))
        assert tiny_models.relative(ours, expected) < 1e-6
        assert tiny_models.relative(plain, expected) > 1e-3

    def test_references_count_as_text_does(self):
        model, lora = new_model(), every_kind(new_model())
        generator = torch.Generator().manual_seed(4)
        references = References((torch.randn(1, 16, 4, 4, generator=generator),), "offset")
        asked = {"positive": replace(prompt(), references=references)}
        mask = torch.tensor([[1.0, 0.0, 0.5]])
        region = LoraRegion(mask, 0.25, 0.0)
        ours = drawn(request(model, [LoraUse(lora, 0.5, region=region)], **asked))
        tokens = torch.tensor([[1.0, 0.0, 0.5] * 2])
        with ByToken(model, [(lora, 0.5, 0.25, 0.0)], [tokens], 5):
            expected = drawn(request(model, **asked))
        assert tiny_models.relative(ours, expected) < 1e-6

    def test_whole_numbers_are_numbers(self):
        model, lora = new_model(), every_kind(new_model())
        floats, wholes = LoraRegion(EDGE / 2, 1.0, 2.0), LoraRegion(EDGE / 2, 1, 2)
        points = StrengthSchedule(((0, 1), (1, 2)), stepped=True)
        expected = drawn(request(model, [LoraUse(lora, 0.5, region=floats)]))
        ours = drawn(request(model, [LoraUse(lora, 0.5, schedule=points, region=wholes)]))
        assert torch.equal(ours, expected)

    def test_everywhere_is_no_region_and_nowhere_is_no_lora(self):
        model, lora = new_model(), every_kind(new_model())
        whole = LoraRegion(torch.ones(3, 3), 1.0, 1.0)
        expected = drawn(request(model, [(lora, 0.5)]))
        ours = drawn(request(model, [LoraUse(lora, 0.5, region=whole)]))
        assert tiny_models.relative(ours, expected) < 1e-6
        nowhere = LoraRegion(torch.zeros(3, 3), 0.0, 0.0)
        none = drawn(request(model, [LoraUse(lora, 0.5, region=nowhere)]))
        assert torch.equal(none, drawn(request(model)))

    @pytest.mark.parametrize("height, width", [(4, 6), (5, 7), (8, 8)])
    def test_masks_of_any_size_become_tokens(self, height, width):
        mask = torch.zeros(1, 40, 56)
        mask[:, :, :28] = 1
        prepared = prepared_prompt(height, width)
        tokens = token_mask(mask, prepared, height, width)
        assert tokens.shape == (1, -(-height // 2) * -(-width // 2))
        grid = tokens.view(-(-height // 2), -(-width // 2))
        assert bool((grid[:, 0] == 1).all()) and bool((grid.diff(dim=0).abs() < 1e-6).all())
        assert float(grid.min()) >= 0 and float(grid[:, -2].max()) < 1

    def test_one_prompt_read_at_two_places_has_the_mask_of_each(self):
        mask = torch.zeros(1, 4, 8)
        mask[:, :, 4:] = 1
        uses = [LoraUse(every_kind(new_model()), region=mask)]
        factors = LoraFactors(RowFactors(), uses, SigmaTable(1.15), (1, 16, 8, 16), CPU)
        for left in (0, 8, 0):
            factors.set_call(0.5, prepared_prompt(8, 16, (8, 8, 0, left)), 5, 16)
            assert bool((factors.factors.by_kind[IMAGE] == left / 8).all())

    def test_a_prompt_with_an_area_has_its_part_of_the_mask(self):
        mask = torch.zeros(1, 4, 8)
        mask[:, :, 4:] = 1
        for left, expected in ((0, 0.0), (8, 1.0)):
            prepared = prepared_prompt(8, 16, (8, 8, 0, left))
            tokens = token_mask(mask, prepared, 8, 16)
            assert tokens.shape == (1, 16) and bool((tokens == expected).all())
        model, lora = new_model(), every_kind(new_model())
        sides = [replace(prompt(i), region=Region(area=(4, 4, 0, 4 * i))) for i in range(2)]
        use = LoraUse(lora, 0.5, region=LoraRegion(mask, 0.0, 0.0))
        options = {"size": (1, 16, 4, 8), "positive": sides, "steps": 2}
        ours, plain = drawn(request(model, [use], **options)), drawn(request(model, **options))
        assert torch.equal(ours[..., :4], plain[..., :4])  # each side sees itself alone
        assert tiny_models.relative(ours[..., 4:], plain[..., 4:]) > 1e-3

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"mask": torch.ones(3)}, r"mask is \(3,\), expected \(H, W\)"),
            ({"mask": torch.ones(1, 1, 2, 2)}, "expected"),
            ({"mask": torch.ones(0, 4)}, "expected"),
            ({"mask": "left"}, "mask is 'left'"),
            ({"mask": torch.full((2, 2), math.nan)}, "from nan to nan, expected 0 to 1"),
            ({"mask": 2 * torch.eye(2)}, "from 0 to 2, expected 0 to 1"),
            ({"mask": torch.ones(2, 2), "text": math.inf}, "at text is inf"),
            ({"mask": torch.ones(2, 2), "modulation": "x"}, "in modulations is 'x'"),
        ],
    )
    def test_what_is_no_region_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            LoraRegion(**options)

    def test_what_cannot_be_merged_is_refused(self):
        model, lora = new_model(), every_kind(new_model())
        with pytest.raises(ValueError, match="kinds0 has a schedule, and merged weights"):
            merge_loras(model, [LoraUse(lora, schedule="0:1")])
        with pytest.raises(ValueError, match="kinds0 has a region, and merged weights"):
            merge_loras(model, [LoraUse(lora, region=torch.ones(2, 2))])
