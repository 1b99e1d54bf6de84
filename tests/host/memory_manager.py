"""Run inside a host's interpreter: our parts and its models give each other room.

    python memory_manager.py COMFYUI FLUXFIT

The CPU stands for a card: weights are copied to it, and what the manager believes to be free is
counted down by what it has loaded. Prints ``done`` at the end; an assertion fails before.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import weakref
from pathlib import Path

comfyui, root = map(Path, sys.argv[1:])
sys.path.insert(0, str(comfyui))
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_management as manager  # noqa: E402
import comfy.model_patcher  # noqa: E402
import folder_paths  # noqa: E402, F401
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "custom_nodes.FluxFit", root / "__init__.py", submodule_search_locations=[str(root)]
)
package = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = package
spec.loader.exec_module(package)
assert "FluxSampler" in package.NODE_CLASS_MAPPINGS
core = sys.modules["flux_core"]
nodes_manager = sys.modules[f"{spec.name}.nodes.memory_manager"]
placement = sys.modules["flux_core.offload.placement"]
assert not any(name.endswith(".flux_core") for name in sys.modules), "one copy of the core"

CPU = torch.device("cpu")
CARD = 130_000_000  # bytes


def free(device=None, torch_free_too=False):
    taken = sum(loaded.model_loaded_memory() for loaded in manager.current_loaded_models)
    return (CARD - taken, 0) if torch_free_too else CARD - taken


manager.get_free_memory = free
manager.minimum_inference_memory = lambda: 0
manager.extra_reserved_memory = lambda: 0


class Stock(torch.nn.Module):
    """A model of the host's own kind, of 60 MB."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1000, 750) for _ in range(20))


def load(*patchers, needed=0):
    """As the host loads, which on a CPU asks for no room."""
    wanted = sum(p.model_size() - p.loaded_size() for p in patchers)
    manager.free_memory(wanted + needed, CPU, keep_loaded=[])
    manager.load_models_gpu(list(patchers))


def ours(seed):
    config = core.models.config.TransformerConfig(
        vec_in_dim=32, context_in_dim=48, hidden_size=512, depth=1, depth_single_blocks=3
    )
    torch.manual_seed(seed)
    return core.FluxTransformer(config).requires_grad_(False)


def held(module):
    return placement.placement_of(module, CPU).held


def run(module):
    return nodes_manager.run(
        "transformer", core.OffloadPolicy("none", separate_memory=True), [module], lambda plan: plan
    )


model = ours(0)
before = {k: v.clone() for k, v in model.state_dict().items()}
run(model)
whole = held(model)
assert 80_000_000 < whole < 100_000_000, whole
(entry,) = manager.current_loaded_models
assert entry.model_loaded_memory() == whole == entry.model_memory()

stock = comfy.model_patcher.ModelPatcher(Stock(), CPU, CPU)
load(stock)
left = held(model)
assert 0 < left < whole, "the host's model takes a part of ours, not all"
assert stock.loaded_size() > 0

run(model)  # and back: what the host's manager left there is taken again
assert held(model) == whole

manager.free_memory(1e30, CPU)
manager.unload_all_models()
assert held(model) == 0 and not manager.current_loaded_models, "the Unload button empties us"
assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

run(model)
run(ours(1))
gc.collect()
ghost = weakref.ref(model)
del model
assert ghost() is None, "a part that nobody holds is gone at once"
manager.cleanup_models()
assert all(entry.real_model() is not None for entry in manager.current_loaded_models)
load(stock)  # nothing of ours stands in the way, nor breaks the manager
print("done")
