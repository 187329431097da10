// What the reader has asked for, and the page's address, which keeps it.

const START = { limits: {}, licences: [], query: "", sort: "position", falling: false, shown: null, selected: [], open: null, page: 0, size: "budget" };
let state = { ...START };

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1)), read = { ...START, limits: {} };
  for (const { key } of LIMITS) {
    const range = words.has(key) && readRange(words.get(key));
    if (range) read.limits[key] = range;
  }
  read.licences = words.getAll("license").filter((name) => LICENCES.includes(name));
  read.query = words.get("q") ?? "";
  const sort = words.get("sort") ?? "position";
  read.falling = sort.startsWith("-");
  read.sort = COLUMNS.some(({ key }) => key === sort.replace(/^-/, "")) ? sort.replace(/^-/, "") : START.sort;
  if (words.has("columns")) read.shown = words.get("columns").split(",").filter((key) => COLUMNS.some((one) => one.key === key));
  read.selected = words.getAll("pair").map((name) => pairOf.get(name)).filter((pair) => pair != null).slice(0, MOST_SELECTED);
  read.open = pairOf.get(words.get("open")) ?? null;
  read.page = Math.max(0, (Number(words.get("page")) || 1) - 1);
  if (SIZES.some(({ key }) => key === words.get("size"))) read.size = words.get("size");
  return read;
}

function addressOf(state) {
  const words = new URLSearchParams();
  for (const [key, range] of Object.entries(state.limits)) words.set(key, rangeWords(range));
  state.licences.forEach((name) => words.append("license", name));
  if (state.query) words.set("q", state.query);
  if (state.sort !== START.sort || state.falling) words.set("sort", (state.falling ? "-" : "") + state.sort);
  if (state.shown) words.set("columns", state.shown.join(","));
  state.selected.forEach((pair) => words.append("pair", nameOf(pair)));
  if (state.open != null) words.set("open", nameOf(state.open));
  if (state.page) words.set("page", state.page + 1);
  if (state.size !== START.size) words.set("size", state.size);
  return words.toString();
}

let writing = 0;
function writeAddress() {
  clearTimeout(writing); // browsers refuse an address that changes a hundred times in a few seconds
  writing = setTimeout(() => {
    const words = addressOf(state);
    if (words !== location.hash.slice(1)) history.replaceState(null, "", words ? `#${words}` : location.pathname + location.search);
  }, 150);
}

// A click takes a pair alone, or lets it go; with `more` it joins those that are taken.
function toggled(selected, pair, more) {
  if (more) return selected.includes(pair) ? selected.filter((one) => one !== pair) : [...selected, pair].slice(-MOST_SELECTED);
  return [pair];
}
