"""LoRAs with schedules and regions: steps by hand, tokens by hand, all policies the same bits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from flux_core import (
    Conditioning,
    FluxPipeline,
    FluxTransformer,
    OffloadPolicy,
    compile_blocks,
    quantize,
)
from flux_core.lora import Lora, LoraRegion, LoraUse, lora_applied, merge_loras
from flux_core.lora.apply import attached_factors, branches_for
from flux_core.lora.branch import BranchedLinear, LinearBranch
from flux_core.lora.rows import IMAGE, RowFactors, RowLinearBranch
from flux_core.lora.schedule import StrengthSchedule
from flux_core.models.compile import compiled_forward
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.conditioning import Region
from flux_core.sampling.latents import (
    destandardise,
    image_ids,
    pack,
    standardise,
    text_ids,
    unpack,
)
from flux_core.sampling.lora_factors import LoraFactors, share_at, step_factor, token_mask
from flux_core.sampling.prepared import PreparedPrompt, prepare_prompt, sigma_at
from flux_core.sampling.references import References
from flux_core.sampling.regions import place_prompt
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw
from flux_core.sampling.samplers import SAMPLERS, step_noise
from flux_core.sampling.sigmas import SigmaTable
from tests import tiny_models
from tests.flux_core.lora.lora_files import new_model, pair
from tests.flux_core.lora.lora_kinds import every_kind

CPU = torch.device("cpu")
POLICIES = (
    OffloadPolicy("none"),
    OffloadPolicy("component", separate_memory=True),
    OffloadPolicy("stream", separate_memory=True),
    OffloadPolicy("stream", separate_memory=True, slots=3),
    OffloadPolicy("auto", separate_memory=True, vram_budget=60_000_000),
)


def prompt(seed: int = 0, text: int = 5) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, text, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
    )


def request(model: FluxTransformer, loras=(), size=(1, 16, 4, 6), **options) -> DrawRequest:
    settings = {"steps": 4, "seed": 3} | {
        k: options.pop(k)
        for k in ("steps", "sampler", "sigmas", "cfg", "batch_index")
        if k in options
    }
    options = {"positive": prompt()} | options
    return DrawRequest(
        model, latents=torch.zeros(size), settings=SamplingSettings(**settings), loras=loras,
        **options,
    )  # fmt: skip


def drawn(*requests: DrawRequest, policy: OffloadPolicy = POLICIES[0]) -> Tensor:
    return draw(OffloadRunner(policy, CPU), requests)[0]


class TestSchedules:
    @pytest.mark.parametrize(
        "text, values",
        [
            ("0:1, 0.5:1, 0.8:0", {0: 1, 0.3: 1, 0.5: 1, 0.65: 0.5, 0.8: 0, 1: 0}),
            ("linear 0.2:2, 0.6:0", {0: 2, 0.2: 2, 0.3: 1.5, 0.6: 0, 0.7: 0}),
            ("step 0:1, 0.5:0, 0.7:-3", {0: 1, 0.49: 1, 0.5: 0, 0.69: 0, 0.7: -3, 1: -3}),
            ("0:1, 0.5:1, 0.5:0, 1:1", {0.4999: 1, 0.5: 0, 0.75: 0.5, 1: 1}),
            ("0.4:0.25", {0: 0.25, 0.4: 0.25, 1: 0.25}),
        ],
    )
    def test_points_are_joined_by_lines_or_steps(self, text, values):
        schedule = StrengthSchedule.parse(text)
        assert {share: schedule.at(share) for share in values} == pytest.approx(values)

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "0 points"),
            ("0:1, x", "'x' is no point, expected one such as 0.5:1"),
            ("0:1:2", "is no point"),
            ("curve 0:1", "'curve 0:1' is no point"),
            ("0.5:1, 0.2:0", "0.2 comes after 0.5, expected rising"),
            ("1.5:1", "share of point 0 is 1.5, expected 0 to 1"),
            ("0:1, 0.5:nan", "factor of point 1 is nan"),
            ("0:1, 0.5:1e9", "factor of point 1 is 1000000000.0"),
        ],
    )
    def test_what_is_wrong_is_named(self, text, message):
        with pytest.raises(ValueError, match=message) as raised:
            StrengthSchedule.parse(text)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("mu", [0.0, 0.5, 1.15, 3.0])
    def test_shares_are_those_of_spans(self, mu):
        table = SigmaTable(mu)
        shares = [0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.8, 0.999, 1.0]
        for share in shares:
            sigma = sigma_at(table, share)
            assert share_at(table, sigma) == pytest.approx(share, abs=1e-6)
            assert share_at(table, sigma, shares) == share
        assert share_at(table, 0.0) == 1 and share_at(table, 1.7) == 0

    def test_a_step_exactly_at_a_point_has_what_holds_from_there(self):
        table = SigmaTable(1.15)
        use = LoraUse(every_kind(new_model()), schedule="step 0:1, 0.3:0, 0.7:2")
        assert step_factor(use, table, sigma_at(table, 0.3)) == 0
        assert step_factor(use, table, sigma_at(table, 0.7)) == 2
        assert step_factor(use, table, sigma_at(table, 0.2999)) == 1


def by_hand(
    model: FluxTransformer, lora: Lora, schedule: str, strength: float, sampler: str
) -> tuple[Tensor, int]:
    """The run with a constant strength of its own at every call, and how many calls there were."""
    plain = request(model, sampler=sampler)
    noise, sigmas, table = plain.noise_schedule
    points, text, calls = StrengthSchedule.parse(schedule), prompt(), 0

    @torch.no_grad()
    def call(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        time = 1 / (1 + math.exp(table.mu) * (1 / float(sigma) - 1))
        with lora_applied(model, [(lora, strength * points.at(1 - time))]):
            inputs = pack(x), image_ids(4, 6), text.context, text_ids(5), sigma[None]
            velocity = model(*inputs, text.pooled, torch.tensor([3.5]))
        return x - sigma * unpack(velocity.float(), 4, 6)

    start = standardise(torch.zeros(1, 16, 4, 6), plain.vae)
    x = sigmas[0] * noise + (1 - sigmas[0]) * start
    x = SAMPLERS[sampler](call, x, sigmas, step_noise(x, 3), lambda *_: None)
    return destandardise(x, plain.vae), calls


class TestScheduledRuns:
    """Layers of every kind have the LoRA, modulations and embedders of vectors among them."""

    @pytest.mark.parametrize("sampler", sorted(SAMPLERS))
    def test_a_schedule_is_each_step_with_the_strength_of_its_own(self, sampler):
        model = new_model()
        lora = every_kind(model)
        for schedule in ("0:0.25, 1:1", "step 0:1, 0.3:0.2"):
            expected, calls = by_hand(model, lora, schedule, 0.4, sampler)
            use = LoraUse(lora, 0.4, schedule=schedule)
            latents = drawn(request(model, [use], sampler=sampler))
            assert tiny_models.relative(latents, expected) < 1e-5
            assert calls == (7 if sampler == "heun" else 4)
            constant = drawn(request(model, [(lora, 0.4)], sampler=sampler))
            assert tiny_models.relative(constant, expected) > 1e-3

    @pytest.mark.parametrize(
        "precision, policies", [("bf16", POLICIES[1:]), ("int8", POLICIES[2:3])]
    )
    def test_all_policies_draw_the_same_bits(self, precision, policies):
        model = quantize(new_model().bfloat16(), precision)
        stack = stack_of_all(new_model())
        options = {"size": (2, 16, 4, 6), "cfg": 2.0, "negative": prompt(9, text=3), "steps": 3}
        state = {k: v.clone() for k, v in model.state_dict().items()}
        plain = drawn(request(model, **options))
        expected = drawn(request(model, stack, **options))
        assert not torch.equal(expected, plain)
        for policy in policies:
            assert torch.equal(drawn(request(model, stack, **options), policy=policy), expected)
            assert torch.equal(drawn(request(model, **options), policy=policy), plain)
        after = model.state_dict()
        assert after.keys() == state.keys()
        assert all(same_bytes(after[k], v) for k, v in state.items())

    def test_requests_drawn_together_have_their_own_steps(self):
        model = new_model()
        stack = stack_of_all(model)
        asked = [request(model, stack, steps=steps, positive=prompt(steps)) for steps in (2, 3)]
        apart = [drawn(one) for one in asked]
        for policy in POLICIES[1:3]:
            together = draw(OffloadRunner(policy, CPU), asked)
            assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))
        other = replace(asked[1], loras=[replace(stack[0], schedule=None), *stack[1:]])
        with pytest.raises(ValueError, match="the same model, controls and LoRAs"):
            draw(OffloadRunner(None, CPU), [asked[0], other])

    def test_more_steps_than_are_computed_at_once(self, monkeypatch):
        model = new_model()
        stack = stack_of_all(model)
        expected = drawn(request(model, stack, steps=7))
        monkeypatch.setattr("flux_core.offload.modulations.WINDOW", 3)
        assert tiny_models.relative(drawn(request(model, stack, steps=7)), expected) < 1e-5

    def test_each_picture_of_a_batch_has_the_steps_of_all(self):
        """Modulations of several steps and pictures are computed in one product."""
        model = new_model()
        stack = stack_of_all(model)
        (alone,) = drawn(request(model, stack))
        both = drawn(request(model, stack, size=(2, 16, 4, 6), batch_index=[0, 0]))
        for latents in both:
            assert tiny_models.relative(latents, alone) < 1e-5

    def test_a_factor_that_never_changes_is_a_strength(self):
        model, lora = new_model(), every_kind(new_model())
        half = drawn(request(model, [(lora, 0.25)]))
        scheduled = drawn(request(model, [LoraUse(lora, 0.5, schedule="0:0.5")]))
        assert tiny_models.relative(scheduled, half) < 1e-5
        none = drawn(request(model, [LoraUse(lora, 0.5, schedule="0:0")]))
        assert torch.equal(none, drawn(request(model)))

    def test_weights_a_block_and_a_schedule_multiply(self):
        model, lora = new_model(), every_kind(new_model())
        text = "double: 0.5, single 0-2: 0, outside: 2"
        expected = drawn(request(model, [LoraUse(lora, 0.25, text)]))
        both = drawn(request(model, [LoraUse(lora, 0.5, text, "0:0.5")]))
        assert tiny_models.relative(both, expected) < 1e-5


def stack_of_all(model: FluxTransformer) -> list[LoraUse]:
    """LoRAs with schedules and regions of every form, and one without."""
    mask = torch.zeros(1, 8, 12)
    mask[:, :, 5:] = 1
    region = LoraRegion(mask, 0.5, 0.25)
    return [
        LoraUse(every_kind(model), 0.3, "double: 0.5, else: 1", "0:1, 0.6:0.2, 1:1", region),
        LoraUse(every_kind(model, 31), 0.2, schedule="step 0:0, 0.4:1"),
        LoraUse(every_kind(model, 62), 0.2, region=1 - mask),
        LoraUse(every_kind(model, 93), 0.1),
    ]


def low_rank(model: FluxTransformer, size: float = 1.0) -> Lora:
    """A LoRA of rank 16 on every layer of the blocks."""
    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and "_blocks" in name:
            down, up = pair((layer.out_features, layer.in_features), 16)
            layers["transformer", name] = {"down": down, "up": size * up}
    return Lora("low", layers, {key: (key[1],) for key in layers})


#: A mask whose upper half counts.
EDGE = torch.tensor([[1.0], [0.0]])


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


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


def prepared_prompt(height: int, width: int, area=None) -> PreparedPrompt:
    region = Region() if area is None else Region(area=area)
    asked = request(new_model(), size=(1, 16, height, width))
    placed = place_prompt(replace(prompt(), region=region), height, width)
    table, shape = asked.noise_schedule.table, asked.latents.shape
    return prepare_prompt(placed, "positive 0", asked.transformer, table, shape, CPU, True)


class TestNumbersAlone:
    def test_other_masks_and_schedules_make_no_branch_and_compile_nothing(self):
        torch._dynamo.reset()
        compiled_forward.cache_clear()
        model, lora = new_model(), every_kind(new_model())
        counter = CompileCounter()
        compile_blocks(model, counter)
        forms = [
            LoraUse(lora, 0.5, None, "0:1, 1:0", torch.eye(4)),
            LoraUse(lora, 0.3, "double 1: 0", "step 0:0, 0.5:1", LoraRegion(torch.ones(9, 9), 0.1)),
            LoraUse(lora, 0.5, None, "0:0.5", 1 - torch.eye(3)),
        ]
        made, latents, frames = [], [], []
        try:
            for use in forms:
                latents.append(drawn(request(model, [use])))
                branches = branches_for(model, [lora], lambda: pytest.fail("made anew"), [0])
                made.append({name: id(branch) for name, branch in branches.branches.items()})
                frames.append(counter.frame_count)
        finally:
            compile_blocks(model, "")
            torch._dynamo.reset()
        assert made[0] == made[1] == made[2] and frames[0] == frames[1] == frames[2] > 0
        assert not torch.equal(latents[0], latents[2])
        eager = drawn(request(model, [forms[2]]))
        assert tiny_models.relative(latents[2], eager) < 1e-5

    def test_a_plain_lora_has_plain_branches(self):
        model, lora = new_model(), every_kind(new_model())
        with lora_applied(model, [LoraUse(lora, 0.5)]):
            branches = [m.branch for m in model.modules() if isinstance(m, BranchedLinear)]
            assert branches and all(type(branch) is LinearBranch for branch in branches)
            assert attached_factors(model) is None
        with lora_applied(model, [LoraUse(lora, 0.5, schedule="0:1")]):
            branches = [m.branch for m in model.modules() if isinstance(m, BranchedLinear)]
            assert branches and all(type(branch) is RowLinearBranch for branch in branches)

    def test_a_step_takes_hardly_more_memory(self):
        """So the plan of a run with the LoRA alone holds."""
        model, lora = new_model(), low_rank(new_model())
        forms = [LoraUse(lora), LoraUse(lora, schedule="0:1, 1:0"), LoraUse(lora, region=EDGE)]
        peaks = []
        for use in forms:
            asked = request(model, [use], size=(1, 16, 32, 32), steps=1)
            drawn(asked)  # which makes the branches
            with LiveBytes() as counted:
                drawn(asked)
            peaks.append(counted.peak)
        assert all(abs(peak - peaks[0]) < 0.02 * peaks[0] for peak in peaks)

    @pytest.mark.parametrize("policy", POLICIES[1:3], ids=lambda policy: policy.mode)
    def test_a_run_that_fails_leaves_everything_as_it_was(self, policy):
        model = new_model()
        stack = stack_of_all(model)
        plain, expected = drawn(request(model)), drawn(request(model, stack))
        kwargs = tiny_models.inputs()

        def whole() -> Tensor:
            with torch.no_grad(), lora_applied(model, stack):
                return model(**kwargs)

        before = whole()

        def interrupt(step: int, *_: object) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            draw(OffloadRunner(policy, CPU), [request(model, stack)], callback=interrupt)
        assert attached_factors(model) is None
        assert torch.equal(whole(), before)
        assert torch.equal(drawn(request(model), policy=policy), plain)
        assert torch.equal(drawn(request(model, stack), policy=policy), expected)

    def test_memory_that_ran_out_in_a_run_gives_the_same_bits(self, monkeypatch):
        model = new_model()
        stack = stack_of_all(model)
        expected = drawn(request(model, stack))
        calls = 0
        forward = type(model.single_blocks[0]).forward

        def failing(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 13:
                raise torch.OutOfMemoryError("injected")
            return forward(*args, **kwargs)

        monkeypatch.setattr(type(model.single_blocks[0]), "forward", failing)
        runner = OffloadRunner(POLICIES[2], CPU)
        (latents,) = draw(runner, [request(model, stack)])
        assert runner.report.parts["transformer"].replans == 1
        assert torch.equal(latents, expected)


def test_the_pipeline_takes_them_beside_files_and_pairs(tmp_path):
    pipeline = FluxPipeline.from_pocket(precision="fp32", policy=OffloadPolicy("stream"))
    lora = low_rank(pipeline.transformer, size=0.2)
    file = {f"{name}.lora_A.weight": kinds["down"] for (_, name), kinds in lora.layers.items()}
    file |= {f"{name}.lora_B.weight": kinds["up"] for (_, name), kinds in lora.layers.items()}
    path = tiny_models.save(file, tmp_path / "low.safetensors")

    def pictures(*loras: object) -> Tensor:
        settings = {"width": 64, "height": 64, "steps": 2}
        return pipeline("a red circle", **settings, loras=list(loras)).images  # type: ignore[arg-type]

    pair_of = pictures((path, 0.5))
    assert torch.equal(pictures(LoraUse(lora, 0.5)), pair_of)
    scheduled = LoraUse(lora, 0.5, "single", "step 0:1, 0.6:0", EDGE)
    assert not torch.allclose(pictures(scheduled), pair_of)
    assert not torch.allclose(pictures(scheduled, (path, 0.5)), pictures(scheduled))
    for wrong, message in (
        (LoraUse(lora, blocks="double 77: 1"), "double 77 is past this model's last one"),
        (LoraUse(Lora("none", {}, {}, ("x",))), "none: nothing of it fits this model: found x"),
    ):
        with pytest.raises(ValueError, match=message):
            pictures(wrong)
    with pytest.raises(ValueError, match="a LoraUse has 'low', expected a LoRA"):
        LoraUse("low")  # type: ignore[arg-type]
