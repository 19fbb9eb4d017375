// Charts of the report as plain SVG; every number they show also stands in a table beside them.
const data = JSON.parse(find("data").textContent);
const MODELS = data.models;
const SHAPES = ["circle", "square", "triangle", "diamond", "wedge"];

const tone = (model) => (model === null ? "baseline" : `m${model % 7}`);

/* A model's mark; hollow marks stand for original pairs. ``model`` null is the longer answer. */
function mark(model, x, y, hollow, label) {
  const className = `mark ${tone(model)}${hollow ? " hollow" : ""}`;
  const r = 4.5;
  const shape = model === null ? "circle" : SHAPES[model % SHAPES.length];
  const made = {
    circle: () => svg("circle", { cx: x, cy: y, r, class: className }),
    square: () => svg("rect", { x: x - r + .5, y: y - r + .5, width: 2 * r - 1, height: 2 * r - 1, class: className }),
    triangle: () => svg("path", { d: `M${x} ${y - r - .5}l${r + .5} ${2 * r}h${-2 * r - 1}z`, class: className }),
    diamond: () => svg("path", { d: `M${x} ${y - r - 1}l${r + 1} ${r + 1}l${-r - 1} ${r + 1}l${-r - 1} ${-r - 1}z`, class: className }),
    wedge: () => svg("path", { d: `M${x} ${y + r + .5}l${r + .5} ${-2 * r}h${-2 * r - 1}z`, class: className }),
  }[shape]();
  if (label) made.append(svg("title", {}, document.createTextNode(label)));
  return made;
}

function legend(into) {
  const entries = MODELS.map((name, model) => [model, name]);
  if (into.dataset.legend === "baseline") entries.push([null, "longer answer wins"]);
  entries.forEach(([model, name]) => {
    const entry = element("span", "entry");
    entry.append(svg("svg", { viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" }, mark(model, 7, 7)), name);
    into.append(entry);
  });
}

// --- Accuracy -------------------------------------------------------------------------------------------------------

function accuracyPanel(title, byModel, baseline) {
  const rows = [...byModel.map((figures, model) => [model, figures]), [null, baseline]]
    .filter(([, figures]) => figures && known(figures.original_accuracy) && known(figures.biased_accuracy));
  if (!rows.length) return null;
  const height = 16 * rows.length + 26;
  const place = (value) => 14 + value * (WIDTH - 34);
  const parts = axis([[0, "0"], [.25, "25"], [.5, "50"], [.75, "75"], [1, "100%"]], place, height, .5);
  const told = rows.map(([model, figures], row) => {
    const y = 14 + 16 * row;
    const [from, to] = [figures.original_accuracy, figures.biased_accuracy];
    const name = model === null ? "longer answer wins" : MODELS[model];
    const label = `${name}: original ${figureText(from)}, biased ${figureText(to)}`;
    parts.push(line(place(from[0]), y, place(to[0]), y, `move ${tone(model)}`));
    parts.push(mark(model, place(from[0]), y, true, label), mark(model, place(to[0]), y, false, label));
    return label;
  });
  return panel(title, height, `${title}. ${told.join("; ")}`, parts);
}

// --- Margins --------------------------------------------------------------------------------------------------------

function marginPanel(bias) {
  const rows = MODELS.map((_, model) => [model, data.shifts[bias][model]]).filter(([, counts]) => counts);
  if (!rows.length) return null;
  const step = 34;
  const height = step * rows.length + 24;
  const edges = data.shift_edges;
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const place = (value) => 14 + (Math.min(Math.max(value, low), high) - low) / (high - low) * (WIDTH - 28);
  const parts = axis([[-4, "≤ −4"], [-2, "−2"], [0, "0"], [2, "+2"], [4, "≥ 4"]], place, height, 0);
  const told = rows.map(([model, counts], row) => {
    const ground = 2 + step * (row + 1) - 6;
    const most = Math.max(...counts);
    const top = (count) => ground - (step - 8) * count / most;
    const steps = counts.map((count, bin) => `H${place(edges[bin])}V${top(count)}H${place(edges[bin + 1])}`).join("");
    parts.push(svg("path", { d: `M${place(low)} ${ground}${steps}V${ground}z`, class: `area ${tone(model)}` }));
    const shift = (data.figures[bias][model] || {}).shift;
    const label = `${MODELS[model]}: mean ${shiftText(shift)}`;
    if (known(shift)) {
      if (shift[1] !== null) parts.push(line(place(shift[1]), ground, place(shift[2]), ground, `move ${tone(model)}`));
      parts.push(mark(model, place(shift[0]), ground, false, label));
    }
    return label;
  });
  return panel(bias, height, `${bias}: margin shifts. ${told.join("; ")}`, parts);
}

// --- Length ---------------------------------------------------------------------------------------------------------

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length % 2 ? sorted[(sorted.length - 1) / 2] : (sorted[sorted.length / 2 - 1] + sorted[sorted.length / 2]) / 2;
};

function lengthPanel(model) {
  const { lengths, scores } = data.points[model];
  const all = data.points.flatMap((points) => points.lengths).filter((length) => length > 0);
  if (!lengths.length) return null;
  const ends = [Math.min(...all), Math.max(...all)].map(Math.log10);
  const span = ends[1] - ends[0] || 1;
  const height = 220;
  const x = (length) => 44 + (Math.log10(Math.max(length, 1)) - ends[0]) / span * (WIDTH - 56);
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  const y = (score) => 10 + (most - score) / (most - least || 1) * (height - 40);
  const ticks = [10, 30, 100, 300, 1000, 3000, 10000, 30000].filter((v) => Math.log10(v) >= ends[0] && Math.log10(v) <= ends[1]);
  const parts = axis(ticks.map((v) => [v, v.toLocaleString("en")]), x, height);
  const decimals = Math.min(4, Math.max(0, 2 - Math.floor(Math.log10(most - least || 1))));
  [least, (least + most) / 2, most].forEach((score) => {
    parts.push(text(38, y(score) + 4, score.toFixed(decimals).replace("-", "−"), { class: "tick", "text-anchor": "end" }));
  });
  lengths.forEach((length, answer) => {
    const hollow = answer % 4 < 2;
    parts.push(svg("circle", { cx: x(length).toFixed(1), cy: y(scores[answer]).toFixed(1), r: 2, class: `point ${tone(model)}${hollow ? " hollow" : ""}` }));
  });
  const order = lengths.map((_, answer) => answer).sort((a, b) => lengths[a] - lengths[b]);
  const groups = Math.min(6, order.length);
  const middle = Array.from({ length: groups }, (_, group) => {
    const part = order.slice(Math.floor(group * order.length / groups), Math.floor((group + 1) * order.length / groups));
    return `${x(median(part.map((a) => lengths[a])))} ${y(median(part.map((a) => scores[a])))}`;
  });
  parts.push(svg("path", { d: `M${middle.join("L")}`, class: "trend" }));
  const figures = data.overall[model] || {};
  const told = known(figures.length) ? `rank correlation ${numberText(figures.length)}` : "";
  const made = panel(MODELS[model], height, `${MODELS[model]}: reward against length in characters, ${lengths.length} answers; ${told}`, parts);
  made.firstChild.append(element("small", "", told));
  return made;
}

const shiftText = numberText;
