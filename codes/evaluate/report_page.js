// Everything from the data is put on the page with textContent, so none of it can become markup.
const PER_PAGE = 8;
const controls = { q: find("q"), bias: find("bias"), model: find("model") };
const BIASES = data.biases;

// --- Tables ---------------------------------------------------------------------------------------------------------

function overview() {
  const rows = MODELS.map((name, model) => {
    const figures = data.overall[model] || {};
    const polished = data.refinement[model];
    return [name, plain(figures.rows), cell(figures.bsr), cell(figures.average_bsr), cell(figures.robust_accuracy),
      cell(figures.original_accuracy), cell(figures.biased_accuracy), cell(figures.balanced_biased),
      cell(figures.shift, shiftText), cell(figures.length, numberText), cell(polished && polished.improvement)];
  });
  const base = data.baseline_overall;
  if (base) {
    rows.push(["Longer answer wins", plain(base.rows), cell(base.bsr), cell(base.average_bsr), cell(base.robust_accuracy),
      cell(base.original_accuracy), cell(base.biased_accuracy), "", "", "", ""]);
  }
  const header = ["Model", "Rows", "BSR, pooled", "BSR, weighted by rows", "Robust accuracy", "Original accuracy", "Biased accuracy",
    "Biased, length-balanced", "Margin shift, SD", "Reward and length, rank corr.", "Gain if polished, %"];
  const parts = [table("All biases together; rates in per cent", header, rows)];
  const reasons = new Map();
  data.skipped.forEach((skipped, model) => {
    const told = Object.entries(skipped).map(([bias, why]) => `${bias} (${why})`).join("; ");
    if (told) reasons.set(told, [...(reasons.get(told) || []), MODELS[model]]);
  });
  reasons.forEach((models, told) => parts.push(element("p", "why", `Not evaluated for ${models.join(", ")}: ${told}.`)));
  fill("overview-table", parts);
}

function heatMap() {
  const rates = BIASES.flatMap((bias) => [...data.figures[bias], data.baseline[bias]]);
  const values = rates.filter((figures) => figures && known(figures.bsr)).map((figures) => figures.bsr[0]);
  const most = Math.max(.2, Math.ceil(10 * Math.max(0, ...values)) / 10);
  const heat = (figures, bias, model) => {
    if (!figures || !known(figures.bsr)) return "–";
    const count = model === null ? 0 : (data.flipped[bias] || [])[model];
    const box = element(count ? "button" : "span", "heat");
    box.style.setProperty("--heat", `${(100 * figures.bsr[0] / most).toFixed(1)}%`);
    box.append(cell(figures.bsr));
    if (count) {
      box.type = "button";
      const { flipped, original_correct: right } = figures.counts;
      box.setAttribute("aria-label", `${bias}, ${MODELS[model]}: ${figureText(figures.bsr)}; read the flipped pairs`);
      box.title = `${flipped} of ${right} flipped; read them`;
      box.addEventListener("click", () => showPairs(bias, model));
    }
    return box;
  };
  const rows = BIASES.map((bias) => [bias, ...data.figures[bias].map((figures, model) => heat(figures, bias, model)), heat(data.baseline[bias], bias, null)]);
  rows.push(["all biases", ...data.overall.map((figures) => heat(figures, "all biases", null)), heat(data.baseline_overall, "all biases", null)]);
  const scale = element("p", "scale");
  const bar = element("span", "bar");
  bar.setAttribute("aria-hidden", "true");
  scale.append("0%", bar, `${percent(most, 0)}%`);
  fill("heat-map", BIASES.length && [table("Bias sensitivity rate, per cent", ["Bias", ...MODELS, "Longer answer"], rows), scale] || []);
}

function charts() {
  document.querySelectorAll("[data-legend]").forEach(legend);
  const pooled = accuracyPanel("all biases", data.overall, data.baseline_overall);
  fill("accuracy-charts", [...BIASES.map((bias) => accuracyPanel(bias, data.figures[bias], data.baseline[bias])), pooled]);
  fill("margin-charts", BIASES.map(marginPanel));
  fill("length-charts", MODELS.map((_, model) => lengthPanel(model)));
  const byBias = (name, asText) => [...BIASES.map((bias) => [bias, data.figures[bias]]), ["all biases", data.overall]]
    .map(([bias, figures]) => [bias, ...figures.map((f) => cell(f && f[name], asText))]);
  const numbers = (caption, name, asText) => table(caption, ["Bias", ...MODELS], byBias(name, asText));
  find("accuracy-table").append(folded("The same as tables", numbers("Accuracy on original pairs, per cent", "original_accuracy")));
  find("accuracy-table").lastChild.append(numbers("Accuracy on biased pairs, per cent", "biased_accuracy"), numbers("Right on both, per cent", "robust_accuracy"));
  find("margin-table").append(folded("Mean shifts as a table", numbers("Mean margin shift, standard deviations of the original margins", "shift", shiftText)));
  const sides = { better_longer: "better answer longer", better_shorter: "better answer shorter", equally_long: "equally long" };
  const bySide = MODELS.flatMap((name, model) => Object.entries(data.by_length[model] || {})
    .filter(([side, part]) => sides[side] && part && part.rows)
    .map(([side, part]) => [`${name}: ${sides[side]}`, plain(part.rows), cell(part.original_accuracy), cell(part.biased_accuracy), cell(part.bsr)]));
  if (bySide.length) find("length-table").append(folded("Rates by which answer is longer", table("All biases, split by the lengths of the biased pair, per cent", ["Model", "Rows", "Original accuracy", "Biased accuracy", "BSR"], bySide)));
  find("length-table").append(folded("Correlations as a table", numbers("Rank correlation of reward and length (Spearman)", "length", numberText)));
}

function benchmarks() {
  fill("benchmark-tables", data.benchmarks.map((benchmark) => {
    const rows = benchmark.rows.map((row) => [row.name, ...row.values.map((value) => cell(value)), cell(row.baseline)]);
    rows.push(["rows", ...benchmark.records.map(plain), ""]);
    const box = element("div");
    box.append(element("h3", "", benchmark.title), table(`${benchmark.title}: per cent`, ["Figure", ...MODELS, "Longer answer"], rows));
    const partial = MODELS.filter((_, model) => benchmark.complete[model] === false);
    if (partial.length) box.append(element("p", "why", `Not the whole set, so not to be compared with published figures: ${partial.join(", ")}.`));
    return box;
  }));
}

// --- Paired tests ---------------------------------------------------------------------------------------------------

function pValue(p) {
  if (p === null) return "–";
  return p < .001 ? "< 0.001" : p.toFixed(3);
}

function paired() {
  const [first, second, name] = ["first", "second", "figure"].map((id) => find(id).value);
  const [one, other] = [Math.min(first, second), Math.max(first, second)];
  const found = data.tests.find((test) => test.first === one && test.second === other);
  if (!found || found.problem) {
    fill("test-table", [element("p", "empty", first === second ? "Choose two different models." : `No paired test: ${found ? found.problem : "one model only"}.`)]);
    return;
  }
  const turned = Number(first) > Number(second);
  const difference = (part) => {
    if (!part || part[0] === null) return ["–", "–"];
    const [value, low, high] = turned ? [-part[0], part[2] === null ? null : -part[2], part[1] === null ? null : -part[1]] : part;
    return [cell([value, low, high], (f) => `${signed(100 * f[0], 1)}${f[1] === null ? "" : ` [${signed(100 * f[1], 1)}, ${signed(100 * f[2], 1)}]`}`), pValue(part[3])];
  };
  const rate = (figures) => cell(figures && figures[name]);
  const rows = Object.entries(found.biases).map(([bias, parts]) => {
    const figures = data.figures[bias];
    return [bias, rate(figures[first]), rate(figures[second]), ...difference(parts[name])];
  });
  if (found.pooled[name]) rows.push(["these biases, pooled", "", "", ...difference(found.pooled[name])]);
  const header = ["Bias", MODELS[first], MODELS[second], "Difference, second − first", "p (Holm)"];
  const parts = rows.length ? [table(`${MODELS[second]} against ${MODELS[first]}, per cent`, header, rows)] : [];
  Object.entries(found.benchmarks).forEach(([title, sections]) => {
    const compared = Object.entries(sections).map(([section, part]) => [section, ...difference(part)]);
    parts.push(table(`${title}: accuracy, per cent`, ["Rows of", "Difference, second − first", "p (Holm)"], compared));
  });
  fill("test-table", parts);
}

// --- Flipped pairs --------------------------------------------------------------------------------------------------

const right = (scores, from) => scores[from] > scores[from + 1];
const isFlipped = (scores) => Boolean(scores) && right(scores, 0) && !right(scores, 2);
const flippedFor = (pair) => MODELS.map((_, model) => model).filter((model) => isFlipped(pair.scores[model]));
const haystacks = new Map();

function haystack(pair) {
  if (!haystacks.has(pair)) haystacks.set(pair, pair.texts.map((number) => data.texts[number]).join("\n").toLowerCase());
  return haystacks.get(pair);
}

function article(pair, number, of) {
  const [question, better, worse, betterBiased, worseBiased] = pair.texts.map((place) => data.texts[place]);
  const box = element("article");
  box.tabIndex = -1;
  const about = element("div", "about");
  about.append(element("span", "", `${number} of ${of}`), element("span", "tag bias", pair.bias));
  about.append(element("span", "", `flipped for ${flippedFor(pair).map((model) => MODELS[model]).join(", ")}`));
  box.append(about, element("div", "text question clip", question), scoreTable(pair));
  box.append(answer("The worse answer, made to look good", "bad", worse, worseBiased, true));
  box.append(answer("The better answer, rewritten", "good", better, betterBiased, false));
  return box;
}

function scoreTable(pair) {
  const number = (value) => Number(value.toPrecision(4)).toString().replace("-", "−");
  const rows = MODELS.map((name, model) => [name, pair.scores[model]]).filter(([, scores]) => scores).map(([name, scores]) => {
    const verdict = (from) => element("span", right(scores, from) ? "good" : "bad", `${number(scores[from])} : ${number(scores[from + 1])} ${right(scores, from) ? "✓" : "✗"}`);
    return [name, verdict(0), verdict(2)];
  });
  const made = table("Scores, better : worse answer", ["Model", "original", "biased"], rows);
  made.classList.add("scores");
  made.removeAttribute("tabindex"); // narrow, and there are many: no stop for each
  return made;
}

function answer(title, className, original, rewritten, open) {
  const box = element("details");
  box.open = open;
  const summary = element("summary");
  const against = element("span", "against");
  const longer = rewritten.length - original.length;
  summary.append(element("strong", className, title));
  summary.append(element("span", "about", rewritten === original ? `unchanged, ${size(original)}` : `${size(rewritten)}, ${longer < 0 ? "−" : "+"}${Math.abs(longer).toLocaleString("en")}`), against);
  const content = element("div", "text clip");
  content.tabIndex = 0;
  box.append(summary, content);
  const show = () => {
    if (!box.open || content.firstChild) return;
    const pieces = difference(original, rewritten);
    if (pieces) { content.append(...marked(pieces)); return; }
    against.textContent = "too different from the original to mark";
    content.append(element("h4", "", "Rewritten"), rewritten, element("h4", "", "Original"), original);
  };
  box.addEventListener("toggle", show);
  show();
  return box;
}

function filter() {
  const wanted = controls.q.value.trim().toLowerCase();
  const [bias, model] = [controls.bias.value, controls.model.value];
  list.items = data.pairs.filter((pair) => (!bias || pair.bias === bias) && (model === "" || isFlipped(pair.scores[model])) && (!wanted || haystack(pair).includes(wanted)));
  const flipped = bias && model !== "" ? (data.flipped[bias] || [])[model] : null;
  const rest = flipped > list.items.length && !wanted ? ` of the ${plain(flipped)} that flipped; --pairs lets more in` : "";
  find("count").textContent = data.pairs.length
    ? `${plain(list.items.length)} of ${plain(data.pairs.length)} pairs in this report${rest}`
    : "No pairs: no model flipped on any, or the folders hold no rows.";
}

const list = pagedList({
  perPage: PER_PAGE, article, empty: "No pair matches these filters.", changed: keepInAddress, search: controls.q,
});
let started = false;

/* The filters stand in the address behind the section's name. */
function keepInAddress() {
  if (!started) return;
  const state = Object.entries(controls).filter(([, control]) => control.value).map(([name, control]) => [name, control.value]);
  if (list.page) state.push(["page", list.page + 1]);
  history.replaceState(null, "", `#pairs&${new URLSearchParams(state)}`);
}

function restart() {
  list.page = 0;
  filter();
  list.render();
}

function showPairs(bias, model) {
  controls.q.value = "";
  controls.bias.value = bias;
  controls.model.value = String(model);
  restart();
  find("pairs").scrollIntoView({ block: "start" });
  controls.bias.focus({ preventScroll: true });
}

function fromAddress() {
  const [place, ...rest] = location.hash.slice(1).split("&");
  if (place !== "pairs" || !rest.length) return;
  const state = new URLSearchParams(rest.join("&"));
  Object.entries(controls).forEach(([name, control]) => {
    control.value = state.get(name) || "";
    if (control.selectedIndex === -1) control.selectedIndex = 0;
  });
  filter();
  list.page = (Number.parseInt(state.get("page"), 10) || 1) - 1;
  list.render();
  find("pairs").scrollIntoView({ block: "start" });
}

// --- The page -------------------------------------------------------------------------------------------------------

find("models").textContent = MODELS.join(" · ");
overview();
heatMap();
charts();
benchmarks();
["first", "second"].forEach((id, place) => {
  MODELS.forEach((name, model) => addOption(find(id), model, name));
  find(id).selectedIndex = Math.min(place, MODELS.length - 1);
});
["first", "second", "figure"].forEach((id) => find(id).addEventListener("change", paired));
paired();
fill("provenance-table", data.provenance.length ? [table("What made these results", ["Fact", ...MODELS],
  data.provenance.map(([name, values]) => [name, ...values.map((value) => value ?? "–")]))] : []);
BIASES.forEach((bias) => addOption(controls.bias, bias, bias));
MODELS.forEach((name, model) => addOption(controls.model, model, name));
onFilters(controls.q, [controls.bias, controls.model], restart);
restart();
fromAddress();
started = true;
window.addEventListener("hashchange", fromAddress);
