"""A study over pairs against promotion: what TPE and GP find, and what they embed for it.

Everything is embedded once, so that every pair's scores are known: on all of validation by the method that answers,
and on the samples by the closed form. Studies and promotion are then replayed over the same rows. A trial embeds its
two encoders as far as no trial before it has, and at the end the best pair is embedded whole, test items too, as
promotion embeds its winner. FLOPs of embedding are counted from the encoders' own and not from what a cache held.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Grid
from hyperalign.bench.opened import open_bench
from hyperalign.bench.planted import plant
from hyperalign.bench.promotion import Replay, part
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.ladder import Items, Prices, encoders_of
from hyperalign.promote import Samples, judge
from hyperalign.study.asked import StudyConfig
from hyperalign.study.pairs import draw_trial_samples
from hyperalign.study.replay import Tried, replay_pairs

__all__ = ["measure"]

TRIALS = (10, 20, 40)
SAMPLERS = ("random", "tpe", "gp")
PRUNERS = ("none", "median", "hyperband")
_PLANTED = (  # shape of a grid, and items of train, validation and test
    ((60, 6), (3200, 400, 400)),
    ((300, 6), (800, 100, 100)),  # so many encoders for so few items that a sample for everyone is dear
)
_NOTES = (
    "regret: test score of the pair that everything embedded would choose, minus that of the one chosen; means over "
    "the seeds. share: of embedding everything with everyone",
    "trials that are pruned have embedded samples alone; without pruning every trial embeds its pair whole",
)


def measure(asked: Asked) -> list[Sheet]:
    """The real grid that is asked for, and planted ones of many encoders."""
    opened = open_bench(asked)
    grids = (opened.prepared.train, opened.prepared.val, opened.prepared.test)
    replay = Replay(asked, opened.candidates, opened.prepared, _items(grids))
    words = f"{len(opened.candidates.images)} + {len(opened.candidates.texts)} encoders on {asked.config.data}"
    sheets = [_sheet(words, _Known(replay, replay.test, asked))]
    planted = _PLANTED if asked.shape is None else ((asked.shape, _PLANTED[0][1]),)
    return [*sheets, *(_planted_sheet(asked, shape, sizes) for shape, sizes in planted)]


def _planted_sheet(asked: Asked, shape: tuple[int, int], sizes: tuple[int, int, int]) -> Sheet:
    """A grid whose best pairs are known, judged in closed form."""
    asked.say(f"planting {shape[0]} + {shape[1]} encoders over {sum(sizes):,} items")
    planted = plant(shape, sizes, seed=asked.config.seed)
    grids = (planted.prepared.train, planted.prepared.val, planted.prepared.test)
    prices = Prices(*(np.array([1e9 * (spec.gflops or 0) for spec in side]) for side in _sides(planted.candidates)))
    asked = replace(asked, config=replace(asked.config, methods=("closed-form",)))
    replay = Replay(asked, planted.candidates, planted.prepared, _items(grids), prices)
    words = f"{shape[0]} + {shape[1]} planted encoders, {sum(sizes):,} items"
    return _sheet(words, _Known(replay, planted.truth, asked))


def _sides(candidates: Any) -> tuple[Any, Any]:
    return candidates.images, candidates.texts


def _items(grids: Sequence[Grid]) -> Items:
    n_pictures, n_captions = sum(grid.n_images for grid in grids), sum(grid.n_captions for grid in grids)
    return Items(grids[0].n_images, grids[1].n_images, n_pictures, n_captions)


class _Known:
    """What is known of every pair, and what trials on them cost."""

    def __init__(self, replay: Replay, truth: NDArray[np.float64], asked: Asked) -> None:
        """Judge every pair on every sample, under every order of the pictures."""
        self.replay, self.truth, self.asked = replay, truth, asked
        self.names = [pair.name for pair in replay.candidates.pairs]
        self.named = [(pair.image.name, pair.text.name) for pair in replay.candidates.pairs]
        self.scores = dict(zip(self.named, replay.validation.tolist(), strict=True))
        self.samples: dict[int, Samples] = {}
        self.sampled: dict[int, list[Mapping[tuple[str, str], float]]] = {}
        for seed in asked.seeds():
            train, val = replay.prepared.train, replay.prepared.val
            self.samples[seed] = draw_trial_samples(train.owner, val.owner, seed=seed)
            self.sampled[seed] = []
            for done, items in enumerate(self.samples[seed].items, start=1):
                self.sampled[seed].append(self._judged(self.samples[seed], items))
                asked.progress(f"every pair on samples, seed {seed}", done, len(self.samples[seed].items))

    def _judged(self, samples: Samples, items: Items) -> dict[tuple[str, str], float]:
        encoders = encoders_of(self.replay.pairs)
        grids = (self.replay.prepared.train, self.replay.prepared.val)
        train, val = (
            part(grid, encoders, pictures) for grid, pictures in zip(grids, samples.pictures(items), strict=True)
        )
        found = judge(train, val, self.replay.pairs, self.asked.config.recipe().canonical)
        hits, trials = (one.sum(1, dtype=np.float64) for one in found.contributions)
        scores = 100 * (hits / trials[:, None]).mean(0)
        return dict(zip(self.named, scores.tolist(), strict=True))

    def study(self, sampler: str, pruner: str, seed: int) -> list[Tried]:
        """The trials of one study."""
        samples = () if pruner == "none" else self.samples[seed].items
        return replay_pairs(
            StudyConfig(over="pairs", sampler=sampler, pruner=pruner, trials=max(TRIALS)),
            self.scores,
            self.sampled[seed] if samples else (),
            steps=[items.n_train for items in samples],
            seed=seed,
            progress=lambda done, total: self.asked.progress(f"{sampler}, {pruner}, seed {seed}, trials", done, total),
        )

    def flops(self, tried: Sequence[Tried], chosen: int, seed: int) -> float:
        """What the trials embed, each encoder no item twice, and the rest for the pair that is chosen."""
        samples, whole = self.samples[seed].items, self.replay.whole
        grids = (self.replay.prepared.train, self.replay.prepared.val)
        no_test = _items(grids)
        farthest: tuple[dict[int, Items], dict[int, Items]] = ({}, {})
        at = {pair: index for pair, index in zip(self.named, self.replay.pairs, strict=True)}
        for trial in tried:
            reached = no_test if trial.score is not None else samples[trial.n_samples - 1]
            for side, encoder in zip(farthest, at[trial.pair], strict=True):
                side[encoder] = max(side.get(encoder, reached), reached, key=lambda items: items.n_pictures)
        for side, encoder in zip(farthest, self.replay.pairs[chosen], strict=True):
            side[encoder] = whole
        return sum(self.replay.prices.flops(((i,), ()), items) for i, items in farthest[0].items()) + sum(
            self.replay.prices.flops(((), (j,)), items) for j, items in farthest[1].items()
        )

    def row(self, words: Mapping[str, Any], chosen: Sequence[int], flops: Sequence[float]) -> dict[str, Any]:
        """One line: means over the seeds."""
        best = float(self.truth[int(self.replay.validation.argmax())])
        every = self.replay.prices.flops(encoders_of(self.replay.pairs), self.replay.whole)
        regrets = [best - float(self.truth[index]) for index in chosen]
        return {
            **words,
            "embedding_flops": float(np.mean(flops)),
            "embedding_share": float(np.mean(flops)) / every,
            "regret_score": float(np.mean(regrets)),
            "worst_regret_score": max(regrets),
        }


def _sheet(words: str, known: _Known) -> Sheet:
    replay, seeds = known.replay, list(known.asked.seeds())
    ladders = [replay.climb(seed) for seed in seeds]
    winners = [replay.pairs.index(replay.winner(ladder)) for ladder in ladders]
    rows = [
        known.row(
            {"who": "promoted grid", "ended_early_by": "bootstrap", "trials": 0, "whole_pairs": 0.0},
            winners,
            [ladder.flops for ladder in ladders],
        )
    ]
    for sampler in SAMPLERS:
        for pruner in PRUNERS:
            studies = [known.study(sampler, pruner, seed) for seed in seeds]
            for n_trials in TRIALS:
                parts = [one[:n_trials] for one in studies]
                rows.append(_study_row(known, (sampler, pruner, n_trials), parts, seeds))
    title = f"A study over pairs against promotion, {words}, {len(seeds)} seeds"
    return Sheet(title, rows, [*_verdict(rows), *_NOTES])


def _verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether a study does better than the promoted grid, which stands in the first row."""
    promoted, *studies = rows
    less = [row for row in studies if row["embedding_flops"] <= promoted["embedding_flops"]]
    as_good = [row for row in less if row["regret_score"] <= promoted["regret_score"]]
    if as_good:
        return [f"as good as promotion for no more embedding: {', '.join(map(_named, as_good))}"]
    found = ["no study is as good as promotion for no more embedding"]
    if not less:
        return [*found, "every study embeds more than promotion does"]
    best = min(less, key=lambda row: (row["regret_score"], row["embedding_flops"]))
    return [*found, f"of those that embed less, the best: {_named(best)}"]


def _named(row: Mapping[str, Any]) -> str:
    share = f"{100 * row['embedding_share']:.1f} % of the embedding at a regret of {row['regret_score']:.2f}"
    return f"{row['who']}, {row['trials']} trials, ended early by {row['ended_early_by']} ({share})"


def _study_row(
    known: _Known, setting: tuple[str, str, int], parts: Sequence[Sequence[Tried]], seeds: Sequence[int]
) -> dict[str, Any]:
    sampler, pruner, n_trials = setting
    at = {pair: index for index, pair in enumerate(known.named)}
    chosen = [at[max((one for one in part if one.score is not None), key=_score).pair] for part in parts]
    flops = [known.flops(part, best, seed) for part, best, seed in zip(parts, chosen, seeds, strict=True)]
    whole = float(np.mean([sum(one.score is not None for one in part) for part in parts]))
    words = {"who": sampler, "ended_early_by": pruner, "trials": n_trials, "whole_pairs": whole}
    return known.row(words, chosen, flops)


def _score(tried: Tried) -> float:
    assert tried.score is not None, "pruned ones were left out"
    return tried.score
