"""What receipts say of a run, taken from its request."""

from __future__ import annotations

from flux_core.lora import LoraUse
from flux_core.receipts import Receipt, content_hash
from flux_core.sampling.facts import of_lora
from tests.flux_core.lora.lora_files import diffusers_lora, write


def test_a_lora_that_was_trained_again_while_it_is_used_has_no_hash(tmp_path):
    path = tmp_path / "lora.safetensors"
    lora = write(diffusers_lora("transformer."), tmp_path)
    note = {"kind": "draw", "loras": [of_lora(LoraUse(lora, 0.5))]}
    known = Receipt.of_notes([note]).files["lora.safetensors"]
    assert known["sha256"] == content_hash(path)
    path.write_bytes(path.read_bytes() + b" ")
    assert Receipt.of_notes([note]).files["lora.safetensors"] == {}
