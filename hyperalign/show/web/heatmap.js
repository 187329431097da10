// The grid: image encoders by text encoders, each side by its mean score, the best at the top left.

const FEW = 40; // encoders of a side whose names fit beside it

function drawHeatmap(place) {
  const score = column("score"), sides = [sideOrder(run.image, run.images.name.length), sideOrder(run.text, run.texts.name.length)];
  const [images, texts] = sides, wide = images.length, high = texts.length;
  const longest = Math.max(...images.map((k) => run.images.name[k].length));
  const named = wide <= FEW && place.clientWidth > 24 * wide + 200;
  const cell = new Map(everyPair.map((pair) => [run.image[pair] * 65536 + run.text[pair], pair]));
  const pairAt = (x, y) => cell.get(images[Math.floor(x)] * 65536 + texts[high - 1 - Math.floor(y)]) ?? null;
  const placeOf = [new Map(images.map((image, k) => [image, k])), new Map(texts.map((text, k) => [text, high - 1 - k]))];
  const middle = (pair) => [placeOf[0].get(run.image[pair]) + 0.5, placeOf[1].get(run.text[pair]) + 0.5];
  const figure = newFigure({ x_range: new Bokeh.Range1d({ start: 0, end: wide }), y_range: new Bokeh.Range1d({ start: 0, end: high }), height: Math.max(12, 26 - Math.floor(high / 4)) * high + (named ? 30 + 5.5 * longest : 50) });
  labelAxis(figure.below[0], named ? images.map((k) => run.images.name[k]) : [], Math.PI / 4);
  labelAxis(figure.left[0], high <= FEW ? [...texts].reverse().map((k) => run.texts.name[k]) : [], "horizontal");
  if (!named) figure.below[0].axis_label = `${several(wide, "image encoder")}, the best first`;
  if (high > FEW) figure.left[0].axis_label = `${several(high, "text encoder")}, the best first`;
  figure.center.forEach((grid) => { grid.grid_line_color = null; });
  const values = new Float64Array(wide * high), picture = newSource({ image: [] });
  const scores = known(score);
  const mapper = new Bokeh.LinearColorMapper({ palette: shades(look.ramp, 128), low: Math.min(...scores), high: Math.max(...scores), nan_color: look.ground });
  figure.image({ image: { field: "image" }, x: 0, y: 0, dw: wide, dh: high, source: picture, color_mapper: mapper });
  figure.add_layout(new Bokeh.ColorBar({ color_mapper: mapper, width: 10, padding: 4, label_standoff: 6, background_fill_color: look.ground, major_label_text_color: look.faint, major_tick_line_color: null, bar_line_color: null }), "right");
  const picked = newSource({ x: [], y: [], color: [] });
  figure.rect({ x: { field: "x" }, y: { field: "y" }, width: 1, height: 1, source: picked, fill_color: null, line_color: { field: "color" }, line_width: 3 });
  const inner = el("div", {});
  place.replaceChildren(inner);
  const tip = newTip(place);
  figure.on_event("mousemove", (event) => {
    const pair = pairAt(event.x, event.y);
    place.classList.toggle("pointing", pair != null);
    if (pair == null) tip.hide();
    else tip.show(tipOf(pair), event.sx, event.sy);
  });
  figure.on_event("mouseleave", tip.hide);
  figure.on_event("tap", (event) => {
    const pair = pairAt(event.x, event.y);
    if (pair != null) onPair.tap(pair, wantsMore(event));
  });
  walk(place, () => everyPair.filter((pair) => score[pair] != null).sort((a, b) => middle(b)[1] - middle(a)[1] || middle(a)[0] - middle(b)[0]), onPair);
  Bokeh.Plotting.show(figure, inner);
  place.setAttribute("aria-label", `Scores of all pairs. Image encoders from the best: ${images.slice(0, 5).map((k) => run.images.name[k]).join(", ")}. Text encoders from the best: ${texts.slice(0, 5).map((k) => run.texts.name[k]).join(", ")}.`);
  return {
    show: (state, order) => {
      values.fill(NaN);
      for (const pair of order.scored) {
        const [x, y] = middle(pair);
        values[Math.floor(y) * wide + Math.floor(x)] = score[pair];
      }
      picture.data = { image: [Bokeh.require("core/util/ndarray").ndarray(values.slice(), { shape: [high, wide], dtype: "float64" })] };
      const chosen = state.selected.map(middle);
      picked.data = { x: chosen.map(([x]) => x), y: chosen.map(([, y]) => y), color: chosen.map((_, k) => look.picks[k]) };
    },
  };
}

// Encoders of a side by the mean score of their pairs, the best first.
function sideOrder(places, n) {
  const sums = Array.from({ length: n }, () => []);
  places.forEach((place, pair) => { if (column("score")[pair] != null) sums[place].push(column("score")[pair]); });
  const mean = sums.map(meanOf);
  return [...mean.keys()].filter((k) => mean[k] != null).sort((a, b) => mean[b] - mean[a] || a - b);
}
