"""IP-Adapters in runs: same bits under every policy, spans and masks, memory, faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flux_core import Conditioning, OffloadPolicy, compile_blocks, load_ip_adapter
from flux_core.models.ip_adapter import IPAdapter
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.placement import placement_of
from flux_core.quant import forget_matrices, quantize
from flux_core.sampling.adapters import AppliedAdapter, adapter_work, keys_of, made_ready
from flux_core.sampling.conditioning import Region
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from tests import adapter_files, tiny_chroma, tiny_models

CPU = torch.device("cpu")
POLICIES = [
    OffloadPolicy(mode, separate_memory=True) for mode in ("none", "component", "stream", "auto")
] + [OffloadPolicy("auto", vram_budget=3_000_000, separate_memory=True)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "xlabs": tiny_models.save(adapter_files.xlabs(), folder / "xlabs.safetensors"),
        "instantx": tiny_models.save(adapter_files.instantx(), folder / "instantx.safetensors"),
    }


@pytest.fixture
def transformer():
    return tiny_models.flux_transformer().requires_grad_(False)


def applied(path, precision: str = "fp32", seed: int = 0, count: int = 1, **options):
    adapter = load_ip_adapter(path, precision=precision)
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(count, adapter.config.embed_dim, generator=generator)
    return AppliedAdapter(adapter, embeds, **options)


def conditioning(seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, 5, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
    )


def request(transformer, *adapters: AppliedAdapter, **options) -> DrawRequest:
    options = {"settings": SamplingSettings(steps=2), "positive": conditioning()} | options
    positive = options.pop("positive")
    latents = options.pop("latents", torch.zeros(1, 16, 8, 8))
    return DrawRequest(transformer, positive, latents, adapters=adapters, **options)


def drawn(asked: DrawRequest, policy: OffloadPolicy = POLICIES[0]) -> Tensor:
    return draw(OffloadRunner(policy, CPU), [asked])[0]


class TestSameBits:
    @pytest.mark.parametrize("precision", ["fp32", "int8", "fp8_scaled"])
    def test_under_every_policy(self, files, transformer, precision):
        if precision != "fp32":
            quantize(transformer, precision)
        pair = [
            applied(files["xlabs"], precision, weight=0.8, end=0.7),
            applied(files["instantx"], precision, weight=0.5, count=2),
        ]
        plain = drawn(request(transformer))
        first = None
        for policy in POLICIES if precision == "fp32" else POLICIES[:3:2]:
            fresh = [  # nothing is known of the pictures
                replace(each, adapter=load_ip_adapter(path, precision=precision))
                for each, path in zip(pair, files.values(), strict=True)
            ]
            latents = drawn(request(transformer, *fresh), policy)
            first = latents if first is None else first
            assert torch.equal(latents, first), policy
        assert first is not None and tiny_models.relative(first, plain) > 1e-2
        assert torch.equal(drawn(request(transformer)), plain)

    def test_with_references_regions_and_guidance(self, files, transformer):
        generator = torch.Generator().manual_seed(4)
        latent = torch.randn(1, 16, 4, 4, generator=generator)
        still = References((latent,), "index_timestep_zero")
        prompts = [
            replace(conditioning(1), references=still),
            replace(conditioning(2), region=Region(area=(4, 4, 2, 2), strength=0.7)),
        ]
        mask = torch.rand(2, 20, 30, generator=generator)
        one = applied(files["instantx"], mask=mask)
        other = applied(files["xlabs"])
        other = replace(other, negative=other.embeds.flip(-1))
        asked = request(
            transformer,
            one,
            other,
            positive=prompts,
            negative=conditioning(3),
            settings=SamplingSettings(steps=2, cfg=2.0),
            latents=torch.zeros(2, 16, 7, 9),
        )
        latents = [drawn(asked, policy) for policy in POLICIES[:3]]
        assert all(torch.equal(latents[0], each) for each in latents)
        silent = replace(asked, adapters=[one, replace(other, negative=None)])
        assert tiny_models.relative(drawn(silent), latents[0]) > 1e-3

    def test_a_picture_is_known_and_has_the_same_bits(self, files, transformer):
        one = applied(files["xlabs"])
        runner = OffloadRunner(None, CPU)
        first = draw(runner, [request(transformer, one)])[0]
        assert list(runner.report.parts) == ["image prompts", "transformer"]
        again = OffloadRunner(None, CPU)
        assert torch.equal(draw(again, [request(transformer, one)])[0], first)
        assert list(again.report.parts) == ["transformer"]
        other = draw(again, [request(transformer, replace(one, embeds=one.embeds * 2))])[0]
        assert "image prompts" in again.report.parts and not torch.equal(other, first)

    def test_more_pictures_than_are_kept(self, files, transformer):
        adapter = load_ip_adapter(files["xlabs"], precision="fp32")
        many = [replace(applied(files["xlabs"], seed=n), adapter=adapter) for n in range(6)]
        assert torch.equal(
            drawn(request(transformer, *many)), drawn(request(transformer, *many), POLICIES[2])
        )


class TestChroma:
    """Its blocks are FLUX.1's, modulated from elsewhere."""

    def test_every_policy_draws_the_same_bits_in_what_was_predicted(self, files):
        model = quantize(tiny_chroma.chroma_transformer(), "int8")
        pair = [
            applied(files["xlabs"], weight=0.8, end=0.7),
            applied(files["instantx"], weight=0.5, mask=torch.eye(8)[None]),
        ]
        pair[1] = replace(pair[1], negative=-pair[1].embeds)
        options = {
            "positive": replace(conditioning(1), pooled=None),
            "negative": replace(conditioning(2), pooled=None),
            "settings": SamplingSettings(steps=2, cfg=2.0),
            "latents": torch.zeros(1, 16, 16, 16),
        }
        plain = drawn(request(model, **options))
        expected = drawn(request(model, *pair, **options))
        assert tiny_models.relative(expected, plain) > 1e-2
        for policy in POLICIES[1:3]:
            runner = OffloadRunner(policy, CPU)
            placement_of(model, CPU).evict()
            forget_matrices("cpu")
            with LiveBytes() as counted:
                (latents,) = draw(runner, [request(model, *pair, **options)])
            assert torch.equal(latents, expected)
            predicted = runner.report.parts["transformer"].predicted
            assert predicted == pytest.approx(counted.peak, rel=0.05)
        assert torch.equal(drawn(request(model, **options)), plain)


class TestNumbers:
    def test_weight_zero_and_an_empty_span_are_absence(self, files, transformer):
        plain = drawn(request(transformer))
        zero = applied(files["instantx"], weight=0.0)
        assert torch.equal(drawn(request(transformer, zero)), plain)
        nowhere = applied(files["instantx"], start=1.0, end=1.0)
        assert torch.equal(drawn(request(transformer, nowhere)), plain)

    def test_a_span_counts_in_its_steps_alone(self, files, transformer):
        seen: dict[str, list[int]] = {}
        for name, span in {"first": (0.0, 0.4), "last": (0.4, 1.0)}.items():
            one = applied(files["xlabs"], start=span[0], end=span[1])
            steps: list[int] = []
            original = transformer.forward

            def watched(*args, steps=steps, original=original, **kwargs):
                steps.append(int("adapters" in kwargs))
                return original(*args, **kwargs)

            transformer.forward = watched
            drawn(request(transformer, one, settings=SamplingSettings(steps=5)))
            del transformer.forward
            seen[name] = steps
        assert sum(seen["first"]) in (2, 3) and seen["first"][0] and not seen["first"][-1]
        assert [a + b for a, b in zip(*seen.values(), strict=True)].count(1) >= 4

    def test_masks_say_where(self, files, transformer):
        """A mask of ones is none, one of zeros is absence, half of one changes its half most."""
        settings = SamplingSettings(steps=1)
        plain = drawn(request(transformer, settings=settings))
        for path in files.values():
            one = applied(path)
            whole = drawn(request(transformer, one, settings=settings))
            for value, expected in ((1.0, whole), (0.0, plain)):
                masked = replace(one, mask=torch.full((1, 32, 32), value))
                latents = drawn(request(transformer, masked, settings=settings))
                assert tiny_models.relative(latents, expected) < 1e-6
            half = torch.zeros(1, 64, 64)
            half[:, :, 32:] = 1
            latents = drawn(request(transformer, replace(one, mask=half), settings=settings))
            left, right = (latents - plain).chunk(2, dim=-1)
            assert right.norm() > 1.5 * left.norm()

    def test_two_of_half_weight_are_one(self, files, transformer):
        one = applied(files["xlabs"], weight=0.8)
        halves = [replace(one, weight=0.4), replace(one, weight=0.4)]
        whole, parts = drawn(request(transformer, one)), drawn(request(transformer, *halves))
        assert tiny_models.relative(parts, whole) < 1e-5

    def test_spans_and_masks_compile_nothing(self, files, transformer):
        one = applied(files["instantx"])
        compile_blocks(transformer, "eager")
        torch._dynamo.reset()
        first = drawn(request(transformer, one))
        with torch._dynamo.config.patch(error_on_recompile=True):
            narrow = drawn(request(transformer, replace(one, start=0.3, end=0.6, weight=0.2)))
            drawn(request(transformer, replace(one, mask=torch.ones(1, 9, 9))))
        compile_blocks(transformer, "")
        eager = drawn(request(transformer, replace(one, start=0.3, end=0.6, weight=0.2)))
        assert tiny_models.relative(narrow, eager) < 1e-5
        assert tiny_models.relative(first, eager) > 1e-3


class TestMemory:
    @pytest.mark.parametrize("kind", ["xlabs", "instantx"])
    def test_a_run_takes_what_is_predicted(self, files, transformer, kind):
        """Everything that the run allocates, keys and values among it."""
        masked = applied(files[kind], count=40, mask=torch.ones(1, 8, 8))
        (ready,) = made_ready(None, [masked])
        asked = request(transformer, ready, latents=torch.zeros(1, 16, 48, 48))
        runner = OffloadRunner(OffloadPolicy("stream", separate_memory=True), CPU)
        counted, plans, work = LiveBytes(), [], asked.work

        def run(plan):
            plans.append(plan)
            return sample(asked)

        with counted:
            runner.run("transformer", [transformer], run, work)
        keys = sum(x.nbytes for x in ready.ready[0])  # on a CPU they are where they were
        plain = replace(asked, adapters=()).work.activations
        assert work.activations - plain > keys
        assert abs(counted.peak + keys - plans[-1].peak) < 0.05 * plans[-1].peak

    @pytest.mark.parametrize("mode", ["none", "stream"])
    def test_its_own_phase_too(self, files, mode):
        one = applied(files["instantx"], count=30)
        runner = OffloadRunner(OffloadPolicy(mode, separate_memory=True), CPU)
        plan = runner.plan([one.adapter], adapter_work(one.adapter, 30))
        with LiveBytes() as counted:
            keys_of(runner, one.adapter, one.embeds)
        assert abs(counted.peak - plan.peak) < 0.05 * plan.peak
        assert (plan.streamed > 0) == (mode == "stream")


class BrokenError(Exception):
    pass


class TestFaults:
    @pytest.mark.parametrize("policy", POLICIES[:3], ids=lambda policy: policy.mode)
    def test_an_exception_leaves_everything_as_it_was(self, files, transformer, policy):
        one = applied(files["instantx"])
        names = [name for name, _ in transformer.named_modules()]
        plain, with_it = drawn(request(transformer)), drawn(request(transformer, one))

        def stop(step, total, latents):
            if step == 1:
                raise BrokenError

        with pytest.raises(BrokenError):
            draw(OffloadRunner(policy, CPU), [request(transformer, one)], callback=stop)
        assert [name for name, _ in transformer.named_modules()] == names
        assert all("forward" not in block.__dict__ for block in transformer.offload_blocks())
        assert torch.equal(drawn(request(transformer), policy), plain)
        assert torch.equal(drawn(request(transformer, one), policy), with_it)

    def test_one_in_its_own_phase_too(self, files, transformer, monkeypatch):
        one = applied(files["instantx"])
        original = IPAdapter.forward

        def broken(self, embeds):
            original(self, embeds)
            raise BrokenError

        monkeypatch.setattr(IPAdapter, "forward", broken)
        runner = OffloadRunner(POLICIES[2], CPU)
        with pytest.raises(BrokenError):
            draw(runner, [request(transformer, one)])
        monkeypatch.undo()
        assert placement_of(one.adapter, CPU).held == 0
        other = applied(files["instantx"])
        assert torch.equal(
            drawn(request(transformer, one)), drawn(request(transformer, other), POLICIES[2])
        )


def test_what_does_not_belong_is_refused_in_a_line(files, transformer):
    one = applied(files["xlabs"])
    deeper = tiny_models.flux_transformer(replace(tiny_models.DEV, depth=2))
    for model, wrong, message in (
        (transformer, replace(one, embeds=torch.zeros(1, 9)), "reads 24 numbers"),
        (transformer, replace(one, embeds=one.embeds * torch.nan), "NaN"),
        (transformer, replace(one, weight=float("nan")), "weight"),
        (transformer, replace(one, start=0.6, end=0.2), "start"),
        (transformer, replace(one, mask=torch.ones(3, 4, 4)), r"expected \(1 or 1, H, W\)"),
        (deeper, one, "3 layers of width 256, this transformer asks for 2 of 256"),
        (deeper, applied(files["instantx"]), "8 layers of width 256.* asks for 7"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            request(model, wrong)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="expected an AppliedAdapter"):
        request(transformer, one.adapter)
