// Figures with a point for each pair: score against size with the front, and one method against another.

const SIZES = [
  { key: "budget", label: "parameters of the image encoder", values: ofImage("n_params"), word: count },
  { key: "pair-budget", label: "parameters of both encoders", values: paramsOf, word: count },
  { key: "max-gflops", label: "GFLOP a picture", values: ofImage("gflops"), word: figures3 },
  { key: "max-latency", label: "latency, ms a picture", values: ofImage("latency_ms"), word: figures3 },
].filter(({ values }) => isKnown(values));

const at = (pairs, x, y, more = () => ({})) => ({ x: pairs.map((pair) => x[pair]), y: pairs.map((pair) => y[pair]), ...more(pairs) });

// Points in three layers: who is left out, who takes part, who is selected. Hovering names, clicking selects.
function pointFigure(place, figure, x, y, isLog) {
  const known = everyPair.filter((pair) => x[pair] != null && y[pair] != null);
  figure.x_range = rangeOf(known.map((pair) => x[pair]), isLog); // axes that stay when limits move
  figure.y_range = rangeOf(known.map((pair) => y[pair]), false);
  const [out, within, picked] = [newSource({ x: [], y: [] }), newSource({ x: [], y: [] }), newSource({ x: [], y: [], color: [] })];
  const small = known.length > 1000, size = small ? 4 : 7;
  figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: out, size: size - 1, fill_color: look.ghost, line_color: null });
  figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: within, size, fill_color: look.mark, fill_alpha: small ? 0.35 : 0.6, line_color: null });
  const inner = el("div", {});
  place.replaceChildren(inner);
  const tip = newTip(place);
  let shown = known;
  listen(place, figure, tip, { shown: () => shown, x, y, isLog }, onPair);
  walk(place, () => [...shown].sort((a, b) => x[a] - x[b] || y[a] - y[b]), onPair);
  return {
    inner,
    addPicked: () => figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: picked, size: size + 6, fill_color: { field: "color" }, line_color: look.ground, line_width: 2 }),
    show: (state, order) => {
      const kept = new Uint8Array(nPairs);
      order.pairs.forEach((pair) => { kept[pair] = 1; });
      shown = known.filter((pair) => kept[pair]);
      out.data = at(known.filter((pair) => !kept[pair]), x, y);
      within.data = at(shown, x, y);
      const chosen = state.selected.filter((pair) => x[pair] != null && y[pair] != null);
      picked.data = at(chosen, x, y, (pairs) => ({ color: pairs.map((pair) => look.picks[state.selected.indexOf(pair)]) }));
    },
  };
}

// What a pair says of itself at the pointer.
function tipOf(pair) {
  const interval = column("score_low")[pair] == null ? "" : ` (${tenths(column("score_low")[pair])}–${tenths(column("score_high")[pair])})`;
  return [`${IMAGE[pair]} + ${TEXT[pair]}`, `score ${points(column("score")[pair])}${interval}`,
    `${count(ofImage("n_params")[pair])} + ${count(ofText("n_params")[pair])} parameters`];
}

// What is done with a pair that is pointed at.
const onPair = {
  about: tipOf,
  tap: (pair, more) => change(({ selected }) => ({ selected: toggled(selected, pair, more), open: pair })),
  reach: (pair) => change(() => ({ selected: [pair] })),
  open: (pair) => change(() => ({ open: pair })),
};

function drawScatter(place, state) {
  const size = SIZES.find(({ key }) => key === state.size) ?? SIZES[0], score = column("score");
  const figure = newFigure({ x_axis_type: "log", x_axis_label: size.label, y_axis_label: run.measure, height: 380 });
  nameTicks(figure.below[0], size.word, place);
  const layers = pointFigure(place, figure, size.values, score, true), front = newSource({ x: [], y: [] });
  figure.step({ x: { field: "x" }, y: { field: "y" }, source: front, mode: "after", line_color: look.ink, line_width: 1.5 });
  figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: front, size: 8, fill_color: look.ground, line_color: look.ink, line_width: 1.5 });
  layers.addPicked();
  Bokeh.Plotting.show(figure, layers.inner);
  return {
    size: size.key,
    show: (now, order) => {
      layers.show(now, order);
      const pairs = frontOf(order.scored, size.values, isKnown(column("validation_score")) ? column("validation_score") : score);
      front.data = at(pairs, size.values, score);
      const best = pairs.slice(-3).map((pair) => `${nameOf(pair)} ${tenths(score[pair])} at ${size.word(size.values[pair])}`);
      place.setAttribute("aria-label", `Score against ${size.label}. ${several(order.scored.length, "pair")}; ${several(pairs.length, "pair")} on the front, the largest: ${best.join("; ")}.`);
    },
  };
}

// The same pairs by the baseline and by the method that answers; beside it how well the baseline agrees with itself.
function drawAgreement(place) {
  const { name, seeds } = run.reference, score = column("score");
  const mean = everyPair.map((pair) => meanOf(seeds.map((scores) => scores[pair])));
  const own = run.agreement.find((one) => one.order === run.method && one.reference.startsWith(name));
  const ceiling = run.agreement.find((one) => one.order === name && one.reference.includes("noise ceiling"));
  const figure = newFigure({ x_axis_label: `${name}${seeds.length > 1 ? `, mean of ${seeds.length} seeds` : ""}, %`, y_axis_label: `${run.method}, %`, height: 360 });
  diagonal(figure, mean, score);
  if (seeds.length > 1) {
    const [x, y] = [0, 1].map((seed) => everyPair.filter((pair) => seeds[0][pair] != null && seeds[1][pair] != null).map((pair) => seeds[seed][pair]));
    figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: newSource({ x, y }), marker: "x", size: 6, line_color: look.faint, line_alpha: 0.8 });
  }
  const layers = pointFigure(place, figure, mean, score, false);
  layers.addPicked();
  Bokeh.Plotting.show(figure, layers.inner);
  const said = [own?.spearman != null && `Spearman ${own.spearman.toFixed(3)}`, ceiling?.spearman != null && `noise ceiling ${ceiling.spearman.toFixed(3)}`].filter(Boolean).join(", ");
  byId("agreement-figures").textContent = said && `${said}.`;
  place.setAttribute("aria-label", `Scores by ${run.method} against scores by ${name}. ${said}`);
  return layers;
}

// Where both scores are the same.
function diagonal(figure, x, y) {
  const all = [...known(x), ...known(y)], ends = [Math.min(...all), Math.max(...all)];
  figure.line({ x: { field: "x" }, y: { field: "y" }, source: newSource({ x: ends, y: ends }), line_color: look.faint, line_dash: "dashed" });
}

function meanOf(values) {
  const some = known(values);
  return some.length ? some.reduce((a, b) => a + b, 0) / some.length : null;
}
