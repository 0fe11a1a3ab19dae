const data = JSON.parse(document.getElementById("data").textContent);
const option = document.getElementById("option"), filter = document.getElementById("filter");
const measured = ["experiment", "status", data.metric, "iteration", "weights", "hours", "started"];
const isScore = name => name.startsWith("log_loss/");
const same = name => new Set(data.rows.map(row => JSON.stringify(row[name] ?? null))).size < 2;
const shown = data.columns.filter(name => measured.includes(name) || !same(name));
const options = data.columns.filter(name => !measured.includes(name) && !isScore(name));
let order = { name: data.metric, up: true };
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
const matches = row => filter.value.toLowerCase().split(/\s+/).every(word => {
  const [name, value] = word.split("=");
  if (value !== undefined) return options.concat(measured).some(column =>
    column.toLowerCase().includes(name) && text(row[column]).toLowerCase() === value);
  return data.columns.some(column => text(row[column]).toLowerCase().includes(word));
});
function draw() {
  const rows = data.rows.filter(matches).sort(compare);
  document.getElementById("count").textContent = `${rows.length} of ${data.rows.length}`;
  const head = element("tr");
  head.append(element("th", "compare", { scope: "col" }));
  for (const name of shown) {
    const cell = element("th", undefined, { scope: "col", "aria-sort": name !== order.name ? "none" : order.up ? "ascending" : "descending" });
    const button = element("button", name.replaceAll("_", " ") + (name !== order.name ? "" : order.up ? " ▲" : " ▼"));
    button.onclick = () => { order = { name, up: name === order.name ? !order.up : true }; draw(); };
    cell.append(button);
    head.append(cell);
  }
  document.querySelector("#board thead").replaceChildren(head);
  document.querySelector("#board tbody").replaceChildren(...rows.map(row => {
    const line = element("tr"), box = element("input", undefined, { type: "checkbox", "aria-label": "compare " + row.experiment });
    box.checked = picked.has(row.experiment);
    box.onchange = () => { box.checked ? picked.add(row.experiment) : picked.delete(row.experiment); contrast(); };
    const first = element("td");
    first.append(box);
    line.append(first);
    for (const name of shown) {
      const cell = element("td", text(row[name]));
      if (name === "experiment" && data.reports[row.experiment])
        cell.replaceChildren(element("a", row.experiment, { href: data.reports[row.experiment] }));
      line.append(cell);
    }
    return line;
  }));
  scatter(rows);
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
function scatter(rows) {
  const target = document.getElementById("scatter"), name = option.value;
  const points = rows.filter(row => row[data.metric] !== null && row[name] !== null && row[name] !== undefined);
  if (!name || !points.length) return target.replaceChildren(element("p", "No option differs between the experiments shown."));
  const numeric = points.every(row => typeof row[name] === "number");
  const places = numeric ? points.map(row => row[name]) : [...new Set(points.map(row => text(row[name])))].sort();
  const span = values => { const low = Math.min(...values), high = Math.max(...values); return high > low ? [low, high] : [low - .5, high + .5]; };
  const [left, right] = numeric ? span(places) : [-.5, places.length - .5], [low, high] = span(points.map(row => row[data.metric]));
  const x = value => 60 + (value - left) / (right - left) * 480, y = value => 220 - (value - low) / (high - low) * 190;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 560 260");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${data.metric} over ${name}: ` + points.map(row => `${text(row[name])}: ${text(row[data.metric])}`).join("; "));
  const add = (tag, attributes, content) => {
    const made = document.createElementNS(svg.namespaceURI, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (content !== undefined) made.textContent = content;
    svg.append(made);
    return made;
  };
  add("line", { class: "line", x1: 60, x2: 540, y1: 230, y2: 230 });
  for (const value of [low, high]) add("text", { x: 54, y: y(value) + 4, "text-anchor": "end" }, text(value));
  if (numeric) for (const value of [left, right]) add("text", { x: x(value), y: 250, "text-anchor": "middle" }, text(value));
  else places.forEach((value, place) => add("text", { x: x(place), y: 250, "text-anchor": "middle" }, value));
  for (const row of points) {
    const dot = add("circle", { class: "one", cx: x(numeric ? row[name] : places.indexOf(text(row[name]))), cy: y(row[data.metric]), r: 5 });
    const tip = document.createElementNS(svg.namespaceURI, "title");
    tip.textContent = `${row.experiment}: ${name}=${text(row[name])}, ${text(row[data.metric])}`;
    dot.append(tip);
  }
  target.replaceChildren(svg);
}
for (const name of options.filter(name => !same(name))) option.append(element("option", name));
option.onchange = filter.oninput = draw;
draw();
