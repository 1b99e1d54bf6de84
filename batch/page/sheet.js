// The sheet of a batch: filters, cards, a matrix, and one job with its receipt. Only the cards that
// can be seen are in the page, so that ten thousand jobs scroll like ten. Texts of the table come
// in as text nodes alone.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLUMNS = DATA.columns;
const MOST_GROUPS = 60; // rows or columns of a matrix
const MOST_IN_ROW = 40; // pictures of a row that has no columns
const byId = (id) => document.getElementById(id);

const JOBS = DATA.rows.map(([id, line, error, seconds, worker, tries, files, values], index) => {
  const text = [id, error, worker, ...values.map(shown)].join("\n").toLowerCase();
  return { id, line, error, seconds, worker, tries, files, values, index, text };
});
const VARYING = COLUMNS.map((_, i) => i).filter((i) => distinct(i).length > 1);
const MATRIX_COLUMNS = VARYING.filter((i) => distinct(i).length <= MOST_GROUPS);

let found = JOBS; // what the filters leave, in order
let current = 0; // the card that the keyboard is on, among those found
let inDialog = []; // the jobs that the dialog goes through
let open = 0;

function shown(value) {
  return value === null || value === undefined ? "" : String(value);
}

function distinct(column) {
  const all = new Map();
  for (const job of JOBS) {
    const value = shown(job.values[column]);
    all.set(value, (all.get(value) ?? 0) + 1);
  }
  return [...all].sort((a, b) => compare(a[0], b[0]));
}

function compare(a, b) {
  const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
  return numbers ? Number(a) - Number(b) : a < b ? -1 : a > b ? 1 : 0;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function thumbnail(file) {
  return file.replace(/^[^/]*/, "thumbnails").replace(/\.[^.]*$/, "");
}

function address(path) {
  return path.split("/").map(encodeURIComponent).join("/");
}

// ---- filters -------------------------------------------------------------------------------

function addFilters() {
  const states = [["done", DATA.done], ["failed", DATA.failed]].filter(([, n]) => n);
  if (states.length > 1) addChoice("state", states, (job) => (job.error ? "failed" : "done"));
  COLUMNS.forEach((column, i) => {
    if (!VARYING.includes(i)) return;
    const read = (job) => job.values[i];
    if (column.kind === "choice") addChoice(column.label, distinct(i), (job) => shown(read(job)), column.name);
    else if (column.kind === "number") addRange(column.label, read, column.name);
    else addWords(column.label, (job) => shown(read(job)), column.name);
  });
  if (JOBS.some((job) => job.seconds !== null)) addRange("seconds", (job) => job.seconds);
}

const FILTERS = [];

function fieldset(label, name = label) {
  const set = element("fieldset", {}, element("legend", { textContent: label, title: name }));
  byId("filters").append(set);
  return set;
}

function addChoice(label, values, read, name) {
  const boxes = values.map(([value, count]) => {
    const box = element("input", { type: "checkbox", value });
    const text = element("span", { textContent: value || "(empty)", title: value });
    return [box, element("label", {}, box, text, element("small", { textContent: count }))];
  });
  fieldset(label, name).append(element("div", { className: "choices" }, ...boxes.map(([, row]) => row)));
  FILTERS.push(() => {
    const wanted = new Set(boxes.filter(([box]) => box.checked).map(([box]) => box.value));
    return wanted.size ? (job) => wanted.has(read(job)) : null;
  });
}

function addRange(label, read, name) {
  const bounds = ["from", "to"].map((word) =>
    element("input", { type: "number", step: "any", placeholder: word, ariaLabel: `${label} ${word}` }));
  fieldset(label, name).append(element("div", { className: "range" }, ...bounds));
  FILTERS.push(() => {
    const [low, high] = bounds.map((input) => (input.value === "" ? null : Number(input.value)));
    if (low === null && high === null) return null;
    return (job) => {
      const value = read(job);
      return typeof value === "number" && (low === null || value >= low) && (high === null || value <= high);
    };
  });
}

function addWords(label, read, name) {
  const input = element("input", { type: "search", placeholder: "has these words", ariaLabel: label });
  fieldset(label, name).append(input);
  FILTERS.push(() => hasWords(input.value, (job) => read(job).toLowerCase()));
}

function hasWords(text, read) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return words.length ? (job) => words.every((word) => read(job).includes(word)) : null;
}

function orders() {
  const all = [["line of the table", (job) => job.line], ["seconds", (job) => job.seconds]];
  COLUMNS.forEach((column, i) => VARYING.includes(i) && all.push([column.label, (job) => job.values[i]]));
  return all;
}
const ORDERS = orders();

function filter() {
  const tests = [...FILTERS.map((make) => make()), hasWords(byId("search").value, (job) => job.text)];
  const wanted = tests.filter(Boolean);
  found = JOBS.filter((job) => wanted.every((test) => test(job)));
  const order = Number(byId("order").value);
  if (order) found.sort((a, b) => compare(shown(ORDERS[order][1](a)), shown(ORDERS[order][1](b))) || a.index - b.index);
  current = 0;
  byId("count").textContent = `${found.length.toLocaleString()} of ${JOBS.length.toLocaleString()} shown`;
  byId("main").scrollTop = 0;
  draw();
}

// ---- cards ---------------------------------------------------------------------------------

function thumb(job, side) {
  const box = element("span", { className: "thumb" });
  box.style.cssText = `width:${side}px;height:${side}px`;
  const [file, fault] = job.files[0] ?? ["", ""];
  if (job.error || fault || !file) {
    box.classList.add("failed");
    box.append(element("span", { className: "fault", textContent: job.error || fault || "no picture" }));
    return box;
  }
  box.append(element("img", { loading: "lazy", alt: "", src: address(`${thumbnail(file)}.jpg`) }));
  if (job.files.length > 1) box.append(element("span", { className: "more", textContent: `${job.files.length} pictures` }));
  return box;
}

function valueLines(job) {
  const columns = VARYING.length ? VARYING : COLUMNS.map((_, i) => i);
  const lines = columns.map((i) => [COLUMNS[i].label, shown(job.values[i])]);
  if (job.seconds !== null) lines.push(["seconds", job.seconds.toFixed(1)]);
  if (job.tries > 1) lines.push(["tries", job.tries]);
  return lines.map(([label, value]) =>
    element("div", { title: value }, element("b", { textContent: `${label} ` }), String(value)));
}

function describe(job) {
  const values = VARYING.map((i) => `${COLUMNS[i].label} ${shown(job.values[i])}`).join(", ");
  return `line ${job.line}: ${job.error ? `failed, ${job.error}; ` : ""}${values}`.slice(0, 300);
}

function card(job, side, withValues) {
  const made = element("button", { type: "button", className: "card", ariaLabel: describe(job) }, thumb(job, side));
  if (withValues) made.append(element("span", { className: "values" }, ...valueLines(job)));
  else made.title = describe(job);
  return made;
}

// How cards stand: their size, how many are in a row, and where each one is.
function layout() {
  const list = byId("view").value === "list";
  const side = list ? Math.min(Number(byId("size").value), 128) : Number(byId("size").value);
  const room = byId("main").clientWidth - 24;
  const lines = Math.min(5, Math.max(2, VARYING.length + 1));
  const width = list ? room : side + 2, height = list ? side + 2 : side + 18 * lines + 12;
  const across = list ? 1 : Math.max(1, Math.floor((room + 8) / (width + 8)));
  return { list, side, width, height, across };
}

const inPage = new Map(); // cards that are in the page, by their place among those found
let drawnFor = null; // what they were made for

function drawCards() {
  const { list, side, width, height, across } = layout();
  const main = byId("main"), stage = byId("stage");
  const step = height + 8;
  stage.style.height = `${Math.ceil(found.length / across) * step}px`;
  const first = Math.max(0, Math.floor(main.scrollTop / step) - 2) * across;
  const last = Math.min(found.length, (Math.ceil((main.scrollTop + main.clientHeight) / step) + 2) * across);
  const made = [found, list, side, width, across].join();
  if (drawnFor?.made !== made || drawnFor.found !== found) {
    inPage.clear();
    stage.replaceChildren();
    drawnFor = { made, found };
  }
  for (const [i, old] of inPage) {
    if (i >= first && i < last) continue;
    old.remove();
    inPage.delete(i);
  }
  for (let i = first; i < last; i++) {
    if (inPage.has(i)) continue;
    const made = card(found[i], side, true);
    made.classList.toggle("row", list);
    made.style.cssText =
      `left:${(i % across) * (width + 8)}px;top:${Math.floor(i / across) * step}px;width:${width}px;height:${height}px`;
    made.tabIndex = i === current ? 0 : -1;
    made.addEventListener("click", () => { current = i; show(found, i); });
    inPage.set(i, made);
    stage.append(made);
  }
  if (!found.length) stage.append(element("p", { className: "note", textContent: "No job is left by these filters." }));
}

function focusCard(i) {
  const { height, across } = layout();
  current = Math.max(0, Math.min(found.length - 1, i));
  const main = byId("main"), top = Math.floor(current / across) * (height + 8);
  if (top < main.scrollTop) main.scrollTop = top;
  else if (top + height + 24 > main.scrollTop + main.clientHeight) main.scrollTop = top + height + 24 - main.clientHeight;
  drawCards();
  for (const [n, made] of inPage) made.tabIndex = n === current ? 0 : -1;
  inPage.get(current)?.focus({ preventScroll: true });
}

// ---- matrix --------------------------------------------------------------------------------

function groups(jobs, column) {
  const all = new Map();
  for (const job of jobs) {
    const value = shown(job.values[column]);
    if (!all.has(value)) all.set(value, []);
    all.get(value).push(job);
  }
  return [...all].sort((a, b) => compare(a[0], b[0]));
}

function cell(jobs, side) {
  if (!jobs?.length) return element("td");
  const made = card(jobs[0], side, false);
  if (jobs.length > 1) made.append(element("span", { className: "more", textContent: `${jobs.length} jobs` }));
  made.addEventListener("click", () => show(jobs, 0));
  return element("td", {}, made);
}

function drawMatrix() {
  const stage = byId("stage"), side = Number(byId("size").value);
  inPage.clear();
  drawnFor = null;
  stage.style.height = "auto";
  const row = byId("by-row").value, column = byId("by-column").value;
  if (row === "") {
    const text = `A matrix needs a column with 2 to ${MOST_GROUPS} values; this table has none.`;
    return stage.replaceChildren(element("p", { className: "note", textContent: text }));
  }
  const heads = column === "" ? [] : groups(found, column).map(([value]) => value);
  const head = element("tr", {}, element("th", { textContent: column === "" ? COLUMNS[row].label : `${COLUMNS[row].label} \u2193 ${COLUMNS[column].label} \u2192` }));
  head.append(...(column === "" ? [element("th", { textContent: "pictures" })] : heads.map((value) => element("th", { textContent: value || "(empty)" }))));
  const body = element("tbody");
  for (const [value, jobs] of groups(found, row)) {
    const line = element("tr", {}, element("th", { textContent: value || "(empty)", scope: "row" }));
    if (column === "") {
      const run = element("div", { className: "run" });
      jobs.slice(0, MOST_IN_ROW).forEach((job, i) => {
        const made = card(job, side, false);
        made.addEventListener("click", () => show(jobs, i));
        run.append(made);
      });
      if (jobs.length > MOST_IN_ROW) run.append(element("span", { className: "note", textContent: `and ${jobs.length - MOST_IN_ROW} more` }));
      line.append(element("td", {}, run));
    } else {
      const cells = new Map(groups(jobs, column));
      line.append(...heads.map((name) => cell(cells.get(name), side)));
    }
    body.append(line);
  }
  stage.replaceChildren(element("table", {}, element("thead", {}, head), body));
}

function draw() {
  const matrix = byId("view").value === "matrix";
  for (const label of document.querySelectorAll(".matrix-only")) label.hidden = !matrix;
  for (const label of document.querySelectorAll(".no-matrix")) label.hidden = matrix;
  for (const label of document.querySelectorAll(".tools label")) label.style.display = label.hidden ? "none" : "";
  if (matrix) drawMatrix();
  else drawCards();
}

// ---- one job -------------------------------------------------------------------------------

const RECEIPTS = new Map();
window.sheet_receipt = (file, text) => { RECEIPTS.set(file, text); };

function definitions(title, pairs, className = "") {
  const list = element("dl");
  for (const [name, value] of pairs) {
    list.append(element("dt", { textContent: name }), element("dd", { textContent: shown(value), className }));
  }
  return [element("h2", { textContent: title }), list];
}

function receipt(file) {
  const place = element("div");
  const fill = () => {
    const lines = (RECEIPTS.get(file) || "There is none in the picture.").split("\n");
    place.replaceChildren(element("h2", { textContent: "Receipt" }),
      ...lines.map((line) => element("p", { className: "receipt", textContent: line })));
  };
  if (RECEIPTS.has(file)) fill();
  else {
    const script = element("script", { src: address(`${thumbnail(file)}.js`), onload: fill, onerror: fill });
    document.head.append(script);
    script.remove();
  }
  return place;
}

function show(jobs, i) {
  inDialog = jobs;
  open = (i + jobs.length) % jobs.length;
  const job = jobs[open];
  byId("place").textContent = `${open + 1} of ${jobs.length}`;
  byId("pictures").replaceChildren(...job.files.map(([file, fault]) => fault
    ? element("p", { className: "failed-text", textContent: `${file}: ${fault}` })
    : element("a", { href: address(file), target: "_blank", title: "Open the file" }, element("img", { src: address(file), alt: describe(job) }))));
  const facts = byId("facts");
  facts.replaceChildren();
  if (job.error) facts.append(...definitions("Failed", [["error", job.error]], "failed-text"));
  facts.append(...definitions("Values", COLUMNS.map((column, n) => [column.name, job.values[n]])));
  const about = [["line of the table", job.line], ["seconds", job.seconds?.toFixed(2)], ["worker", job.worker], ["tries", job.tries], ["job", job.id]];
  facts.append(...definitions("Job", [...about, ...job.files.map(([file]) => ["file", file])].filter(([, value]) => shown(value))));
  if (job.files.length) facts.append(receipt(job.files[0][0]));
  if (!byId("detail").open) byId("detail").showModal();
  byId("pictures").scrollTop = facts.scrollTop = 0;
}

// ---- events --------------------------------------------------------------------------------

function setUp() {
  document.querySelector("h1").textContent = DATA.title;
  const failed = DATA.failed ? `, ${DATA.failed.toLocaleString()} failed` : "";
  const only = DATA.left_out ? ` (here: ${DATA.left_out})` : "";
  const jobs = DATA.done === 1 ? "job" : "jobs";
  const rows = DATA.broken === 1 ? "row" : "rows";
  const broken = DATA.broken
    ? `; ${DATA.broken.toLocaleString()} more ${rows} of the table cannot be drawn: see results.csv`
    : "";
  byId("summary").textContent = `${DATA.done.toLocaleString()} ${jobs} done${failed}${only}${broken}`;
  ORDERS.forEach(([label], i) => byId("order").append(element("option", { value: i, textContent: label })));
  for (const i of MATRIX_COLUMNS) {
    byId("by-row").append(element("option", { value: i, textContent: COLUMNS[i].label }));
    byId("by-column").append(element("option", { value: i, textContent: COLUMNS[i].label }));
  }
  byId("by-column").prepend(element("option", { value: "", textContent: "(none)" }));
  byId("by-row").value = MATRIX_COLUMNS[0] ?? "";
  byId("by-column").value = MATRIX_COLUMNS[1] ?? "";
  addFilters();
  listen();
  filter();
}

function listen() {
  let timer = 0;
  const soon = () => { clearTimeout(timer); timer = setTimeout(filter, 80); };
  byId("filters").addEventListener("input", soon);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", soon);
  byId("order").addEventListener("change", filter);
  for (const id of ["view", "by-row", "by-column"]) byId(id).addEventListener("change", draw);
  byId("size").addEventListener("input", draw);
  byId("clear").addEventListener("click", () => {
    byId("filters").reset();
    byId("search").value = "";
    filter();
  });
  const whenCards = () => byId("view").value !== "matrix" && drawCards();
  let frame = 0;
  const nextFrame = () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(whenCards); };
  byId("main").addEventListener("scroll", nextFrame, { passive: true });
  new ResizeObserver(nextFrame).observe(byId("main"));
  byId("previous").addEventListener("click", () => show(inDialog, open - 1));
  byId("next").addEventListener("click", () => show(inDialog, open + 1));
  byId("close").addEventListener("click", () => byId("detail").close());
  byId("detail").addEventListener("close", () => {
    if (byId("view").value !== "matrix" && inDialog === found) focusCard(open);
  });
  document.addEventListener("keydown", pressed);
}

function pressed(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (byId("detail").open) {
    if (event.key === "ArrowLeft") show(inDialog, open - 1);
    else if (event.key === "ArrowRight") show(inDialog, open + 1);
    return;
  }
  if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("search").focus();
    return;
  }
  if (typing || byId("view").value === "matrix" || !found.length) return;
  const { across, height } = layout();
  const rows = Math.max(1, Math.floor(byId("main").clientHeight / (height + 8)));
  const moves = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across,
    PageUp: -across * rows, PageDown: across * rows, Home: -found.length, End: found.length,
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  focusCard(current + moves[event.key]);
}

setUp();
