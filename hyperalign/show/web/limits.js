// The limits: what each bounds, whether a pair passes, and the words that say the same to the program.

const plain = (number) => String(number);
const LIMITS = [
  { key: "budget", label: "Image parameters", values: ofImage("n_params"), word: count },
  { key: "text-budget", label: "Text parameters", values: ofText("n_params"), word: count },
  { key: "pair-budget", label: "Both together", values: paramsOf, word: count },
  { key: "max-gflops", label: "GFLOP a picture", values: ofImage("gflops"), word: figures3 },
  { key: "max-latency", label: "Latency, ms", values: ofImage("latency_ms"), word: figures3 },
  { key: "dim", label: "Image width", values: ofImage("dim"), word: plain },
].map((limit) => ({ ...limit, steps: [...new Set(limit.values.filter((value) => value != null))].sort((a, b) => a - b) }))
  .filter((limit) => limit.steps.length > 1);

const licencesOf = [ofImage("license"), ofText("license")];
const LICENCES = [...new Set(licencesOf.flat().filter(Boolean))].sort((a, b) => a.localeCompare(b, "en"));

const isFree = (state) => !Object.keys(state.limits).length && !state.licences.length;

// 1 for each pair that is let through. What is not known passes only where nothing is asked of it.
function passing(state) {
  const kept = new Uint8Array(nPairs).fill(1);
  for (const { key, values } of LIMITS) {
    const range = state.limits[key];
    if (!range) continue;
    const [low, high] = range;
    values.forEach((value, pair) => {
      if (value == null || (low != null && value < low) || (high != null && value > high)) kept[pair] = 0;
    });
  }
  if (state.licences.length) {
    const permitted = new Set(state.licences.map((name) => name.toLowerCase()));
    licencesOf.forEach((names) => names.forEach((name, pair) => {
      if (!permitted.has(name.toLowerCase())) kept[pair] = 0;
    }));
  }
  return kept;
}

const rangeWords = ([low, high]) => (low === high ? `${low}:${high}` : `${low ?? ""}:${high ?? ""}`);

function readRange(text) {
  const [low, high] = text.split(":").map((end) => (end.trim() === "" ? null : Number(end)));
  return [low, high ?? null].some((end) => end != null && !Number.isFinite(end)) ? null : [low, high ?? null];
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

// Where the run lies: beside this page, if that was opened from a disk.
function runFolder() {
  if (location.protocol !== "file:") return quoted(`reports/${run.folder}`);
  return quoted(decodeURIComponent(location.pathname).replace(/\/[^/]*$/, ""));
}

// The command that asks the program the same.
function limitsCommand(state) {
  const ranges = Object.entries(state.limits).map(([key, range]) => `--${key} ${rangeWords(range)}`);
  const licences = state.licences.length ? [`--license ${quoted(state.licences.join(","))}`] : [];
  return ["hyperalign report", runFolder(), ...ranges, ...licences].join(" ");
}

// Two handles on one track for each limit, a step for each value that occurs; and a choice of licences.
function drawLimits(change) {
  byId("sliders").replaceChildren(...LIMITS.map((limit) => drawSlider(limit, change)));
  byId("licences").replaceChildren(...LICENCES.map((name) => drawLicence(name, change)));
  byId("licence-box").hidden = LICENCES.length < 1;
}

function drawSlider(limit, change) {
  const last = limit.steps.length - 1, said = el("output", { class: "bounds" }), fill = el("span", { class: "fill" });
  const handle = (name, value) => el("input", {
    type: "range", min: 0, max: last, step: 1, value, "aria-label": `${limit.label}: ${name}`, oninput: moved,
  });
  const low = handle("at least", 0), high = handle("at most", last);
  function moved(event) {
    const a = Number(low.value), b = Number(high.value);
    if (a > b) (event.target === low ? high : low).value = event.target.value;
    const ends = [Number(low.value), Number(high.value)];
    const range = [ends[0] > 0 ? limit.steps[ends[0]] : null, ends[1] < last ? limit.steps[ends[1]] : null];
    change((state) => {
      const limits = { ...state.limits };
      if (range[0] == null && range[1] == null) delete limits[limit.key];
      else limits[limit.key] = range;
      return { limits, page: 0 };
    });
  }
  limit.show = (state) => {
    const [a, b] = state.limits[limit.key] ?? [null, null];
    const first = a == null ? 0 : Math.min(last, limit.steps.findIndex((value) => value >= a) + (limit.steps[last] < a) * (last + 1));
    const final = b == null ? last : Math.max(0, limit.steps.findLastIndex((value) => value <= b));
    low.value = first;
    high.value = final;
    fill.style.left = `${(100 * first) / last}%`;
    fill.style.right = `${100 - (100 * final) / last}%`;
    for (const [input, place] of [[low, first], [high, final]]) input.setAttribute("aria-valuetext", limit.word(limit.steps[place]));
    const words = [a ?? limit.steps[0], b ?? limit.steps[last]].map(limit.word);
    said.textContent = words[0] === words[1] ? words[0] : `${words[0]} – ${words[1]}`;
    said.classList.toggle("bound", a != null || b != null);
  };
  return el("div", { class: "slider" },
    el("div", { class: "slider-head" }, el("b", {}, limit.label), said),
    el("div", { class: "track" }, fill, low, high));
}

function drawLicence(name, change) {
  const toggle = () => change((state) => {
    const chosen = state.licences.includes(name);
    return { licences: chosen ? state.licences.filter((one) => one !== name) : [...state.licences, name].sort(), page: 0 };
  });
  return el("button", { type: "button", class: "chip", "data-licence": name, "aria-pressed": "false", onclick: toggle }, name);
}

function showLimits(state, order) {
  LIMITS.forEach((limit) => limit.show(state));
  for (const chip of byId("licences").children) {
    chip.setAttribute("aria-pressed", String(state.licences.includes(chip.dataset.licence)));
  }
  const free = isFree(state);
  byId("within").textContent = `${whole(order.pairs.length)} of ${several(nPairs, "pair")}`;
  byId("reset").disabled = free;
  byId("same").hidden = free;
  byId("roughly").hidden = free || !held || Boolean(held.better);
  byId("command").textContent = limitsCommand(state);
}
