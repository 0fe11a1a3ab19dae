const data = JSON.parse(document.getElementById("data").textContent);
// Columns come packed: all rows' only value, or each different one once and which of them a row has, or all.
const unpack = ({ of, at, each }, row) => each ? each[row] : of[at ? at[row] : 0];
data.rows = Array.from({ length: data.count }, (_, row) =>
  Object.fromEntries(data.columns.map(name => [name, unpack(data.values[name], row)])));
const option = document.getElementById("option"), filter = document.getElementById("filter");
const measured = ["experiment", "status", data.metric, "iteration", "weights", "hours", "started"];
const same = name => new Set(data.rows.map(row => JSON.stringify(row[name] ?? null))).size < 2;
const shown = data.columns.filter(name => measured.includes(name) || !same(name));
const options = data.columns.filter(name => !measured.includes(name) && !data.scores.includes(name));
let order = { name: data.metric, up: data.lowest_first };
const picked = new Set();
const text = value => value === null || value === undefined ? "" :
  typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(5)) : String(value);
const element = (tag, content, attributes = {}) => {
  const made = document.createElement(tag);
  if (content !== undefined) made.textContent = content;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};
const compare = (a, b) => {
  const one = a[order.name], other = b[order.name], none = value => value === null || value === undefined || value === "";
  if (none(one) || none(other)) return none(one) - none(other);
  const result = typeof one === "number" && typeof other === "number" ? one - other :
    String(one).localeCompare(String(other), undefined, { numeric: true });
  return order.up ? result : -result;
};
// As typed or as it is written here: 1e-3 finds 0.001.
const equal = (value, typed) => text(value).toLowerCase() === typed ||
  typeof value === "number" && typed !== "" && Number(typed) === value;
const matches = row => filter.value.toLowerCase().split(/\s+/).every(word => {
  const [name, value] = word.split("=");
  if (value !== undefined) return options.concat(measured).some(column =>
    column.toLowerCase().includes(name) && equal(row[column], value));
  return data.columns.some(column => text(row[column]).toLowerCase().includes(word));
});
function draw() {
  const rows = data.rows.filter(matches).sort(compare);
  document.getElementById("count").textContent = `${rows.length} of ${data.rows.length}`;
  const head = element("tr");
  head.append(element("th", "compare", { scope: "col" }));
  for (const name of shown) {
    const cell = element("th", undefined, { scope: "col", "aria-sort": name !== order.name ? "none" : order.up ? "ascending" : "descending" });
    const title = name === "started" ? "started (UTC)" : name.replaceAll("_", " ");
    const button = element("button", title + (name !== order.name ? "" : order.up ? " ▲" : " ▼"), { "data-column": name });
    button.onclick = () => {
      order = { name, up: name === order.name ? !order.up : true };
      draw();
      document.querySelector(`#board [data-column="${CSS.escape(name)}"]`).focus();
    };
    if (name === "experiment") cell.className = "who";
    cell.append(button);
    head.append(cell);
  }
  document.querySelector("#board thead").replaceChildren(head);
  document.querySelector("#board tbody").replaceChildren(...rows.map(row => {
    const line = element("tr"), box = element("input", undefined, { type: "checkbox", "aria-label": "compare " + row.experiment });
    box.checked = picked.has(row.experiment);
    box.onchange = () => { box.checked ? picked.add(row.experiment) : picked.delete(row.experiment); contrast(); parallel(rows); };
    const first = element("td");
    first.append(box);
    line.append(first);
    for (const name of shown) {
      const cell = element("td", name === "started" ? text(row[name]).slice(0, 16).replace("T", " ") : text(row[name]));
      if (name === "experiment") {
        const report = Object.hasOwn(data.reports, row.experiment) ? { href: data.reports[row.experiment] } : null;
        cell.className = "who";
        cell.replaceChildren(element(report ? "a" : "span", row.experiment, report ?? {}));
      }
      line.append(cell);
    }
    return line;
  }));
  scatter(rows);
  parallel(rows);
}
function contrast() {
  const target = document.getElementById("difference");
  if (picked.size !== 2) return target.replaceChildren(element("p", `Tick two experiments above (${picked.size} ticked).`));
  const pair = [...picked].map(name => data.rows.find(row => row.experiment === name));
  const made = element("table"), head = element("tr");
  for (const name of ["", ...picked]) head.append(element("th", name, { scope: "col" }));
  made.append(head);
  for (const name of data.columns.slice(1)) {
    if (text(pair[0][name]) === text(pair[1][name])) continue;
    const line = element("tr");
    line.append(element("th", name, { scope: "row" }), ...pair.map(row => element("td", text(row[name]))));
    made.append(line);
  }
  target.replaceChildren(made);
}
function picture(width, height, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const add = (tag, attributes, content) => {
    const made = document.createElementNS(svg.namespaceURI, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (content !== undefined) made.textContent = content;
    svg.append(made);
    return made;
  };
  return { svg, add };
}
function hint(shape, content) {
  const tip = document.createElementNS(shape.namespaceURI, "title");
  tip.textContent = content;
  shape.append(tip);
}
const missing = value => value === null || value === undefined || value === "";
const short = (value, most = 18) => value.length > most ? value.slice(0, most / 2 - 1) + "…" + value.slice(1 - most / 2) : value;
// Where an axis's values lie, 0 (bottom) to 1: numbers by size (by their logarithm where they span two powers of ten
// and more), other values in alphabetical steps, a missing one below the axis.
function axis(name, rows) {
  const known = rows.map(row => row[name]).filter(value => !missing(value));
  const unique = [...new Set(known)];
  if (known.every(value => typeof value === "number")) {
    const low = Math.min(...known), high = Math.max(...known), log = low > 0 && high / low >= 100;
    const scale = value => high > low ? log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low) : .5;
    const ticks = unique.length <= 8 ? unique.sort((a, b) => a - b) : [low, high];
    return { name, log, place: value => missing(value) ? -.12 : scale(value), ticks };
  }
  const words = [...new Set(known.map(text))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const place = value => missing(value) ? -.12 : words.length > 1 ? words.indexOf(text(value)) / (words.length - 1) : .5;
  return { name, log: false, place, ticks: words };
}
function parallel(rows) {
  const target = document.getElementById("parallel");
  const points = rows.filter(row => row[data.metric] !== null);
  const names = options.filter(name => !data.unplotted.includes(name) && new Set(points.map(row => JSON.stringify(row[name] ?? null))).size > 1);
  if (points.length < 2 || !names.length) return target.replaceChildren(element("p", "No option differs between the experiments shown."));
  const axes = [...names, data.metric].map(name => axis(name, points));
  const gap = Math.max(98, Math.min(150, (target.clientWidth - 60) / axes.length)), width = gap * axes.length + 40;
  const top = 40, bottom = 220, most = 2 * Math.floor(gap / 15);
  const x = number => gap / 2 + number * gap, y = share => bottom - share * (bottom - top);
  const { svg, add } = picture(width, 260, `A line for each of ${points.length} experiments over ${names.join(", ")} and ${data.metric}; the table above has the numbers.`);
  svg.setAttribute("role", "group");
  svg.style.cssText = `width: ${width}px; max-width: none`;
  const best = [...points].sort((a, b) => (a[data.metric] - b[data.metric]) * (data.lowest_first ? 1 : -1));
  for (const row of [...best].reverse()) {
    const rank = best.indexOf(row) / (best.length - 1), chosen = picked.has(row.experiment);
    const line = add("polyline", {
      class: chosen ? "run chosen" : "run", tabindex: 0, role: "button", "aria-pressed": chosen, "data-experiment": row.experiment,
      points: axes.map((one, number) => `${x(number)},${y(one.place(row[one.name])).toFixed(1)}`).join(" "),
      style: `stroke: color-mix(in oklab, var(--one) ${Math.round(100 * (1 - rank))}%, var(--two)); stroke-width: ${chosen ? 4 : 3.2 - 2 * rank}`,
    });
    const said = names.map(name => `${name}=${text(row[name])}`).join(" ");
    line.setAttribute("aria-label", `compare ${row.experiment}, ${text(row[data.metric])}`);
    hint(line, `${row.experiment}: ${text(row[data.metric])} (${said})`);
    line.onclick = () => {
      chosen ? picked.delete(row.experiment) : picked.add(row.experiment);
      contrast();
      draw();
      target.querySelector(`[data-experiment="${CSS.escape(row.experiment)}"]`).focus();
    };
    line.onkeydown = event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); line.onclick(); } };
  }
  axes.forEach((one, number) => {
    add("line", { class: "axis", x1: x(number), x2: x(number), y1: top, y2: bottom });
    hint(add("text", { x: x(number), y: 16, "text-anchor": "middle", class: "name" }, short(one.name, most)), one.name);
    if (one.log) add("text", { x: x(number), y: 30, "text-anchor": "middle" }, "log");
    const unknown = points.some(row => missing(row[one.name])) ? [null] : [];
    let last = Infinity;
    for (const tick of [...unknown, ...one.ticks]) {
      const at = y(one.place(tick));
      if (last - at < 13) continue;
      last = at;
      const content = tick === null ? "none" : text(tick);
      hint(add("text", { class: "tick", x: x(number) + 5, y: at + 4 }, short(content, most)), content);
    }
  });
  target.replaceChildren(svg);
}
function scatter(rows) {
  const target = document.getElementById("scatter"), name = option.value;
  const points = rows.filter(row => row[data.metric] !== null && row[name] !== null && row[name] !== undefined);
  if (!name || !points.length) return target.replaceChildren(element("p", "No option differs between the experiments shown."));
  const one = axis(name, points), losses = points.map(row => row[data.metric]);
  const low = Math.min(...losses), high = Math.max(...losses);
  const x = value => 100 + one.place(value) * 400, y = value => high > low ? 215 - (value - low) / (high - low) * 185 : 122;
  const said = points.map(row => `${text(row[name])}: ${text(row[data.metric])}`).join("; ");
  const { svg, add } = picture(560, 260, `${data.metric} over ${name}${one.log ? ", logarithmic" : ""}: ${said}`);
  svg.setAttribute("class", "chart");
  add("line", { class: "line", x1: 85, x2: 515, y1: 230, y2: 230 });
  for (const value of new Set([low, high])) add("text", { x: 78, y: y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(4)));
  let end = 0;
  for (const tick of one.ticks) {
    const content = short(text(tick), Math.max(6, 2 * Math.floor(22 / one.ticks.length))), half = content.length * 5, at = Math.min(x(tick), 560 - half);
    if (at - half < end) continue;
    end = at + half + 6;
    hint(add("text", { x: at, y: 250, "text-anchor": "middle" }, content), text(tick));
  }
  if (one.log) add("text", { x: 555, y: 226, "text-anchor": "end" }, "log");
  for (const row of points) {
    const dot = add("circle", { class: "one", cx: x(row[name]), cy: y(row[data.metric]), r: 5 });
    hint(dot, `${row.experiment}: ${name}=${text(row[name])}, ${text(row[data.metric])}`);
  }
  target.replaceChildren(svg);
}
for (const name of options.filter(name => !same(name))) option.append(element("option", name));
option.onchange = filter.oninput = draw;
draw();
