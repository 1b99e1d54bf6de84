"""FluxFit for ComfyUI: FLUX.1 in the memory you have."""

# The guard keeps test collectors, which import this file without a package, from failing.
if __package__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
