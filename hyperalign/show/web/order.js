// The order among the pairs that the limits let through: rank, chance of being the best, the front.

function onesOf(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return (((word + (word >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

// 1 + how many of those let through are better at 95 %; null where there is no score.
function ranksAmong(kept, better) {
  const places = run.chances.by_score, ranks = new Array(nPairs).fill(null), own = column("rank");
  if (!better) return prefixRanks(kept, places, own, ranks);
  const mask = new Uint32Array(better.width);
  places.forEach((pair, p) => { if (kept[pair]) mask[p >>> 5] |= 1 << (p & 31); });
  places.forEach((pair, p) => {
    if (!kept[pair]) return;
    let rank = 1;
    const start = p * better.width, stop = start + (p >>> 5) + 1; // only a higher score can be better
    for (let k = start, m = 0; k < stop; k++, m++) rank += onesOf(better.words[k] & mask[m]);
    ranks[pair] = rank;
  });
  return ranks;
}

// Where the comparisons took too much room: those better than a pair are taken to be the first of the scores.
function prefixRanks(kept, places, own, ranks) {
  const before = [0];
  places.forEach((pair) => before.push(before[before.length - 1] + (kept[pair] ? 1 : 0)));
  places.forEach((pair) => { if (kept[pair]) ranks[pair] = 1 + before[own[pair] - 1]; });
  return ranks;
}

// In how many of the draws each pair is the best of those let through; those that tie share a draw.
function chancesAmong(kept, levels) {
  const { n_draws: n, mean, step } = run.chances, chances = new Array(nPairs).fill(null);
  let floor = -Infinity;
  for (let p = 0; p < mean.length; p++) if (kept[p]) floor = Math.max(floor, mean[p] - 31.5 * step[p]);
  const best = new Float64Array(n).fill(-Infinity), near = [];
  for (let p = 0; p < mean.length; p++) {
    if (!kept[p]) continue;
    chances[p] = 0;
    if (mean[p] + 31.5 * step[p] < floor) continue; // some pair never scores less
    near.push(p);
    const low = mean[p] - 31.5 * step[p], size = step[p];
    for (let d = 0, k = p * n; d < n; d++, k++) best[d] = Math.max(best[d], low + size * levels[k]);
  }
  const ties = new Float64Array(n);
  const eachWin = (act) => {
    for (const p of near) {
      const low = mean[p] - 31.5 * step[p], size = step[p];
      for (let d = 0, k = p * n; d < n; d++, k++) if (low + size * levels[k] === best[d]) act(p, d);
    }
  };
  eachWin((p, d) => { ties[d] += 1; });
  eachWin((p, d) => { chances[p] += 1 / ties[d] / n; });
  return chances;
}

// What the limits make of the run. With nothing left out it is the run's own order, to the last digit.
function orderAmong(kept, everyone) {
  const pairs = everyPair.filter((pair) => kept[pair]);
  const scored = pairs.filter((pair) => column("score")[pair] != null);
  if (everyone || !held) {
    const blank = new Array(nPairs).fill(null);
    return { pairs, scored, rank: everyone ? column("rank") : blank, pBest: everyone ? column("p_best") : blank };
  }
  return { pairs, scored, rank: ranksAmong(kept, held.better), pBest: chancesAmong(kept, held.levels) };
}

// Pairs that none beats on validation with no larger a size, from the smallest up; the first of equals stays.
function frontOf(pairs, size, score) {
  const order = pairs.filter((pair) => size[pair] != null && score[pair] != null);
  order.sort((a, b) => size[a] - size[b] || score[b] - score[a] || a - b);
  let best = -Infinity;
  return order.filter((pair) => score[pair] > best && ((best = score[pair]), true));
}
