"""Points of a measurement: a method with its setting, a trial of it under every seed, and what is read off these."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hyperalign.bench.costs import announce, foresee
from hyperalign.bench.opened import Opened
from hyperalign.bench.sheet import Asked
from hyperalign.bench.trials import Trial, Trials, setting_of
from hyperalign.solve import Method, Recipe

__all__ = ["Found", "Setting", "mean_validation", "score_row", "take_points"]


class Setting(NamedTuple):
    """One point.

    Attributes:
        name: Method.
        sides: "text" or "both".
        recipe: How it is trained, and in which coordinates.
    """

    name: str
    sides: str
    recipe: Recipe


Found = Sequence[tuple[Setting, list[Trial]]]


def take_points(points: Sequence[Setting], opened: Opened, trials: Trials, asked: Asked) -> tuple[Found, str]:
    """Take every point under every seed, hits kept, after saying what that will cost.

    Returns:
        Each point with its trials; the sentence that said it, for the notes.
    """
    methods = [[Method(one.name, one.sides, seed) for seed in _seeds(one, asked)] for one in points]
    both = list(zip(points, methods, strict=True))
    costs = (foresee(opened, method, one.recipe, task=asked.config.task) for one, own in both for method in own)
    foreseen = announce(costs, asked.say)
    return [(one, [trials.take(opened, m, one.recipe, hits=True) for m in own]) for one, own in both], foreseen


def _seeds(point: Setting, asked: Asked) -> Sequence[int]:
    """Nothing is drawn in the closed form."""
    return asked.seeds()[:1] if point.name == "closed-form" else asked.seeds()


def score_row(point: Setting, trial: Trial) -> dict[str, Any]:
    """What a trial cost and what it scores, for a table."""
    return {
        "setting": setting_of(trial.method, point.recipe),
        "seed": trial.method.seed,
        "search_flops": trial.search_flops,
        "wall_seconds": round(trial.seconds, 2),
        "validation_score": round(float(trial.validation.mean()), 3),
        "test_score": round(float(trial.test.mean()), 3),
    }


def mean_validation(trials: Sequence[Trial]) -> float:
    """Mean score on validation, over pairs and seeds: by which settings are chosen."""
    return float(np.mean([trial.validation.mean() for trial in trials]))
