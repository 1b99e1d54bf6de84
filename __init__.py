"""FluxFit for ComfyUI: FLUX in the memory you have.

The host asks for the two mappings, and gets them then: the command line, which is in this package
too, answers ``--help`` without importing torch.
"""

#: What the page loads of us: live plans, help.
WEB_DIRECTORY = "./nodes/web"


def __getattr__(name: str) -> object:
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        from . import nodes

        return getattr(nodes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
