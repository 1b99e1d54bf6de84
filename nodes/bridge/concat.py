"""What stands beside the host's noise for models whose wider input the host does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flux_core import FluxTransformer
from flux_core.models.families import family_of
from flux_core.sampling.concat import MASKED_AND_CONTROL, extra_latents
from flux_core.sampling.conditioning import ControlPicture

from ..conditioning import CONTROL_PICTURE


def flex_latents(transformer: FluxTransformer, conds: Mapping[str, Any]) -> Tensor:
    """What Flex.2 reads beside the host's noise (B, 16, h, w), (B, 33, h, w).

    Raises ``ValueError`` for a control picture that counts for a part of the steps alone.
    """
    noise: Tensor = conds["noise"]
    control: ControlPicture | None = conds.get(CONTROL_PICTURE)
    if control is not None and not control.whole:
        raise ValueError(
            f"the control picture counts up to {control.end:g} of the steps, which FluxSampler "
            "draws: a stock sampler needs an end of 1"
        )
    latents = extra_latents(
        MASKED_AND_CONTROL,
        conds.get("concat_latent_image"),
        conds.get("concat_mask"),
        noise.shape[0],
        noise.shape[-2],
        noise.shape[-1],
        family_of(transformer).vae,
        None if control is None else control.latents,
        1.0 if control is None else control.strength,
    )
    assert latents is not None
    return latents.to(noise)
