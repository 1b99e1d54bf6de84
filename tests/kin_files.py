"""Files of whole tiny models that are FLUX.1's kin, as a training's ``[model]`` names them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flux_core.pocket import pocket_file
from tests import tiny_chroma, tiny_models
from tests.flux_core.test_flux2_pipeline import save_parts, their_parts

#: Fits the pocket model's T5.
CHROMA = dataclasses.replace(tiny_chroma.CHROMA, context_in_dim=128, depth=1, depth_single_blocks=2)


def flux2_files(folder: Path) -> dict[str, str]:
    """FLUX.2's, in folders as Hugging Face has them."""
    save_parts(their_parts(dev=False), folder)
    names = {"transformer": "transformer", "language_model": "text_encoder", "vae": "vae"}
    return {name: str(folder / place) for name, place in names.items()}


def chroma_files(folder: Path) -> dict[str, str]:
    """Chroma's, with the pocket model's T5 and VAE."""
    state = tiny_chroma.chroma_transformer(CHROMA).state_dict()
    return {
        "transformer": str(tiny_models.save(state, folder / "chroma.safetensors")),
        "t5": str(pocket_file("text_encoders", "_t5")),
        "vae": str(pocket_file("vae", "_vae")),
    }
