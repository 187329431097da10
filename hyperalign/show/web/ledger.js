// What was spent on what, beside what the baseline's grid would have cost. Costs differ by powers of ten, so the axis is
// logarithmic and each cost is a point on a line, not the length of a bar.

function costLines() {
  const own = run.costs.filter((line) => line.flops > 0 && (line.method === "" || line.method.startsWith(run.method) || line.stage === "verification"));
  const merged = new Map();
  for (const { stage, flops: cost } of own.filter(({ stage }) => stage !== "optimiser")) merged.set(stage, (merged.get(stage) ?? 0) + cost);
  const stages = [...merged].map(([stage, cost]) => ({ name: stage === "training" ? `training, ${run.method}` : stage, cost, kind: "own" }));
  const searched = run.ratios[0]?.method_flops;
  const sum = searched ? [{ name: "the search: set-up, training, validation", cost: searched, kind: "sum" }] : [];
  const baseline = run.ratios.map(({ setting, baseline_flops: cost }) => ({ name: `ape on every pair, ${setting}`, cost, kind: "baseline" }));
  return [...stages, ...sum, ...baseline];
}

function drawLedger(place) {
  const lines = costLines().reverse(), costs = lines.map(({ cost }) => cost), inner = el("div", {});
  if (!lines.length) return null;
  place.replaceChildren(inner);
  const colors = lines.map(({ kind }) => ({ own: look.mark, sum: look.ink, baseline: look.warn })[kind]), rows = lines.map((_, k) => k + 0.5);
  const from = Math.min(...costs) / 3, to = Math.max(...costs) * 12;
  const narrow = isNarrow(), names = lines.map(({ name }) => name);
  const figure = newFigure({ height: 60 + (narrow ? 46 : 30) * lines.length, x_axis_type: "log", x_range: new Bokeh.Range1d({ start: from, end: to }), y_range: new Bokeh.Range1d({ start: 0, end: lines.length }), tools: "", toolbar_location: null });
  nameTicks(figure.below[0], flops, place);
  labelAxis(figure.left[0], narrow ? [] : names, "horizontal");
  const source = newSource({ from: costs.map(() => from), cost: costs, row: rows, color: colors, words: costs.map(flops), names });
  figure.segment({ x0: { field: "from" }, y0: { field: "row" }, x1: { field: "cost" }, y1: { field: "row" }, source, line_color: { field: "color" }, line_width: 2 });
  figure.scatter({ x: { field: "cost" }, y: { field: "row" }, source, size: 11, fill_color: { field: "color" }, line_color: null });
  figure.text({ x: { field: "cost" }, y: { field: "row" }, text: { field: "words" }, source, x_offset: 12, text_baseline: "middle", text_color: look.ink, text_font: "system-ui, sans-serif", text_font_size: "12px" });
  if (narrow) figure.text({ x: { field: "from" }, y: { field: "row" }, text: { field: "names" }, source, y_offset: -8, text_color: look.faint, text_font: "system-ui, sans-serif", text_font_size: "12px" });
  Bokeh.Plotting.show(figure, inner);
  place.setAttribute("aria-label", `Costs. ${[...lines].reverse().map(({ name, cost }) => `${name}: ${flops(cost)}`).join("; ")}.`);
  return { show: () => {} };
}
