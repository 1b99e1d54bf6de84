"""What changes where a LoRA counts is numbers alone, and they are gone after a run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from flux_core import (
    FluxPipeline,
    OffloadPolicy,
    compile_blocks,
)
from flux_core.lora import Lora, LoraRegion, LoraUse, lora_applied
from flux_core.lora.apply import attached_factors, branches_for
from flux_core.lora.branch import BranchedLinear, LinearBranch
from flux_core.lora.rows import RowLinearBranch
from flux_core.models.compile import compiled_forward
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.run import draw
from tests import tiny_models
from tests.flux_core.lora.lora_files import new_model
from tests.flux_core.lora.lora_kinds import every_kind
from tests.flux_core.sampling.lora_runs import (
    CPU,
    EDGE,
    POLICIES,
    drawn,
    low_rank,
    request,
    stack_of_all,
)


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
        ids, latents, frames = [], [], []
        try:
            for use in forms:
                latents.append(drawn(request(model, [use])))
                branches = branches_for(model, [lora], lambda: pytest.fail("made anew"), [0])
                ids.append({name: id(branch) for name, branch in branches.branches.items()})
                frames.append(counter.frame_count)
        finally:
            compile_blocks(model, "")
            torch._dynamo.reset()
        assert ids[0] == ids[1] == ids[2] and frames[0] == frames[1] == frames[2] > 0
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
    with pytest.raises(ValueError, match="a LoraUse has 3, expected a LoRA"):
        LoraUse(3)  # type: ignore[arg-type]
