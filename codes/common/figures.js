// What pages with figures share: tables, charts as plain SVG, and numbers in words. Needs reading.js.
const WIDTH = 340; // of a panel, in its own units; panels scale to their column

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes || {}).forEach(([key, value]) => made.setAttribute(key, value));
  made.append(...children.filter((child) => child !== null));
  return made;
}

const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : signed(100 * value, digits).replace("+", ""));
const known = (figure) => Boolean(figure) && figure[0] !== null;
const text = (x, y, content, attributes) => svg("text", { x, y, ...attributes }, document.createTextNode(content));
const line = (x1, y1, x2, y2, className) => svg("line", { x1, y1, x2, y2, class: className });

function panel(title, height, label, parts) {
  const figure = element("figure");
  figure.append(element("figcaption", "", title));
  figure.append(svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label }, ...parts));
  return figure;
}

/* Axis lines and their labels at the bottom: ticks are [value, label]. */
function axis(ticks, place, height, strong) {
  return ticks.flatMap(([value, label]) => [
    line(place(value), 2, place(value), height - 16, value === strong ? "axis strong" : "axis"),
    text(place(value), height - 3, label, { class: "tick", "text-anchor": "middle" }),
  ]);
}

// --- Tables ---------------------------------------------------------------------------------------------------------

/* A table that scrolls by itself where the window is narrow; cells are texts or elements, the first of a row its head. */
function table(caption, header, rows) {
  const box = element("div", "scroll");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", caption);
  const made = element("table");
  made.append(element("caption", "", caption));
  const head = element("tr");
  header.forEach((name) => { const cell = element("th", "", name); cell.scope = "col"; head.append(cell); });
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  rows.forEach((cells) => {
    const row = element("tr");
    cells.forEach((content, place) => {
      const cell = element(place ? "td" : "th");
      if (!place) cell.scope = "row";
      cell.append(content);
      row.append(cell);
    });
    body.append(row);
  });
  made.append(top, body);
  box.append(made);
  return box;
}

/* A figure with its interval on a line of its own. */
function cell(figure, asText = figureText) {
  const box = element("span", "figure");
  const [value, interval] = asText(figure).split(" [");
  box.append(element("span", "value", value));
  if (interval) box.append(element("span", "interval", `[${interval}`));
  return box;
}

const plain = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

function folded(title, content) {
  const box = element("details", "numbers");
  box.append(element("summary", "", title), content);
  return box;
}

/* Puts the parts that are there into an element, or says that there are none; whether there are any. */
function fill(id, parts, empty = "Not evaluated.") {
  const shown = parts.filter(Boolean);
  find(id).replaceChildren(...(shown.length ? shown : [element("p", "empty", empty)]));
  return shown.length > 0;
}

// --- Numbers in words -----------------------------------------------------------------------------------------------

/* A number with its sign, which one that rounds to nought has not. */
function signed(value, digits) {
  const size = Math.abs(value).toFixed(digits);
  if (Number(size) === 0) return size;
  return (value < 0 ? "−" : "+") + size;
}

/* A rate in per cent: "53.4 [50.1, 56.8]". */
function figureText(figure, digits = 1) {
  if (!known(figure)) return "–";
  const bounds = figure[1] === null ? "" : ` [${percent(figure[1], digits)}, ${percent(figure[2], digits)}]`;
  return percent(figure[0], digits) + bounds;
}

function numberText(figure) {
  if (!known(figure)) return "–";
  return signed(figure[0], 2) + (figure[1] === null ? "" : ` [${signed(figure[1], 2)}, ${signed(figure[2], 2)}]`);
}
