"use strict";
// A study to scroll through. The page holds a JSON document (#data) and, for each slice that it has, its HU in a script
// element of its own: base64 of zlib of the differences of neighbouring pixels, see common/reports/viewer.py.
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const WINDOWS = [["Brain", 40, 80], ["Subdural", 80, 200], ["Bone", 600, 2800]];
const KEPT_BYTES = 400e6; // of unpacked slices
const HIGH = 0.5;
const loaded = new Promise(done => document.readyState === "loading" ? addEventListener("DOMContentLoaded", done) : done());
const unpacked = new Map(); // Int16Array by the picture's element id, the oldest first
const state = { series: 0, slice: 0, center: 40, width: 80, own: [40, 80], pointer: null, byKey: false };
const series = () => data.series[state.series];
const slice = () => series().slices[state.slice];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const element = (tag, content, attributes = {}) => {
  const made = document.createElement(tag);
  if (content !== undefined) made.textContent = content;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

// --- pictures: unpacked when they are needed, and ahead of that

async function unpack(id, length) {
  if (!document.getElementById(id)) await loaded;
  const packed = atob(document.getElementById(id).textContent), bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer()), hu = new Int16Array(length);
  if (planes.length !== 2 * length) throw new Error("wrong length");
  for (let i = 0, last = 0; i < length; i++) { // low bytes, then high bytes, of zigzag differences
    const code = planes[i] | planes[i + length] << 8;
    hu[i] = last = last + (code >>> 1 ^ -(code & 1)) << 16 >> 16;
  }
  return hu;
}

async function pixels(one) {
  let hu = unpacked.get(one.picture);
  if (!hu) {
    hu = await unpack(one.picture, one.rows * one.columns);
    unpacked.set(one.picture, hu);
    let bytes = 0;
    for (const each of unpacked.values()) bytes += each.byteLength;
    for (const [id, each] of unpacked) {
      if (bytes <= KEPT_BYTES) break;
      if (id !== one.picture && id !== slice().picture) { unpacked.delete(id); bytes -= each.byteLength; }
    }
  }
  return hu;
}

async function readAhead() { // outwards from the slice that is shown; a new series starts anew
  const of = state.series, slices = series().slices, from = state.slice;
  let bytes = 0;
  for (const one of slices.map((_, number) => number).sort((a, b) => Math.abs(a - from) - Math.abs(b - from))) {
    if (of !== state.series || (bytes += 2 * slices[one].rows * slices[one].columns) > KEPT_BYTES / 2) return;
    if (slices[one].picture) await pixels(slices[one]).catch(() => {});
  }
}

// --- drawing: at most once a frame

const canvas = at("picture"), context = canvas.getContext("2d", { alpha: false });
const greys = new Uint32Array(65536);
let greysOf = "", placedAs = "", image = null, image32 = null, due = false;

function setGreys() {
  const key = `${state.center}/${state.width}`;
  if (key === greysOf) return;
  const low = state.center - state.width / 2;
  for (let hu = -32768; hu < 32768; hu++) {
    const grey = Math.round(clamp((hu - low) / state.width, 0, 1) * 255);
    greys[hu & 65535] = 0xff000000 | grey << 16 | grey << 8 | grey;
  }
  greysOf = key;
}

function schedule() {
  if (!due) requestAnimationFrame(draw);
  due = true;
}

async function draw() {
  due = false;
  describe();
  const one = slice();
  if (typeof DecompressionStream === "undefined")
    return say("This browser can't unpack the pictures. Chrome 80, Firefox 113, Safari 16.4 and newer ones can.");
  if (!one.picture) return paint(one, null, "This slice's picture is not in this page.");
  let hu = unpacked.get(one.picture);
  if (!hu) {
    try {
      hu = await pixels(one);
    } catch (error) {
      if (one === slice()) paint(one, null, "This slice's picture is damaged in this file.");
      return;
    }
    if (one !== slice()) return; // scrolled on meanwhile
  }
  paint(one, hu, "");
}

function paint(one, hu, message) {
  if (canvas.width !== one.columns || canvas.height !== one.rows || !image) { // rarely within a series
    canvas.width = one.columns;
    canvas.height = one.rows;
    image = context.createImageData(one.columns, one.rows);
    image32 = new Uint32Array(image.data.buffer);
  }
  const form = `${one.columns} ${one.rows} ${one.column_mm} ${one.row_mm}`;
  if (form !== placedAs) place();
  placedAs = form;
  if (hu) {
    setGreys();
    for (let i = 0; i < hu.length; i++) image32[i] = greys[hu[i] & 65535];
  } else image32.fill(0xff000000);
  context.putImageData(image, 0, 0);
  canvas.dataset.slice = hu ? `${state.series}/${state.slice}` : "";
  say(message);
  read();
}

function say(message) {
  if (at("message").textContent !== message) at("message").textContent = message;
}

function place() { // the canvas as large as fits, in the pixels' true proportions
  const one = slice(), view = at("view");
  const wide = one.columns * (one.column_mm ?? 1), high = one.rows * (one.row_mm ?? 1);
  const share = Math.min(view.clientWidth / wide, view.clientHeight / high);
  canvas.style.width = `${share * wide}px`;
  canvas.style.height = `${share * high}px`;
  const bar = one.row_mm ? [100, 50, 20, 10, 5].find(mm => mm * share <= view.clientWidth / 4) : undefined;
  at("scale").textContent = bar ? `${bar} mm` : "";
  at("scale").style.width = bar ? `${bar * share}px` : "0";
}

function describe() {
  const one = slice(), all = series(), count = all.slices.length, number = state.slice + 1;
  const level = `${+state.center.toFixed(1)}/${+state.width.toFixed(1)} HU`;
  const where = one.position_mm === null ? "" : `, ${one.position_mm.toFixed(1)} mm`;
  at("where").textContent = `slice ${number} of ${count}${where}`;
  at("shown").textContent = `centre/width ${level}`;
  ["top", "right", "bottom", "left"].forEach((side, i) => { at(side).textContent = one.edges ? one.edges[i] : ""; });
  const values = data.labels.map(name => `${name} ${all.probabilities[name][state.slice].toFixed(2)}`);
  at("view").setAttribute("aria-valuemax", count);
  at("view").setAttribute("aria-valuenow", number);
  at("view").setAttribute("aria-valuetext", `slice ${number} of ${count}${where}: ${values.join(", ")}`);
  at("slider").max = count;
  at("slider").value = number;
  at("slider").setAttribute("aria-valuetext", `slice ${number} of ${count}`);
  if (document.activeElement !== at("center")) at("center").value = +state.center.toFixed(1);
  if (document.activeElement !== at("width")) at("width").value = +state.width.toFixed(1);
  const preset = WINDOWS.findIndex(([, center, width]) => center === state.center && width === state.width);
  [...at("windows").children].forEach((button, i) =>
    button.setAttribute("aria-pressed", i === (preset < 0 ? WINDOWS.length : preset)));
  for (const strip of document.querySelectorAll(".strip[data-label]")) {
    const mark = strip.querySelector(".mark");
    mark.style.left = `${100 * state.slice / count}%`;
    mark.style.width = `${100 / count}%`;
    strip.querySelector("output").textContent = all.probabilities[strip.dataset.label][state.slice].toFixed(2);
  }
  facts("slice_facts", one.facts);
}

const drawStrips = () => document.querySelectorAll(".strip[data-label]").forEach(drawStrip);

function drawStrip(strip) { // bars of 0 to 1; the mark of the slice that is shown lies over them
  const values = series().probabilities[strip.dataset.label], drawn = strip.querySelector("canvas");
  const ratio = devicePixelRatio || 1, wide = Math.round(drawn.clientWidth * ratio), high = Math.round(drawn.clientHeight * ratio);
  [drawn.width, drawn.height] = [wide, high];
  const pen = drawn.getContext("2d"), step = wide / values.length;
  pen.fillStyle = "#363b44";
  pen.fillRect(0, Math.round(high * (1 - HIGH)), wide, 1);
  values.forEach((value, number) => {
    pen.fillStyle = value >= HIGH ? "#f0a04b" : "#5b9bc8";
    const tall = Math.max(ratio, value * high);
    pen.fillRect(number * step, high - tall, Math.max(1, step - (step > 3 ? 1 : 0)), tall);
  });
}

// --- what is under the pointer, or under the cross that Shift and the arrows move

function read() {
  const one = slice(), output = at("reading"), point = state.pointer, hu = unpacked.get(one.picture);
  at("cross").style.display = point && state.byKey ? "block" : "none";
  if (!point || !hu) return void (output.textContent = "Point at the picture to read Hounsfield units.");
  const column = clamp(point.column, 0, one.columns - 1), row = clamp(point.row, 0, one.rows - 1);
  const parts = [`${hu[row * one.columns + column]} HU`, `row ${row}, column ${column}`];
  if (one.corner_mm) {
    const [x, y, z] = one.corner_mm.map((start, i) =>
      start + column * one.column_mm * one.directions[i] + row * one.row_mm * one.directions[i + 3]);
    parts.push(`x ${x.toFixed(1)}, y ${y.toFixed(1)}, z ${z.toFixed(1)} mm`);
  } else if (one.row_mm)
    parts.push(`${(column * one.column_mm).toFixed(1)} mm across, ${(row * one.row_mm).toFixed(1)} mm down from the corner`);
  output.textContent = parts.join(" · ");
  if (state.byKey) {
    const box = canvas.getBoundingClientRect(), view = at("view").getBoundingClientRect();
    at("cross").style.left = `${box.left - view.left + (column + .5) / one.columns * box.width}px`;
    at("cross").style.top = `${box.top - view.top + (row + .5) / one.rows * box.height}px`;
  }
}

function pointed(event) {
  const box = canvas.getBoundingClientRect(), one = slice();
  const column = Math.floor((event.clientX - box.left) / box.width * one.columns);
  const row = Math.floor((event.clientY - box.top) / box.height * one.rows);
  const inside = column >= 0 && row >= 0 && column < one.columns && row < one.rows;
  state.pointer = inside ? { column, row } : null;
  state.byKey = false;
  at("reading").setAttribute("aria-live", "off");
  read();
}

function movePointer(right, down) {
  const one = slice(), from = state.pointer ?? { column: one.columns >> 1, row: one.rows >> 1 };
  state.pointer = { column: clamp(from.column + right, 0, one.columns - 1), row: clamp(from.row + down, 0, one.rows - 1) };
  state.byKey = true;
  at("reading").setAttribute("aria-live", "polite");
  read();
}

// --- going to a slice, a window, a series

function show(number) {
  state.slice = clamp(Math.round(number), 0, series().slices.length - 1);
  schedule();
}

// The nearest slice whose picture is here: of long series the page may hold every second one only.
function jump(number) {
  const held = series().slices.map((one, i) => one.picture ? i : -1).filter(i => i >= 0);
  show(held.length ? held.reduce((best, i) => Math.abs(i - number) < Math.abs(best - number) ? i : best) : number);
}

function go(steps) { // over the slices whose pictures are here
  const slices = series().slices, way = Math.sign(steps);
  let here = state.slice;
  for (let left = Math.abs(steps); left > 0; left--) {
    let next = here + way;
    while (next >= 0 && next < slices.length && !slices[next].picture) next += way;
    if (next < 0 || next >= slices.length) break;
    here = next;
  }
  show(here);
}

function setWindow(center, width, own) {
  [state.center, state.width] = [clamp(center, -32768, 32767), clamp(width, 1, 65535)];
  if (own) state.own = [state.center, state.width];
  schedule();
}

const highest = values => values.indexOf(Math.max(...values));

function facts(id, rows) {
  at(id).replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function setSeries(number) {
  state.series = number;
  state.pointer = null;
  const all = series();
  facts("series_facts", all.facts);
  at("rule").textContent = `${data.rule} ${all.direction}`;
  const head = element("div", undefined, { class: "strip soft", "aria-hidden": "true" });
  head.append(...["", "study", "slice by slice", "slice"].map(text => element("span", text)));
  at("strips").replaceChildren(head, ...data.labels.map(name => {
    const values = all.probabilities[name], peak = highest(values), of_study = data.study[name].toFixed(2);
    const strip = element("div", undefined, { class: "strip", "data-label": name });
    const button = element("button", name, {
      title: `go to the highest slice of this series, ${peak + 1}: ${values[peak].toFixed(3)}`,
      "aria-label": `${name}: ${of_study} for the study; go to the highest slice, ${peak + 1}, ${values[peak].toFixed(2)}` });
    button.onclick = () => jump(peak);
    const bars = element("div", undefined, { class: "bars", "aria-hidden": "true" });
    const here = event => jump(Math.floor((event.clientX - bars.getBoundingClientRect().left) / bars.clientWidth * values.length));
    bars.onpointerdown = event => { bars.setPointerCapture(event.pointerId); here(event); };
    bars.onpointermove = event => { if (event.buttons & 1) here(event); };
    bars.append(element("canvas"), element("span", undefined, { class: "mark" }));
    strip.append(button, element("span", of_study), bars, element("output"));
    return strip;
  }));
  drawStrips();
  fillTable();
  jump(highest(all.probabilities[data.labels.at(-1)]));
  readAhead();
}

function fillTable() {
  const target = at("numbers").querySelector("div");
  if (!at("numbers").open) return target.replaceChildren();
  const table = element("table"), head = element("tr"), all = series();
  head.append(...["slice", ...data.labels].map(name => element("th", name, { scope: "col" })));
  table.append(head, ...all.slices.map((one, number) => {
    const line = element("tr"), first = element("th", undefined, { scope: "row" });
    const button = element("button", number + 1, { "aria-label": `go to slice ${number + 1}` });
    button.onclick = () => jump(number);
    first.append(button);
    line.append(first, ...data.labels.map(name => element("td", all.probabilities[name][number].toFixed(3))));
    return line;
  }));
  target.replaceChildren(table);
}

// --- mouse, touch and keys

const view = at("view"), fingers = new Map();
let turned = 0, dragged = 0;

view.addEventListener("wheel", event => { // a notch is one slice; a touch pad's small parts add up
  event.preventDefault();
  turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
  if (Math.abs(turned) < 40) return;
  go(-Math.sign(turned));
  turned = 0;
}, { passive: false });
view.oncontextmenu = event => event.preventDefault();
view.onpointerdown = event => {
  view.focus({ preventScroll: true });
  try { view.setPointerCapture(event.pointerId); } catch { /* it has ended already */ }
  fingers.set(event.pointerId, event);
  dragged = 0;
};
view.onpointermove = event => {
  const last = fingers.get(event.pointerId);
  pointed(event);
  if (!last) return;
  const right = event.clientX - last.clientX, down = event.clientY - last.clientY;
  fingers.set(event.pointerId, event);
  if (fingers.size > 1 || event.shiftKey || event.buttons & 2) {
    const speed = Math.max(.3, state.width / 300) / fingers.size;
    return setWindow(state.center - down * speed, state.width + right * speed, true);
  }
  dragged -= down;
  const step = clamp(view.clientHeight / series().slices.length, 4, 16), steps = Math.trunc(dragged / step);
  if (steps) { dragged -= steps * step; go(steps); }
};
view.onpointerup = view.onpointercancel = event => fingers.delete(event.pointerId);
view.onpointerleave = event => { if (!state.byKey && !fingers.size) { state.pointer = null; read(); } };
view.onkeydown = event => {
  const arrows = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e6, End: 1e6 };
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.shiftKey && event.key in arrows) movePointer(...arrows[event.key]);
  else if (event.key in steps) go(steps[event.key]);
  else return;
  event.preventDefault();
};
addEventListener("keydown", event => {
  if (event.target.matches?.("input[type=number], select") || event.ctrlKey || event.altKey || event.metaKey) return;
  at("windows").children[["1", "2", "3", "4"].indexOf(event.key)]?.click();
});
at("slider").oninput = () => jump(at("slider").value - 1);
at("series").onchange = () => setSeries(at("series").selectedIndex);
at("center").oninput = at("width").oninput = () => {
  const center = at("center").valueAsNumber, width = at("width").valueAsNumber;
  if (Number.isFinite(center) && width >= 1) setWindow(center, width, true);
};
at("numbers").ontoggle = fillTable;
new ResizeObserver(() => { if (image) { place(); read(); } }).observe(view);
new ResizeObserver(drawStrips).observe(at("strips"));

WINDOWS.forEach(([name, center, width], i) => {
  const button = element("button", name, { title: `${center}/${width} HU, key ${i + 1}` });
  button.onclick = () => setWindow(center, width, false);
  at("windows").append(button);
});
const own = element("button", "Own", { title: "the window set last by drag or numbers, key 4" });
own.onclick = () => setWindow(...state.own, true);
at("windows").append(own);
at("series").append(...data.series.map(one => element("option", one.title)));
at("series").hidden = data.series.length < 2;
at("left_out").textContent = data.left_out;
facts("study_facts", data.facts);
facts("unused_series", data.unused);
at("unused").hidden = !data.unused.length;
document.querySelector("#unused summary").textContent = `Series that were not predicted: ${data.unused.length}`;
if (data.others.length) {
  at("others").append("the same patient: ");
  at("others").append(...data.others.flatMap(([name, address]) => [element("a", name, { href: address }), " "]));
}
setSeries(0);
