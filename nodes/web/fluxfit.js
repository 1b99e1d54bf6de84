// What FluxFit's nodes show in the page: a live plan below OffloadPolicy, and the text that a node
// sends when it ends. Plain DOM, so that it works in classic nodes and in Nodes 2.0.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const POLICY = "OffloadPolicy";
const LOADERS = ["FluxLoaderFP8", "FluxFitTransformerLoader"];
const SAMPLERS = ["FluxSampler", "FluxFitHiresFix"];
const WAIT = 150; // milliseconds after the last turn of a widget

function widgetValues(node) {
  const values = {};
  for (const widget of node.widgets ?? []) {
    if (widget.name && widget.options?.serialize !== false && !widget.fluxfit) {
      values[widget.name] = widget.value;
    }
  }
  return values;
}

function linkOf(graph, id) {
  return graph.links?.get ? graph.links.get(id) : graph.links?.[id];
}

// The nodes that a node's first output is wired to, through reroutes.
function targets(node, seen = new Set()) {
  const found = [];
  for (const output of node.outputs ?? []) {
    for (const id of output.links ?? []) {
      const link = linkOf(node.graph, id);
      const target = link && node.graph.getNodeById(link.target_id);
      if (!target || seen.has(target.id)) continue;
      seen.add(target.id);
      if (target.type === "Reroute") found.push(...targets(target, seen));
      else found.push(target);
    }
  }
  return found;
}

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

// All nodes that a node leads to.
function downstream(node, seen = new Set([node.id])) {
  const found = [];
  for (const output of node.outputs ?? []) {
    for (const id of output.links ?? []) {
      const link = linkOf(node.graph, id);
      const target = link && node.graph.getNodeById(link.target_id);
      if (!target || seen.has(target.id)) continue;
      seen.add(target.id);
      found.push(target, ...downstream(target, seen));
    }
  }
  return found;
}

// The nodes that an input of a node is fed by, nearest first.
function upstream(node, input, seen = new Set()) {
  const link = input.link == null ? null : linkOf(node.graph, input.link);
  const origin = link && node.graph.getNodeById(link.origin_id);
  if (!origin || seen.has(origin.id)) return [];
  seen.add(origin.id);
  return [origin, ...(origin.inputs ?? []).flatMap((other) => upstream(origin, other, seen))];
}

function wiredInputs(node) {
  return (node.inputs ?? []).filter((input) => input.link != null).map((input) => input.name);
}

// What the plan counts: the first sampler that the loader leads to, and all that stands before it,
// each node with the sampler's inputs behind which it is. Muted and bypassed nodes do nothing.
function drawingOf(loader) {
  const sampler = loader && downstream(loader).find((node) => SAMPLERS.includes(node.type));
  if (!sampler) return [];
  const nodes = new Map([[sampler.id, { node: sampler, behind: [] }]]);
  for (const input of sampler.inputs ?? []) {
    for (const node of upstream(sampler, input)) {
      if (!nodes.has(node.id)) nodes.set(node.id, { node, behind: [] });
      nodes.get(node.id).behind.push(input.name);
    }
  }
  return [...nodes.values()]
    .filter(({ node }) => !node.mode)
    .map(({ node, behind }) => ({
      type: node.type ?? "",
      values: widgetValues(node),
      wired: wiredInputs(node),
      behind,
    }));
}

// The size of the picture: of the first empty latent in the graph; and its steps.
function pictureOf(graph) {
  const picture = {};
  for (const node of graph._nodes ?? graph.nodes ?? []) {
    if (/^Empty.*Latent/.test(node.type ?? "") && picture.width === undefined) {
      picture.width = widgetOf(node, "width");
      picture.height = widgetOf(node, "height");
      picture.batch = widgetOf(node, "batch_size");
    }
    if (SAMPLERS.includes(node.type) && picture.steps === undefined) {
      picture.steps = widgetOf(node, "steps");
    }
  }
  return picture;
}

function addText(node, name, height) {
  const element = document.createElement("div");
  element.className = "fluxfit-text";
  element.style.cssText =
    "font: 12px/1.45 monospace; white-space: pre-wrap; overflow: auto; padding: 4px 6px;" +
    "color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border-radius: 4px;";
  const widget = node.addDOMWidget(name, "fluxfit-text", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
    getMaxHeight: () => height,
  });
  widget.serialize = false;
  widget.serializeValue = () => undefined;
  widget.fluxfit = true;
  return element;
}

async function ask(node, element) {
  const loader = targets(node).find((target) => LOADERS.includes(target.type));
  const question = {
    policy: widgetValues(node),
    loader: loader ? widgetValues(loader) : null,
    ...pictureOf(node.graph ?? app.graph),
    nodes: drawingOf(loader),
  };
  const asked = JSON.stringify(question);
  if (element.dataset.asked === asked) return;
  element.dataset.asked = asked;
  try {
    const answer = await api.fetchApi("/fluxfit/plan", { method: "POST", body: asked });
    const plan = await answer.json();
    if (element.dataset.asked !== asked) return; // a later question is under way
    element.dataset.fits = String(plan.fits ?? false);
    element.textContent = plan.error ?? [plan.title, ...plan.lines].join("\n");
  } catch (error) {
    element.textContent = `no plan: ${error.message}`;
  }
}

function showPlan(node) {
  const element = addText(node, "plan", 156);
  let timer = null;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => ask(node, element), WAIT);
  };
  for (const widget of node.widgets ?? []) {
    if (widget.fluxfit) continue;
    const before = widget.callback;
    widget.callback = function (...values) {
      const result = before?.apply(this, values);
      later();
      return result;
    };
  }
  const connected = node.onConnectionsChange;
  node.onConnectionsChange = function (...values) {
    connected?.apply(this, values);
    later();
  };
  // other nodes' widgets (the loader's file, the size) change without a word to this one
  const watch = setInterval(() => ask(node, element), 1500);
  const removed = node.onRemoved;
  node.onRemoved = function (...values) {
    clearInterval(watch);
    clearTimeout(timer);
    removed?.apply(this, values);
  };
  later();
}

// A text below a node, made when there is something to show.
function showText(node, text) {
  node.fluxfitText ??= addText(node, "result", 60);
  node.fluxfitText.textContent = text;
}

function showResult(node) {
  const executed = node.onExecuted;
  node.onExecuted = function (output) {
    executed?.apply(this, arguments);
    const lines = output?.text;
    if (lines?.length) showText(node, [].concat(...lines).join("\n"));
  };
}

// What a long run is at, sent while it goes on.
api.addEventListener("fluxfit.text", ({ detail }) => {
  const node = app.graph?.getNodeById(Number(detail.node)) ?? app.graph?.getNodeById(detail.node);
  if (node) showText(node, detail.text);
});

app.registerExtension({
  name: "FluxFit",
  nodeCreated(node) {
    const type = node.comfyClass ?? node.type;
    if (type === POLICY) showPlan(node);
    else if (type === "FluxSampler" || type?.startsWith("FluxFit")) showResult(node);
  },
});
