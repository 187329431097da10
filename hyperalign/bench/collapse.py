"""Trainings that ought to go wrong: five learning rates, three batch sizes, two grids.

The rates of the residual hypernetwork go from a tenth of the configured one to ten times it.

The residual hypernetwork starts at the closed form. With rollback off the end of each training is held against it on
validation; with rollback on, on test too. The poster's hypernetwork is trained with the same settings beside it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hyperalign.bench.costs import announce, foresee
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.trials import Trial, Trials, part_of
from hyperalign.solve import Method, Recipe

__all__ = ["Case", "cases", "measure"]

RATES = tuple(float(f"{rate:.2g}") for rate in np.geomspace(0.1, 10, 5))  # times the rate that was asked for
SLICED_RATES = tuple(float(f"{rate:.2g}") for rate in np.geomspace(1e-3, 1e-1, 5))
BATCHES = (64, 256, 1024)
PART = 4  # every fourth image encoder is the small grid
SLICED_STEPS = 2  # of each network; one has as many parameters as a connector times 512, and a step takes seconds
ABOVE_SHARE = 25 / 30  # of the trainings without rollback that must end above the closed form
MOST_LOST = 0.2  # points on test that rollback may end below it


class Case(NamedTuple):
    """One training.

    Attributes:
        grid: "whole" or "quarter".
        method: "hypernet" or "hypernet-sliced".
        rollback: Whether the best validated state wins; the sliced network has no validation.
        batch_size: Items a step.
        learning_rate: Peak rate.
    """

    grid: str
    method: str
    rollback: bool
    batch_size: int
    learning_rate: float


def measure(asked: Asked) -> list[Sheet]:
    """Train with every setting.

    Returns:
        A row for each training, and the verdict.
    """
    opened, trials, task = open_bench(asked), Trials("collapse", asked), asked.config.task
    grids = {"whole": opened, "quarter": part_of(opened, range(0, len(opened.candidates.images), PART))}
    base = asked.config.recipe()
    every = cases(base.residual.learning_rate)
    methods = {case: (_method(case, asked.config.seed), _recipe(case, base)) for case in every}
    foreseen = announce([foresee(grids[case.grid], *methods[case], task=task) for case in every], asked.say)
    closed = {
        name: trials.take(grid, Method("closed-form", "both", asked.config.seed), base) for name, grid in grids.items()
    }
    rows = []
    for case in every:
        trial = trials.take(grids[case.grid], *methods[case])
        rows.append(_row(case, grids[case.grid], trial, closed[case.grid]))
    notes = [
        f"hypernet {base.residual.length}; the sliced network {SLICED_STEPS} steps for each text encoder; seed "
        f"{asked.config.seed}; a batch is cut to the pictures there are",
        *trials.notes(foreseen),
    ]
    return [Sheet("every training", rows, notes), _verdict(rows)]


def cases(rate: float) -> list[Case]:
    """All trainings, one grid after the other; `rate` is the configured one of the residual hypernetwork."""
    return [
        Case(grid, method, rollback, batch_size, learning_rate)
        for grid in ("whole", "quarter")
        for method, rollback in (("hypernet", False), ("hypernet", True), ("hypernet-sliced", False))
        for batch_size in BATCHES
        for learning_rate in (SLICED_RATES if method == "hypernet-sliced" else [rate * times for times in RATES])
    ]


def _method(case: Case, seed: int) -> Method:
    return Method(case.method, "both" if case.method == "hypernet" else "text", seed)


def _recipe(case: Case, base: Recipe) -> Recipe:
    changes: dict[str, Any] = {"batch_size": case.batch_size, "learning_rate": case.learning_rate}
    if case.method == "hypernet":
        return replace(base, residual=replace(base.residual, rollback=case.rollback, **changes))
    return replace(base, sliced=replace(base.sliced, n_steps=SLICED_STEPS, n_epochs=None, **changes))


def _row(case: Case, grid: Opened, trial: Trial, closed: Trial) -> dict[str, Any]:
    n_images, n_texts = len(grid.candidates.images), len(grid.candidates.texts)
    return {
        "method": case.method,
        "rollback": "on" if case.rollback else "off",
        "grid": f"{n_images} x {n_texts}",
        "batch_size": case.batch_size,
        "learning_rate": case.learning_rate,
        "validation_score": round(float(trial.validation.mean()), 3),
        "above_closed_form_score": round(float(trial.validation.mean() - closed.validation.mean()), 3),
        "test_score": round(float(trial.test.mean()), 3),
        "test_above_closed_form_score": round(float(trial.test.mean() - closed.test.mean()), 3),
        "n_rolled_back": trial.n_rolled_back,
        "n_diverged": trial.n_diverged,
        "search_flops": trial.search_flops,
        "wall_seconds": round(trial.seconds, 2),
    }


def _verdict(rows: Sequence[dict[str, Any]]) -> Sheet:
    """What the trainings say together, each method by itself."""
    verdicts = []
    for method, rollback in (("hypernet", "off"), ("hypernet", "on"), ("hypernet-sliced", "off")):
        own = [row for row in rows if row["method"] == method and row["rollback"] == rollback]
        n_above = sum(row["above_closed_form_score"] > 0 for row in own)
        worst = min(row["test_above_closed_form_score"] for row in own)
        holds = worst >= -MOST_LOST if rollback == "on" else n_above >= ABOVE_SHARE * len(own)
        verdicts.append(
            {
                "method": method,
                "rollback": rollback,
                "n_trainings": len(own),
                "n_above_closed_form": n_above,
                "worst_test_above_closed_form_score": worst,
                "n_rolled_back": sum(row["n_rolled_back"] for row in own),
                "n_diverged": sum(row["n_diverged"] for row in own),
                "holds": "yes" if holds else "no",
            }
        )
    notes = [
        f"without rollback it holds where {ABOVE_SHARE:.0%} of the trainings end above the closed form on validation, "
        f"with rollback where none ends more than {MOST_LOST} point below it on test"
    ]
    return Sheet("the verdict", verdicts, notes)
