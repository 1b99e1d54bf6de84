"""What nodes need of ComfyUI: folders, devices, progress, previews, interrupts.

This file, ``host_execution``, ``memory_manager`` and ``bridge`` are the only ones that know it.

Outside of the host the same functions give plain equivalents, so that every node runs without one:
model folders under ``FLUXFIT_MODELS`` laid out as the host's, a text progress bar, no previews.
The host is not imported before a function needs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
from PIL import Image

from flux_core.errors import one_line
from flux_core.files import below, folders_below, is_hidden, reason
from flux_core.pocket import POCKET

log = logging.getLogger("fluxfit")

FOLDERS = (
    "diffusion_models",
    "text_encoders",
    "vae",
    "controlnet",
    "loras",
    "checkpoints",
    "clip_vision",
    "style_models",
)
#: Where IP-Adapters of FLUX.1 lie, by the packs that use them, below the folder of all models.
IP_ADAPTERS = "fluxfit_ip_adapters"
IP_ADAPTER_FOLDERS = ("ipadapter", "ipadapter-flux", "xlabs/ipadapters")
SUFFIXES = (".safetensors", ".sft", ".index.json", ".gguf")
PLANS = "precision_plans"


def comfy(name: str) -> ModuleType | None:
    """A module of the host, or None outside of it.

    The host is there when its ``folder_paths`` is loaded already; it is never searched for.
    """
    if "folder_paths" not in sys.modules:
        return None
    __import__(name)
    return sys.modules[name]


def register_pocket() -> None:
    """Let the host see the pocket model's folders beside its own."""
    folder_paths = comfy("folder_paths")
    if folder_paths is None:
        return
    for name in FOLDERS:
        if (POCKET / name).is_dir():
            folder_paths.add_model_folder_path(name, str(POCKET / name))


def register_ip_adapters() -> None:
    """Let the host list IP-Adapters wherever other packs keep them."""
    folder_paths = comfy("folder_paths")
    if folder_paths is None:
        return
    for name in IP_ADAPTER_FOLDERS:
        path = os.path.join(folder_paths.models_dir, name)
        folder_paths.add_model_folder_path(IP_ADAPTERS, path)


class RunningPrompt(NamedTuple):
    """A graph that the host runs now."""

    id: str
    #: Types of its nodes, by their ids.
    nodes: dict[str, str]
    #: The node that runs, where the host says it.
    node: str | None = None
    #: What the page queued beside the graph.
    extra: Mapping[str, Any] = MappingProxyType({})


def page_server() -> Any:
    """What talks with the page; None outside of the host, and in one that has none."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def tell_page(message: dict[str, Any]) -> None:
    """Send what ``web/fluxfit.js`` shows on the node that runs now."""
    server = page_server()
    node, client = getattr(server, "last_node_id", None), getattr(server, "client_id", None)
    if node is not None and client is not None:
        server.send_sync("fluxfit.text", {"node": node} | message, client)


def running_prompt() -> RunningPrompt | None:
    """What the host runs now; None outside of it, and where it runs nothing."""
    server = page_server()
    queue = getattr(server, "prompt_queue", None)
    for _, number, graph, extra, *_ in list(queue.currently_running.values()) if queue else ():
        nodes = {str(key): str(node.get("class_type")) for key, node in graph.items()}
        node = getattr(server, "last_node_id", None) or executing_node()
        return RunningPrompt(str(number), nodes, node, extra)
    return None


def executing_node() -> str | None:
    """The node that runs in this thread, which the host knows without a page that listens too."""
    utils = sys.modules.get("comfy_execution.utils")
    context = None if utils is None else utils.get_executing_context()
    return None if context is None else str(context.node_id)


def free_share() -> float:
    """The share of the machine's memory that is free; all of it outside of the host."""
    psutil = comfy("psutil")
    if psutil is None:
        return 1.0
    memory = psutil.virtual_memory()
    return memory.available / memory.total


def add_route(path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let the page ask a question at a path: JSON in, JSON out.

    ``answer`` runs on a thread, since it may read files; what it raises goes to the page as
    ``error``, on one line.
    """
    server = page_server()  # which is there before nodes are
    if comfy("folder_paths") is None or server is None:
        return
    from aiohttp import web  # type: ignore[import-not-found]

    async def handle(request: Any) -> Any:
        loop = asyncio.get_running_loop()
        try:
            question = await request.json()
            return web.json_response(await loop.run_in_executor(None, answer, question))
        except Exception as error:  # whoever reaches the port may ask anything
            return web.json_response({"error": one_line(reason(error))}, status=400)

    server.routes.post(path)(handle)


def model_roots(folder: str) -> list[Path]:
    """Where models of a kind lie outside of the host."""
    models_home = os.environ.get("FLUXFIT_MODELS")
    if folder == IP_ADAPTERS:
        return [root for name in IP_ADAPTER_FOLDERS for root in model_roots(name)]
    roots = [POCKET / folder, output_folder() / folder]
    return [Path(models_home) / folder, *roots] if models_home else roots


def model_names(*folders: str) -> list[str]:
    """Files that a person can choose from, over several folders.

    A name that an earlier folder has too is given with its folder before it.
    """
    names: dict[str, None] = {}
    for folder in folders:
        for name in dict.fromkeys(names_below(folder)):
            names[f"{folder}/{name}" if name in names else name] = None
    return list(names)


def folders_of(folder: str) -> list[Path]:
    """The folders of a kind of model, the host's or our own."""
    folder_paths = comfy("folder_paths")
    if folder_paths is None:
        return model_roots(folder)
    return [Path(root) for root in folder_paths.get_folder_paths(folder)]


def names_below(folder: str) -> list[str]:
    """Model files of one folder."""
    folder_paths = comfy("folder_paths")
    names: list[str] = []
    if folder_paths is not None:
        names += folder_paths.get_filename_list(folder)
    roots = folders_of(folder)
    wanted = SUFFIXES if folder_paths is None else (".gguf",)  # which the host does not list
    for root in roots:
        names += sorted(
            (below / name).relative_to(root).as_posix()
            for below, files in folders_below(root)
            for name in files
            if name.endswith(wanted)
        )
    return [name for name in names if name.endswith(SUFFIXES) and not is_hidden(Path(name))]


def model_path(name: str, *folders: str) -> Path:
    """The file of that name inside the model folders, or inside the one that stands before it.

    Raises ``ValueError`` for a name that climbs out of them, ``FileNotFoundError`` for one that
    none of them has.
    """
    try:
        parts = below(Path(), name)
    except ValueError:
        raise ValueError(f"model name {name!r} leaves the model folders: not opened") from None
    places = [(folder, parts) for folder in folders]
    if parts.parts[0] in folders and len(parts.parts) > 1:
        places.append((parts.parts[0], Path(*parts.parts[1:])))
    for folder, inner in places:
        path = file_below(folder, inner)
        if path is not None:
            return path
    looked = " or ".join(folders)
    raise FileNotFoundError(f"no file {name!r} in the model folders {looked}")


def file_below(folder: str, parts: Path) -> Path | None:
    """The file inside a model folder, None where it has none of that name."""
    folder_paths = comfy("folder_paths")
    if folder_paths is not None:
        match = folder_paths.get_full_path(folder, str(parts))
        return None if match is None else Path(match)
    for root in model_roots(folder):
        if (root / parts).exists():
            return root / parts
    return None


def host_code() -> Path | None:
    """The folder of the host's models' code; None where no installation is known."""
    code = comfy("comfy.sd1_clip")  # the host's models may lie elsewhere than its code
    installed = os.environ.get("COMFYUI_PATH")
    if code is not None:
        return Path(str(code.__file__)).parent
    return Path(installed) / "comfy" if installed else None


def host_tokenizers() -> tuple[Path, Path] | None:
    """The tokenizers that a ComfyUI installation carries: CLIP's folder and T5's."""
    inner = host_code()
    if inner is None:
        return None
    clip, t5 = inner / "sd1_tokenizer", inner / "text_encoders" / "t5_tokenizer"
    return (clip, t5) if clip.is_dir() and t5.is_dir() else None


def host_qwen_tokenizer() -> Path | None:
    """Qwen's tokenizer, which a ComfyUI installation carries as well."""
    inner = host_code()
    folder = None if inner is None else inner / "text_encoders" / "qwen25_tokenizer"
    return folder if folder is not None and folder.is_dir() else None


def plan_folders() -> list[Path]:
    """Where precision plans are read: the first is where they are written, below the output."""
    folder_paths = comfy("folder_paths")
    models = os.environ.get("FLUXFIT_MODELS")
    if folder_paths is not None:
        models = folder_paths.models_dir
    return [output_folder() / PLANS, *([Path(models) / PLANS] if models else [])]


def plan_names() -> list[str]:
    names = [
        (folder / name).relative_to(root).as_posix()
        for root in plan_folders()
        for folder, files in folders_below(root)
        for name in files
        if name.endswith(".json")
    ]
    return sorted(set(names))


def inside(root: Path, name: str) -> Path:
    """A path under a folder; raises ``ValueError`` for a name that climbs out of it."""
    return below(root.resolve(), name)


def output_folder() -> Path:
    folder_paths = comfy("folder_paths")
    return Path(folder_paths.get_output_directory()) if folder_paths else Path("output")


def input_folder() -> Path:
    folder_paths = comfy("folder_paths")
    return Path(folder_paths.get_input_directory()) if folder_paths else Path("input")


def device() -> torch.device:
    """Where models compute."""
    management = comfy("comfy.model_management")
    if management is not None:
        return management.get_torch_device()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Progress:
    """Steps done, with a preview where there is one; raises when the person interrupts."""

    def __init__(self, total: int, what: str) -> None:
        total = max(1, total)
        self.total, self.what, self.started, self.shown = total, what, time.monotonic(), False
        utils = comfy("comfy.utils")
        self.bar = utils.ProgressBar(total) if utils else None

    def update(self, done: int, preview: Image.Image | None = None) -> None:
        if self.bar is not None:
            picture = None if preview is None else ("JPEG", preview, 512)
            self.bar.update_absolute(done, self.total, picture)
            check_interrupt()
        elif os.environ.get("FLUXFIT_QUIET"):
            return
        elif sys.stderr.isatty() or self.shown:
            self.draw(done)
        elif time.monotonic() - self.started > 1:
            self.shown = True
            self.draw(done)

    def draw(self, done: int) -> None:
        full = 24 * done // max(1, self.total)
        passed = time.monotonic() - self.started
        end = "\r" if sys.stderr.isatty() else "\n"
        if sys.stderr.isatty() or done * 10 // self.total != (done - 1) * 10 // self.total:
            bar = "#" * full + "." * (24 - full)
            print(
                f"{self.what} [{bar}] {done}/{self.total} {passed:.1f} s",
                end=end,
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self.bar is None and sys.stderr.isatty() and not os.environ.get("FLUXFIT_QUIET"):
            print(file=sys.stderr)


@contextmanager
def progress(total: int, what: str) -> Iterator[Progress]:
    """A bar over ``total`` steps, in the host's page or in the terminal."""
    bar = Progress(total, what)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def stages() -> Iterator[Callable[..., None]]:
    """One bar after another, each for as long as what it is told begins with the same word: called
    with what is done, steps done, steps in all and perhaps a picture."""
    bar: Progress | None = None
    name = ""
    try:

        def show(what: str, done: int, total: int, preview: Image.Image | None = None) -> None:
            nonlocal bar, name
            stage = what.split(",")[0]
            if bar is None or stage != name or bar.total != total:
                if bar is not None:
                    bar.close()
                bar, name = Progress(max(1, total), what), stage
            bar.what = what
            bar.update(done, preview)

        yield show
    finally:
        if bar is not None:
            bar.close()


def check_interrupt() -> None:
    """Raise the host's interrupt if the person asked for it."""
    management = comfy("comfy.model_management")
    if management is not None:
        management.throw_exception_if_processing_interrupted()
