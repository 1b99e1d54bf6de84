"""Saving quantized parts."""

from __future__ import annotations

import pytest
import torch

from flux_core import load_transformer
from flux_core.quant import QuantizedLinear
from tests.nodes.node_calls import defaults, node

POCKET = "fluxfit_pocket.safetensors"


@pytest.fixture(scope="module")
def loaded():
    return node("FluxLoaderFP8").load(
        **defaults("FluxLoaderFP8", transformer_precision="bf16", t5_precision="int8")
    )


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUXFIT_MODELS", raising=False)


class TestSaving:
    def test_each_part_goes_to_its_folder_and_opens_again(self, loaded, tmp_path):
        model = node("FluxFitTransformerLoader").load(POCKET, "int8", "auto")[0]
        report = node("FluxFitSaveQuantized").save(
            "mine", False, model=model, text_encoders=loaded[1]
        )["result"][0]
        assert len(report.splitlines()) == 2
        saved = tmp_path / "output" / "diffusion_models" / "mine.safetensors"
        again = load_transformer(saved, precision="as_stored")
        pairs = zip(model.transformer.modules(), again.modules(), strict=True)
        assert all(
            torch.equal(a.codes, b.codes) for a, b in pairs if isinstance(a, QuantizedLinear)
        )
        assert (tmp_path / "output" / "clip" / "mine_t5.safetensors").is_file()

    def test_a_file_is_not_replaced_unasked(self, loaded, tmp_path):
        save = node("FluxFitSaveQuantized").save
        save("mine", False, model=loaded[0])
        with pytest.raises(FileExistsError, match=r"mine\.safetensors exists already"):
            save("mine", False, model=loaded[0])
        save("mine", True, model=loaded[0])

    def test_nothing_wired_and_bad_names_are_refused(self, loaded):
        with pytest.raises(ValueError, match="nothing is wired in"):
            node("FluxFitSaveQuantized").save("mine", False)
        with pytest.raises(ValueError, match="leaves the folder"):
            node("FluxFitSaveQuantized").save("../../mine", False, model=loaded[0])
