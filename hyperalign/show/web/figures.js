// What all figures share: BokehJS in the colours of the page, a word at the pointer, and being drawn when looked at.

const MOST_SELECTED = 8; // as many as there are colours for them

const look = {};
function readLook() {
  const style = getComputedStyle(document.documentElement);
  document.documentElement.dataset.look = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  for (const name of ["ground", "panel", "ink", "faint", "line", "mark", "band", "ghost", "warn"]) look[name] = style.getPropertyValue(`--${name}`).trim();
  look.picks = Array.from({ length: MOST_SELECTED }, (_, k) => style.getPropertyValue(`--pick-${k}`).trim());
  look.ramp = style.getPropertyValue("--ramp").split(",").map((color) => color.trim());
}

// A figure without a frame, in the page's own ink. `options` go to Bokeh.
function newFigure(options) {
  const figure = Bokeh.Plotting.figure({
    sizing_mode: "stretch_width", height: 320, tools: "box_zoom,reset,save", toolbar_location: "right",
    background_fill_color: look.ground, border_fill_color: look.ground, outline_line_color: null, min_border: 4, ...options,
  });
  figure.toolbar.logo = null;
  figure.toolbar.autohide = true;
  const font = { text_color: look.faint, text_font: "system-ui, sans-serif", text_font_size: "12px" };
  for (const axis of [...figure.below, ...figure.left]) {
    axis.axis_line_color = look.line;
    axis.major_tick_line_color = look.line;
    axis.minor_tick_line_color = null;
    axis.axis_label_standoff = 8;
    for (const [name, value] of Object.entries(font)) {
      axis[`axis_label_${name}`] = value;
      axis[`major_label_${name}`] = value;
    }
    axis.axis_label_text_font_style = "normal";
  }
  for (const grid of figure.center) {
    grid.grid_line_color = look.line;
    grid.grid_line_alpha = 0.6;
  }
  return figure;
}

// Ticks in our own words, as few as there is room for.
function nameTicks(axis, word, place) {
  const made = new Bokeh.Models.BasicTickFormatter();
  made.doFormat = (ticks) => ticks.map((tick) => word(tick).replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, ""));
  axis.formatter = made;
  axis.ticker.desired_num_ticks = Math.max(4, Math.floor(place.clientWidth / 110));
}

const isNarrow = () => matchMedia("(max-width: 40rem)").matches;

const newSource = (data) => new Bokeh.ColumnDataSource({ data });

const drawings = []; // what can be drawn: id of its place, how, and how it follows the state

// A figure is drawn when it comes near the screen and follows the state while it is there.
function addDrawing(id, draw) {
  const place = byId(id);
  if (place) drawings.push({ place, draw, figure: null, near: false, stale: true });
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const drawing = drawings.find(({ place }) => place === target);
    drawing.near = isIntersecting;
    if (isIntersecting) refresh(drawing);
  }
}, { rootMargin: "200px" });

function refresh(drawing) {
  if (!drawing.stale || !seen) return;
  drawing.stale = false;
  if (!drawing.figure) {
    drawing.figure = drawing.draw(drawing.place, seen.state, seen.order);
    if (!drawing.figure) return;
  }
  drawing.figure.show(seen.state, seen.order);
}

let seen = null; // the state and order that figures are to show
let due = 0;

// Figures follow a frame after the words, and only the last of several changes: a handle is never held up by them.
function figuresSoon(state, order) {
  seen = { state, order };
  cancelAnimationFrame(due);
  due = requestAnimationFrame(() => setTimeout(showFigures));
}

function showFigures() {
  for (const drawing of drawings) {
    drawing.stale = true;
    if (drawing.near) refresh(drawing);
  }
}

function watchFigures() {
  readLook();
  drawings.forEach(({ place }) => watcher.observe(place));
  setTimeout(drawTheRest, 1500);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawFigures);
}

// What has not been looked at is drawn one by one when nothing else is to do, so that a printed page has it.
function drawTheRest() {
  const next = drawings.find(({ figure, stale }) => !figure && stale);
  if (!next) return;
  refresh(next);
  setTimeout(drawTheRest, 300);
}

function redrawFigures() {
  if (matchMedia("print").matches) return; // paper is light; a dark figure is turned by the style
  readLook();
  for (const drawing of drawings) {
    drawing.place.replaceChildren();
    drawing.figure = null;
    drawing.stale = true;
    if (drawing.near) refresh(drawing);
  }
}

// The word at the pointer; one for each figure, of text alone.
function newTip(place) {
  const tip = el("div", { class: "tip", hidden: true });
  place.append(tip);
  return {
    hide: () => { tip.hidden = true; },
    show: (lines, x, y) => {
      tip.replaceChildren(...lines.map((line, k) => el("div", { class: k ? null : "head" }, line)));
      tip.hidden = false;
      const room = place.clientWidth;
      tip.style.left = `${Math.max(0, Math.min(x + 14, room - tip.offsetWidth))}px`;
      tip.style.top = `${Math.max(0, y - tip.offsetHeight - 10)}px`;
    },
  };
}

// From the least to the most, with a margin.
function rangeOf(values, isLog) {
  const ends = [Math.min(...values), Math.max(...values)].map((end) => (isLog ? Math.log(end) : end)), room = 0.06 * (ends[1] - ends[0]) || 0.5;
  const [start, end] = [ends[0] - room, ends[1] + room].map((place) => (isLog ? Math.exp(place) : place));
  return new Bokeh.Range1d({ start, end });
}

// Names beside rows or columns, the first at the start of the axis.
function labelAxis(axis, names, turn) {
  const most = isNarrow() ? 16 : 48;
  axis.ticker = new Bokeh.Models.FixedTicker({ ticks: names.map((_, k) => k + 0.5), minor_ticks: [] });
  axis.major_label_overrides = new Map(names.map((one, k) => [k + 0.5, one.length > most ? `${one.slice(0, most - 1)}…` : one]));
  axis.major_label_orientation = turn;
  axis.major_tick_line_color = null;
  axis.axis_line_color = null;
}

// Colours between the stops of a ramp.
function shades(stops, n) {
  const parts = stops.map((color) => [1, 3, 5].map((k) => parseInt(color.slice(k, k + 2), 16)));
  return Array.from({ length: n }, (_, k) => {
    const along = (k / (n - 1)) * (parts.length - 1), first = Math.min(Math.floor(along), parts.length - 2);
    const mix = parts[first].map((from, c) => Math.round(from + (along - first) * (parts[first + 1][c] - from)));
    return `#${mix.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
  });
}
