const data = JSON.parse(document.getElementById("data").textContent);
// Columns come packed: all rows' only value, or each different one once and which of them a row has, or all.
const unpack = ({ of, at, each }, row) => each ? each[row] : of[at ? at[row] : 0];
data.rows = Array.from({ length: data.count }, (_, row) =>
  Object.fromEntries(data.columns.map(name => [name, unpack(data.values[name], row)])));
const NUMBER = Symbol("row"), HEADS = { started: "started (UTC)", of_constant: "of constant", hours: "time" };
const option = document.getElementById("option"), filter = document.getElementById("filter");
const all = document.getElementById("all"), chosenGroup = document.getElementById("group");
const MOST_ROWS = 25, MOST_LINES = 300;  // of a group before "show all"; of the chart of all options
data.rows.forEach((row, number) => { row[NUMBER] = number; });
const same = name => new Set(data.rows.map(row => JSON.stringify(row[name] ?? null))).size < 2;
const hidden = [data.metric + "_low", data.metric + "_high", "group"];
const differing = data.columns.filter(name => name !== "experiment" && !hidden.includes(name) && !same(name));
const columns = () => all.checked ? [["experiment", "experiment"],
  ...[data.metric, ...differing.filter(name => name !== data.metric)].map(name => [name, HEADS[name] ?? name.replaceAll("_", " ")])] :
  data.reading.filter(([name]) => data.columns.includes(name));
const options = data.columns.filter(name => !data.measured.includes(name) && !data.scores.includes(name));
const groups = [...new Set(data.rows.map(row => row.group))];
const opened = new Set();
let order = { name: data.metric, up: data.lowest_first };
const picked = new Set();
const text = value => value === null || value === undefined ? "" :
  typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(5)) : String(value);
const duration = hours => hours * 3600 < 120 ? Math.round(hours * 3600) + " s" : hours < 2 ? Math.round(hours * 60) + " min" : hours.toFixed(1) + " h";
function cell(row, name) {
  const value = row[name];
  if (missing(value)) return "";
  if (name === data.metric) {
    const ends = ["_low", "_high"].map(end => row[name + end]);
    return ends.some(missing) ? value.toFixed(4) : `${value.toFixed(4)} [${ends.map(end => end.toFixed(4)).join(", ")}]`;
  }
  if (name === "of_constant") return (100 * value).toFixed(0) + " %";
  if (name === "auroc/any") return value.toFixed(3);
  if (name === "hours") return duration(value);
  return name === "started" ? text(value).slice(0, 16).replace("T", " ") : text(value);
}
const missing = value => value === null || value === undefined || value === "";
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
  if (value !== undefined) return options.concat(data.measured).some(column =>
    column.toLowerCase().includes(name) && equal(row[column], value));
  return data.columns.some(column => text(row[column]).toLowerCase().includes(word));
});
function draw() {
  const rows = data.rows.filter(matches).sort(compare), shown = columns();
  document.getElementById("count").textContent = `${rows.length} of ${data.rows.length}`;
  const head = element("tr");
  head.append(element("td"));
  for (const [name, title] of shown) {
    const place = element("th", undefined, { scope: "col", "aria-sort": name !== order.name ? "none" : order.up ? "ascending" : "descending" });
    const button = element("button", title + (name !== order.name ? "" : order.up ? " ▲" : " ▼"), { "data-column": name });
    button.onclick = () => {
      order = { name, up: name === order.name ? !order.up : true };
      draw();
      document.querySelector(`#board [data-column="${CSS.escape(name)}"]`).focus();
    };
    if (name === "experiment") place.className = "who";
    place.append(button);
    head.append(place);
  }
  const board = document.getElementById("board");
  board.querySelector("thead").replaceChildren(head);
  for (const part of board.querySelectorAll("tbody")) part.remove();
  for (const group of groups) {
    const members = rows.filter(row => row.group === group);
    if (members.length) board.append(body(group, members, shown));
  }
  charts();
}
function body(group, rows, shown) {
  const part = element("tbody"), top = element("tr", undefined, { class: "group" });
  const title = element("th", undefined, { scope: "rowgroup", colspan: shown.length + 1 });
  title.append(element("span", group));
  top.append(title);
  const most = opened.has(group) ? rows.length : MOST_ROWS;
  part.append(top, ...rows.slice(0, most).map(row => line(row, shown)));
  if (rows.length > most) {
    const more = element("tr"), place = element("td", undefined, { colspan: shown.length + 1 });
    const button = element("button", `show all ${rows.length} of this group`);
    button.onclick = () => { opened.add(group); draw(); };
    place.append(button);
    more.append(place);
    part.append(more);
  }
  return part;
}
function line(row, shown) {
  const made = element("tr"), box = element("input", undefined, { type: "checkbox", "aria-label": "compare " + row.experiment });
  box.checked = picked.has(row.experiment);
  box.onchange = () => { box.checked ? picked.add(row.experiment) : picked.delete(row.experiment); contrast(); charts(); };
  const first = element("td");
  first.append(box);
  made.append(first);
  for (const [name] of shown) {
    const place = element("td", cell(row, name));
    if (name === "experiment") {
      const report = Object.hasOwn(data.reports, row.experiment) ? { href: data.reports[row.experiment] } : null;
      place.className = "who";
      place.replaceChildren(element(report ? "a" : "span", row.experiment, report ?? {}));
    }
    made.append(place);
  }
  return made;
}
// Only options that differ within the group: between groups everything may.
function charts() {
  const rows = data.rows.filter(row => row.group === chosenGroup.value && matches(row)).sort(compare);
  const names = options.filter(name => !data.unplotted.includes(name) && new Set(rows.map(row => JSON.stringify(row[name] ?? null))).size > 1);
  const before = option.value;
  option.replaceChildren(...names.map(name => element("option", name)));
  if (names.includes(before)) option.value = before;
  scatter(rows);
  parallel(rows);
}
function contrast() {
  const target = document.getElementById("difference");
  if (picked.size !== 2) return target.replaceChildren(element("p", `Tick two experiments of one group above (${picked.size} ticked).`));
  const pair = data.rows.filter(row => picked.has(row.experiment)).sort((a, b) => a[NUMBER] - b[NUMBER]);
  if (pair[0].group !== pair[1].group) return target.replaceChildren(element("p",
    `They can't be compared: ${pair.map(row => `${row.experiment} belongs to “${row.group}”`).join(", ")}. ` +
    "Other images or other labels make another task, so that the better value tells nothing."));
  const made = element("table"), head = element("tr");
  for (const name of ["", ...pair.map(row => row.experiment)]) head.append(element("th", name, { scope: "col" }));
  made.append(head);
  for (const name of data.columns.slice(1)) {
    if (hidden.includes(name) || text(pair[0][name]) === text(pair[1][name])) continue;
    const line = element("tr");
    line.append(element("th", name, { scope: "row" }), ...pair.map(row => element("td", text(row[name]))));
    made.append(line);
  }
  const card = element("div", undefined, { class: "card" });
  card.append(made);
  target.replaceChildren(element("p", paired(pair)), curves(pair), card);
}
// What the same patients say of both: value of the first minus that of the second.
function paired(pair) {
  const names = pair.map(row => row.experiment), signed = value => (value > 0 ? "+" : "") + value.toFixed(5);
  const found = data.pairs.find(([row, other]) => row === pair[0][NUMBER] && other === pair[1][NUMBER]);
  if (found) {
    const [, , value, low, high, reason] = found, said = `${data.title[0].toUpperCase() + data.title.slice(1)} of ${names[0]} minus that of ${names[1]}, paired over patients: ${signed(value)}`;
    if (low === null) return `${said}. No interval: ${reason}.`;
    const verdict = low <= 0 && high >= 0 ? "no difference shown" : (high < 0) === data.lowest_first ? `${names[0]} is better` : `${names[1]} is better`;
    return `${said}, 95 % interval ${signed(low)} to ${signed(high)}: ${verdict}.`;
  }
  const unknown = pair.filter(row => missing(row.of_constant)).map(row => row.experiment);
  if (unknown.length) return `No paired difference: the folder of ${unknown.join(" and of ")} doesn't hold what each patient adds to its best value. ` +
    "python report.py --experiment_id=… keeps it beside the report.";
  return `No paired difference: this page has those of the best ${data.most_paired} of a group. ` +
    `python evaluate.py --experiment_id=${names[0]} --eval_compare=${names[1]} works it out.`;
}
function curves(pair) {
  const known = pair.filter(row => Object.hasOwn(data.curves, row.experiment));
  if (!known.length) return element("p", "Neither was validated more than once, so there are no curves.");
  const each = known.map(row => data.curves[row.experiment]), xs = ticks(each.flatMap(([at]) => at)), ys = ticks(each.flatMap(([, value]) => value));
  const { svg, add } = picture(560, 260, `${data.title} over the iteration: ${known.map(row => row.experiment).join(", ")}`);
  const place = (value, marks, from, to) => from + (value - marks[0]) / (marks.at(-1) - marks[0]) * (to - from);
  svg.setAttribute("class", "chart");
  for (const tick of ys) {
    add("line", { class: "line", x1: 70, x2: 530, y1: place(tick, ys, 215, 30), y2: place(tick, ys, 215, 30) });
    add("text", { x: 62, y: place(tick, ys, 215, 30) + 4, "text-anchor": "end" }, text(tick));
  }
  for (const tick of xs) add("text", { x: place(tick, xs, 70, 530), y: 234, "text-anchor": "middle" }, text(tick));
  add("text", { x: 300, y: 254, "text-anchor": "middle" }, "iteration");
  add("text", { x: 2, y: 14 }, data.title);
  known.forEach((row, number) => {
    const [at, values] = data.curves[row.experiment], look = pair.indexOf(row) ? "stroke: var(--two); stroke-dasharray: 7 3" : "stroke: var(--one)";
    hint(add("polyline", { style: look, "data-curve": row.experiment,
      points: at.map((x, n) => `${place(x, xs, 70, 530).toFixed(1)},${place(values[n], ys, 215, 30).toFixed(1)}`).join(" ") }), row.experiment);
    add("polyline", { style: look, points: `${90 + 230 * number},10 ${118 + 230 * number},10`, transform: "translate(60 0)" });
    add("text", { x: 184 + 230 * number, y: 14 }, short(row.experiment, 22));
  });
  return svg;
}
// Round numbers (1, 2 or 5 times a power of ten) from below the lowest value to above the highest.
function ticks(values) {
  const low = Math.min(...values), high = Math.max(...values), span = high > low ? high - low : Math.abs(low) || 1;
  const power = 10 ** Math.floor(Math.log10(span / 5)), step = [1, 2, 5, 10].find(factor => factor * power >= span / 5) * power;
  const first = Math.floor(low / step), last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, n) => +((first + n) * step).toPrecision(10));
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
  const points = rows.filter(row => row[data.metric] !== null).sort((a, b) => a[NUMBER] - b[NUMBER]).slice(0, MOST_LINES);
  const names = options.filter(name => !data.unplotted.includes(name) && new Set(points.map(row => JSON.stringify(row[name] ?? null))).size > 1);
  if (points.length < 2 || !names.length) return target.replaceChildren(element("p", "No option differs between the experiments of the group shown."));
  const axes = [...names, data.metric].map(name => axis(name, points));
  const gap = Math.max(98, Math.min(150, (target.clientWidth - 60) / axes.length)), width = gap * axes.length + 40;
  const top = 40, bottom = 220, most = 2 * Math.floor(gap / 15);
  const x = number => gap / 2 + number * gap, y = share => bottom - share * (bottom - top);
  const { svg, add } = picture(width, 260, `A line for each of ${points.length} experiments over ${names.join(", ")} and ${data.metric}; the table above has the numbers.`);
  svg.setAttribute("role", "group");
  svg.style.cssText = `width: ${width}px; max-width: none`;
  for (const [at, row] of [...points.entries()].reverse()) {
    const rank = at / (points.length - 1), chosen = picked.has(row.experiment);
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
  if (!name || !points.length) return target.replaceChildren(element("p", "No option differs between the experiments of the group shown."));
  const one = axis(name, points), losses = points.map(row => row[data.metric]);
  const marks = ticks(losses), low = marks[0], high = marks.at(-1);
  const x = value => 100 + one.place(value) * 400, y = value => 215 - (value - low) / (high - low) * 185;
  const said = points.map(row => `${text(row[name])}: ${text(row[data.metric])}`).join("; ");
  const { svg, add } = picture(560, 260, `${data.metric} over ${name}${one.log ? ", logarithmic" : ""}: ${said}`);
  svg.setAttribute("class", "chart");
  add("line", { class: "line", x1: 85, x2: 515, y1: 230, y2: 230 });
  for (const value of marks) add("text", { x: 78, y: y(value) + 4, "text-anchor": "end" }, text(value));
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
for (const group of groups) chosenGroup.append(element("option", group));
const count = group => data.rows.filter(row => row.group === group && row[data.metric] !== null).length;
chosenGroup.value = groups.find(group => count(group) > 1) ?? groups[0] ?? "";
option.onchange = chosenGroup.onchange = charts;
filter.oninput = all.onchange = draw;
draw();
