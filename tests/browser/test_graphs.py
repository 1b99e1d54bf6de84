"""What a workflow file means without the page: the same graph as the page queues.

Over our own workflows and all templates that the host brings, whatever they are about.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from fluxfit.nodes import headless

from tests.browser.editor import Editor
from tests.host_server import ROOT, host_templates

#: The graph of a file as the page has it, or why it has none.
QUEUED = """async workflow => {
    await app.loadGraphData(workflow)
    return (await app.graphToPrompt()).output
}"""
SHOWN_LATER = {"LoadImage", "LoadImageMask", "LoadImageOutput"}  # a page puts its own file there


def differences(prompt: dict[str, Any], graph: headless.Graph) -> list[str]:
    """Where our graph is not the page's: nodes, wires, and values of the nodes that we know."""
    wrong = []
    if prompt.keys() != graph.keys():
        wrong.append(f"nodes {sorted(prompt.keys() ^ graph.keys())}")
    for key in prompt.keys() & graph.keys():
        step, inputs = graph[key], prompt[key]["inputs"]
        known = headless.KNOWN_NODES.get(step.type)
        specs = headless.input_specs(known) if known else {}
        for name in inputs.keys() | step.inputs.keys():
            theirs, ours = inputs.get(name), step.inputs.get(name)
            if isinstance(theirs, list) and len(theirs) == 2:
                theirs = headless.Link(str(theirs[0]), theirs[1])
            wired = isinstance(theirs, headless.Link) or isinstance(ours, headless.Link)
            if not wired and (name not in specs or name not in inputs):
                continue
            if not wired and name not in step.inputs:
                ours = specs[name][1].get("default", theirs)
            if theirs != ours and not (not wired and step.type in SHOWN_LATER):
                wrong.append(f"{step.label} {name}: the page has {theirs!r}, we {ours!r}")
    return wrong


def files() -> list[Path]:
    return sorted((ROOT / "workflows").glob("*.json")) + sorted(host_templates().values())


def test_a_file_means_what_the_page_queues(editor: Editor):
    compared, wrong = 0, []
    for path in files():
        workflow = json.loads(path.read_text("utf-8-sig"))
        if "nodes" not in workflow:
            continue
        try:
            graph = headless.parse(copy.deepcopy(workflow))
        except headless.WorkflowError as error:
            wrong.append(f"{path.stem}: {error}")
            continue
        editor.clear()
        prompt = editor.page.evaluate(QUEUED, workflow)
        compared += 1
        wrong += [f"{path.stem}: {text}" for text in differences(prompt, graph)]
    print(f"{compared} files compared")
    Path(editor.artefacts / "graphs.txt").write_text("\n".join(wrong))
    assert compared > 20 and not wrong, "\n".join(wrong[:50])
