"""Choosing among polished pairs: what it costs beyond the search, and how much better the choice and its connector are.

The baseline's grids are those of the curve, where they are kept; searches and polishing are done anew, for polishing
starts from what a search leaves.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.trials import Trial, Trials, hits_on_test, setting_of, to_scores, workbench
from hyperalign.ledger import SEARCH_STAGES
from hyperalign.rank.agreement import regret_interval
from hyperalign.rank.resampling import Contributions, select
from hyperalign.solve import Method, Solved, polish, solve

__all__ = ["measure"]

FINALISTS = (0, 1, 2, 3, 8)  # pairs that are polished


class _Search(NamedTuple):
    """A search with the default method.

    Attributes:
        solved: As it was run.
        hits: What each test item adds to the score of each pair.
        flops: Set-up, training and validation.
        seconds: The same in time.
    """

    solved: Solved
    hits: Contributions
    flops: int
    seconds: float


class _Chosen(NamedTuple):
    """One search and its choice.

    Attributes:
        search: The search.
        winner: The pair to take, among the pairs of the grid.
        hits: What each test item adds to its score by the connector that validates best, one pair.
        flops: Of polishing and of scoring the polished pairs on validation.
        seconds: The same in time.
    """

    search: _Search
    winner: int
    hits: Contributions
    flops: int
    seconds: float

    @property
    def score(self) -> float:
        """On test, in per cent."""
        return float(to_scores(self.hits)[0])


def measure(asked: Asked) -> list[Sheet]:
    """Choose among more and more polished pairs, for each seed.

    Returns:
        A row for each number of finalists and seed; means over seeds with paired intervals.
    """
    opened, trials, recipe = open_bench(asked), Trials("finalists", asked), asked.config.recipe()
    text = [trials.take(opened, Method("ape", "text", seed), recipe, hits=True) for seed in asked.seeds()]
    searches = [_search(seed, opened, asked) for seed in asked.seeds()]
    grid = _Grid(text)
    found = {n: [_choose(one, n, opened, asked) for one in searches] for n in FINALISTS if n <= len(grid.truth)}
    names = [(pair.image.name, pair.text.name) for pair in opened.candidates.pairs]
    rows = [_row(n, one, grid, names) for n, every in found.items() for one in every]
    notes = [
        "ratios: the ape · text grid over search and polishing, validation of both included; regret@1: the chosen "
        "pair, scored on test in the mean of ape · text over seeds; seconds are those of the trials as they ran",
        f"ape · text: {setting_of(Method('ape', 'text', 0), recipe)}; "
        f"hypernet: {setting_of(Method('hypernet', 'both', 0), recipe)}",
        *trials.notes("searches and polishing are done anew each time"),
    ]
    means = [_mean_row(n, every, grid, asked.config.seed) for n, every in found.items()]
    return [
        Sheet("choosing among polished pairs", rows, notes),
        Sheet(
            "means over seeds",
            means,
            ["95 % intervals of a paired bootstrap over test images; what another seed changes is not in them"],
        ),
    ]


class _Grid:
    """The baseline's grids, a trial for each seed."""

    def __init__(self, text: Sequence[Trial]) -> None:
        self.flops = float(np.mean([trial.search_flops for trial in text]))
        self.seconds = float(np.mean([trial.seconds for trial in text]))
        self.truth: NDArray[np.float64] = np.mean([trial.test for trial in text], axis=0)
        every = [_hits(trial) for trial in text]
        self.hits = Contributions(np.mean([one.hits for one in every], axis=0), every[0].trials)


def _search(seed: int, opened: Opened, asked: Asked) -> _Search:
    with workbench(opened, asked.config.recipe(), asked) as bench:
        solved = solve(Method("hypernet", "both", seed), bench)
    lines = [line for line in solved.lines if line.stage in SEARCH_STAGES]
    flops, seconds = sum(line.flops for line in lines), sum(line.seconds for line in lines)
    return _Search(solved, hits_on_test(solved, opened, task=asked.config.task), flops, seconds)


def _choose(search: _Search, n_polished: int, opened: Opened, asked: Asked) -> _Chosen:
    """Polish the pairs that validate best and take the best of them, each with the better of its two connectors."""
    own, task = search.solved.validation, asked.config.task
    if not n_polished:
        return _Chosen(search, int(own.argmax()), select(search.hits, [int(own.argmax())]), 0, 0.0)
    first, pairs = sorted((-own).argsort(kind="stable")[:n_polished].tolist()), search.solved.solution.pairs
    start = time.perf_counter()
    with workbench(opened, asked.config.recipe(), asked) as bench:
        polished = polish([pairs[n] for n in first], bench, search.solved)
    seconds = time.perf_counter() - start
    at = int(np.maximum(own[first], polished.validation).argmax())
    taken = select(search.hits, [first[at]])
    if polished.validation[at] > own[first[at]]:
        taken = select(hits_on_test(polished, opened, task=task), [at])
    flops = sum(line.flops for line in polished.lines if line.stage != "optimiser")
    return _Chosen(search, first[at], taken, flops, seconds)


def _row(n: int, one: _Chosen, grid: _Grid, names: Sequence[tuple[str, str]]) -> dict[str, Any]:
    flops, seconds = one.search.flops + one.flops, one.search.seconds + one.seconds
    image, text = names[one.winner]
    return {
        "polished": n,
        "seed": one.search.solved.method.seed,
        "polishing_flops": one.flops,
        "flops_ratio": grid.flops / flops,
        "wall_ratio": grid.seconds / seconds,
        "image_encoder": image,
        "text_encoder": text,
        "hypernet_score": round(float(to_scores(one.search.hits)[one.winner]), 3),
        "taken_score": round(one.score, 3),
        "ape_score": round(float(grid.truth[one.winner]), 3),
        "regret_at_1_score": round(float(grid.truth.max() - grid.truth[one.winner]), 3),
    }


def _mean_row(n: int, every: Sequence[_Chosen], grid: _Grid, seed: int) -> dict[str, Any]:
    best = grid.hits.hits[:, :, [int(grid.truth.argmax())]]
    chosen = grid.hits.hits[:, :, [one.winner for one in every]].mean(2, keepdims=True)
    taken = np.mean([one.hits.hits for one in every], axis=0)
    regret = regret_interval(_beside(grid.hits, best, chosen), chosen=1, best=0, seed=seed)
    gain = regret_interval(_beside(grid.hits, taken, best), chosen=1, best=0, seed=seed)
    flops = np.mean([one.search.flops + one.flops for one in every])
    lost = grid.truth.max() - np.mean([grid.truth[one.winner] for one in every])
    return {
        "polished": n,
        "flops_ratio": grid.flops / float(flops),
        "regret_at_1_score": round(float(lost), 3),
        "regret_low_score": round(regret[0], 3),
        "regret_high_score": round(regret[1], 3),
        "taken_minus_best_of_ape_score": round(float(np.mean([one.score for one in every]) - grid.truth.max()), 3),
        "gain_low_score": round(gain[0], 3),
        "gain_high_score": round(gain[1], 3),
    }


def _beside(like: Contributions, first: NDArray[Any], second: NDArray[Any]) -> Contributions:
    return Contributions(np.concatenate([first, second], axis=2), like.trials)


def _hits(trial: Trial) -> Contributions:
    assert trial.hits is not None, "trials are taken with their hits here"
    return trial.hits
