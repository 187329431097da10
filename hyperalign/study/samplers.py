"""Who proposes trials, and who ends them early.

A sampler is made anew for every seat, from the study's seed and the number of the seat, so that a study which was
stopped goes on as it would have gone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from hyperalign.study.asked import StudyConfig

__all__ = ["FreshSampler", "make_pruner", "make_sampler"]

_DRAWS = 12  # of a sampler that proposes what has been tried, before a neighbour is taken


def make_sampler(
    asked: StudyConfig, seed: int, seat: int, *, deterministic: bool = False, startup: int = 10
) -> BaseSampler:
    """Who proposes for one seat.

    Args:
        asked: What the study is asked for.
        seed: Of the study.
        seat: Number of the seat.
        deterministic: Whether a trial that is repeated gives the same score.
        startup: Trials that are drawn at random first.
    """
    own = int(np.random.SeedSequence([seed, seat]).generate_state(1)[0])
    if asked.sampler == "gp":
        return optuna.samplers.GPSampler(seed=own, n_startup_trials=startup, deterministic_objective=deterministic)
    if asked.sampler == "random":
        return optuna.samplers.RandomSampler(seed=own)
    if asked.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=own, population_size=max(4, min(20, asked.trials // 3)))
    return optuna.samplers.TPESampler(seed=own, n_startup_trials=startup)


def make_pruner(asked: StudyConfig, steps: Sequence[int]) -> optuna.pruners.BasePruner:
    """Who ends trials early.

    Args:
        asked: What the study is asked for.
        steps: Those that a trial reports, looks or pictures of a sample; there may be none.
    """
    if asked.pruning == "hyperband" and steps:
        return optuna.pruners.HyperbandPruner(min_resource=steps[0], max_resource=steps[-1], reduction_factor=2)
    if asked.pruning == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    return optuna.pruners.NopPruner()


class FreshSampler(BaseSampler):  # type: ignore[misc]  # Optuna's own interface
    """Proposals of another sampler over choices alone, none of them a second time.

    Where the other one insists on what has been tried, a choice is taken that differs from its proposal in one
    parameter, or any that is left.
    """

    def __init__(
        self,
        base: BaseSampler,
        space: Mapping[str, CategoricalDistribution],
        free: Callable[[optuna.Study, int], set[tuple[Any, ...]]],
        seed: int,
    ) -> None:
        """Propose for one trial.

        Args:
            base: Who proposes.
            space: Choices by parameter.
            free: The combinations that no other trial has, for the trial of a number; in the order of `space`.
            seed: Of the draw among what is left.
        """
        self.base, self.space, self.free, self.rng = base, dict(space), free, np.random.default_rng(seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """All parameters at once."""
        return dict(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A combination that is free; none where nothing is."""
        free = self.free(study, trial.number)
        if not free:
            return {}
        proposed: tuple[Any, ...] = ()
        for _ in range(_DRAWS):
            proposed = self._propose(study, trial)
            if proposed in free:
                return dict(zip(self.space, proposed, strict=True))
        near = [one for one in free if sum(a == b for a, b in zip(one, proposed, strict=True)) == len(one) - 1]
        left = sorted(near or free)
        return dict(zip(self.space, left[int(self.rng.integers(len(left)))], strict=True))

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        """What the other one says, where a parameter is asked for alone."""
        return self.base.sample_independent(study, trial, name, distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the other one."""
        self.base.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: Any, values: Any) -> None:
        """As the other one."""
        self.base.after_trial(study, trial, state, values)

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Any, ...]:
        known = self.base.sample_relative(study, trial, self.base.infer_relative_search_space(study, trial))
        return tuple(
            known[name] if name in known else self.base.sample_independent(study, trial, name, distribution)
            for name, distribution in self.space.items()
        )
