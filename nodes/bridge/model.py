"""Our transformer as the host calls its own FLUX: latents in, velocity out.

``HostFlux`` stands where the host has its ``diffusion_model``. It holds no weights of its own and
refers to the transformer weakly: who holds the wire holds the model.

Axis letters: B pictures, C channels, h and w latents, N text tokens, L image tokens.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flux_core import FluxTransformer
from flux_core.models.families import family_of
from flux_core.models.geometry import FLUX1_TOKENS, TokenGeometry
from flux_core.models.layers import RMSNorm
from flux_core.offload.modulations import PrecomputedModulations
from flux_core.quant import QuantizedLinear
from flux_core.sampling.latents import image_ids, pack, text_ids, unpack
from flux_core.sampling.references import reference_tokens

from .. import host
from .adapters import HostAdapters
from .patches import HostPatches, has_patches, refuse_unknown

log = logging.getLogger("fluxfit")

#: Arguments that the host gives to every model, of which FLUX.1 reads nothing.
UNREAD = {"crossattn_controlnet", "denoise_mask", "latent_shapes", "frame_rate"}
_warned: set[str] = set()


class RunModulations:
    """Modulations of a run, computed for all its sigmas when a prompt is first seen.

    Other times, which some samplers ask for in between, are computed as they come.
    """

    def __init__(self, transformer: FluxTransformer) -> None:
        self.transformer = transformer
        self.groups: list[tuple[tuple[Tensor | None, ...], PrecomputedModulations]] = []

    def select(
        self,
        sigmas: Sequence[float],
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None,
        still: bool,
    ) -> None:
        """Make the modulations for timesteps, y and guidance, rows of B, the current ones.

        ``sigmas`` are all that the run will ask for; ``still``: tokens as at time 0 too.
        """
        times = timesteps.tolist()
        key = (times[0], "") if len(set(times)) == 1 else (float("nan"), str(times))
        about = (y, guidance, torch.tensor(still))
        for known, group in self.groups:
            if same(known, about) and group.select(key):
                self.transformer.precomputed = group
                return
        first_seen = not any(same(known, about) for known, _ in self.groups)
        wanted = {key: timesteps}
        if first_seen and key[1] == "":
            for sigma in sigmas:
                if sigma > 0:
                    wanted[sigma, ""] = torch.full_like(timesteps, sigma)
        vecs = {
            name: self.transformer.modulation_vector(t, y, guidance, still)
            for name, t in wanted.items()
        }
        group = PrecomputedModulations(self.transformer, vecs)
        if first_seen:
            self.groups.append((about, group))
        group.select(key)
        self.transformer.precomputed = group


def same(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Whether two lists have the same tensors, each of any shape."""
    for a, b in zip(some, others, strict=True):
        if a is None or b is None:
            if a is not b:
                return False
        elif a.shape != b.shape or not torch.equal(a, b):
            return False
    return True


class WeightShape(nn.Module):
    """What stands for a layer where the host asks for the shape of its weight."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = torch.empty(rows, columns, device="meta")


class HostFlux(nn.Module):
    """The transformer behind the host's call."""

    def __init__(self, transformer: FluxTransformer) -> None:
        super().__init__()
        self._transformer = weakref.ref(transformer)
        #: what the run that is under way knows; None outside of one
        self.run: RunModulations | None = None
        #: whether that run draws all prompts of a step at once; None outside of one
        self.together: bool | None = None
        #: IP-Adapters of that run
        self.adapters: HostAdapters | None = None

    @property
    def transformer(self) -> FluxTransformer:
        transformer = self._transformer()
        assert transformer is not None, "a MODEL wire holds its transformer"
        return transformer

    @property
    def geometry(self) -> TokenGeometry:
        return family_of(self.transformer).tokens

    @property
    def patch_size(self) -> int:
        return self.geometry.patch

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def img_in(self) -> nn.Module:
        """The first layer's shape, which a control LoRA widens; the host asks for it."""
        return WeightShape(self.transformer.img_in.out_features, self.transformer.reads)

    @property
    def double_blocks(self) -> nn.ModuleList:
        """Packs count these."""
        return self.transformer.double_blocks

    @property
    def single_blocks(self) -> nn.ModuleList:
        """Packs count these."""
        return self.transformer.single_blocks

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("forward") and callable(value):
            raise AttributeError(
                f"{getattr(value, '__module__', 'a pack')} replaces {name} of the host's FLUX, "
                "which FluxFit's transformer does not call: use the stock loader with that node"
            )
        super().__setattr__(name, value)

    def state_dict(  # type: ignore[override]
        self,
        *args: Any,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """The names that LoRAs are matched with, on meta: weights as the host would have them."""
        result = {} if destination is None else destination
        result |= {prefix + name: tensor for name, tensor in named_shapes(self.transformer)}
        return result

    @property
    def blocks(self) -> dict[str, int]:
        """How many blocks there are, by the host's names."""
        return {
            "double_block": len(self.transformer.double_blocks),
            "single_block": len(self.transformer.single_blocks),
        }

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: Sequence[Tensor] | None = None,
        control: Mapping[str, Sequence[Tensor | None]] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """The velocity (B, 16, h, w) of standardised latents x (B, C, h, w), as ``host`` calls it;
        of FLUX.2 it is (B, 128, h, w).

        Other packs' wrappers of this call are called around it.
        """
        options = transformer_options or {}
        extension = host.comfy("comfy.patcher_extension")
        if extension is None:
            return self.velocity(
                x, timestep, context, y, guidance, ref_latents, control, options, **more
            )
        wrappers = extension.get_all_wrappers(
            extension.WrappersMP.DIFFUSION_MODEL, transformer_options or {}
        )
        executor = extension.WrapperExecutor.new_class_executor(self.velocity, self, wrappers)
        return executor.execute(
            x, timestep, context, y, guidance, ref_latents, control, options, **more
        )

    def run_now(self) -> RunModulations:
        """The run that is held; raises ``RuntimeError`` where there is none."""
        if self.run is None:
            raise RuntimeError(
                "FluxFit's model was called outside of the host's sampling: the node that does so "
                "needs the stock loader"
            )
        return self.run

    def velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: Sequence[Tensor] | None = None,
        control: Mapping[str, Sequence[Tensor | None]] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """``forward`` without wrappers; (B, C, h, w) to (B, 16, h, w)."""
        options = dict(transformer_options or {})
        refuse_unknown(options, self.blocks)
        warn_of(more)
        transformer, config, geometry = self.transformer, self.transformer.config, self.geometry
        batch, _, height, width = x.shape
        if y is None:
            y = context.new_zeros(batch, config.vec_in_dim)
        method = more.get("ref_latents_method") or geometry.reference_method
        img = pack(x, geometry)
        ids = scaled_ids(height, width, options, geometry).to(x.device)
        tokens = img.shape[1]
        still = 0
        if ref_latents:
            behind, behind_ids = reference_tokens(
                ref_latents, method, height, width, batch, geometry
            )
            if behind.shape[-1] != img.shape[-1]:
                raise ValueError("this model takes no reference latents")
            if "rope_options" in options:
                raise ValueError("scaled positions (rope_options) and reference latents together")
            still = behind.shape[1] if method == "index_timestep_zero" else 0
            img, ids = torch.cat([img, behind], dim=1), torch.cat([ids, behind_ids])
            options["reference_image_num_tokens"] = [behind.shape[1]]
        inputs = {
            "img": img,
            "img_ids": ids,
            "txt": context,
            "txt_ids": text_ids(context.shape[1], geometry).to(x.device),
            "timesteps": timestep,
            "y": y[:, : config.vec_in_dim],
            "guidance": guidance,
            "attention_mask": more.get("attention_mask"),
            "still_tokens": still,
        }
        if control or has_patches(options):
            inputs["patches"] = HostPatches(options, control, self.blocks)
        if self.adapters is not None:
            behind = img.shape[1] - tokens
            sigma = float(timestep.max())
            inputs["adapters"] = self.adapters.at(x, sigma, context.shape[1], behind, options)
        run = self.run_now()
        sigmas = options.get("sample_sigmas")
        times = [] if sigmas is None else torch.as_tensor(sigmas).tolist()
        run.select(times, timestep, inputs["y"], guidance, bool(still))
        out = transformer(**inputs)
        return unpack(out[:, :tokens], height, width, geometry)


def warn_of(more: Mapping[str, Any]) -> None:
    """Say once of each argument that nobody reads."""
    for name, value in more.items():
        known = name in UNREAD or name in ("attention_mask", "ref_latents_method")
        if not known and value is not None and name not in _warned:
            _warned.add(name)
            log.warning("FLUX.1 was given %r by the graph and does not read it", name)


def scaled_ids(
    height: int,
    width: int,
    options: Mapping[str, Any],
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor:
    """Positions (L, axes) of a picture's tokens, scaled and moved as the host's ``rope_options``
    say."""
    ids = image_ids(height, width, geometry=geometry)
    rope = options.get("rope_options")
    if rope is None:
        return ids
    for axis, name in ((1, "y"), (2, "x")):
        ids[:, axis] = ids[:, axis] * rope.get(f"scale_{name}", 1.0) + rope.get(f"shift_{name}", 0)
    ids[:, 0] += rope.get("shift_t", 0.0)
    return ids


def named_shapes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight and bias by the host's name, on meta, in the shape that a LoRA is made for."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | QuantizedLinear):
            yield f"{name}.weight", empty(layer.out_features, layer.in_features)
            if layer.bias is not None:
                yield f"{name}.bias", empty(layer.out_features)
        elif isinstance(layer, RMSNorm):  # older hosts say scale
            yield f"{name}.scale", empty(*layer.scale.shape)
            yield f"{name}.weight", empty(*layer.scale.shape)
