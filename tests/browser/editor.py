"""ComfyUI's graph editor in a page, and what tests ask of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.host_server import Server

READY = "window.app && window.app.vueAppReady && window.app.canvas && window.app.graph"
NODES = """() => app.graph.nodes.map(node => ({
    id: node.id,
    type: node.type,
    known: node.type in LiteGraph.registered_node_types,
    x: node.pos[0],
    y: node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT,
    width: node.size[0],
    height: node.size[1] + LiteGraph.NODE_TITLE_HEIGHT,
    needs: Array.from(node.computeSize()),
    values: (node.widgets ?? []).filter(w => !w.name.startsWith('$$')).map(w => [w.name, w.value]),
    pictures: (node.imgs ?? []).map(image => image.src),
}))"""
LINKS = """() => Array.from(app.graph.links.values(), link => [link.origin_id, link.target_id])"""
# A drawn wire has its curve as a path. One behind a node crosses the node's rim; the two nodes that
# it joins it enters by a little, where their sockets are.
HIDDEN = """() => {
    const canvas = document.createElement('canvas').getContext('2d')
    canvas.lineWidth = 2
    const crosses = (path, node, inset) => {
        const [left, top, width, height] = node.boundingRect
        const [right, bottom] = [left + width - inset, top + height - inset]
        for (let x = left + inset; x < right; x += 2)
            if ([top + inset, bottom].some(y => canvas.isPointInStroke(path, x, y))) return true
        for (let y = top + inset; y < bottom; y += 2)
            if ([left + inset, right].some(x => canvas.isPointInStroke(path, x, y))) return true
        return false
    }
    const { links, reroutes, nodes } = app.graph
    const segments = Array.from(links.values(), link => [link.path, [link]])
    for (const reroute of reroutes.values())
        segments.push([reroute.path, Array.from(reroute.linkIds, id => links.get(id))])
    const hidden = []
    for (const [path, ends] of segments) {
        if (!path) throw new Error(`wire ${ends[0].id} is not drawn`)
        for (const node of nodes) {
            const own = ends.some(link => [link.origin_id, link.target_id].includes(node.id))
            if (crosses(path, node, own ? 14 : 2))
                hidden.push([ends[0].origin_id, ends[0].target_id, node.id])
        }
    }
    return hidden
}"""
DROP = """async ([data, name]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0))
    await app.handleFile(new File([bytes], name, { type: 'image/png' }))
}"""


@dataclass
class Editor:
    """The page, the errors that its console told, and the requests of ours that failed."""

    page: Any
    server: Server
    artefacts: Path
    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self._on_failure(request.url))
        self.page.on("response", self._on_response)
        self.page.goto(self.server.address)
        self.page.wait_for_function(READY, timeout=60_000)
        self.page.wait_for_load_state("networkidle")

    def _on_console(self, message: Any) -> None:
        # requests that fail are counted by their address: the host has some of its own
        own = ("Failed to load resource", "Error fetching file size")
        if message.type == "error" and not message.text.startswith(own):
            self.errors.append(message.text)

    def _on_response(self, response: Any) -> None:
        if response.status >= 400:
            self._on_failure(f"{response.status} {response.url}")

    def _on_failure(self, url: str) -> None:
        if "FluxFit" in url:
            self.failed.append(url)

    def clear(self) -> None:
        dialog = self.page.locator("[role=dialog]")
        if dialog.count():  # those of older pages stay open
            self.page.keyboard.press("Escape")
            dialog.first.wait_for(state="detached")
            self.page.wait_for_timeout(500)
        self.page.evaluate("() => app.graph.clear()")
        self.errors.clear()
        self.failed.clear()

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as the page does, the whole of it in view."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)  # an animation, and checks of models and media

    def alerts(self) -> str:
        """What the page says that is wrong with a graph."""
        alerts = self.page.locator("[role=alert], [role=dialog], [data-testid=error-overlay]")
        return "\n".join(alerts.nth(i).inner_text() for i in range(alerts.count()))

    def nodes(self) -> list[dict[str, Any]]:
        return self.page.evaluate(NODES)

    def node(self, node_type: str) -> dict[str, Any]:
        return next(node for node in self.nodes() if node["type"] == node_type)

    def links(self) -> list[list[int]]:
        """Source and target of every wire."""
        return self.page.evaluate(LINKS)

    def hidden_wires(self) -> list[list[int]]:
        """Source and target of every wire that goes behind a node, and that node."""
        return self.page.evaluate(HIDDEN)

    def set_value(self, node_type: str, name: str, value: Any) -> None:
        self.page.evaluate(
            """([type, name, value]) => {
                const node = app.graph.nodes.find(node => node.type === type)
                node.widgets.find(widget => widget.name === name).value = value
            }""",
            [node_type, name, value],
        )

    def screenshot(self, name: str) -> Path:
        path = self.artefacts / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def set_language(self, language: str) -> None:
        self.page.evaluate(
            "value => app.extensionManager.setting.set('Comfy.Locale', value)", language
        )
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(5000)

    def add(self, node_type: str) -> None:
        """A new node, in view and selected."""
        self.page.evaluate(
            """type => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [1200, 300]  // help opens to its left or right
                app.canvas.deselectAll?.()
                app.canvas.selectNode(node)
                app.canvas.setDirty(true, true)
            }""",
            node_type,
        )

    def help_picture(self, name: str) -> tuple[str, int] | None:
        """Address and width of the picture in the help of the node that is selected; None where
        the page has no button for help."""
        button = self.page.locator("[data-testid=info-button]")
        try:
            button.first.wait_for(state="visible", timeout=5000)
        except Exception:
            return None
        picture = self.page.locator(f"img[src$='/docs/images/{name}.png']")
        for _ in range(3):  # newer pages turn to the node by themselves, in older ones it toggles
            try:
                picture.first.wait_for(state="visible", timeout=3000)
                break
            except Exception:
                if button.first.is_visible():  # it goes when help is open, and help may be slow
                    button.first.click()
        picture.first.wait_for(state="visible", timeout=30_000)
        return tuple(picture.first.evaluate("image => [image.src, image.naturalWidth]"))

    def queue(self) -> str:
        """Queue the graph; gives the prompt's id."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as answer:
            self.page.evaluate("() => app.queuePrompt(0, 1)")
        assert answer.value.ok, answer.value.text()
        return json.loads(answer.value.text())["prompt_id"]

    def finish(self, prompt: str, timeout: float = 300) -> dict[str, Any]:
        """Wait for a prompt's history entry."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.server.get(f"/history/{prompt}").get(prompt)
            if entry is not None and entry["status"].get("completed") is not None:
                self.page.wait_for_timeout(500)  # the page hears of it by itself
                return entry
            self.page.wait_for_timeout(200)
        raise TimeoutError(f"prompt {prompt} took over {timeout} s")

    def wait_for_preview(self, node_type: str) -> None:
        """Wait for a picture on a node of a type."""
        self.page.wait_for_function(
            "type => app.graph.nodes.some(node => node.type === type && node.imgs?.length)",
            arg=node_type,
            timeout=300_000,
        )

    def forget(self) -> None:
        """Let the host drop its models and what it keeps of earlier graphs."""
        self.page.evaluate(
            """() => app.api.fetchApi('/free', {
                method: 'POST',
                headers: { 'Content-Type': 'application/json' },
                body: JSON.stringify({ unload_models: true, free_memory: true }),
            })"""
        )

    def interrupt(self) -> None:
        self.page.evaluate("() => app.api.interrupt(null)")

    def drop(self, data: str, name: str) -> None:
        """Drop a picture, given in base64, on the page."""
        self.page.evaluate(DROP, [data, name])
        self.page.wait_for_timeout(1000)
