"""Every public relative of FLUX.1 loads by its family's record, in either layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flux_core import CheckpointError, Conditioning, load_transformer, load_vae
from flux_core.checkpoint.inspect import describe_file
from flux_core.models import families
from flux_core.models.config import Shapes
from flux_core.models.families import (
    FAMILIES,
    FLUX1_DEV,
    FLUX1_LITE,
    FLUX1_SCHNELL,
    Family,
    family_of,
    recognize,
    transformer_layouts,
)
from flux_core.models.family import Layout
from flux_core.models.keymaps import Recipe, Recipes
from flux_core.models.transformer import FluxTransformer
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.sigmas import table_for
from tests import flux2_models, tiny_models

SINGLE = 3
#: Families with layouts of their own, whose members are tried in files of their own.
ELSEWHERE = {"Chroma"}


@dataclasses.dataclass(frozen=True)
class Member:
    """A public model: its double blocks, whether it is distilled for guidance, its input."""

    family: Family
    depth: int
    guidance: bool = True
    in_channels: int = 64


MEMBERS = {
    "dev": Member(FLUX1_DEV, 19),
    "schnell": Member(FLUX1_SCHNELL, 19, guidance=False),
    "Krea": Member(FLUX1_DEV, 19),
    "Kontext": Member(FLUX1_DEV, 19),
    "Fill": Member(FLUX1_DEV, 19, in_channels=384),
    "Canny": Member(FLUX1_DEV, 19, in_channels=128),
    "Depth": Member(FLUX1_DEV, 19, in_channels=128),
    "FLUX.1 lite": Member(FLUX1_LITE, 8),
    "Flex.1": Member(FLUX1_LITE, 8),
    "Flex.2": Member(FLUX1_LITE, 8, in_channels=196),
}


#: Those whose files are unlike: of several that are alike the first.
UNLIKE = [
    name
    for number, (name, member) in enumerate(MEMBERS.items())
    if member not in list(MEMBERS.values())[:number]
]
#: As schnell is, for what does not depend on how many blocks there are.
SMALL = dataclasses.replace(MEMBERS["schnell"], depth=1)


def transformer(member: Member) -> FluxTransformer:
    config = dataclasses.replace(
        tiny_models.DEV,
        depth=member.depth,
        depth_single_blocks=SINGLE,
        guidance_embed=member.guidance,
        in_channels=member.in_channels,
    )
    return tiny_models.flux_transformer(config).requires_grad_(False)


def diffusers_model(member: Member):
    from diffusers import FluxTransformer2DModel

    return tiny_models.randomise(
        FluxTransformer2DModel(
            in_channels=member.in_channels,
            out_channels=64,
            num_layers=member.depth,
            num_single_layers=SINGLE,
            attention_head_dim=tiny_models.HEAD,
            num_attention_heads=tiny_models.HEADS,
            joint_attention_dim=tiny_models.CONTEXT,
            pooled_projection_dim=tiny_models.POOLED,
            guidance_embeds=member.guidance,
        )
    )


def inputs(member: Member) -> dict[str, Tensor | None]:
    kwargs = tiny_models.inputs(batch=1)
    if not member.guidance:
        kwargs["guidance"] = None
    generator = torch.Generator().manual_seed(4)
    tokens = kwargs["img"].shape[1]
    return kwargs | {"img": torch.randn(1, tokens, member.in_channels, generator=generator)}


def test_every_member_of_every_family_is_tried():
    here = [family for family in FAMILIES if family.name not in ELSEWHERE]
    tried = set(MEMBERS) | set(flux2_models.MEMBERS)
    assert {name for family in here for name in family.members} == tried


@pytest.mark.parametrize("name", UNLIKE)
def test_native_files_load_as_their_family(name, tmp_path):
    member = MEMBERS[name]
    expected = transformer(member)
    path = tiny_models.save(expected.state_dict(), tmp_path / "model.safetensors")
    model = load_transformer(path, precision="fp32")
    assert model.family is member.family and len(model.double_blocks) == member.depth
    assert torch.equal(model(**inputs(member)), expected(**inputs(member)))


@pytest.mark.parametrize("name", ["dev", "schnell", "Fill", "Flex.1", "Flex.2"])
def test_diffusers_files_load_as_their_family_and_compute_the_same(name, tmp_path):
    member = MEMBERS[name]
    theirs = diffusers_model(member)
    path = tiny_models.save(theirs.state_dict(), tmp_path / "model.safetensors")
    model = load_transformer(path, precision="fp32")
    assert model.family is member.family
    kwargs = inputs(member)
    with torch.no_grad():
        (expected,) = theirs(**tiny_models.to_diffusers(kwargs), return_dict=False)
        assert tiny_models.relative(model(**kwargs), expected) < 1e-5


class TestWhatARecordDecides:
    def test_sigmas_are_the_family_s_not_told_from_guidance(self):
        """A model without guidance that is drawn as dev is: a record, and nothing else."""
        other = dataclasses.replace(
            FLUX1_DEV, name="other", matches=lambda config: not config.guidance_embed
        )
        model = transformer(MEMBERS["schnell"])
        settings, shape = SamplingSettings(steps=4), (1, 16, 4, 6)
        schnell = settings.noise_schedule(model, shape).sigmas
        model.family = other
        assert not torch.equal(settings.noise_schedule(model, shape).sigmas, schnell)
        assert table_for(other).mu == table_for(FLUX1_DEV).mu == 1.15
        assert table_for(FLUX1_SCHNELL).mu == 0.0

    def test_a_pooled_vector_is_demanded_where_the_family_needs_it(self):
        model, start = transformer(MEMBERS["schnell"]), torch.zeros(1, 16, 4, 4)
        without = Conditioning(torch.zeros(1, 5, tiny_models.CONTEXT), None)
        with pytest.raises(ValueError, match="positive has no pooled CLIP vector"):
            DrawRequest(model, without, start)
        with_it = Conditioning(without.context, torch.zeros(1, tiny_models.POOLED))
        with pytest.raises(ValueError, match="negative has no pooled CLIP vector"):
            DrawRequest(model, with_it, start, negative=without)
        model.family = dataclasses.replace(FLUX1_SCHNELL, encoders=("t5",))
        settings = SamplingSettings(steps=1)
        drawn = sample(DrawRequest(model, without, start, settings))
        assert torch.equal(drawn, sample(DrawRequest(model, with_it, start, settings)))

    def test_a_model_made_by_hand_is_of_the_first_family_that_matches(self):
        for member in ("dev", "schnell", "Flex.1"):
            assert family_of(transformer(MEMBERS[member])) is MEMBERS[member].family

    def test_latents_are_what_the_family_s_vae_makes(self):
        model = transformer(MEMBERS["dev"])
        text = Conditioning(
            torch.zeros(1, 5, tiny_models.CONTEXT), torch.zeros(1, tiny_models.POOLED)
        )
        with pytest.raises(ValueError, match="latents have 4 channels, FLUX.1-dev takes 16"):
            DrawRequest(model, text, torch.zeros(1, 4, 4, 4))
        start, settings = torch.ones(1, 16, 4, 4), SamplingSettings(steps=1, denoise=0.5)
        drawn = sample(DrawRequest(model, text, start, settings))
        vae = dataclasses.replace(FLUX1_DEV.vae, shift_factor=0.5)
        model.family = dataclasses.replace(FLUX1_DEV, vae=vae)
        assert not torch.equal(sample(DrawRequest(model, text, start, settings)), drawn)

    def test_unlike_layouts_have_unlike_names(self, monkeypatch):
        other = dataclasses.replace(FLUX1_DEV.layouts[0], key="blocks.0.weight")
        new = dataclasses.replace(FLUX1_DEV, name="new", layouts=(other,))
        monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, new))
        with pytest.raises(ValueError, match="new names a layout 'native', as another does"):
            transformer_layouts()

    def test_shapes_of_no_family_name_what_is_missing(self):
        with pytest.raises(KeyError, match=r"img_in\.weight"):
            recognize("native", {})


class OtherTransformer(FluxTransformer):
    """Layers of its own would stand here."""


def other_names(shapes: Shapes) -> Recipes:
    """A key map: ``stem`` for the embedder, everything below ``net``."""
    return {
        name.removeprefix("net.").replace("stem.", "img_in."): Recipe((name,)) for name in shapes
    }


class TestANewFamily:
    """One that lives in this test alone: another spelling, class, table of sigmas, and no CLIP."""

    @pytest.fixture
    def family(self, monkeypatch) -> Family:
        layout = Layout("other names", "net.stem.weight", lambda shapes: True, other_names, "Other")
        family = dataclasses.replace(
            FLUX1_DEV,
            name="Other",
            layouts=(layout,),
            matches=lambda config: True,  # of its own layout's files; it is not asked of others
            transformer=OtherTransformer,
            sigma_shift=0.5,
            encoders=("t5",),
        )
        monkeypatch.setattr(families, "FAMILIES", (family, *FAMILIES))
        return family

    @pytest.fixture
    def state(self) -> dict[str, Tensor]:
        state = transformer(SMALL).state_dict()
        return {f"net.{name.replace('img_in.', 'stem.')}": value for name, value in state.items()}

    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_its_files_load_as_its_class_and_draw_by_its_record(
        self, family, state, prefix, tmp_path
    ):
        renamed = {prefix + name: value for name, value in state.items()}
        path = tiny_models.save(renamed, tmp_path / "model.safetensors")
        assert "transformer (other names layout" in describe_file(path)
        model = load_transformer(path, precision="fp8_scaled")
        assert type(model) is OtherTransformer and model.family is family
        text = Conditioning(torch.zeros(1, 5, tiny_models.CONTEXT), None)
        start, settings = torch.zeros(1, 16, 4, 4), SamplingSettings(steps=2)
        drawn = sample(DrawRequest(model, text, start, settings))
        model.family = FLUX1_SCHNELL
        with pytest.raises(ValueError, match="no pooled CLIP vector"):
            DrawRequest(model, text, start, settings)
        model.family = dataclasses.replace(family, sigma_shift=0.0)
        assert not torch.equal(sample(DrawRequest(model, text, start, settings)), drawn)

    def test_other_files_stay_what_they_were(self, family, tmp_path):
        expected = transformer(MEMBERS["schnell"])
        path = tiny_models.save(expected.state_dict(), tmp_path / "model.safetensors")
        model = load_transformer(path)
        assert type(model) is FluxTransformer and model.family is FLUX1_SCHNELL

    def test_its_file_in_another_part_s_place_is_told_by_its_name(self, family, state, tmp_path):
        path = tiny_models.save(state, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="expected a FLUX.1 VAE .*, found an? Other tran"):
            load_vae(path)


def test_no_family_is_asked_for_by_name_elsewhere():
    root = Path(__file__).resolve().parents[3]
    families_file = root / "flux_core" / "models" / "families.py"
    names = ("FLUX1_DEV", "FLUX1_SCHNELL", "FLUX1_LITE", "family.name ==")
    for folder in ("flux_core", "nodes", "cli"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert path == families_file or not any(name in text for name in names), path
