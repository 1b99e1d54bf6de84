"""The value on a MODEL wire: our transformer, its LoRAs and its policy, as the host's ModelPatcher.

The host clones it, adds patches to it and hands it to its samplers. Before a run all that was asked
for is looked at once: what has a form beside quantized weights is put there, what has none is an
error. The run itself is held by ``HostOffloadRunner`` like those of our own sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flux_core import FluxTransformer
from flux_core.lora import LoraUse, lora_uses
from flux_core.lora.apply import Branches, Numbered, attached, branches_for
from flux_core.models.families import family_of
from flux_core.offload import Work
from flux_core.offload.placement import placement_of
from flux_core.offload.workload import sampling_work
from flux_core.quant.notices import warn_once
from flux_core.record import note
from flux_core.sampling import facts
from flux_core.sampling.adapters import AppliedAdapter, adapter_cost, made_ready
from flux_core.sampling.concat import MASKED_AND_CONTROL, channels_beside
from flux_core.sampling.latents import image_tokens

from .. import accounts, host
from ..memory_manager import HostOffloadRunner, PartPatching, patcher_class, set_patcher
from ..wires import FluxModel
from .adapters import HostAdapters
from .concat import flex_latents
from .host_config import NoHostModel, UnknownToHostError, unet_config
from .host_work import (
    KEY,
    other_models,
    reference_count,
    refuse_regions,
    takes_all,
    text_count,
    work_beside,
)
from .model import HostFlux, RunModulations
from .weight_patches import Entry, entries_of, numbered_together

PREFIX = "diffusion_model."


def base_model(transformer: FluxTransformer) -> Any:
    """The host's model around ``HostFlux``: its noise schedule, latents and conditioning."""
    detection = host.comfy("comfy.model_detection")
    assert detection is not None
    config = unet_config(transformer)
    host_config = detection.model_config_from_unet_config(
        config | {"disable_unet_model_creation": True}
    )
    if host_config is None:
        raise UnknownToHostError(
            f"this ComfyUI does not know {family_of(transformer).name}: update it, or use "
            "FluxSampler"
        )
    model = host_config.get_model({})
    model.diffusion_model = HostFlux(transformer)
    model.__class__ = counting_class(type(model))
    return model


@cache
def counting_class(base: type) -> type:
    """The host's model, whose memory for a step says how many prompts are drawn at once."""

    def memory_required(self: Any, *args: Any, **kwargs: Any) -> float:
        """In a run prompts are computed one by one, so that pictures do not depend on how much
        memory is free; with other packs' patches all at once, since those may compare them."""
        together = self.diffusion_model.together
        if together is None:
            return base.memory_required(self, *args, **kwargs)
        return 0.0 if together else math.inf

    def concat_cond(self: Any, **conds: Any) -> Any:
        """What stands beside the noise: the host's own for all widths that it knows."""
        transformer = self.diffusion_model.transformer
        if channels_beside(transformer) != MASKED_AND_CONTROL:
            return base.concat_cond(self, **conds)
        return flex_latents(transformer, conds)

    # a function of the object itself would hold it in a circle
    changed = {"memory_required": memory_required, "concat_cond": concat_cond}
    return type(base.__name__, (base,), changed)


def outer_sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Around the host's sampling: the transformer is on the device for the whole run."""
    patcher = executor.class_obj.model_patcher
    if not isinstance(patcher, model_patcher_class()):
        return executor(noise, *args, **kwargs)
    sigmas: Tensor = args[2] if len(args) > 2 else kwargs["sigmas"]
    return patcher.sampling(
        executor.class_obj, lambda: executor(noise, *args, **kwargs), noise, sigmas
    )


class ModelPatching(PartPatching):
    """``flux`` is what our own wire carries; it holds the transformer."""

    patches: Any
    hook_patches: Any
    current_hooks: Any
    injections: Any
    object_patches: Any
    object_patches_backup: dict[str, Any]
    weight_wrapper_patches: Any
    flux: FluxModel | None = None

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        new = super().clone(*args, **kwargs)  # type: ignore[misc]
        new.part, new.flux = self.part, self.flux
        new.object_patches_backup = self.object_patches_backup
        return new

    @property
    def diffusion(self) -> HostFlux:
        return self.model.diffusion_model

    # ---- what the host changes on the model itself

    def partially_load(self, device_to: Any, *args: Any, **kwargs: Any) -> int:
        self.set_objects(self.object_patches)
        return super().partially_load(device_to, *args, **kwargs)

    def detach(self, unpatch_all: bool = True) -> Any:
        if unpatch_all:
            self.set_objects({})
        return super().detach(unpatch_all)

    def set_objects(self, objects: Mapping[str, Any]) -> None:
        """Have these stand in the model in the place of its own (``model_sampling``, say)."""
        utils = host.comfy("comfy.utils")
        assert utils is not None
        backup = self.object_patches_backup
        for name, own in backup.items():
            utils.set_attr(self.model, name, own)
        backup.clear()
        for name, value in objects.items():
            if not name.startswith(PREFIX):
                backup[name] = utils.set_attr(self.model, name, value)

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("a FluxFit model is saved by FluxFitSaveQuantized")

    def get_key_patches(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "models cannot be merged with a FluxFit model, whose weights are quantized: "
            "use the stock loader, or FluxFitMergeLoras for LoRAs"
        )

    # ---- hooks: other strengths for some prompts or steps

    def patch_hooks(self, hooks: Any) -> None:
        self.current_hooks = hooks
        if self.diffusion.run is not None:
            self.set_strengths()

    def unpatch_hooks(self, whitelist_keys_set: Any = None) -> None:
        self.current_hooks = None

    def hook_entries(self) -> list[tuple[Any, Entry]]:
        """All patches of hooks, with the hook that each belongs to."""
        return [
            (ref, entry)
            for ref, patches in self.hook_patches.items()
            for entry in entries_of(patches, PREFIX)
        ]

    # ---- what stands beside the weights

    @property
    def loras(self) -> list[LoraUse]:
        return lora_uses(self.flux.loras) if self.flux is not None else []

    def strengths(self) -> list[float]:
        """Of our LoRAs, of the host's patches and of its hooks' patches, in that order."""
        hooks = self.current_hooks.hooks if self.current_hooks is not None else ()
        by_hook = {hook.hook_ref: float(hook.strength) for hook in hooks}
        return [
            *(use.strength for use in self.loras),
            *(entry.strength for entry in entries_of(self.patches, PREFIX)),
            *(by_hook.get(ref, 0.0) * entry.strength for ref, entry in self.hook_entries()),
        ]

    def branches(self, transformer: FluxTransformer) -> Branches | None:
        """Branches for all of them; None where there is nothing."""
        entries = entries_of(self.patches, PREFIX)
        entries += [entry for _, entry in self.hook_entries()]
        uses = self.loras
        loras = [use.lora for use in uses]
        if not loras and not entries:
            return None

        def numbered() -> Numbered:
            return numbered_together(transformer, loras, entries)

        sources = [*loras, *(entry.source for entry in entries)]
        branches = branches_for(transformer, sources, numbered)
        branches.set_strengths(self.strengths(), [use.blocks for use in uses])
        return branches

    def set_strengths(self) -> None:
        """Give the branches of a run the strengths that hooks ask for now."""
        transformer = self.diffusion.transformer
        branches = self.branches_now
        strengths = self.strengths()
        if branches is None or tuple(strengths) == branches.strengths:
            return
        with placement_of(transformer, torch.device(self.load_device)).changing():
            branches.set_strengths(strengths, branches.blocks)

    branches_now: Branches | None = None

    # ---- a run

    def refuse(self) -> None:
        """Raise ``ValueError`` for changes of the model that cannot be made beside it."""
        for use in self.loras:
            use.check(self.diffusion.transformer)
            if use.by_row:
                raise ValueError(
                    f"{use.lora.path} has a schedule or a mask, which FluxSampler's own samplers "
                    "draw: take sampler_object and guider away, or use ComfyUI's LoRA hooks"
                )
        objects = [name for name in self.object_patches if name.startswith(PREFIX)]
        if any(name.endswith("default_ref_method") for name in objects):
            raise ValueError(
                "FluxKVCache keeps what the first step made of references, which the other steps "
                "do not make: FluxFitReferenceAttention and FluxSampler keep what does not change"
            )
        for what, names in (
            ("replaces parts of the transformer", objects),
            ("wraps its weights", list(self.weight_wrapper_patches)),
            ("injects code into its layers (a bypass LoRA, say)", list(self.injections)),
        ):
            if names:
                raise ValueError(
                    f"a node {what}: {', '.join(map(str, names[:3]))}. FluxFit's model takes "
                    "LoRAs beside its weights by LoraLoader; use the stock loader for this"
                )

    @contextmanager
    def run_state(
        self, together: bool, adapters: Sequence[AppliedAdapter], shape: Sequence[int]
    ) -> Iterator[None]:
        """What the transformer knows while it draws."""
        flux = self.diffusion
        flux.run, flux.together = RunModulations(flux.transformer), together
        if adapters:
            sampling = self.get_model_object("model_sampling")  # type: ignore[attr-defined]
            device = torch.device(self.load_device)
            flux.adapters = HostAdapters(
                adapters, flux.transformer, shape, sampling.percent_to_sigma, device
            )
        try:
            yield
        finally:
            flux.transformer.precomputed = None
            flux.run = flux.together = flux.adapters = None

    def holding(
        self,
        function: Callable[[], Any],
        work: Work,
        together: bool = False,
        shape: Sequence[int] = (),
    ) -> Any:
        """Call a function with the transformer on the device and everything beside it."""
        assert self.flux is not None
        transformer = self.flux.transformer  # computed as this wire wants it
        self.refuse()
        policy = self.flux.policy
        if policy.devices:
            warn_once(
                "the host's samplers draw on one device: the policy's devices draw together with "
                "FluxSampler's own samplers"
            )
        runner = HostOffloadRunner(policy, torch.device(self.load_device))
        adapters = made_ready(runner, self.flux.adapters) if shape else []
        with ExitStack() as stack:
            branches = self.branches_now = self.branches(transformer)
            if branches is not None:
                stack.enter_context(attached(transformer, branches))

            def run(_: Any) -> Any:
                with self.run_state(together, adapters, shape):
                    result = function()
                if branches is not None:  # hooks may have left others
                    self.current_hooks = None
                    self.set_strengths()
                return result

            try:
                result = runner.run("transformer", [transformer], run, work)
            finally:
                self.branches_now = None
                if branches is not None:
                    branches.strengths = ()  # an exception may have left any
        accounts.account(runner.report)
        return result

    def sampling(
        self, guider: Any, function: Callable[[], Any], noise: Tensor, sigmas: Tensor
    ) -> Any:
        """The host's sampling of noise (B, C, h, w), held for all sigmas (steps + 1,)."""
        together = takes_all(guider.model_options)
        prompts = [prompt for conds in guider.conds.values() for prompt in conds or ()]
        refuse_regions(prompts)
        batch = noise.shape[0] * (len(prompts) if together else 1)
        still = reference_count(prompts, "index_timestep_zero", self.diffusion.geometry)
        transformer, geometry = self.diffusion.transformer, self.diffusion.geometry
        image = image_tokens(*noise.shape[-2:], geometry=geometry)
        image += reference_count(prompts, geometry=geometry)
        least = family_of(transformer).context_length
        text = max(least, max((text_count(prompt) for prompt in prompts), default=512))
        applied = () if self.flux is None else self.flux.adapters
        cost = adapter_cost(applied, transformer, image, text, max(1, len(prompts)), True)
        work = sampling_work(
            transformer,
            image_tokens=image,
            text_tokens=text,
            batch=batch,
            vectors=(len(sigmas) - 1) * max(1, len(prompts)),
            options=cost.options | ({"still_tokens": still} if still else {}),
            held=cost.held,
        )
        work = work_beside(work, other_models(guider.conds, guider.model_options))
        # seed and sampler are the graph's to say
        known = facts.of_latents(transformer, noise, sigmas)
        note("draw", **known, loras=facts.of_loras(self.loras))
        return self.holding(function, work, together, noise.shape)


@cache
def model_patcher_class() -> type:
    """Our ModelPatcher, made of the host's own once it is there."""
    return type("FluxFitModelPatcher", (ModelPatching, patcher_class()), {})


def host_model(flux: FluxModel) -> Any:
    """The host's MODEL for what our own wire carries; outside of the host that itself."""
    if host.comfy("comfy.model_patcher") is None:
        return flux
    try:
        root = set_patcher(flux.module, lambda device: new_root(flux, device))
    except UnknownToHostError as error:
        return NoHostModel(str(error))
    model = root.clone()
    model.flux = flux
    extension = host.comfy("comfy.patcher_extension")
    assert extension is not None
    model.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return model


def new_root(flux: FluxModel, device: torch.device) -> Any:
    """The patcher of a transformer that all MODEL wires are clones of."""
    model = base_model(flux.module)
    if flux.preview is not None:
        model.latent_format.latent_rgb_factors = flux.preview[:-1].tolist()
        model.latent_format.latent_rgb_factors_bias = flux.preview[-1].tolist()
    return model_patcher_class()(model, device, torch.device("cpu"), size=1)
