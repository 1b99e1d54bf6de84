"""Reference pictures in a graph: the node, the host's nodes without the host, what is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fluxfit.nodes.conditioning import conditioning_of
from fluxfit.nodes.headless import KNOWN_NODES

from flux_core.sampling.latents import pack
from tests.nodes.node_calls import SETTINGS, defaults, empty, node, sample


def picture(height: int, width: int, seed: int = 0, batch: int = 1, channels: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, height, width, channels, generator=generator)


def stock(name: str, **inputs):
    instance = KNOWN_NODES[name]()
    return getattr(instance, instance.FUNCTION)(**inputs)[0]


def refer(loaded, positive, image, **options):
    values = defaults("FluxFitReference", size="own") | options
    return node("FluxFitReference").refer(positive, loaded[2], image, **values)[:2]


class TestReference:
    def test_it_carries_what_the_host_s_nodes_put_there(self, loaded, positive):
        first, second = picture(32, 48), picture(64, 32, 1)
        ours, negative = refer(loaded, positive, first, negative=positive)
        assert negative[0][1]["reference_latents"] is not positive
        ours, _ = refer(loaded, ours, second, method="uxo")
        theirs = positive
        for image in (first, second):
            latent = {"samples": loaded[2].encode(image)}
            theirs = stock("ReferenceLatent", conditioning=theirs, latent=latent)
        theirs = stock(
            "FluxKontextMultiReferenceLatentMethod",
            conditioning=theirs,
            reference_latents_method="uxo/uno",
        )
        (mine,), (host,) = conditioning_of(ours), conditioning_of(theirs)
        assert mine.references.method == host.references.method == "uxo"
        pairs = zip(mine.references.latents, host.references.latents, strict=True)
        assert len(mine.references.latents) == 2 and all(torch.equal(a, b) for a, b in pairs)
        assert negative[0][1].get("reference_latents_method") is None, "as the model was trained"
        (entry,), _ = refer(loaded, ours, first)
        assert entry[1]["reference_latents_method"] == "uxo", "as it was"
        assert "reference_latents" not in positive[0][1]
        assert len(negative[0][1]["reference_latents"]) == 1

    def test_sizes(self, loaded, positive):
        image = picture(40, 56)

        def size(**options):
            (entry,), _ = refer(loaded, positive, image, **options)
            return tuple(entry[1]["reference_latents"][0].shape[-2:])

        assert size() == (4, 6)
        assert size(size="drawn", latent=empty(side=64)) == (8, 8)
        with pytest.raises(ValueError, match="the size of the picture to draw is not known"):
            size(size="drawn")

    def test_an_empty_latent_of_its_size_comes_out(self, loaded, positive):
        values = defaults("FluxFitReference", size="own")
        *_, latent = node("FluxFitReference").refer(
            positive, loaded[2], picture(40, 56, batch=2), **values
        )
        assert latent["samples"].shape == (1, 16, 4, 6) and not latent["samples"].any()

    def test_a_batch_is_one_for_each_or_several(self, loaded, positive):
        image = picture(32, 32, batch=2)
        (entry,), other = refer(loaded, positive, image)
        assert other is None
        assert [len(z) for z in entry[1]["reference_latents"]] == [2]
        (entry,), _ = refer(loaded, positive, image, several=True)
        assert [len(z) for z in entry[1]["reference_latents"]] == [1, 1]

    def test_it_is_drawn_and_what_it_attends_to_counts(self, loaded, positive):
        latent = empty(side=32)
        plain = sample(loaded, positive, latent)[0]["samples"]
        prompt, _ = refer(loaded, positive, picture(32, 48))
        joint = sample(loaded, prompt, latent)[0]["samples"]
        change = node("FluxFitReferenceAttention").set

        def drawn(attention: str, positive: list):
            return sample(change(loaded[0], attention), positive, latent)[0]["samples"]

        assert not torch.equal(joint, plain)
        assert torch.equal(drawn("joint", prompt), joint)
        assert not torch.equal(drawn("self", prompt), joint)
        assert torch.equal(drawn("self", positive), plain)
        with pytest.raises(ValueError, match="reference attention is 'both', expected one of"):
            drawn("both", prompt)

    def test_the_stock_sampler_draws_the_same(self, loaded, positive):
        prompt, negative = refer(loaded, positive, picture(32, 48), negative=positive)
        ours = sample(loaded, prompt, empty(side=32), negative=negative, cfg=2.0, shift="host")
        theirs = stock(
            "KSampler",
            model=loaded[0],
            seed=SETTINGS["seed"],
            steps=SETTINGS["steps"],
            cfg=2.0,
            sampler_name="euler",
            scheduler="simple",
            positive=prompt,
            negative=negative,
            latent_image=empty(side=32),
            denoise=1.0,
        )
        assert torch.equal(ours[0]["samples"], theirs["samples"])


class TestStockNodes:
    def test_kontext_s_sizes(self):
        assert stock("FluxKontextImageScale", image=picture(60, 100)).shape == (1, 800, 1328, 3)

    @pytest.mark.parametrize("direction", ["right", "down", "left", "up"])
    def test_pictures_are_stitched(self, direction):
        first, second = torch.zeros(1, 20, 30, 3), torch.ones(2, 10, 10, 3)
        options = {"direction": direction, "spacing_width": 3, "spacing_color": "red"}
        one = stock("ImageStitch", image1=first, image2=second, match_image_size=True, **options)
        side = direction in ("left", "right")
        assert one.shape == ((2, 20, 54, 3) if side else (2, 54, 30, 3))
        along = one[0, 5] if side else one[0, :, 5]
        if direction in ("left", "up"):
            along = along.flip(0)
        length = 30 if side else 20
        assert along[:length].eq(0).all() and along[length + 4 :].eq(1).all()
        assert along[length : length + 4].tolist() == [[1.0, 0.0, 0.0]] * 4
        two = stock("ImageStitch", image1=first, image2=second, match_image_size=False, **options)
        assert two.shape == ((2, 20, 44, 3) if side else (2, 34, 30, 3))

    def test_smaller_ones_stand_in_the_middle_and_missing_alpha_is_opaque(self):
        first, second = torch.zeros(1, 6, 4, 4), torch.full((1, 2, 2, 3), 0.5)
        options = {"match_image_size": False, "spacing_width": 0, "spacing_color": "white"}
        both = stock("ImageStitch", image1=first, image2=second, direction="right", **options)
        assert both.shape == (1, 6, 6, 4)
        column = both[0, :, 5]
        assert column[:2].eq(1).all() and column[4:].eq(1).all()
        assert column[2:4].tolist() == [[0.5, 0.5, 0.5, 1.0]] * 2

    def test_nothing_is_added_for_nothing(self, positive):
        assert stock("ReferenceLatent", conditioning=positive) is positive
        image = picture(8, 8)
        options = {"direction": "up", "match_image_size": True, "spacing_width": 2}
        assert stock("ImageStitch", image1=image, spacing_color="red", **options) is image


def test_references_of_a_batch_reach_their_pictures(loaded, positive):
    """Two pictures with a reference each are what each is alone."""
    images = picture(32, 32, batch=2)
    both, _ = refer(loaded, positive, images)
    start = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(2))
    latent = {"samples": start.repeat(2, 1, 1, 1), "batch_index": [0, 0]}
    together = sample(loaded, both, latent)[0]["samples"]
    for row in range(2):
        one, _ = refer(loaded, positive, images[row : row + 1])
        alone = sample(loaded, one, {"samples": start})[0]["samples"]
        assert (pack(alone) - pack(together[row : row + 1])).norm() < 0.1 * pack(alone).norm()
    assert not torch.allclose(together[0], together[1], atol=1e-3)


class TestReferencesThatAttendToThemselves:
    def test_the_hosts_sampling_does_not_know_them(self, loaded, positive):
        alone = node("FluxFitReferenceAttention").set(loaded[0], "self")[0]
        with_one, _ = refer(loaded, positive, picture(32, 32))
        entry = {"positive": [with_one[0][1]], "negative": [{}]}
        guider = SimpleNamespace(original_conds=entry)
        message = "FLUX Reference Attention draws with FluxSampler's own samplers"
        for options in (
            {"guider": guider},
            {"sampler_object": object()},
            {"guider": guider, "sampler_object": object()},
        ):
            with pytest.raises(ValueError, match=message):
                sample((alone,), with_one, empty(), **options)

    def test_a_guider_s_own_prompts_are_asked(self, loaded, positive):
        """The sampler's are not drawn beside it; without references there is nothing to refuse."""
        alone = node("FluxFitReferenceAttention").set(loaded[0], "self")[0]
        with_one, _ = refer(loaded, positive, picture(32, 32))
        guider = SimpleNamespace(original_conds={"positive": [positive[0][1]]})
        with pytest.raises(ValueError, match=r"ComfyUI's: they work inside of it alone"):
            sample((alone,), with_one, empty(), guider=guider)
