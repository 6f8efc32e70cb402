"use strict";

// Tables: a click on a heading sorts the rows by its column, the largest first; a second click turns the order.
// Rows without a value come last in both orders.
for (const table of document.querySelectorAll("table.sorted")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const descending = heading.getAttribute("aria-sort") !== "descending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const isNumber = [...table.tBodies[0].rows].every((row) => !key(row) || !isNaN(key(row)));
    const compare = (a, b) => {
      if (!key(a) || !key(b)) return !key(a) - !key(b);
      const order = isNumber ? key(a) - key(b) : key(a).localeCompare(key(b));
      return descending ? -order : order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}

// Scatter plots: two menus choose the columns of the axes.
const SVG = "http://www.w3.org/2000/svg";
const LEAST = 320, HEIGHT = 420, LEFT = 70, RIGHT = 20, TOP = 20, BOTTOM = 50;

function add(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values), margin = 0.05 * (high - low || Math.abs(high) || 1);
  const place = (value) => from + (to - from) * (value - low + margin) / (high - low + 2 * margin);
  const step = 10 ** Math.floor(Math.log10((high - low + 2 * margin) / 4));
  const width = step * ((high - low) / step > 20 ? 10 : (high - low) / step > 8 ? 5 : 2);
  const ticks = [];
  for (let i = Math.ceil((low - margin) / width); i * width <= high + margin; i++) ticks.push(i * width);
  const digits = Math.max(0, -Math.floor(Math.log10(width)));
  return { place, ticks: ticks.map((tick) => [place(tick), tick.toFixed(digits)]) };
}

const RADIUS = 5;

// Writes a point's name beside it where no other point, interval or name is; nowhere if there is no such place. The
// pointer still shows it. `taken` has the rectangles of all that is drawn.
function name(svg, text, cx, cy, width, taken) {
  const element = add(svg, "text", { class: "name" }, text);
  for (const [dx, dy, anchor] of [[8, 4, "start"], [-8, 4, "end"], [0, -10, "middle"], [0, 18, "middle"],
    [8, -6, "start"], [-8, -6, "end"], [8, 15, "start"], [-8, 15, "end"]]) {
    for (const [key, value] of Object.entries({ x: cx + dx, y: cy + dy, "text-anchor": anchor }))
      element.setAttribute(key, value);
    const { x, y, width: wide, height: high } = element.getBBox();
    const box = { left: x, right: x + wide, top: y, bottom: y + high };
    const isFree = box.left >= LEFT && box.right <= width && box.top >= 0 && box.bottom <= HEIGHT - BOTTOM
      && taken.every((o) => o.left >= box.right || o.right <= box.left || o.top >= box.bottom || o.bottom <= box.top);
    if (isFree) {
      taken.push(box);
      return;
    }
  }
  element.remove();
}

for (const scatter of document.querySelectorAll(".scatter")) {
  const { names, columns } = JSON.parse(scatter.querySelector("script").textContent);
  const [xMenu, yMenu] = scatter.querySelectorAll("select");
  const svg = scatter.querySelector("svg");
  const draw = () => {
    const WIDTH = Math.max(LEAST, svg.parentElement.clientWidth);
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("width", WIDTH);
    const x = columns[xMenu.value], y = columns[yMenu.value];
    const known = names.map((_, i) => i).filter((i) => x.values[i] !== null && y.values[i] !== null);
    svg.replaceChildren();
    if (!known.length) {
      add(svg, "text", { x: LEFT, y: HEIGHT / 2 }, "No encoder has both values.");
      return;
    }
    const all = (column) => known.flatMap((i) => [column.values[i], ...(column.ends?.[i] ?? [])])
      .filter((value) => value !== null);
    const across = scale(all(x), LEFT, WIDTH - RIGHT), up = scale(all(y), HEIGHT - BOTTOM, TOP);
    add(svg, "path", { class: "axis", fill: "none", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` });
    for (const [at, text] of across.ticks)
      add(svg, "text", { x: at, y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, text);
    for (const [at, text] of up.ticks) add(svg, "text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, text);
    add(svg, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, x.title);
    add(svg, "text", { x: 14, y: HEIGHT / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${HEIGHT / 2})` },
      y.title);
    const taken = [];
    for (const i of known) {
      const cx = across.place(x.values[i]), cy = up.place(y.values[i]);
      const [left, right] = x.ends?.[i] ?? [null, null], [low, high] = y.ends?.[i] ?? [null, null];
      taken.push({ left: cx - RADIUS, right: cx + RADIUS, top: cy - RADIUS, bottom: cy + RADIUS });
      if (left !== null && right !== null) {
        add(svg, "path", { class: "ends", d: `M${across.place(left)} ${cy}H${across.place(right)}` });
        taken.push({ left: across.place(left), right: across.place(right), top: cy - 1, bottom: cy + 1 });
      }
      if (low !== null && high !== null) {
        add(svg, "path", { class: "ends", d: `M${cx} ${up.place(low)}V${up.place(high)}` });
        taken.push({ left: cx - 1, right: cx + 1, top: up.place(high), bottom: up.place(low) });
      }
      add(add(svg, "circle", { cx, cy, r: RADIUS }), "title", {}, `${names[i]}: ${x.texts[i]}, ${y.texts[i]}`);
    }
    for (const i of known) name(svg, names[i], across.place(x.values[i]), up.place(y.values[i]), WIDTH, taken);
  };
  window.addEventListener("resize", draw);
  xMenu.addEventListener("change", draw);
  yMenu.addEventListener("change", draw);
  draw();
}

// Graphs: a chosen node marks all nodes that are proven to be more and all that are proven to be less.
for (const graph of document.querySelectorAll("svg.order")) {
  const nodes = [...graph.querySelectorAll("g")];
  for (const node of nodes) {
    const choose = () => {
      const isChosen = node.classList.contains("chosen");
      for (const other of nodes) other.classList.remove("chosen", "more", "less");
      if (isChosen) return;
      node.classList.add("chosen");
      for (const kind of ["more", "less"])
        for (const at of JSON.parse(node.dataset[kind])) nodes[at].classList.add(kind);
    };
    node.addEventListener("click", choose);
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); }
    });
  }
}
