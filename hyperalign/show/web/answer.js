// The sentence on top, said anew when limits leave pairs out.

const PLACES = 5; // pairs that are named before the rest is counted

function answerOf(order) {
  const [best] = order.scored;
  if (best == null) {
    return order.pairs.length ? "No pair within these limits has a test score: all of them left on samples of the data."
      : "No pair of this run is within these limits. Move a handle, or reset them.";
  }
  const score = column("score"), names = (pairs) => pairs.map(nameOf);
  let said = `${nameOf(best)} scores ${tenths(score[best])}`;
  if (column("score_low")[best] != null) said += ` (95 % interval ${tenths(column("score_low")[best])} to ${tenths(column("score_high")[best])})`;
  if (order.pBest[best] != null) said += ` and is the best pair with probability ${order.pBest[best].toFixed(2)}`;
  const left = order.pairs.length - order.scored.length;
  if (order.scored.length === 1) return `${said}: ${left ? `${several(left, "other pair")} within the limits left on samples of the data` : "no other pair is within the limits"}.`;
  if (order.rank[best] == null) return `${said}.`;
  const first = order.scored.filter((pair) => order.rank[pair] === 1);
  if (first.length === 1 && order.rank[best] === 1) return `${said}; every other pair is worse with 95 % confidence.`;
  const cheapest = first.reduce((a, b) => (paramsOf[b] < paramsOf[a] ? b : a), first[0]);
  const listed = first.length <= PLACES ? names(first).join(", ") : `${names(first.slice(0, 3)).join(", ")} and ${whole(first.length - 3)} more`;
  const size = `with ${count(paramsOf[cheapest])} parameters`;
  if (order.rank[best] > 1) {
    return `${said}: validation chose it, but on the test images ${several(order.rank[best] - 1, "pair")} `
      + `${order.rank[best] === 2 ? "is" : "are"} better with 95 % confidence. At rank 1: ${listed}; the cheapest of them is ${nameOf(cheapest)}, ${size}.`;
  }
  const which = cheapest === best ? "the first" : `${nameOf(cheapest)}, which scores ${tenths(score[cheapest])}`;
  return `${said}, but ${first.length} pairs are indistinguishable at 95 %: ${listed}. The cheapest of them is ${which}, ${size}.`;
}

const asWritten = ["winner-image", "winner-text", "sentence", "tile-score", "tile-interval", "tile-chance"].map((id) => [id, byId(id)?.textContent]);

function showAnswer(state, order) {
  const free = isFree(state), [best] = order.scored;
  byId("eyebrow").textContent = free ? "Best pair" : "Best pair within your limits";
  ["verified", "tile-used"].forEach((id) => { if (byId(id)) byId(id).hidden = !free; });
  if (free) {
    asWritten.forEach(([id, text]) => { if (byId(id)) byId(id).textContent = text; });
    return;
  }
  const some = best != null, low = some && column("score_low")[best];
  byId("winner-image").textContent = some ? run.images.name[run.image[best]] : "none";
  byId("winner-text").textContent = some ? run.texts.name[run.text[best]] : "none";
  byId("sentence").textContent = answerOf(order);
  byId("tile-score").textContent = some ? tenths(column("score")[best]) : NONE;
  byId("tile-interval").textContent = some && low != null ? `${tenths(low)} – ${tenths(column("score_high")[best])}` : NONE;
  byId("tile-chance").textContent = some ? chance(order.pBest[best]) : NONE;
}
