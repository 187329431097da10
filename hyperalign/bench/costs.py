"""What trials will cost, from shapes: without doing them, and before a long measurement begins."""

from collections.abc import Iterable
from typing import NamedTuple

from hyperalign.bench.opened import Opened
from hyperalign.bench.sheet import Say
from hyperalign.forecast import forecast
from hyperalign.machine import measure_matmul
from hyperalign.plan import estimate_seconds
from hyperalign.scoring import scoring_flops, watch_flops, zero_shot_flops, zero_shot_parts
from hyperalign.solve import Method, Recipe

__all__ = ["Cost", "announce", "foresee"]


class Cost(NamedTuple):
    """What a trial will cost, from shapes.

    Attributes:
        search_flops: Set-up, training and validation.
        optimiser_flops: AdamW's updates.
        n_steps: Optimiser steps of all its trainings.
    """

    search_flops: int
    optimiser_flops: int
    n_steps: int


def foresee(opened: Opened, method: Method, recipe: Recipe, *, task: str = "retrieval") -> Cost:
    """The figure that a trial would book, without doing it; rows that are not usable are taken as if they were."""
    prepared = opened.prepared
    cost = forecast(method, prepared.train, opened.candidates.pair_indices(), recipe)
    flops = cost.setup_flops + cost.train_flops
    if task == "zero-shot" and prepared.labels is not None:
        flops += zero_shot_flops(cost.solution, prepared.labels, zero_shot_parts(prepared.labels)[0])
    else:
        flops += scoring_flops(cost.solution, prepared.val)
    flops += cost.n_looks * watch_flops(cost.solution, prepared.val)
    return Cost(flops, cost.optimiser_flops, cost.n_steps)


def announce(costs: Iterable[Cost], say: Say) -> str:
    """Say what trials will cost, before they begin; the sentence belongs in the notes too."""
    every = list(costs)
    flops, rate = sum(cost.search_flops for cost in every), measure_matmul(size=1024)
    seconds = estimate_seconds("training", flops, rate)
    seconds += sum(estimate_seconds("optimiser", cost.optimiser_flops, rate) for cost in every)
    sentence = (
        f"{len(every)} trials foreseen, {flops / 1e12:.3g} TFLOP: about {seconds / 60:.0f} minutes on this machine, "
        "where half or twice as long is no surprise"
    )
    say(sentence)
    return sentence
