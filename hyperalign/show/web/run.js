// The run as this page holds it: columns of numbers, one place for each pair, in the order that validation chose.

const run = JSON.parse(byId("data").textContent);
const nPairs = run.image.length;
const column = (name) => run.columns[name];
const nameOf = (pair) => `${run.images.name[run.image[pair]]}+${run.texts.name[run.text[pair]]}`;
const pairOf = new Map(Array.from({ length: nPairs }, (_, pair) => [nameOf(pair), pair]));
const ofImage = (fact) => run.image.map((place) => run.images[fact][place]);
const ofText = (fact) => run.text.map((place) => run.texts[fact][place]);
const everyPair = Array.from({ length: nPairs }, (_, pair) => pair);

const paramsOf = everyPair.map((pair) => run.images.n_params[run.image[pair]] + run.texts.n_params[run.text[pair]]);

// Whether any pair has a number there.
const isKnown = (values) => values.some((value) => value != null && value !== "");

// The draws, one byte each: how many of 64 steps a draw lies above the lowest draw of its pair.
function readDraws() {
  const text = byId("draws").textContent;
  const levels = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) levels[k] = text.charCodeAt(k) - 63;
  return levels;
}

// Who is better than whom, by score: row p has a bit for each pair that is better at 95 % than pair p.
async function readBetter() {
  const packed = run.chances?.better;
  if (!packed || !("DecompressionStream" in window)) return null;
  const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const flat = new Uint8Array(await new Response(stream).arrayBuffer());
  const width = Math.ceil(nScored() / 8), padded = 4 * Math.ceil(width / 4);
  const rows = new Uint8Array(nScored() * padded);
  for (let p = 0; p < nScored(); p++) {
    for (let k = 0; k < width; k++) {
      rows[p * padded + k] = flat[p * width + k] ^ (p ? rows[(p - 1) * padded + k] : 0);
    }
  }
  return { words: new Uint32Array(rows.buffer), width: padded / 4 };
}

// Pairs that have a test score stand before those that left on a sample.
function nScored() {
  return run.chances ? run.chances.by_score.length : column("score").filter((score) => score != null).length;
}

let held = null; // draws and comparisons, decoded when they are first needed
async function openChances() {
  held ??= run.chances && { levels: readDraws(), better: await readBetter() };
  return held;
}
