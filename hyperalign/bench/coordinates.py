"""What a larger budget is better spent on: wider coordinates or longer training, of both methods, all at one cost.

The default keeps few coordinates of few features, for a search that costs little. The cost here is that of the dear
end of the curve; what the set-up of wider coordinates takes is not left for training.
"""

from dataclasses import replace
from typing import Any

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.bench.costs import foresee
from hyperalign.bench.curve import gain
from hyperalign.bench.dear import dear_ends, dear_flops, steps_within
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.points import Found, Setting, mean_validation, score_row, take_points
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.trials import Trial, Trials
from hyperalign.solve import Method, Recipe

__all__ = ["measure"]

RANKS = (80, 96, 112, 128)  # coordinates of all features, beside those of the search


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
    found, foreseen = take_points(points, opened, trials, asked)
    notes = [f"every training ends where its search has cost {goal / 1e9:.4g} GFLOP", *trials.notes(foreseen)]
    rows = [_row(point, trial) for point, own in found for trial in own]
    return [Sheet("coordinates, at one cost", rows, notes), _differences(found, base, asked.config.seed)]


def _recipes(base: Recipe) -> list[Recipe]:
    """Coordinates of the search and wider ones, cheap ones first."""
    wide = [replace(base.canonical, rank=rank, max_features=0) for rank in RANKS]
    return [replace(base, canonical=one) for one in dict.fromkeys([base.canonical, *wide])]


def _points(opened: Opened, recipe: Recipe, goal: int) -> list[Setting]:
    """The closed form, the hypernetwork with its pairs a step and with twice as many, and the baseline.

    None where the set-up alone costs too much.
    """
    closed = Setting("closed-form", "both", recipe)
    if foresee(opened, Method("closed-form", "both", 0), recipe).search_flops >= goal:
        return []

    def by_pairs(n_steps: int) -> Recipe:
        return replace(recipe, ape_both=replace(recipe.ape_both, n_steps=n_steps, n_epochs=None))

    long = [replace(recipe, residual=config) for config in dear_ends(opened, recipe, goal)]
    n_steps = steps_within(opened, Method("ape", "both", 0), by_pairs, goal)
    return [closed, *(Setting("hypernet", "both", one) for one in long), Setting("ape", "both", by_pairs(n_steps))]


def _row(point: Setting, trial: Trial) -> dict[str, Any]:
    canonical = point.recipe.canonical
    return {
        "rank": canonical.rank,
        "features": canonical.max_features or "all",
        "method": point.name,
        **score_row(point, trial),
    }


def _differences(found: Found, base: Recipe, seed: int) -> Sheet:
    """The hypernetwork minus the baseline, in the coordinates that suit each and in the same ones."""
    own, other = _by_coordinates(found, "hypernet"), _by_coordinates(found, "ape")
    top, best = (max(trials, key=lambda one: mean_validation(trials[one])) for trials in (own, other))
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
        if point.name == name and (where not in better or mean_validation(trials) > mean_validation(better[where])):
            better[where] = trials
    return better


def _words(canonical: CanonicalConfig) -> str:
    return f"{canonical.rank} of {canonical.max_features or 'all'} features"
