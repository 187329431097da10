"""Trials over pairs whose scores are known: which pairs a study would have tried, and how far it would have gone."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.distributions import CategoricalDistribution

from hyperalign.study.asked import StudyConfig
from hyperalign.study.pairs import IMAGE, TEXT, untried
from hyperalign.study.samplers import FreshSampler, make_pruner, make_sampler
from hyperalign.study.storage import quiet

__all__ = ["Tried", "replay_pairs"]

Named = tuple[str, str]


class Tried(NamedTuple):
    """One trial.

    Attributes:
        pair: Names of the image and the text encoder.
        n_samples: Samples that it was judged on.
        score: On everything, in per cent; None where the trial was pruned before.
    """

    pair: Named
    n_samples: int
    score: float | None


def replay_pairs(
    asked: StudyConfig,
    scores: Mapping[Named, float],
    sampled: Sequence[Mapping[Named, float]] = (),
    *,
    steps: Sequence[int] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tried]:
    """The trials of a study, one after the other.

    Args:
        asked: What the study is asked for.
        scores: On everything, in per cent, by pair.
        sampled: On each sample, growing.
        steps: Pictures of each sample.
        seed: Of the study.
        progress: Told trials done and in all.
    """
    names, tried = list(scores), list[Tried]()
    space = {
        name: CategoricalDistribution(list(dict.fromkeys(pair[place] for pair in names)))
        for place, name in enumerate((IMAGE, TEXT))
    }
    with quiet():
        study = optuna.create_study(direction="maximize", pruner=make_pruner(asked, steps))
        for seat in range(min(asked.trials, len(names))):
            base = make_sampler(asked, seed, seat, deterministic=True)
            study.sampler = FreshSampler(base, space, lambda study, number: untried(names, study, number), seed + seat)
            trial = study.ask()
            pair = tuple(trial.suggest_categorical(name, choices.choices) for name, choices in space.items())
            tried.append(_run(study, trial, pair, scores, list(zip(steps, sampled, strict=True))))
            progress(seat + 1, asked.trials)
    return tried


def _run(
    study: optuna.Study,
    trial: optuna.Trial,
    pair: Named,
    scores: Mapping[Named, float],
    samples: Sequence[tuple[int, Mapping[Named, float]]],
) -> Tried:
    """One trial on samples, and on everything where it is not pruned."""
    for number, (step, known) in enumerate(samples, start=1):
        trial.report(known[pair], step=step)
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return Tried(pair, number, None)
    study.tell(trial, scores[pair])
    return Tried(pair, len(samples), scores[pair])
