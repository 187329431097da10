// One pair in full: what its encoders are, every metric, and the command that takes it home.

const METRICS = [
  ["score", "score"], ["t2i_recall_at_1", "text→image R@1"], ["t2i_recall_at_5", "text→image R@5"], ["t2i_recall_at_10", "text→image R@10"],
  ["i2t_recall_at_1", "image→text R@1"], ["i2t_recall_at_5", "image→text R@5"], ["i2t_recall_at_10", "image→text R@10"], ["zero_shot_top_1", "zero-shot top-1"],
];
const FACT_WORDS = { n_params: ["parameters", whole], gflops: ["GFLOP an item", figures3], latency_ms: ["latency, ms", figures3], dim: ["width", plain], license: ["licence", (value) => value || "not declared"] };

// Wilson's 95 % interval of a share seen in n trials.
function wilson(percent, n) {
  const share = percent / 100, tail = 1.959963984540054 ** 2 / n, half = Math.sqrt(tail * share * (1 - share) + (tail * tail) / 4);
  return [-1, 1].map((sign) => Math.min(100, Math.max(0, (100 * (share + tail / 2 + sign * half)) / (1 + tail))));
}

function showDrawer(state, order, change) {
  const drawer = byId("drawer"), pair = state.open, was = drawer.dataset.pair;
  document.body.classList.toggle("drawn", pair != null);
  drawer.hidden = pair == null;
  if (pair == null) {
    if (was) byId("board").querySelector(`tr[data-pair="${was}"] button.open`)?.focus({ preventScroll: true });
    delete drawer.dataset.pair;
    return;
  }
  const chosen = state.selected.includes(pair), close = () => change(() => ({ open: null }));
  drawer.replaceChildren(
    el("div", { class: "drawer-head" },
      el("h2", { id: "drawer-title", tabindex: "-1" }, IMAGE[pair], el("span", { class: "plus" }, " + "), TEXT[pair]),
      el("button", { type: "button", class: "close", "aria-label": "Close", onclick: close }, "×")),
    el("p", { class: "place" }, placeWords(pair, order)),
    el("p", {}, el("button", { type: "button", "aria-pressed": String(chosen), onclick: () => change(({ selected }) => ({ selected: toggled(selected, pair, true) })) }, chosen ? "In comparison" : "Add to comparison")),
    section("Metrics", drawMetrics(pair)),
    section("Take it home", drawCommand(pair)),
    ...drawPictures(pair),
    section("Image encoder", drawFacts(run.images, run.image[pair])),
    section("Text encoder", drawFacts(run.texts, run.text[pair])),
  );
  if (was !== String(pair)) {
    drawer.scrollTop = 0;
    if (drawer.dataset.byHand) byId("drawer-title").focus({ preventScroll: true });
  }
  drawer.dataset.pair = pair;
}

const section = (title, ...children) => el("section", {}, el("h3", {}, title), ...children);

function placeWords(pair, order) {
  if (!order.pairs.includes(pair)) return "Outside your limits.";
  if (column("score")[pair] == null) return `Left on a sample of ${whole(column("n_train")[pair])} training images; it has no test score.`;
  const shared = order.scored.filter((one) => order.rank[one] === order.rank[pair]).length;
  const rank = order.rank[pair] == null ? "" : `rank ${whole(order.rank[pair])}${shared > 1 ? `, shared by ${whole(shared)}` : ""} · `;
  return `#${whole(order.place[pair])} of ${whole(order.pairs.length)} · ${rank}P(best) ${chance(order.pBest[pair])}`;
}

function drawMetrics(pair) {
  const rows = METRICS.filter(([name]) => column(name)[pair] != null).map(([name, words]) => {
    const value = column(name)[pair], ends = name === "score" ? [column("score_low")[pair], column("score_high")[pair]] : run.n_test ? wilson(value, run.n_test) : [null, null];
    return el("tr", {}, el("th", { scope: "row" }, words), el("td", {}, points(value)), el("td", {}, ends[0] == null ? NONE : `${tenths(ends[0])} – ${tenths(ends[1])}`));
  });
  const more = [...run.others.map(({ name, score }) => [name, points(score[pair])]), ["validation", points(column("validation_score")[pair])],
    ["CKA", column("cka")[pair]?.toFixed(3)], ["mutual k-NN", column("mutual_knn")[pair]?.toFixed(3)]]
    .filter(([, word]) => word && word !== NONE).map(([words, word]) => el("tr", {}, el("th", { scope: "row" }, words), el("td", {}, word), el("td", {})));
  const note = `The score's interval is a bootstrap over test images.${run.n_test ? ` Those of recalls are Wilson's for ${whole(run.n_test)} images, the captions of an image taken as one trial, so they are rather too wide.` : ""}`;
  return [el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, ""), el("th", {}, "%"), el("th", {}, "95 % interval"))), el("tbody", {}, rows, more))), el("p", { class: "note" }, note)];
}

function drawCommand(pair) {
  const command = `hyperalign export ${runFolder()} --pair ${quoted(nameOf(pair))} --to ${quoted(`./${nameOf(pair).replace(/[^\w.+-]/g, "_")}`)}`;
  return [el("pre", { class: "command", tabindex: "0" }, command), el("button", { type: "button", onclick: (event) => { copy(command, "Command"); event.target.textContent = "Copied"; } }, "Copy")];
}

function drawFacts(side, place) {
  const facts = Object.entries(FACT_WORDS).filter(([fact]) => side[fact][place] != null).map(([fact, [words, word]]) => [words, word(side[fact][place])]);
  const all = [["name", side.name[place]], ...facts, ...Object.entries(side.identity[place]).map(([words, value]) => [words.replaceAll("_", " "), value])];
  return el("dl", {}, all.flatMap(([words, value]) => [el("dt", {}, words), el("dd", {}, value)]));
}

// A few test captions and what the pair retrieves for them, where the page was drawn with pictures.
function drawPictures(pair) {
  const found = run.pictures?.pairs[nameOf(pair)];
  if (!found) return [];
  const { captions, thumbnails } = run.pictures;
  return [section("What it retrieves", ...found.map((items, k) => el("figure", { class: "found" }, el("figcaption", {}, `“${captions[k].caption}”`),
    el("div", { class: "thumbs" }, items.map((item, place) => {
      const right = item === captions[k].image;
      return el("img", { src: `data:image/jpeg;base64,${thumbnails[item]}`, class: right ? "right" : null, alt: `place ${place + 1}${right ? ": the caption's own picture" : ""}` });
    })))), el("p", { class: "note" }, "Test captions and the first pictures of the test set for each; the caption's own picture is framed."))];
}
