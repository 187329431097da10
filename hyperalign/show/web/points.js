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
  listen(place, figure, tip, () => shown, x, y, isLog);
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

// From the least to the most, with a margin.
function rangeOf(values, isLog) {
  const ends = [Math.min(...values), Math.max(...values)].map((end) => (isLog ? Math.log(end) : end)), room = 0.06 * (ends[1] - ends[0]) || 0.5;
  const [start, end] = [ends[0] - room, ends[1] + room].map((place) => (isLog ? Math.exp(place) : place));
  return new Bokeh.Range1d({ start, end });
}

// The pair nearest to the pointer, if it is near; and the same by arrow keys, from left to right.
function listen(place, figure, tip, shown, x, y, isLog) {
  const scale = (value) => (isLog ? Math.log(value) : value);
  const pixels = (event, pair) => {
    const { x_range: across, y_range: up } = figure;
    const dx = ((scale(x[pair]) - scale(event.x)) / (scale(across.end) - scale(across.start))) * figure.inner_width;
    const dy = ((y[pair] - event.y) / (up.end - up.start)) * figure.inner_height;
    return { dx, dy, far: Math.hypot(dx, dy) };
  };
  const nearest = (event) => {
    let best = null, least = 18;
    for (const pair of shown()) {
      const { far } = pixels(event, pair);
      if (far < least) [best, least] = [pair, far];
    }
    return best;
  };
  figure.on_event("mousemove", (event) => {
    const pair = nearest(event);
    place.classList.toggle("pointing", pair != null);
    if (pair == null) tip.hide();
    else tip.show(tipOf(pair), event.sx + pixels(event, pair).dx, event.sy - pixels(event, pair).dy);
  });
  figure.on_event("mouseleave", tip.hide);
  figure.on_event("tap", (event) => {
    const pair = nearest(event), more = event.modifiers?.shift || event.modifiers?.ctrl;
    if (pair != null) change(({ selected }) => ({ selected: toggled(selected, pair, more), open: pair }));
  });
  walk(place, () => [...shown()].sort((a, b) => x[a] - x[b] || y[a] - y[b]));
}

// Arrow keys go from pair to pair and say each; Enter opens it.
function walk(place, inOrder) {
  let here = -1;
  place.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key], pairs = inOrder();
    if (step && pairs.length) {
      here = (here + step + pairs.length) % pairs.length;
      const pair = pairs[here];
      announce(tipOf(pair).join(", "));
      change(() => ({ selected: [pair] }));
    } else if (event.key === "Enter" && pairs[here] != null) change(() => ({ open: pairs[here] }));
    else return;
    event.preventDefault();
  };
}

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
