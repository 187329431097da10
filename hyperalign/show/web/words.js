// Numbers and names as people read them, as in the terminal, and elements that hold them. Names become text, never markup.

const NONE = "–";
const STEPS = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function short(number) {
  return number.toFixed(number < 9.995 ? 2 : number < 99.95 ? 1 : 0);
}

function scaled(number, steps, unit) {
  if (number == null) return NONE;
  for (const [step, sign] of steps) if (number >= step) return `${short(number / step)}${unit && " "}${sign}${unit}`;
  return `${Math.round(number)}${unit && ` ${unit}`}`;
}

const count = (number) => scaled(number, STEPS.slice(2), "");
const flops = (number) => scaled(number, STEPS, "FLOP");
const points = (score) => (score == null ? NONE : score.toFixed(2));
const tenths = (score) => (score == null ? NONE : score.toFixed(1));
const chance = (p) => (p == null ? NONE : p > 0 && p < 0.005 ? "<0.01" : p.toFixed(2));
const figures3 = (number) => (number == null ? NONE : String(Number(number.toPrecision(3))));
const whole = (number) => (number == null ? NONE : number.toLocaleString("en-US"));
const times = (ratio) => (Number.isFinite(ratio) ? `${ratio >= 99.5 ? ratio.toFixed(0) : short(ratio)}×` : NONE);
const signed = (value) => (value == null ? NONE : `${value > 0 ? "+" : value < 0 ? "−" : "±"}${Math.abs(value).toFixed(2)}`);
const several = (number, what) => `${whole(number)} ${what}${number === 1 ? "" : "s"}`;

const known = (values) => values.filter((value) => value != null);

// An element with attributes, listeners (onclick, …) and children; strings become text.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

const byId = (id) => document.getElementById(id);

// Say something to those who listen and do not look.
function announce(sentence) {
  byId("spoken").textContent = sentence;
}
