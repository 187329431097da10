"""Score against FLOPs, every method on it, and what is claimed of the default setting read off the same trials.

A claim is a ratio of costs at stated settings, or a difference of scores with a paired interval, or an agreement
beside what another seed of the reference agrees with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hyperalign.align.train import TrainConfig
from hyperalign.bench.costs import foresee
from hyperalign.bench.dear import dear_ends, dear_steps, two_epochs
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.points import Found, Setting, mean_validation, score_row, take_points
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.sweep import BEST, MATCHED, swept
from hyperalign.bench.trials import Trial, Trials, lengthen, setting_of
from hyperalign.rank.agreement import agreement, noise_ceiling, regret_interval
from hyperalign.rank.resampling import Contributions
from hyperalign.solve import Method, Recipe

__all__ = ["gain", "measure", "settings"]

TEXT_FACTORS = (0.2, 0.6)  # of the baseline's length
BOTH_FACTORS = (0.1, 0.25, 0.5)  # of the length between canonical coordinates
BOTH_BATCHES = ((128, 1e-3), (512, 1e-3))  # other batches there, with their rates, at some of these lengths
HYPER_FACTORS = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0, 16.0)  # of the hypernetwork's, below the dear end
SLICED_STEPS = (5, 20)  # of each of its networks, which have as many parameters as a connector times 512


class _Reference(NamedTuple):
    """Trials that others are held against.

    Attributes:
        text: The text-sided baseline, a trial for each seed.
        both: The baseline between canonical coordinates at its best length on validation.
    """

    text: Sequence[Trial]
    both: Sequence[Trial]


def measure(asked: Asked) -> list[Sheet]:
    """Take every point of the curve, and read the claims off them.

    Returns:
        A row for each setting and seed; costs beside the baseline's; differences of scores; agreements of orders.
    """
    opened, trials = open_bench(asked), Trials("curve", asked)
    found, foreseen = take_points(settings(asked, opened), opened, trials, asked)
    base = asked.config.recipe()
    own, text = (_default(found, base, *which) for which in (("hypernet", "both"), ("ape", "text")))
    reference = _Reference(text, max((trials for _, trials in _grids(found, "ape", "both")), key=mean_validation))
    curve = Sheet("score against FLOPs", _rows(found, reference), [*_CURVE_NOTES, *trials.notes(foreseen)])
    seed = asked.config.seed
    differences, ends = _differences(own, text, seed), _dear(found, opened, base)
    dear = gain("hypernet minus ape · both, each at the cost of two epochs of it", *ends, seed=seed)
    differences = differences._replace(rows=[*differences.rows, dear])
    return [curve, _costs(asked, opened, found, own), differences, _orders(own, reference)]


def settings(asked: Asked, opened: Opened) -> list[Setting]:
    """Every point of the curve, the default of each method among them, cheap methods first."""
    base, best = asked.config.recipe(), swept(asked, "text").get(BEST)
    matched = swept(asked, "both").get(MATCHED)
    points = [Setting("closed-form", sides, base) for sides in ("both", "text")]
    points += [Setting("hypernet", "both", replace(base, residual=config)) for config in _hyper(opened, base)]
    both = [*(lengthen(base.ape_both, f) for f in BOTH_FACTORS), *([matched] if matched else []), base.ape_both]
    both += [replace(config, batch_size=size, learning_rate=rate) for size, rate in BOTH_BATCHES for config in both[1:]]
    both.append(two_epochs(base).ape_both)
    points += [Setting("ape", "both", replace(base, ape_both=config)) for config in both]
    text = [base.ape, *(lengthen(base.ape, f) for f in TEXT_FACTORS), *([best] if best else [])]
    points += [Setting("ape", "text", replace(base, ape=config)) for config in text]
    short = [replace(base.sliced, n_steps=n, n_epochs=None) for n in SLICED_STEPS]
    points += [Setting("hypernet-sliced", "text", replace(base, sliced=config)) for config in short]
    return [point for n, point in enumerate(points) if point not in points[:n]]


def _hyper(opened: Opened, base: Recipe) -> list[TrainConfig]:
    """The hypernetwork as it is by default, shorter and longer up to the dear end, and with more pairs a step."""
    goal, wide = dear_steps(opened, base), replace(base.residual, pairs_per_step=2 * base.residual.pairs_per_step)
    n_steps = foresee(opened, Method("hypernet", "both", 0), base).n_steps
    fitting = [factor for factor in HYPER_FACTORS if factor * n_steps < goal]
    own = [base.residual, _at_batch(base, base.ape.batch_size).residual]
    return [*own, *(lengthen(base.residual, factor) for factor in fitting), wide, *dear_ends(opened, base)]


def _at_batch(base: Recipe, batch: int) -> Recipe:
    """The hypernetwork at another batch."""
    return replace(base, residual=replace(base.residual, batch_size=batch))


def _grids(found: Found, name: str, sides: str) -> list[tuple[Setting, list[Trial]]]:
    return [one for one in found if one[0].name == name and one[0].sides == sides]


def _default(found: Found, base: Recipe, name: str, sides: str) -> list[Trial]:
    return next(trials for setting, trials in _grids(found, name, sides) if setting.recipe == base)


def _dear(found: Found, opened: Opened, base: Recipe) -> tuple[list[Trial], list[Trial]]:
    """At the dear end: the hypernetwork, of its settings the better on validation, and the baseline."""
    ends = dear_ends(opened, base)
    own = [trials for setting, trials in _grids(found, "hypernet", "both") if setting.recipe.residual in ends]
    return max(own, key=mean_validation), _default(found, two_epochs(base), "ape", "both")


def _flops(trials: Sequence[Trial]) -> float:
    """Of one search; which encoders a step draws, and so its cost, depends a little on the seed."""
    return float(np.mean([trial.search_flops for trial in trials]))


def _rows(found: Found, reference: _Reference) -> list[dict[str, Any]]:
    truth = np.mean([trial.test for trial in reference.text], axis=0)
    return [
        {
            "method": trial.method.name,
            "sides": trial.method.sides,
            **score_row(setting, trial),
            "regret_at_1_score": round(float(truth.max() - truth[trial.chosen]), 3),
            "spearman": _spearman(trial, reference.both),
        }
        for setting, trials in found
        for trial in trials
    ]


def _spearman(trial: Trial, reference: Sequence[Trial]) -> float:
    """With the seeds of the reference one by one, itself left out, as the noise ceiling has it too."""
    others = [one for one in reference if one is not trial]
    return float(np.mean([agreement(trial.test, one.test).spearman for one in others])) if others else float("nan")


def _costs(asked: Asked, opened: Opened, found: Found, own: Sequence[Trial]) -> Sheet:
    """What the baseline's grid costs over what the search costs, at three settings of the baseline."""
    base = asked.config.recipe()
    batch, score = base.residual.batch_size, mean_validation(own)
    text, both = _grids(found, "ape", "text"), _grids(found, "ape", "both")
    equal = [one for one in both if mean_validation(one[1]) >= score]
    matched = replace(base, ape=replace(base.ape, batch_size=batch))
    at_matched = next((trials for setting, trials in text if setting.recipe == matched), [])
    computed = foresee(opened, Method("ape", "text", asked.config.seed), matched, task=asked.config.task).search_flops
    theirs = _at_batch(base, base.ape.batch_size)
    at_theirs = next(t for s, t in _grids(found, "hypernet", "both") if s.recipe == theirs)
    own_batch = next((s, t) for s, t in text if s.recipe == base)
    rows = [
        _cost_row(f"matched batch {batch}", Setting("ape", "text", matched), at_matched, own, computed),
        _cost_row(f"matched batch {base.ape.batch_size}, the search at it too", *own_batch, at_theirs),
        _cost_row("at its best mean validation score", *max(text, key=lambda one: mean_validation(one[1])), own),
    ]
    notes = ["costs are set-up, training and validation; a baseline without seconds is computed from shapes"]
    if equal:
        until = min(equal, key=lambda one: _flops(one[1]))
        rows.insert(1, _cost_row("until its score is the hypernetwork's", *until, own))
    else:
        notes.append(f"no length of ape · both reaches the hypernetwork's {score:.2f} on validation")
    return Sheet("what the baseline's grid costs over what the search costs", rows, notes)


def _cost_row(
    words: str, setting: Setting, trials: Sequence[Trial], own: Sequence[Trial], computed: float = np.nan
) -> dict[str, Any]:
    """One setting of the baseline beside the search; `computed` is its cost where it was not run."""
    dear, cheap = (float(np.mean([t.seconds for t in some])) if some else np.nan for some in (trials, own))
    flops = _flops(trials) if trials else computed
    return {
        "baseline": f"ape · {setting.sides}, {words}",
        "setting": setting_of(Method(*setting[:2], 0), setting.recipe),
        "validation_score": round(mean_validation(trials), 3) if trials else None,
        "baseline_flops": flops,
        "search_flops": _flops(own),
        "flops_ratio": flops / _flops(own),
        "baseline_seconds": dear,
        "search_seconds": cheap,
        "wall_ratio": dear / cheap,
    }


def _differences(own: Sequence[Trial], text: Sequence[Trial], seed: int) -> Sheet:
    """Mean score minus the text-sided baseline's, and regret@1, both with paired intervals over test images."""
    truth = np.mean([trial.test for trial in text], axis=0)
    reference = _mean([_hits(trial) for trial in text])
    taken = reference.hits[:, :, [trial.chosen for trial in own]].mean(2, keepdims=True)
    best = reference.hits[:, :, [int(truth.argmax())]]
    lost = float(truth.max() - np.mean([truth[trial.chosen] for trial in own]))
    both = reference._replace(hits=np.concatenate([best, taken], axis=2))
    rows = [
        gain("hypernet minus ape · text", own, text, seed=seed),
        _difference("regret@1 in ape · text's mean over seeds", lost, both, seed),
    ]
    notes = [
        f"means over {len(own)} seeds of each; mean test scores and 95 % intervals of a paired bootstrap over test "
        "images, of the mean over pairs; what another seed changes is not in them"
    ]
    return Sheet("differences of scores", rows, notes)


def gain(words: str, own: Sequence[Trial], other: Sequence[Trial], *, seed: int) -> dict[str, Any]:
    """Mean test score of one method minus another's, with a paired interval over test images.

    Args:
        words: What is compared.
        own: A trial for each seed, taken with its hits.
        other: The same of the other method.
        seed: Of the bootstrap.
    """
    gain = float(np.mean([t.test.mean() for t in own]) - np.mean([t.test.mean() for t in other]))
    sides = [_mean([_hits(trial) for trial in trials]) for trials in (own, other)]
    means = np.concatenate([side.hits.mean(2, keepdims=True) for side in sides], axis=2)
    return _difference(words, gain, sides[0]._replace(hits=means), seed)


def _difference(words: str, value: float, both: Contributions, seed: int) -> dict[str, Any]:
    """A difference between the first and the second column of some contributions."""
    low, high = regret_interval(both, chosen=1, best=0, seed=seed)
    return {"figure": words, "score": round(value, 3), "low_score": round(low, 3), "high_score": round(high, 3)}


def _orders(own: Sequence[Trial], reference: _Reference) -> Sheet:
    """Agreement with both baselines, beside the baselines' own from seed to seed."""
    rows: list[Mapping[str, Any]] = []
    for words, trials in (("ape · both", reference.both), ("ape · text", reference.text)):
        rank = float(np.mean([_spearman(trial, trials) for trial in own]))
        ceiling = noise_ceiling([trial.test for trial in trials]).spearman
        order = {"order": "hypernet", "reference": words}
        rows.append({**order, "spearman": rank, "ceiling": ceiling, "difference": rank - ceiling})
    notes = [
        "test scores, each seed against each seed of the reference; the ceiling is the reference against its other "
        "seeds; ape · both is taken at its best length on validation"
    ]
    return Sheet("orders of the pairs", rows, notes)


def _hits(trial: Trial) -> Contributions:
    assert trial.hits is not None, "every trial of a curve is taken with its hits"
    return trial.hits


def _mean(every: Sequence[Contributions]) -> Contributions:
    """Averaged over seeds."""
    return Contributions(np.mean([one.hits for one in every], axis=0), every[0].trials)


_CURVE_NOTES = (
    "regret@1: the pair chosen on validation, scored on test in the mean of ape · text over seeds",
    "spearman: of test scores with ape · both at its best length on validation, seed by seed",
)
