// Recall of the selected pairs at each depth, and how the networks were trained.

const DEPTHS = [1, 5, 10];

function drawRecall(place) {
  const inner = el("div", { class: "pair-of-figures" });
  place.replaceChildren(inner);
  const both = [["t2i", "a picture for a caption"], ["i2t", "a caption for a picture"]].map(([way, words]) => {
    const figure = newFigure({ height: 260, x_axis_label: `first k: ${words}`, y_axis_label: way === "t2i" ? "recall@k, %" : null, x_axis_type: "log", tools: "", toolbar_location: null });
    figure.below[0].ticker = new Bokeh.Models.FixedTicker({ ticks: DEPTHS, minor_ticks: [] });
    const lines = newSource({ x: [], y: [], color: [] }), ends = newSource({ x: [], y: [], color: [] });
    figure.multi_line({ xs: { field: "x" }, ys: { field: "y" }, source: lines, line_color: { field: "color" }, line_width: 2 });
    figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: ends, size: 7, fill_color: { field: "color" }, line_color: null });
    const box = el("div", {});
    inner.append(box);
    Bokeh.Plotting.show(figure, box);
    return { way, lines, ends };
  });
  let drawn = "";
  return {
    show: (state, order) => {
      byId("recall-hint").hidden = state.selected.length > 0;
      const pairs = shownPairs(state, order);
      if (pairs.join() === drawn) return; // most changes of a limit leave them as they are
      drawn = pairs.join();
      const colors = pairs.map((_, k) => look.picks[k]);
      for (const { way, lines, ends } of both) {
        const heights = pairs.map((pair) => DEPTHS.map((k) => column(`${way}_recall_at_${k}`)[pair]));
        lines.data = { x: pairs.map(() => DEPTHS), y: heights, color: colors };
        ends.data = { x: pairs.flatMap(() => DEPTHS), y: heights.flat(), color: colors.flatMap((color) => DEPTHS.map(() => color)) };
      }
      byId("recall-pairs").replaceChildren(...pairs.map((pair, k) => el("li", { style: `--own: var(--pick-${k})` }, nameOf(pair))));
      place.setAttribute("aria-label", `Recall at 1, 5 and 10. ${pairs.map((pair) => `${nameOf(pair)}: ${DEPTHS.map((k) => tenths(column(`t2i_recall_at_${k}`)[pair])).join(", ")} and ${DEPTHS.map((k) => tenths(column(`i2t_recall_at_${k}`)[pair])).join(", ")}`).join("; ")}.`);
    },
  };
}

// The selected pairs; the first three of the order, where none is.
const shownPairs = (state, order) => (state.selected.length ? state.selected : order.scored.slice(0, 3));

function drawTraining(place) {
  const inner = el("div", {});
  place.replaceChildren(inner);
  run.curves.forEach((curve) => inner.append(drawCurve(curve)));
  return { show: () => {} };
}

// Loss and validation of one network over its steps, on an axis each; where it ended, and what was kept.
function drawCurve(curve) {
  const looks = curve.looks.filter(([, score]) => score != null), box = el("div", {});
  const figure = newFigure({ height: 260, x_axis_label: "step", y_axis_label: "loss, nats", tools: "", toolbar_location: null });
  const over = (points) => newSource({ x: points.map(([step]) => step), y: points.map(([, value]) => value) });
  if (curve.losses.length) figure.y_range = rangeOf(curve.losses.map(([, loss]) => loss), false);
  figure.line({ x: { field: "x" }, y: { field: "y" }, source: over(curve.losses), line_color: look.faint, line_width: 1.5 });
  if (looks.length) {
    figure.extra_y_ranges = new Map([["validation", rangeOf(looks.map(([, score]) => score), false)]]);
    const axis = new Bokeh.LinearAxis({ y_range_name: "validation", axis_label: "validation, %", axis_label_text_color: look.mark, axis_label_text_font_style: "normal", axis_label_text_font_size: "12px", major_label_text_color: look.mark, major_label_text_font_size: "12px", axis_line_color: look.line, major_tick_line_color: look.line, minor_tick_line_color: null });
    figure.add_layout(axis, "right");
    figure.line({ x: { field: "x" }, y: { field: "y" }, source: over(looks), y_range_name: "validation", line_color: look.mark, line_width: 2 });
    figure.scatter({ x: { field: "x" }, y: { field: "y" }, source: over(looks), y_range_name: "validation", size: 8, fill_color: look.mark, line_color: look.ground });
  }
  const marked = (step, color) => figure.add_layout(new Bokeh.Span({ location: step, dimension: "height", line_color: color, line_dash: "dashed", line_width: 1.5 }));
  if (curve.kept != null) marked(curve.kept, look.ink);
  if (curve.diverged != null) marked(curve.diverged, look.warn);
  Bokeh.Plotting.show(figure, box);
  return el("div", { class: "curve" }, el("p", {}, curveWords(curve, looks)), box);
}

function curveWords({ name, kept, n_steps: steps, diverged }, looks) {
  const [first, last] = [looks[0], looks[looks.length - 1]];
  const parts = [`${name}: `];
  if (looks.length > 1) parts.push(`validation from ${points(first[1])} to ${points(last[1])} % in ${whole(last[0])} steps`);
  if (diverged != null) parts.push(`; it collapsed at step ${whole(diverged)}, where a loss was not finite`);
  if (kept != null) parts.push(`; rolled back to step ${whole(kept)} of ${whole(steps)} (dashed), the best on validation`);
  return `${parts.join("")}.`;
}
