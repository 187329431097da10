// This run held against another: what rose, what fell, what each cost.

const MOST_NAMED = 5;

function changeFrom(one, pair) {
  const [now, then] = [column("score")[pair], one.score[pair]];
  return now == null || then == null ? null : now - then;
}

function drawVersus() {
  byId("versus").replaceChildren(...run.against.map((one, k) => el("section", {},
    el("h2", {}, `Against ${one.name}`),
    ...versusWords(one).map((words) => el("p", {}, words)),
    el("div", { class: "two" }, drawMovers("Rose most", one, 1), drawMovers("Fell most", one, -1)),
    el("div", { class: "figure", id: `figure-versus-${k}`, role: "application", "aria-roledescription": "figure", tabindex: "0" }),
  )));
  run.against.forEach((one, k) => addDrawing(`figure-versus-${k}`, (place) => drawChanges(place, one)));
}

function versusWords(one) {
  const both = everyPair.filter((pair) => changeFrom(one, pair) != null), moved = both.map((pair) => changeFrom(one, pair));
  if (!both.length) return [`No pair of this run is in ${one.name}.`];
  const many = (test) => moved.filter(test).length;
  const mean = (values) => points(meanOf(both.map((pair) => values[pair])));
  const said = [`${several(both.length, "pair")} ${both.length === 1 ? "is" : "are"} in both: ${many((value) => value > 0)} rose, ${many((value) => value < 0)} fell; their mean went from ${mean(one.score)} to ${mean(column("score"))}.`];
  if (one.same_test) {
    const sure = (sign) => both.filter((pair) => (sign > 0 ? one.low[pair] > 0 : one.high[pair] < 0)).length;
    said[0] += ` On the same test images ${sure(1)} rose and ${sure(-1)} fell by more than chance would let them in 95 of 100 cases; one in twenty does so without cause.`;
  } else said[0] += " The test images are not known to be the same, so a difference may be one of the data.";
  const now = nameOf(0), best = one.best === now ? `${now} is the first in both` : `${now} is the first here, ${one.best} was there`;
  const alone = [[nPairs - both.length, "here"], [one.only.length, "there"]].filter(([n]) => n).map(([n, where]) => `${several(n, "pair")} only ${where}`);
  said.push(`${[best, ...alone].join("; ")}.`);
  const [cost, before] = one.search_flops;
  if (cost && before) said.push(`The search cost ${flops(cost)} (${run.method}), that one ${flops(before)} (${one.method}): ${times(cost / before)} as much.`);
  return said;
}

function drawMovers(title, one, sign) {
  const pairs = everyPair.filter((pair) => sign * changeFrom(one, pair) > 0).sort((a, b) => sign * (changeFrom(one, b) - changeFrom(one, a))).slice(0, MOST_NAMED);
  const rows = pairs.map((pair) => el("tr", {}, el("th", { scope: "row", class: "word wrap" }, el("button", { type: "button", class: "open", onclick: () => change(() => ({ selected: [pair], open: pair })) }, nameOf(pair))),
    el("td", {}, points(one.score[pair])), el("td", {}, points(column("score")[pair])), el("td", {}, signed(changeFrom(one, pair))),
    el("td", {}, one.low[pair] == null ? "" : `${signed(one.low[pair])} to ${signed(one.high[pair])}`)));
  return el("div", { class: "scroll" }, el("h3", {}, title), pairs.length ? el("table", {}, el("thead", {}, el("tr", {}, ["pair", "then", "now", "change", one.same_test ? "95 %" : ""].map((head, k) => el("th", { class: k ? null : "word" }, head)))), el("tbody", {}, rows)) : el("p", { class: "faint" }, "None."));
}

function drawChanges(place, one) {
  const figure = newFigure({ x_axis_label: `${one.name}, %`, y_axis_label: "this run, %", height: 360 });
  diagonal(figure, one.score, column("score"));
  const layers = pointFigure(place, figure, one.score, column("score"), false);
  layers.addPicked();
  Bokeh.Plotting.show(figure, layers.inner);
  place.setAttribute("aria-label", `Scores of this run against those of ${one.name}`);
  return layers;
}
