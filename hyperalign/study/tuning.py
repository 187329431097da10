"""A study over the settings of a training: every trial is a training, and its settings are fields of `TrainConfig`."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from hyperalign.align.train import TrainConfig
from hyperalign.candidates import Candidates
from hyperalign.grids import Prepared
from hyperalign.ledger import SEARCH_STAGES
from hyperalign.request import SearchConfig
from hyperalign.solve import Progress, Solved, Workbench, solve
from hyperalign.study.asked import StudyConfig, Tuned, tuned
from hyperalign.study.samplers import make_sampler
from hyperalign.study.space import Knob, defaults, read_space, turned, usual_space
from hyperalign.study.task import Outcome, Task, book

__all__ = ["knobs_of", "training_of", "training_task"]


def knobs_of(asked: StudyConfig, config: SearchConfig) -> tuple[Knob, ...]:
    """What varies, as it was typed or as usual."""
    method, _, _, base = tuned(config)
    if asked.space:
        return read_space(asked.space, base)
    return usual_space(base, hypernet=method.name.startswith("hypernet"))


def training_of(asked: StudyConfig, config: SearchConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial as they stand in the table of a configuration file: what differs from the defaults."""
    base = tuned(config).base
    values = turned(_watched(base, asked, config), dict(params))
    default = tuned(replace(config, train={}, baseline={}, baseline_both={})).base
    names = [field.name for field in fields(values) if field.name != "seed"]
    return {name: getattr(values, name) for name in names if getattr(values, name) != getattr(default, name)}


def training_task(
    asked: StudyConfig, config: SearchConfig, candidates: Candidates, prepared: Prepared, progress: Progress
) -> Task:
    """Trials that are trainings on all pairs; their score is the mean of all pairs on validation.

    Args:
        asked: What the study is asked for.
        config: Encoders, data and what the settings start from.
        candidates: The encoders and pairs.
        prepared: Their rows.
        progress: Told `(stage, done, total)`.
    """
    found, knobs = tuned(config), knobs_of(asked, config)
    names = {knob.name: knob for knob in knobs}
    shared = Workbench(
        prepared,
        candidates.pair_indices(),
        config.recipe(),
        run=Path(),  # nothing is kept there: every training has a folder of its own
        task=config.task,
        progress=progress,
        should_stop=lambda: False,
    )
    found = found._replace(base=_watched(found.base, asked, config))
    return Task(
        choose=lambda trial: {knob.name: _suggest(trial, knob) for knob in knobs},
        judge=partial(_judge, asked, found, shared, candidates),
        sampler=partial(make_sampler, asked, config.seed),
        fits=lambda params: {*params} == {*names} and all(names[name].holds(params[name]) for name in params),
        first=[defaults(knobs, found.base)],
    )


def _watched(base: TrainConfig, asked: StudyConfig, config: SearchConfig) -> TrainConfig:
    """The training with as many looks at validation as pruning needs."""
    if asked.pruning == "none" or tuned(config).method.name != "hypernet":
        return base
    return replace(base, n_validations=max(base.n_validations, asked.looks))


def _suggest(trial: optuna.Trial, knob: Knob) -> Any:
    if knob.choices:
        return trial.suggest_categorical(knob.name, knob.choices)
    suggest = trial.suggest_int if knob.whole else trial.suggest_float
    return suggest(knob.name, knob.low, knob.high, log=knob.log)


def _judge(
    asked: StudyConfig,
    found: Tuned,
    shared: Workbench,
    candidates: Candidates,
    trial: optuna.Trial,
    params: Mapping[str, Any],
) -> Outcome:
    """Train once for each seed and average; a training that validation says is not worth it is ended."""
    settings, method = turned(found.base, params), found.method
    trial.set_user_attr("setting", _in_words(params))
    changed: dict[str, Any] = {found.field: settings}
    recipe, every = replace(shared.recipe, **changed), list[Solved]()
    for number in range(asked.seeds):
        curve = _Curve(trial, settings.n_validations if number == 0 and asked.pruning != "none" else 0)
        with tempfile.TemporaryDirectory() as folder:
            bench = shared.under(recipe, run=Path(folder), should_stop=curve.is_pruned, looked=curve.look)
            every.append(solve(method._replace(seed=method.seed + number), bench))
        if curve.pruned:
            break
    return _account(trial, every, candidates, asked, pruned=curve.pruned)


class _Curve:
    """The looks of one training as Optuna sees them."""

    def __init__(self, trial: optuna.Trial, n_looks: int):
        self.trial, self.n_looks = trial, n_looks
        self.n_seen, self.pruned = 0, False

    def is_pruned(self) -> bool:
        """Whether the training should end where it stands."""
        return self.pruned

    def look(self, score: float) -> None:
        """Report a score. At the start nothing is learned yet, and at the end there is nothing left to save."""
        if 0 < self.n_seen <= self.n_looks:
            self.trial.report(score, step=self.n_seen)
            self.pruned = self.pruned or (self.n_seen < self.n_looks and bool(self.trial.should_prune()))
        self.n_seen += 1


def _account(
    trial: optuna.Trial, every: Sequence[Solved], candidates: Candidates, asked: StudyConfig, *, pruned: bool
) -> Outcome:
    """The score and what it cost, noted with their units."""
    validation = np.mean([one.validation for one in every], axis=0)
    lines = [line for one in every for line in one.lines if line.stage in SEARCH_STAGES]
    fits = [fit for one in every for fit in one.solution.fits]
    flops, best = sum(line.flops for line in lines), int(validation.argmax())
    score, per_search = float(validation.mean()), flops / len(every) / 1e12
    book(
        trial,
        {
            "score / %": score,
            "best pair": candidates.pairs[best].name,
            "best pair's score / %": float(validation[best]),
            "search / TFLOP": per_search,
            "spent / TFLOP": flops / 1e12,
            "training / s": sum(line.seconds for line in lines if line.stage == "training"),
            "optimiser steps": sum(fit.n_steps for fit in fits),
            "diverged trainings": sum(fit.diverged for fit in fits),
            "rolled back trainings": sum(fit.rolled_back for fit in fits),
        },
    )
    if asked.seeds > 1 and not pruned:
        spread = np.std([one.validation.mean() for one in every], ddof=1)
        book(trial, {"spread of the seeds / points": float(spread)})
    values = (score, per_search)
    return Outcome(values[: len(asked.objectives)], pruned=pruned)


def _in_words(params: Mapping[str, Any]) -> str:
    """A name for a trial: what it sets."""
    words = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in params.values())
    return ", ".join(f"{name} {word}" for name, word in zip(params, words, strict=True))
