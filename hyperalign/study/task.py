"""What a trial does: it gets its parameters, and then a score."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optuna

__all__ = ["Outcome", "Task", "book"]


class Outcome(NamedTuple):
    """What came of a trial.

    Attributes:
        values: One for each objective: score in per cent, and cost in the unit that the study names.
        pruned: Whether it was ended early; its values do not count then.
    """

    values: tuple[float, ...]
    pruned: bool = False


class Task(NamedTuple):
    """What the trials of a study do.

    Attributes:
        choose: Gives a trial its parameters, one process at a time; None where there is nothing left to try.
        judge: Tries them. It notes what it finds as attributes of the trial.
        sampler: Who proposes, for the seat of a number.
        fits: Whether parameters of another study are of this one's space.
        first: Parameters that are tried first.
        n_possible: Combinations that there are, where none is tried twice; None where trials may be alike.
    """

    choose: Callable[[optuna.Trial], Mapping[str, Any]]
    judge: Callable[[optuna.Trial, Mapping[str, Any]], Outcome]
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    fits: Callable[[Mapping[str, Any]], bool] = lambda params: False
    first: Sequence[Mapping[str, Any]] = ()
    n_possible: int | None = None


def book(trial: optuna.Trial, facts: Mapping[str, Any]) -> None:
    """Note facts under names that carry their unit; floats keep six figures, for people read them."""
    for name, value in facts.items():
        trial.set_user_attr(name, float(f"{value:.6g}") if isinstance(value, float) else value)
