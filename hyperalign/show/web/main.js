// From a change of what is asked to all that is shown.

let kept = null, order = null, limitsOf = null;

// The order is found anew only where limits have changed.
function orderOf(state) {
  const limits = JSON.stringify([state.limits, state.licences, Boolean(held)]);
  if (limits !== limitsOf) {
    limitsOf = limits;
    kept = passing(state);
    order = orderAmong(kept, isFree(state));
    order.place = new Array(nPairs).fill(null);
    order.pairs.forEach((pair, k) => { order.place[pair] = k + 1; });
  }
  return order;
}

function change(patch) {
  const asked = patch(state);
  state = { ...state, ...asked };
  if (asked.open != null) byId("drawer").dataset.byHand = "yes";
  update();
  if (!isFree(state) && !held && run.chances) openChances().then(update);
}

function update() {
  const order = orderOf(state);
  showLimits(state, order);
  showAnswer(state, order);
  showTable(state, order, change);
  showSelected();
  showDrawer(state, order, change);
  figuresSoon(state, order);
  writeAddress();
}

// The pairs that are compared, each in its colour.
function showSelected() {
  byId("selected").hidden = !state.selected.length;
  byId("selected").replaceChildren(el("span", { class: "faint" }, "Comparing "), ...state.selected.map((pair, k) => el("button", {
    type: "button", class: "chip picked", style: `--own: var(--pick-${k})`, "aria-label": `${nameOf(pair)}: take out of the comparison`,
    onclick: () => change(({ selected }) => ({ selected: selected.filter((one) => one !== pair) })),
  }, nameOf(pair), el("span", { "aria-hidden": "true" }, " ×"))), el("button", { type: "button", class: "chip", onclick: () => change(() => ({ selected: [], open: null })) }, "Clear"));
}

function start() {
  document.documentElement.classList.add("alive");
  if (matchMedia("(max-width: 62rem)").matches) byId("limits").querySelector("details").open = false;
  drawLimits(change);
  drawTable(change);
  byId("reset").addEventListener("click", () => change(() => ({ limits: {}, licences: [], page: 0 })));
  byId("link").addEventListener("click", () => { history.replaceState(null, "", `#${addressOf(state)}`); copy(location.href, "Link"); announce("Link copied"); });
  addDrawing("figure-scatter", drawScatter);
  addDrawing("figure-heatmap", drawHeatmap);
  if (run.reference) addDrawing("figure-agreement", drawAgreement);
  addDrawing("figure-recall", drawRecall);
  if (run.curves.length) addDrawing("figure-training", drawTraining);
  addDrawing("figure-ledger", drawLedger);
  drawVersus();
  showStudy(run.study);
  byId("size").replaceChildren(...SIZES.map(({ key, label }) => el("option", { value: key }, label)));
  byId("size").addEventListener("change", (event) => { change(() => ({ size: event.target.value })); redrawFigures(); });
  addEventListener("hashchange", () => (byId(location.hash.slice(1)) ? writeAddress() : restore())); // a link within the page
  addEventListener("keydown", (event) => { if (event.key === "Escape" && state.open != null) change(() => ({ open: null })); });
  watchFigures();
  restore();
}

async function restore() {
  state = readAddress();
  byId("size").value = state.size;
  if (!isFree(state)) await openChances();
  update();
}

start();
