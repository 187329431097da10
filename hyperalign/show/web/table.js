// The leaderboard: sorted, filtered, a page of rows at a time, copied as CSV or Markdown.

const ROWS = 50;
const firstOther = run.others.findIndex(({ name, score }) => name.startsWith("ape") && known(score).length > nPairs / 2);
const IMAGE = ofImage("name"), TEXT = ofText("name");

// Columns by key: the head, the value of a pair in an order, and the words for it.
const COLUMNS = [
  { key: "position", head: "#", about: "Place by validation, among the pairs within the limits", value: (pair, order) => order.place[pair], word: whole, on: true },
  { key: "rank", head: "rank", about: "1 + the pairs that are better at 95 %; = where it is shared", value: (pair, order) => order.rank[pair], word: whole, on: true },
  { key: "image", head: "image encoder", value: (pair) => IMAGE[pair], left: true, on: true },
  { key: "text", head: "text encoder", value: (pair) => TEXT[pair], left: true, on: true },
  { key: "score", head: "score", about: `${run.measure}, on the test images`, ...numbers("score", points), on: true },
  { key: "interval", head: "95 % interval", left: true, value: (pair) => column("score_low")[pair], word: (low, pair) => (low == null ? NONE : `${tenths(low)}–${tenths(column("score_high")[pair])}`), on: true },
  { key: "p_best", head: "P(best)", about: "Chance to have the highest expected score", value: (pair, order) => order.pBest[pair], word: chance, on: true },
  ...run.others.map(({ name, score }, k) => ({ key: `other-${k}`, head: name, about: "The same pair by another method, mean over seeds", value: (pair) => score[pair], word: points, on: k === firstOther })),
  ...run.against.map((one, k) => ({ key: `against-${k}`, head: `change from ${one.name}`, about: "Score of this run minus that of the other", value: (pair) => changeFrom(one, pair), word: signed, on: true })),
  { key: "validation", head: "validation", ...numbers("validation_score", points) },
  ...["t2i", "i2t"].flatMap((way) => [1, 5, 10].map((k) => ({ key: `${way}-${k}`, head: `${way === "t2i" ? "text→image" : "image→text"} R@${k}`, ...numbers(`${way}_recall_at_${k}`, points) }))),
  { key: "zero-shot", head: "zero-shot top-1", ...numbers("zero_shot_top_1", points) },
  { key: "cka", head: "CKA", about: "Linear, unbiased; needs no training", ...numbers("cka", (value) => (value == null ? NONE : value.toFixed(3))) },
  { key: "knn", head: "mutual k-NN", about: "Needs no training", ...numbers("mutual_knn", (value) => (value == null ? NONE : value.toFixed(3))) },
  { key: "params-image", head: "params, image", ...facts(ofImage("n_params"), count), on: true },
  { key: "params-text", head: "params, text", ...facts(ofText("n_params"), count), on: true },
  { key: "gflops-image", head: "GFLOP, image", ...facts(ofImage("gflops"), figures3), on: true },
  { key: "gflops-text", head: "GFLOP, text", ...facts(ofText("gflops"), figures3) },
  { key: "latency", head: "latency, ms", ...facts(ofImage("latency_ms"), figures3), on: true },
  { key: "width-image", head: "width, image", ...facts(ofImage("dim"), plain) },
  { key: "width-text", head: "width, text", ...facts(ofText("dim"), plain) },
  { key: "licence-image", head: "licence, image", ...facts(ofImage("license"), String), left: true },
  { key: "licence-text", head: "licence, text", ...facts(ofText("license"), String), left: true },
  { key: "training", head: "training", ...numbers("train_flops", flops) },
  { key: "n-train", head: "training images", ...numbers("n_train", whole) },
].filter(({ known }) => known !== false).map((one) => ({ word: (value) => value || NONE, ...one }));

function numbers(name, word) {
  return facts(column(name), word);
}

function facts(values, word) {
  return { value: (pair) => values[pair], word: (value) => (value == null || value === "" ? NONE : word(value)), known: isKnown(values) };
}

const ofWords = (key) => ["image", "text", "licence-image", "licence-text"].includes(key);
const isShown = (state, { key, on }) => (state.shown ? state.shown.includes(key) : Boolean(on));

// On a narrow screen the score stands where it is seen.
function shownColumns(state) {
  const shown = COLUMNS.filter((one) => isShown(state, one)), early = ({ key }) => !["position", "rank", "score"].includes(key);
  return isNarrow() ? shown.sort((a, b) => early(a) - early(b)) : shown;
}

function matches(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return (pair) => {
    const name = `${IMAGE[pair]} + ${TEXT[pair]}`.toLowerCase();
    return words.every((word) => name.includes(word));
  };
}

// The pairs as the reader wants them. What is missing stands last, whichever way it is sorted.
function arranged(state, order) {
  const pairs = state.query.trim() ? order.pairs.filter(matches(state.query)) : [...order.pairs];
  const { value, key } = COLUMNS.find((one) => one.key === state.sort), sign = state.falling ? -1 : 1;
  if (state.sort === "position" && !state.falling) return pairs;
  const values = new Map(pairs.map((pair) => [pair, value(pair, order)]));
  const compare = ofWords(key) ? new Intl.Collator("en", { numeric: true }).compare : (a, b) => a - b;
  return pairs.sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    if (x == null || x === "" || y == null || y === "") return (x == null || x === "") - (y == null || y === "") || a - b;
    return sign * compare(x, y) || a - b;
  });
}

function drawTable(change) {
  byId("table-tools").hidden = false;
  byId("filter").addEventListener("input", (event) => change(() => ({ query: event.target.value, page: 0 })));
  byId("columns").replaceChildren(...COLUMNS.map((one) => el("label", {}, el("input", {
    type: "checkbox", "data-column": one.key,
    onchange: () => change((state) => {
      const keys = COLUMNS.filter((other) => isShown(state, other) !== (other === one)).map(({ key }) => key);
      return { shown: keys };
    }),
  }), ` ${one.head}`)));
  byId("copy-csv").addEventListener("click", () => copy(asCsv(), "CSV"));
  byId("copy-markdown").addEventListener("click", () => copy(asMarkdown(), "Markdown"));
  for (const [id, step] of [["previous", -1], ["next", 1]]) byId(id).addEventListener("click", () => change(({ page }) => ({ page: page + step })));
  byId("board").addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-pair]");
    if (!row || getSelection().toString()) return;
    const pair = Number(row.dataset.pair), box = event.target.closest("input");
    change(({ selected }) => (box ? { selected: toggled(selected, pair, true) }
      : { selected: toggled(selected, pair, event.shiftKey || event.ctrlKey || event.metaKey), open: pair }));
  });
}

let arrangedNow = { pairs: [], columns: [], order: null }; // what is copied

function showTable(state, order, change) {
  const columns = shownColumns(state), pairs = arranged(state, order), last = Math.max(0, Math.ceil(pairs.length / ROWS) - 1);
  const page = Math.min(state.page, last), rows = pairs.slice(page * ROWS, (page + 1) * ROWS);
  arrangedNow = { pairs, columns, order };
  if (byId("filter").value !== state.query) byId("filter").value = state.query;
  for (const box of byId("columns").querySelectorAll("input")) box.checked = columns.some(({ key }) => key === box.dataset.column);
  const sharing = new Map();
  order.scored.forEach((pair) => sharing.set(order.rank[pair], (sharing.get(order.rank[pair]) ?? 0) + 1));
  const axis = axisOf(rows), focus = focusIn();
  byId("board").replaceChildren(
    el("caption", { class: "unseen" }, "Leaderboard; a row's button opens the pair"),
    el("thead", {}, el("tr", {}, el("th", { class: "pick" }, el("span", { class: "unseen" }, "compare")), columns.map((one) => drawHead(one, state, change)))),
    el("tbody", {}, rows.map((pair) => drawRow(pair, columns, state, order, sharing, axis))),
  );
  if (focus) byId("board").querySelector(focus)?.focus({ preventScroll: true });
  byId("nothing").hidden = pairs.length > 0;
  byId("pager").hidden = pairs.length <= ROWS;
  byId("pages").textContent = `${whole(page * ROWS + 1)}–${whole(page * ROWS + rows.length)} of ${whole(pairs.length)}`;
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === last;
}

// Where the keyboard is in the table, so that it is there when the rows have been drawn anew.
function focusIn() {
  const here = document.activeElement, row = here?.closest?.("#board tr[data-pair]");
  return row && `tr[data-pair="${row.dataset.pair}"] ${here.tagName.toLowerCase()}`;
}

function drawHead({ key, head, about, left }, state, change) {
  const here = state.sort === key, direction = here ? (state.falling ? "descending" : "ascending") : "none";
  const sort = () => {
    change((before) => ({ sort: key, falling: before.sort === key ? !before.falling : !(ofWords(key) || ["position", "rank"].includes(key)), page: 0 }));
    byId("board").querySelector(`[data-sort="${key}"]`).focus();
  };
  return el("th", { scope: "col", class: left ? "word" : null, "aria-sort": direction, title: about },
    el("button", { type: "button", "data-sort": key, onclick: sort }, head, el("span", { class: "arrow", "aria-hidden": "true" }, here ? (state.falling ? "\u00a0↓" : "\u00a0↑") : "")));
}

function drawRow(pair, columns, state, order, sharing, axis) {
  const chosen = state.selected.indexOf(pair), shared = sharing.get(order.rank[pair]) > 1;
  const cells = columns.map(({ key, value, word, left }) => {
    if (key === "image") {
      const label = `${nameOf(pair)}: open`;
      return el("td", { class: "word" }, el("button", { type: "button", class: "open", "aria-label": label, "aria-expanded": String(state.open === pair) }, IMAGE[pair]));
    }
    if (key === "interval") return el("td", { class: "word interval" }, drawInterval(pair, axis), el("span", {}, word(value(pair), pair)));
    const text = word(value(pair, order), pair);
    if (key === "rank" && shared && order.rank[pair] != null) {
      return el("td", { class: "shared", title: `shared by ${whole(sharing.get(order.rank[pair]))} pairs` }, `${text}=`);
    }
    return el("td", { class: left ? "word" : null }, text);
  });
  const pick = el("input", { type: "checkbox", checked: chosen >= 0, "aria-label": `compare ${nameOf(pair)}` });
  return el("tr", { "data-pair": pair, class: [order.rank[pair] === 1 && "first", state.open === pair && "opened"].filter(Boolean).join(" ") },
    el("td", { class: "pick", style: chosen >= 0 ? `--own: var(--pick-${chosen})` : null }, pick), cells);
}

// Where intervals lie on an axis that the rows on this page share.
function axisOf(rows) {
  const low = column("score_low"), high = column("score_high"), known = rows.filter((pair) => low[pair] != null);
  const from = Math.min(...known.map((pair) => low[pair])), to = Math.max(...known.map((pair) => high[pair]));
  return (score) => (to > from ? (100 * (score - from)) / (to - from) : 50).toFixed(1);
}

function drawInterval(pair, axis) {
  const [low, score, high] = ["score_low", "score", "score_high"].map((name) => column(name)[pair]);
  if (low == null || score == null) return null;
  return el("span", { class: "span", "aria-hidden": "true", style: `--from: ${axis(low)}%; --to: ${(100 - axis(high)).toFixed(1)}%; --at: ${axis(score)}%` });
}

// A cell that a spreadsheet would take for a formula is kept from it.
function csvCell(value) {
  const text = value == null ? "" : typeof value === "string" && /^[=+\-@\t]/.test(value) ? `'${value}` : String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function asCsv() {
  const { pairs, columns, order } = arrangedNow, cells = ({ key, value }, pair) => (
    key === "interval" ? [column("score_low")[pair], column("score_high")[pair]] : [value(pair, order)]);
  const head = columns.flatMap(({ key, head }) => (key === "interval" ? ["from", "to"] : [head]));
  return [head, ...pairs.map((pair) => columns.flatMap((one) => cells(one, pair)))].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
}

function asMarkdown() {
  const { pairs, columns, order } = arrangedNow, safe = (text) => String(text).replace(/[\\|<>`*_[\]]/g, "\\$&");
  const rows = pairs.map((pair) => columns.map(({ value, word }) => safe(word(value(pair, order), pair))));
  return [columns.map(({ head }) => safe(head)), columns.map(({ left }) => (left ? "---" : "--:")), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n") + "\n";
}

async function copy(text, form) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "unseen" }); // a page from a disk may not use the clipboard itself
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const said = `${form} copied`;
  byId("copied").textContent = said;
  setTimeout(() => { if (byId("copied").textContent === said) byId("copied").textContent = ""; }, 2000);
}
