"""What a larger budget is better spent on: wider coordinates or longer training, of both methods, all at one cost.

The default keeps few coordinates of few features, for a search that costs little. The cost here is that of the dear
end of the curve; what the set-up of wider coordinates takes is not left for training.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.bench.costs import announce, foresee
from hyperalign.bench.curve import gain
from hyperalign.bench.dear import dear_flops, dear_steps, steps_within
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.trials import Trial, Trials, setting_of
from hyperalign.solve import Method, Recipe

__all__ = ["measure"]

RANKS = (80, 96, 112, 128)  # coordinates of all features, beside those of the search


class _Point(NamedTuple):
    """One method in some coordinates.

    Attributes:
        name: Method.
        recipe: How it is trained, and in which coordinates.
    """

    name: str
    recipe: Recipe


def measure(asked: Asked) -> list[Sheet]:
    """Spend the cost of the dear end in one kind of coordinates after the other.

    Returns:
        A row for each method, coordinates and seed; differences of the methods where each does best on validation,
        and in the same coordinates.
    """
    opened, trials = open_bench(asked), Trials("coordinates", asked)
    base = asked.config.recipe()
    goal = dear_flops(opened, base)
    points = [point for recipe in _recipes(base) for point in _points(opened, recipe, goal)]
    runs = [(point, seed) for point in points for seed in _seeds(point, asked)]
    task = asked.config.task
    foreseen = announce((foresee(opened, Method(p.name, "both", s), p.recipe, task=task) for p, s in runs), asked.say)

    def take(point: _Point) -> list[Trial]:
        methods = [Method(point.name, "both", seed) for seed in _seeds(point, asked)]
        return [trials.take(opened, method, point.recipe, hits=True) for method in methods]

    found = [(point, take(point)) for point in points]
    notes = [f"every training ends where its search has cost {goal / 1e9:.4g} GFLOP", *trials.notes(foreseen)]
    rows = [_row(point, trial) for point, own in found for trial in own]
    return [Sheet("coordinates, at one cost", rows, notes), _differences(found, base, asked.config.seed)]


def _recipes(base: Recipe) -> list[Recipe]:
    """Coordinates of the search and wider ones, cheap ones first."""
    wide = [replace(base.canonical, rank=rank, max_features=0) for rank in RANKS]
    return [replace(base, canonical=one) for one in dict.fromkeys([base.canonical, *wide])]


def _points(opened: Opened, recipe: Recipe, goal: int) -> list[_Point]:
    """The closed form, the hypernetwork with its pairs a step and with twice as many, and the baseline.

    None where the set-up alone costs too much.
    """
    closed = _Point("closed-form", recipe)
    if foresee(opened, Method("closed-form", "both", 0), recipe).search_flops >= goal:
        return []

    def by_pairs(n_steps: int) -> Recipe:
        return replace(recipe, ape_both=replace(recipe.ape_both, n_steps=n_steps, n_epochs=None))

    wide = replace(recipe.residual, pairs_per_step=2 * recipe.residual.pairs_per_step)
    own = [replace(recipe, residual=residual) for residual in (recipe.residual, wide)]
    lengths = [dear_steps(opened, one, goal) for one in own]
    long = [
        replace(one, residual=replace(one.residual, n_steps=n_steps, n_epochs=None))
        for one, n_steps in zip(own, lengths, strict=True)
    ]
    n_steps = steps_within(opened, Method("ape", "both", 0), by_pairs, goal)
    return [closed, *(_Point("hypernet", one) for one in long), _Point("ape", by_pairs(n_steps))]


def _seeds(point: _Point, asked: Asked) -> Sequence[int]:
    """Nothing is drawn in the closed form."""
    return asked.seeds()[:1] if point.name == "closed-form" else asked.seeds()


def _row(point: _Point, trial: Trial) -> dict[str, Any]:
    canonical = point.recipe.canonical
    return {
        "rank": canonical.rank,
        "features": canonical.max_features or "all",
        "method": point.name,
        "setting": setting_of(trial.method, point.recipe),
        "seed": trial.method.seed,
        "search_flops": trial.search_flops,
        "wall_seconds": round(trial.seconds, 2),
        "validation_score": round(float(trial.validation.mean()), 3),
        "test_score": round(float(trial.test.mean()), 3),
    }


Found = Sequence[tuple[_Point, list[Trial]]]


def _differences(found: Found, base: Recipe, seed: int) -> Sheet:
    """The hypernetwork minus the baseline, in the coordinates that suit each and in the same ones."""
    own, other = _by_coordinates(found, "hypernet"), _by_coordinates(found, "ape")
    top, best = (max(trials, key=lambda one: _validation(trials[one])) for trials in (own, other))
    words = f"hypernet, {_words(top)}, minus ape · both"
    rows = [
        gain(f"{words}, {_words(base.canonical)}", own[top], other[base.canonical], seed=seed),
        gain(f"{words}, {_words(best)}", own[top], other[best], seed=seed),
        *(gain(f"hypernet minus ape · both, {_words(one)}", own[one], other[one], seed=seed) for one in own),
    ]
    notes = [
        "first: the hypernetwork where validation likes it best, against the baseline in the coordinates of the search "
        "and where validation likes it best",
        "95 % intervals of a paired bootstrap over test images; what another seed changes is not in them",
    ]
    return Sheet("differences of scores", rows, notes)


def _by_coordinates(found: Found, name: str) -> dict[CanonicalConfig, list[Trial]]:
    """A method's trials of all seeds in each kind of coordinates, by the setting that validates best there."""
    better: dict[CanonicalConfig, list[Trial]] = {}
    for point, trials in found:
        where = point.recipe.canonical
        if point.name == name and (where not in better or _validation(trials) > _validation(better[where])):
            better[where] = trials
    return better


def _validation(trials: Sequence[Trial]) -> float:
    return float(np.mean([trial.validation.mean() for trial in trials]))


def _words(canonical: CanonicalConfig) -> str:
    return f"{canonical.rank} of {canonical.max_features or 'all'} features"
