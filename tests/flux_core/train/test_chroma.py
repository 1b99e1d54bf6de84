"""Training a LoRA on Chroma: prompts of unlike lengths, gradients, the file."""

from __future__ import annotations

import pytest
import torch

from flux_core import load_lora
from flux_core.lora.match import match_lora
from flux_core.lora.save import save_lora
from flux_core.lora.trained import TrainedLora
from flux_core.models.text_encoding import TextEncoding, joined
from flux_core.train.config import ConfigError, ModelConfig
from flux_core.train.models import TrainingModels
from flux_core.train.objective import predict_velocity
from tests import tiny_chroma, tiny_models
from tests.tiny_models import relative

TARGETS = ("attention", r"distilled_guidance_layer\.(layers\..*|in_proj)")


def texts() -> list[TextEncoding]:
    generator = torch.Generator().manual_seed(2)
    return [
        TextEncoding(torch.randn(1, n, tiny_models.CONTEXT, generator=generator), torch.zeros(1, 0))
        for n in (4, 7)
    ]


def noisy() -> torch.Tensor:
    return torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))


TIMES = torch.tensor([0.3, 0.8])


def test_captions_of_unlike_lengths_are_read_as_if_alone():
    model = tiny_chroma.chroma_transformer()
    with torch.no_grad():
        both = predict_velocity(model, noisy(), TIMES, joined(texts()), 1.0)
        for i, text in enumerate(texts()):
            span = slice(i, i + 1)
            alone = predict_velocity(model, noisy()[span], TIMES[span], text, 1.0)
            assert relative(both[span], alone) < 1e-5


def test_blocks_and_the_approximator_learn_and_what_they_learned_is_read(tmp_path):
    model = tiny_chroma.chroma_transformer()
    lora = TrainedLora(model, rank=2, alpha=2.0, targets=TARGETS, seed=0)
    with lora.on(model):
        loss = predict_velocity(model, noisy(), TIMES, joined(texts()), 1.0).square().mean()
        loss.backward()
    # ``up`` begins at zero, and has gradients first
    ups = [p for p in lora.parameters() if p.grad is not None and bool(p.grad.any())]
    assert len(ups) == len(list(lora.parameters())) // 2
    with torch.no_grad():
        for p in lora.parameters():
            p += 0.05
    factors = lora.factors()
    for format in ("diffusers", "kohya"):
        path = save_lora(
            model, factors, tmp_path / f"{format}.safetensors", alpha=2.0, format=format
        )
        match = match_lora(load_lora(path), model)
        assert not match.unmatched and set(match.deltas) == set(factors)


def test_flux1_s_files_need_clip_l(tmp_path):
    path = tiny_models.save(tiny_models.flux_transformer().state_dict(), tmp_path / "m.safetensors")
    config = ModelConfig(transformer=str(path), t5="t5.safetensors", vae="vae.safetensors")
    with pytest.raises(ConfigError, match="clip_l is empty, and FLUX.1-dev reads CLIP-L"):
        TrainingModels.open(config)
