"""A receipt in words, for those who look at a picture's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..units import readable_bytes, readable_seconds
from .receipt import Receipt

#: Facts of a run that are said in one line, and how.
SETTINGS = (
    ("width", "{width}x{height}"),
    ("batch", "batch of {batch}"),
    ("seed", "seed {seed}"),
    ("sampler", "{sampler}"),
    ("scheduler", "{scheduler}"),
    ("steps", "{steps} steps"),
    ("denoise", "denoise {denoise}"),
    ("cfg", "cfg {cfg}"),
    ("guidance", "guidance {guidance}"),
    ("shift", "shift {shift}"),
    ("tiles", "{tiles}"),
)


def describe_receipt(receipt: Receipt) -> str:
    """What a receipt says, a line for each thing."""
    lines = [f"made by FluxFit {receipt.fluxfit}, torch {receipt.torch}, on {receipt.device}"]
    for entry in receipt.did:
        if entry.get("kind") == "draw":
            lines += draw_lines(entry)
    lines += list(part_lines(receipt))
    for name, about in receipt.files.items():
        size = about.get("bytes")
        known = f"sha256 {about['sha256']}" if about.get("sha256") else "changed since it was read"
        lines.append(f"file {name}: {known}" + (f", {readable_bytes(size)}" if size else ""))
    if receipt.job:
        lines.append(f"job {receipt.job.get('id')} of a batch" + values(receipt.job))
    if receipt.command:
        lines.append(f"command {receipt.command.get('name')}")
    return "\n".join(lines)


def values(job: Mapping[str, Any]) -> str:
    """A job's values, where it says them."""
    named = job.get("values") or {}
    return ": " + ", ".join(f"{name}={value}" for name, value in named.items()) if named else ""


def draw_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """How latents were drawn."""
    facts = [
        "1 step" if (name, entry.get(name)) == ("steps", 1) else text.format_map(entry)
        for name, text in SETTINGS
        if name in entry and whole(text, entry)
    ]
    node = f" (node {entry['node']})" if "node" in entry else ""
    yield f"drawn by {model(entry.get('model'))}{node}: {', '.join(facts)}"
    sigmas = entry.get("sigmas") or []
    if sigmas:
        shown = sigmas if len(sigmas) < 9 else [*sigmas[:4], "...", *sigmas[-3:]]
        yield "  sigmas " + " ".join(map(str, shown))
    for use in entry.get("loras", ()):
        yield f"  LoRA {model(use.get('lora'))} at {use.get('strength')}"
    for use in entry.get("controls", ()):
        yield f"  ControlNet {model(use.get('model'))} at {use.get('strength')}"


def whole(text: str, entry: Mapping[str, Any]) -> bool:
    """Whether all that a line speaks of is known."""
    return "{height}" not in text or "height" in entry


def model(about: Any) -> str:
    """A model's file and precision."""
    if not isinstance(about, Mapping):
        return "a model"
    precision = about.get("precision")
    return f"{about.get('file')}" + (f" ({precision})" if precision else "")


def part_lines(receipt: Receipt) -> Iterator[str]:
    """What each part took, predicted and measured."""
    for entry in receipt.did:
        if entry.get("kind") != "ran":
            continue
        took = [f"{readable_seconds(entry.get('seconds', 0))} computing"]
        if entry.get("predicted"):
            took.append(f"{readable_bytes(entry['predicted'])} predicted")
        if entry.get("peak"):
            took.append(f"{readable_bytes(entry['peak'])} at most")
        models = ", ".join(model(each) for each in entry.get("models", ()))
        yield f"{entry.get('part')}, policy {entry.get('policy')}: {', '.join(took)}; {models}"
