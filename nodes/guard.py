"""Nodes of the host whose faults end what they are for, and not the whole run.

The host ends a run at the first node that raises. A guarded node is a subclass of the node's class
that tells of a fault and blocks those that it leads to, so that the rows of a batch that need
neither go on. Classes of both of the host's kinds are guarded: those of instances, and those
(``define_schema``) of class methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from flux_core.record import Note, recording

from . import host_execution

#: What a guarded class is called behind the name of its own.
SUFFIX = " (FluxFitBatch)"
#: Told that a node ran: its id, what it noted, and what it raised, if it did.
OnRan = Callable[[str, list[Note], "Exception | None"], None]


def guarded(name: str, on_ran: OnRan) -> str:
    """The name of a node's guarded class, which the host knows from then on."""
    classes = host_execution.node_classes()
    original = classes[name]
    known = classes.get(name + SUFFIX)
    if known is None or known.__mro__[1] is not original:
        modern = hasattr(original, "define_schema")
        classes[name + SUFFIX] = (modern_class if modern else plain_class)(original, on_ran)
    return name + SUFFIX


class Watch:
    """Around one run of a node: what it notes is told, and what it raises kept."""

    def __init__(self, node_class: Any, on_ran: OnRan) -> None:
        self.node_class, self.on_ran = node_class, on_ran
        self.blocked: tuple[Any, ...] | None = None

    def __enter__(self) -> Watch:
        self.recorder = recording()
        self.notes = self.recorder.__enter__()
        return self

    def __exit__(self, kind: Any, fault: BaseException | None, trace: Any) -> bool:
        self.recorder.__exit__(None, None, None)
        if fault is not None and not isinstance(fault, Exception):
            return False
        if fault is not None:
            host_execution.after_fault(fault)  # which lets interrupts pass
            self.blocked = tuple(host_execution.blocker() for _ in self.node_class.RETURN_TYPES)
        self.on_ran(host_execution.executing_node(), self.notes, fault)
        return fault is not None


def plain_class(original: Any, on_ran: OnRan) -> type:
    """A guarded class of nodes that are instances."""
    function = original.FUNCTION

    def run(self: Any, **inputs: Any) -> Any:
        with Watch(original, on_ran) as watch:
            return getattr(self, function)(**inputs)
        return watch.blocked

    async def run_async(self: Any, **inputs: Any) -> Any:
        with Watch(original, on_ran) as watch:
            return await getattr(self, function)(**inputs)
        return watch.blocked

    chosen = run_async if inspect.iscoroutinefunction(getattr(original, function)) else run
    body = {"FUNCTION": "fluxfit_guarded", "fluxfit_guarded": chosen, "DEPRECATED": True}
    return type(original.__name__, (original,), body)


def modern_class(original: Any, on_ran: OnRan) -> type:
    """A guarded class of nodes that are class methods."""
    execute = original.execute.__func__

    def run(cls: Any, **inputs: Any) -> Any:
        with Watch(original, on_ran) as watch:
            return execute(cls, **inputs)
        return watch.blocked

    async def run_async(cls: Any, **inputs: Any) -> Any:
        with Watch(original, on_ran) as watch:
            return await execute(cls, **inputs)
        return watch.blocked

    chosen = run_async if inspect.iscoroutinefunction(execute) else run
    return type(original.__name__, (original,), {"execute": classmethod(chosen)})
