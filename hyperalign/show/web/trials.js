// A study: how its best trial rose, what mattered, each parameter against the score, and every trial in a table.

let study = null, picked = null; // the trial that is picked, by its place in the table

const RUG = 0.05; // share of a figure's height below its lowest score, where trials without a score stand
const MOST_CHOICES = 40; // rows of a parameter's figure

const trialsWith = (values) => study.number.map((_, k) => k).filter((k) => values[k] != null);
const isScored = (k) => study.values[0][k] != null && study.within[k];
const inWords = (value) => (value == null ? NONE : typeof value === "number" ? String(Number(value.toPrecision(4))) : value);

function showStudy(record) {
  study = record;
  if (!study?.number.length) return;
  addDrawing("figure-study-history", study.objectives.length > 1 ? drawFront : drawHistory);
  addDrawing("figure-study-importance", drawImportance);
  addDrawing("figure-study-slices", drawSlices);
  sortTrials();
}

// What a trial says of itself at the pointer.
function tipOfTrial(k) {
  const values = study.objectives.map((name, place) => (study.values[place][k] == null ? null : `${inWords(study.values[place][k])} (${name})`)).filter(Boolean);
  const params = study.params.map(({ name, values: all }) => (all[k] == null ? null : `${name} ${inWords(all[k])}`)).filter(Boolean);
  return [`trial ${study.number[k]}, ${study.state[k]}${study.within[k] ? "" : ", beyond a limit"}`, ...values, ...params];
}

const onTrial = { about: tipOfTrial, tap: pickTrial, reach: pickTrial, open: (k) => { pickTrial(k); rowOf(k).querySelector("button").focus(); } };

function pickTrial(k) {
  picked = k;
  for (const row of byId("trials").querySelectorAll("tr.opened")) row.classList.remove("opened");
  const row = rowOf(k), box = byId("trials").closest(".scroll");
  row.classList.add("opened");
  box.scrollTop = row.offsetTop - box.clientHeight / 2; // the table moves, the page does not
  showFigures();
}

const rowOf = (k) => byId("trials").querySelector(`tr[data-trial="${k}"]`);

// Where trials stand by their score. At the foot of a figure stand those that have none, or lie beyond a limit, or so low
// that they would hide how the others differ.
function heights() {
  const scored = known(study.values[0].map((score, k) => (isScored(k) ? score : null))).sort((a, b) => a - b);
  if (!scored.length) return { range: () => new Bokeh.Range1d({ start: -1, end: 1 }), isHigh: () => false, of: () => 0 };
  const most = scored[scored.length - 1], quarter = scored[Math.floor(scored.length / 4)];
  const least = Math.max(scored[0], quarter - 1.5 * (most - quarter || 1)), room = RUG * (most - least) || 0.5, foot = least - 2 * room;
  const isHigh = (k) => isScored(k) && study.values[0][k] >= least;
  return { range: () => new Bokeh.Range1d({ start: foot - room, end: most + room }), isHigh, of: (k) => (isHigh(k) ? study.values[0][k] : foot) };
}

// Trials as points: those with a score in a colour each, the others as crosses, the picked one in a ring.
function trialPoints(figure, x, y, isLog, colors) {
  const inner = el("div", {}), box = el("div", { class: "figure low" }, inner), tip = newTip(box), shown = trialsWith(x);
  const { isHigh } = heights(), high = shown.filter(isHigh), rest = shown.filter((k) => !isHigh(k));
  const taken = (list) => ({ x: list.map((k) => x[k]), y: list.map((k) => y[k]) });
  figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: newSource(taken(rest)), marker: "x", size: 7, line_color: look.faint, line_width: 1.5 });
  figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: newSource({ ...taken(high), color: high.map((k) => colors[k]) }), size: 8, fill_color: { field: "color" }, fill_alpha: 0.85, line_color: look.ground, line_width: 0.5 });
  const ring = newSource({ x: [], y: [] });
  figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: ring, size: 14, fill_color: null, line_color: look.picks[0], line_width: 3 });
  listen(box, figure, tip, { shown: () => shown, x, y, isLog }, onTrial);
  return { box, inner, shown, show: () => { ring.data = taken(picked != null && shown.includes(picked) ? [picked] : []); } };
}

function drawHistory(place) {
  const { range, of } = heights(), y = study.number.map((_, k) => of(k)), last = Math.max(...study.number);
  const figure = newFigure({ x_axis_label: "trial", y_axis_label: study.objectives[0], height: 320, x_range: rangeOf([0, last], false), y_range: range() });
  figure.below[0].ticker.min_interval = 1;
  const rising = [...study.rising, [last, study.rising[study.rising.length - 1]?.[1]]].filter(([, score]) => score != null);
  figure.step({ x: { field: "x" }, y: { field: "y" }, source: newSource({ x: rising.map(([number]) => number), y: rising.map(([, score]) => score) }), mode: "after", line_color: look.ink, line_width: 1.5 });
  const points = trialPoints(figure, study.number, y, false, study.number.map(() => look.mark));
  walk(place, () => [...points.shown].sort((a, b) => study.number[a] - study.number[b]), onTrial);
  place.replaceChildren(points.box);
  Bokeh.Plotting.show(figure, points.inner);
  place.setAttribute("aria-label", `Best so far over the trials. ${study.rising.slice(-5).map(([number, score]) => `trial ${number}: ${inWords(score)}`).join("; ")}.`);
  return points;
}

function drawFront(place) {
  const [score, cost] = study.values, { range, of } = heights(), y = study.number.map((_, k) => of(k)), costs = known(cost);
  if (!costs.length) return null;
  const isLog = Math.min(...costs) > 0 && Math.max(...costs) > 5 * Math.min(...costs);
  const figure = newFigure({ x_axis_label: study.objectives[1], y_axis_label: study.objectives[0], height: 360, x_axis_type: isLog ? "log" : "linear", x_range: rangeOf(costs, isLog), y_range: range() });
  nameTicks(figure.below[0], figures3, place);
  const front = Array.from({ length: study.best }, (_, k) => k).sort((a, b) => cost[a] - cost[b]);
  figure.step({ x: { field: "x" }, y: { field: "y" }, source: newSource({ x: front.map((k) => cost[k]), y: front.map((k) => score[k]) }), mode: "after", line_color: look.ink, line_width: 1.5 });
  const points = trialPoints(figure, cost, y, isLog, study.number.map((_, k) => (k < study.best ? look.ink : look.mark)));
  walk(place, () => [...points.shown].sort((a, b) => cost[a] - cost[b] || y[a] - y[b]), onTrial);
  place.replaceChildren(points.box);
  Bokeh.Plotting.show(figure, points.inner);
  place.setAttribute("aria-label", `Pareto front of ${several(study.best, "trial")}. ${front.map((k) => `trial ${study.number[k]}: ${inWords(score[k])} at ${inWords(cost[k])}`).join("; ")}.`);
  return points;
}

function drawImportance(place) {
  const params = study.params.filter(({ importance }) => importance != null).reverse(), inner = el("div", {});
  place.replaceChildren(inner);
  const rows = params.map((_, k) => k + 0.5), shares = params.map(({ importance }) => importance);
  const figure = newFigure({ height: 12 + 30 * params.length, x_range: new Bokeh.Range1d({ start: 0, end: 1.25 * Math.max(...shares, 0.01) }), y_range: new Bokeh.Range1d({ start: 0, end: params.length }), tools: "", toolbar_location: null });
  figure.below[0].visible = false; // each bar says its share
  labelAxis(figure.left[0], params.map(({ name }) => name), "horizontal");
  figure.center.forEach((grid) => { grid.grid_line_color = null; });
  const source = newSource({ row: rows, share: shares, words: shares.map((share) => `${Math.round(100 * share)} %`) });
  figure.hbar({ y: { field: "row" }, right: { field: "share" }, left: 0, height: 0.6, source, fill_color: look.mark, line_color: null });
  figure.text({ x: { field: "share" }, y: { field: "row" }, text: { field: "words" }, source, x_offset: 6, text_baseline: "middle", text_color: look.ink, text_font: "system-ui, sans-serif", text_font_size: "12px" });
  Bokeh.Plotting.show(figure, inner);
  place.setAttribute("aria-label", `How much of the score each parameter explains. ${[...params].reverse().map(({ name, importance }) => `${name} ${Math.round(100 * importance)} per cent`).join("; ")}.`);
  return { show: () => {} };
}

// One figure for each parameter; a later trial has a darker point, or a lighter one on a dark page.
function drawSlices(place) {
  const ramp = shades(look.ramp.slice(1), 64), last = Math.max(...study.number) || 1;
  const colors = study.number.map((number) => ramp[Math.round((63 * number) / last)]);
  const drawn = study.params.filter(({ values }) => trialsWith(values).length).map((param) => (param.scale === "choices" ? drawChoices : drawRange)(param, colors));
  place.replaceChildren(...drawn.map(({ box }) => box));
  drawn.forEach(({ figure, inner }) => Bokeh.Plotting.show(figure, inner));
  place.setAttribute("aria-label", `Each parameter against ${study.objectives[0]}. ${study.params.map(sliceWords).join("; ")}.`);
  return { show: () => drawn.forEach((one) => one.show()) };
}

const sliceWords = ({ name, values }) => `${name}: ${inWords(values[0])} in the best trial`;

function drawRange({ name, scale, values }, colors) {
  const { range, of } = heights(), y = study.number.map((_, k) => of(k)), isLog = scale === "log";
  const figure = newFigure({ x_axis_label: name, y_axis_label: study.objectives[0], height: 240, x_axis_type: isLog ? "log" : "linear", x_range: rangeOf(known(values), isLog), y_range: range(), tools: "", toolbar_location: null });
  nameTicks(figure.below[0], inWords, { clientWidth: 300 });
  return { figure, ...trialPoints(figure, values, y, isLog, colors) };
}

// Choices stand in rows: numbers in their order, words from the best on; points of a row are spread so that none hides another.
function drawChoices({ name, values }, colors) {
  const { range, of } = heights(), every = [...new Set(known(values))], score = study.number.map((_, k) => of(k));
  const most = new Map(every.map((choice) => [choice, Math.max(...study.number.map((_, k) => (values[k] === choice ? score[k] : -Infinity)))]));
  const isNumbers = every.every((choice) => typeof choice === "number");
  const rows = every.sort((a, b) => (isNumbers ? a - b : most.get(b) - most.get(a))).slice(0, MOST_CHOICES).reverse();
  const row = new Map(rows.map((choice, k) => [choice, k]));
  const y = study.number.map((number, k) => row.get(values[k]) + 0.5 + 0.5 * (((number * 0.618) % 1) - 0.5));
  const x = score.map((value, k) => (row.has(values[k]) ? value : null));
  const figure = newFigure({ x_axis_label: study.objectives[0], height: 90 + 24 * rows.length, x_range: range(), y_range: new Bokeh.Range1d({ start: 0, end: rows.length }), tools: "", toolbar_location: null });
  nameTicks(figure.below[0], inWords, { clientWidth: 300 });
  labelAxis(figure.left[0], rows.map(String), "horizontal");
  figure.center.filter((grid) => grid.dimension === 1).forEach((grid) => { grid.grid_line_color = null; });
  figure.left[0].axis_label = rows.length < every.length ? `${name}, the best ${rows.length} of ${every.length}` : name;
  figure.left[0].axis_label_text_color = look.faint;
  return { figure, ...trialPoints(figure, x, y, false, colors) };
}

// The table that the page was written with: rows open, heads sort.
function sortTrials() {
  const table = byId("trials"), body = table.tBodies[0], rows = [...body.rows];
  const columns = [study.number, study.state, ...study.values, ...study.params.map(({ values }) => values), study.seconds, rows.map((row) => row.cells[row.cells.length - 1].textContent)]; // remarks last, where there are any
  rows.forEach((row, k) => {
    row.cells[0].replaceChildren(el("button", { type: "button", class: "open", "aria-label": `trial ${study.number[k]}: show in the figures` }, row.cells[0].textContent));
    row.addEventListener("click", () => { if (!getSelection().toString()) { pickTrial(k); announce(tipOfTrial(k).join(", ")); } });
  });
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const arrow = el("span", { class: "arrow", "aria-hidden": "true" }), about = head.textContent;
    head.setAttribute("aria-sort", "none");
    head.replaceChildren(el("button", { type: "button", onclick: () => sortBy(place) }, about, arrow));
  });
  function sortBy(place) {
    const heads = [...table.tHead.rows[0].cells], falls = heads[place].getAttribute("aria-sort") === "ascending", values = columns[place];
    heads.forEach((head, k) => {
      head.setAttribute("aria-sort", k !== place ? "none" : falls ? "descending" : "ascending");
      head.querySelector(".arrow").textContent = k !== place ? "" : falls ? "\u00a0↓" : "\u00a0↑";
    });
    const order = rows.map((_, k) => k).sort((a, b) => compareCells(values[a], values[b], falls) || a - b);
    body.replaceChildren(...order.map((k) => rows[k]));
  }
}

// What is missing stands last, whichever way it is sorted.
function compareCells(one, other, falls) {
  const gone = [one, other].map((value) => value == null || value === "");
  if (gone[0] || gone[1]) return gone[0] - gone[1];
  const both = typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
  return falls ? -both : both;
}
