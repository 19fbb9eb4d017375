// Everything from the data is put on the page with textContent, so none of it can become markup.
const data = JSON.parse(find("data").textContent);
const PER_PAGE = 8;
const controls = { q: find("q"), kind: find("kind") };
const SPLITS = ["train", "eval"];
const CHOSEN = "m0";
const REJECTED = "m1";
const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }));

// --- Suggestions and overview ---------------------------------------------------------------------------------------

function suggest() {
  const items = data.suggestions.map((suggestion) => {
    const item = element("li", "", suggestion.finding);
    item.append(element("span", "remedy", `→ ${suggestion.remedy}`));
    return item;
  });
  fill("suggestion-list", items, "Nothing that wants mending was found.");
}

function clock(seconds) {
  if (seconds < 90) return `${number(seconds, 0)} s`;
  return seconds < 5400 ? `${number(seconds / 60)} min` : `${number(seconds / 3600)} h`;
}

function tiles() {
  const { train, eval: held } = data.records;
  const questions = data.duplicates.question;
  const shown = [
    ["training records", number(train.used), train.used < train.records ? `of ${number(train.records)}, the others left out` : ""],
    ["pairs", number(train.rejected_answers), `${number(questions.train.distinct)} different questions`],
    held.records ? ["evaluation records", number(held.used), ""] : null,
    held.records ? ["asked in both splits", number(questions.across.train_records_same_or_near), "training records, same or nearly so"] : null,
    ["pairs ranked both ways", number(data.contradictions.opposed_pairs), ""],
    data.tokens ? ["tokens an epoch", number(data.tokens.epoch.with_prefix_sharing), `${percent(data.tokens.epoch.saved, 0)}% saved by prefix sharing`] : null,
    data.tokens ? ["conversations cut", `${percent(cutShare())}%`, `at ${number(data.tokens.max_length)} tokens`] : null,
    data.time ? ["time of an epoch", clock(data.time.seconds_an_epoch), `at ${number(data.time.tokens_per_second, 0)} tokens/s`] : null,
  ];
  find("tiles").replaceChildren(...shown.filter(Boolean).map(([name, value, small]) => {
    const box = element("div");
    const figure = element("dd", "", value);
    if (small) figure.append(element("small", "", small));
    box.append(element("dt", "", name), figure);
    return box;
  }));
}

const cutShare = () => Math.max(data.tokens.cut.share_with_cut_prompt, data.tokens.cut.share_with_cut_answer);

// Names come from the data, and one may be __proto__.
const countOf = (counts, name) => number(Object.hasOwn(counts, name) ? counts[name] : 0);

function countTables() {
  const splits = SPLITS.filter((split) => data.records[split].records);
  const counted = (caption, field, head) => {
    const names = [...new Set(splits.flatMap((split) => Object.keys(data.records[split][field])))];
    const rows = names.map((name) => [name, ...splits.map((split) => countOf(data.records[split][field], name))]);
    return rows.length ? table(caption, [head, ...splits], rows) : null;
  };
  fill("record-tables", [
    counted("Rejected answers by bias type", "rejected_by_bias_type", "Bias type"),
    counted("Records by verification (absent: never verified)", "verification", "Outcome"),
    counted("Groups by answers, the chosen one included", "answers_per_group", "Answers"),
    repeatTable(splits),
  ]);
}

function repeatTable(splits) {
  const rows = Object.entries(data.duplicates).filter(([, texts]) => texts).flatMap(([kind, texts]) => {
    const name = kind === "question" ? "questions" : "chosen answers";
    const facts = { distinct: "different", repeating_records: "records that repeat an earlier one", texts_in_near_clusters: "nearly the same as another" };
    const within = Object.entries(facts).map(([fact, words]) => [`${name}: ${words}`, ...splits.map((split) => number(texts[split] && texts[split][fact]))]);
    const across = splits.map((split) => number(texts.across[`${split}_records_same_or_near`]));
    return [...within, [`records with ${name} of the other split`, ...across]];
  });
  return table("Texts that stand more than once", ["", ...splits], rows);
}

// --- Rules and lengths ----------------------------------------------------------------------------------------------

const biasStyles = () => [["all pairs", data.style.all], ...Object.entries(data.style.by_bias_type)];

function rulePanel(title, style) {
  const rules = Object.entries(style.rules);
  const height = 15 * rules.length + 26;
  const place = (value) => 118 + value * (WIDTH - 142);
  const parts = axis([[0, "0"], [.25, "25"], [.5, "50"], [.75, "75"], [1, "100%"]], place, height, .5);
  const told = rules.map(([name, rule], row) => {
    const y = 14 + 15 * row;
    const className = rule.is_shortcut ? "bad" : CHOSEN;
    const label = `${name}: ${figureText(ruleFigure(rule, "of_all_pairs"))}% of all pairs; ${figureText(ruleFigure(rule))}% of those that differ`;
    parts.push(text(112, y + 4, name, { class: "tick", "text-anchor": "end" }));
    const [low, high] = rule.ci95.of_all_pairs || [null, null];
    if (low !== null) parts.push(line(place(low), y, place(high), y, `move ${className}`));
    const dot = svg("circle", { cx: place(rule.of_all_pairs), cy: y, r: 4, class: `mark ${className}${rule.is_shortcut ? "" : " hollow"}` });
    dot.append(svg("title", {}, document.createTextNode(label)));
    parts.push(dot);
    return label;
  });
  const made = panel(title, height, `${title}. ${told.join("; ")}`, parts);
  made.firstChild.append(element("small", "", `${number(style.pairs)} pairs of ${number(style.questions)} questions`));
  return made;
}

const ruleFigure = (rule, name = "accuracy") => [rule[name], ...(rule.ci95[name] || [null, null])];

function ruleTable(title, style) {
  const rows = Object.entries(style.rules).map(([name, rule]) => [
    name, cell(ruleFigure(rule, "of_all_pairs")), cell(ruleFigure(rule)), number(rule.chosen_has_more), number(rule.rejected_has_more),
    number(rule.equal), number(rule.chosen_mean, 2), number(rule.rejected_mean, 2), rule.is_shortcut ? "shortcut" : ""]);
  return table(`"More of it wins", ${title}: per cent`, ["Count", "Right, of all", "Right, of those that differ", "Chosen has more", "Rejected has more",
    "Equal", "Mean, chosen", "Mean, rejected", ""], rows);
}

function histogramPanel() {
  const { edges, chosen, rejected } = data.style.histogram;
  const height = 190;
  const ends = [edges[0], edges[edges.length - 1]].map((edge) => Math.log10(edge));
  const x = (value) => 14 + (Math.log10(value) - ends[0]) / (ends[1] - ends[0] || 1) * (WIDTH - 28);
  const ticks = [1, 10, 100, 1000, 10000, 100000, 1000000].filter((v) => Math.log10(v) >= ends[0] && Math.log10(v) <= ends[1]);
  const most = Math.max(...chosen, ...rejected, 1);
  const ground = height - 18;
  const y = (count) => ground - (ground - 8) * count / most;
  const outline = (counts, className, extra) => {
    const steps = counts.map((count, bin) => `H${x(edges[bin]).toFixed(1)}V${y(count).toFixed(1)}H${x(edges[bin + 1]).toFixed(1)}`).join("");
    return svg("path", { d: `M${x(edges[0])} ${ground}${steps}V${ground}`, class: `${className} ${extra}`, ...(extra === "move" ? { fill: "none" } : {}) });
  };
  const parts = axis(ticks.map((v) => [v, v.toLocaleString("en")]), x, height);
  parts.push(outline(chosen, CHOSEN, "area"), outline(chosen, CHOSEN, "move"), outline(rejected, REJECTED, "move"));
  return panel("Characters of an answer, as pairs have them", height, "Histogram of answer lengths; medians stand in the table below", parts);
}

function lengths() {
  [[CHOSEN, "chosen"], [REJECTED, "rejected"]].forEach(([className, name]) => {
    const entry = element("span", "entry");
    entry.append(svg("svg", { viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" }, line(1, 7, 13, 7, `move ${className}`)), name);
    find("length-legend").append(entry);
  });
  fill("length-charts", [histogramPanel()]);
  const rows = biasStyles().map(([name, style]) => [name, number(style.pairs), ...["characters", "words"].flatMap((unit) => {
    const part = style.lengths[unit];
    return [number(part.chosen_median), number(part.rejected_median), percent(part.chosen_longer)];
  })]);
  fill("length-tables", [table("Median lengths by the rejected answer's bias type", ["Bias type", "Pairs", "Characters, chosen", "Characters, rejected",
    "Chosen longer, %", "Words, chosen", "Words, rejected", "Chosen longer, %"], rows)]);
}

// --- Tokens ---------------------------------------------------------------------------------------------------------

function tokens() {
  const { conversation_characters: characters } = data.records.train;
  const shares = Object.keys(characters);
  const header = ["", ...shares.map((share) => (share === "100" ? "longest" : `${share}% at most`))];
  const row = (name, values) => [name, ...shares.map((share) => number(values[share]))];
  if (!data.tokens) {
    const note = element("p", "why", "Tokens depend on the model: name one with --model_name_or_path.");
    fill("token-tables", [table("Characters of a conversation", header, [row("question and one answer", characters)]), note]);
    return;
  }
  const { epoch, cut, dropped } = data.tokens;
  const facts = [
    ["tokens an epoch, with prefix sharing", number(epoch.with_prefix_sharing)],
    ["tokens an epoch, without", number(epoch.without_prefix_sharing)],
    ["conversations whose prompt is cut", `${number(cut.conversations_with_cut_prompt)} (${percent(cut.share_with_cut_prompt)}%)`],
    ["conversations whose answer is cut", `${number(cut.conversations_with_cut_answer)} (${percent(cut.share_with_cut_answer)}%)`],
    ["rejected answers equal to the chosen one, not used", number(dropped.answers_equal_to_chosen)],
    ["groups without any other answer, not used", number(dropped.groups_without_rejected)],
  ];
  if (data.time) {
    const measured = data.time.measured;
    const how = measured ? `measured on ${measured.device}, ${measured.precision}, ${measured.groups_a_step} groups a step` : "as given";
    facts.push(["tokens a second", `${number(data.time.tokens_per_second, 0)} (${how})`], ["time of an epoch", clock(data.time.seconds_an_epoch)]);
  }
  fill("token-tables", [
    table(`Tokens, cut at ${number(data.tokens.max_length)}`, header, [row("conversation", data.tokens.conversation), row("group", data.tokens.group), row("characters of a conversation", characters)]),
    table("An epoch", ["", ""], facts),
    epoch.sharing_obstacle ? element("p", "why", `This model cannot share prefixes: ${epoch.sharing_obstacle}.`) : null,
  ]);
}

// --- Examples -------------------------------------------------------------------------------------------------------

const whereText = ({ file, line: place, split, id }) => `${file}:${place} (${split}${id === null ? "" : `, ${id}`})`;
const NAMES = { question: "question", chosen: "chosen answer" };

function examples() {
  const found = [];
  Object.entries(data.duplicates).filter(([, texts]) => texts).forEach(([kind, { across, ...splits }]) => {
    const name = NAMES[kind];
    across.same.forEach((e) => found.push({ kind: `same ${name} in both splits`, sides: [[e.where.map(whereText).join(" and "), e.text]] }));
    across.near.forEach((e) => found.push(pairOf(`nearly the same ${name} in both splits`, e)));
    SPLITS.filter((split) => splits[split]).forEach((split) => {
      splits[split].near.forEach((e) => found.push(pairOf(`nearly the same ${name} within ${split}`, e)));
      splits[split].most_repeated.forEach((e) => found.push({ kind: `repeated ${name} within ${split}`, note: `${e.times} times`, sides: [[`first in ${whereText(e.first)}`, e.text]] }));
    });
  });
  data.contradictions.opposed.forEach((e) => found.push({
    kind: "ranked both ways", question: e.question,
    sides: e.answers.map((answer, place) => [`chosen in ${whereText(e.where[place])}; rejected in the other${e.bias_types[1 - place] ? ` as ${e.bias_types[1 - place]}` : ""}`, answer]),
  }));
  data.contradictions.own.forEach((e) => found.push({
    kind: "chosen and rejected in one record", question: e.question,
    sides: [[`${whereText(e.where)}${e.bias_type ? `, rejected as ${e.bias_type}` : ""}`, e.answer]],
  }));
  const gravest = ["ranked both ways", "chosen and rejected in one record"];
  return [...found.filter((e) => e.kind.includes("both splits")), ...found.filter((e) => gravest.includes(e.kind)),
    ...found.filter((e) => e.kind.includes("within"))];
}

const pairOf = (kind, e) => ({ kind, note: `similarity ${number(e.similarity, 3)}`, sides: e.texts.map((shown, place) => [whereText(e.where[place]), shown]) });

function article(example, place, of) {
  const box = element("article");
  box.tabIndex = -1;
  const about = element("div", "about");
  about.append(element("span", "", `${place} of ${of}`), element("span", "tag bias", example.kind));
  if (example.note) about.append(element("span", "", example.note));
  box.append(about);
  if (example.question) box.append(element("div", "text question clip", example.question));
  const both = element("div", "both");
  example.sides.forEach(([title, shown], side) => {
    const column = element("section");
    const content = element("div", "text clip");
    content.tabIndex = 0;
    const pieces = side ? difference(example.sides[0][1], shown) : null;
    if (pieces) content.append(...marked(pieces));
    else content.textContent = shown;
    column.append(element("h3", "", title), content);
    both.append(column);
  });
  box.append(both);
  return box;
}

const EXAMPLES = examples();
const haystack = (example) => [example.question || "", ...example.sides.flat()].join("\n").toLowerCase();

function restart() {
  const wanted = controls.q.value.trim().toLowerCase();
  list.page = 0;
  list.items = EXAMPLES.filter((e) => (!controls.kind.value || e.kind === controls.kind.value) && (!wanted || haystack(e).includes(wanted)));
  list.render();
}

const list = pagedList({
  perPage: PER_PAGE,
  article,
  empty: EXAMPLES.length ? "No example matches these filters." : "No text stands twice, and nothing contradicts.",
  search: controls.q,
  changed: () => {
    find("count").textContent = `${number(list.items.length)} of ${number(EXAMPLES.length)} examples; at most ${number(data.settings.examples)} of each kind are kept (--examples)`;
  },
});

// --- The page -------------------------------------------------------------------------------------------------------

find("files").textContent = data.provenance.files.map((file) => file.file).join(" · ");
suggest();
tiles();
countTables();
fill("rule-charts", biasStyles().map(([name, style]) => rulePanel(name, style)));
find("rule-tables").append(folded("The same as tables", ruleTable("all pairs", data.style.all)));
Object.entries(data.style.by_bias_type).forEach(([name, style]) => find("rule-tables").lastChild.append(ruleTable(name, style)));
lengths();
tokens();
fill("provenance-table", [
  table("Files", ["File", "Split", "SHA-256"], data.provenance.files.map((file) => [file.file, file.split, file.sha256])),
  table("Settings", ["Setting", ""], Object.entries(data.settings).map(([name, value]) => [name, value === null ? "–" : String(value)])),
]);
new Map(EXAMPLES.map((e) => [e.kind, EXAMPLES.filter((other) => other.kind === e.kind).length]))
  .forEach((count, kind) => addOption(controls.kind, kind, `${kind} (${count})`));
onFilters(controls.q, [controls.kind], restart);
restart();
