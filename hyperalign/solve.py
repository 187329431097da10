"""The methods that a search was asked for, each run once, booked and kept.

What a method made lies under the run's stages as soon as it is made; a resumed run reads it back and trains nothing
twice. The baseline is kept image encoder by image encoder, since its grid is what takes long.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.baseline import solve_ape
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.closed_form import CanonicalGrid, build_canonical_grid, solve_closed_form
from hyperalign.align.grid import PairIndex
from hyperalign.align.residual import solve_residual
from hyperalign.align.sliced import solve_sliced
from hyperalign.align.solution import Solution
from hyperalign.align.train import TrainConfig
from hyperalign.ledger import Line
from hyperalign.machine import peak_bytes
from hyperalign.prepare import Prepared
from hyperalign.run import load_stage, log_event, save_stage
from hyperalign.scoring import first_captions, mean_score, retrieval, scoring_flops, zero_shot, zero_shot_parts
from hyperalign.solutions import join, pack, restrict, unpack

__all__ = ["Method", "Recipe", "Solved", "Workbench", "choose_by", "solve", "verify"]

Progress = Callable[[str, int, int], None]


class Method(NamedTuple):
    """One method with its sides and seed.

    Attributes:
        name: "ape", "closed-form", "hypernet" or "hypernet-sliced".
        sides: "text" or "both".
        seed: Of initialisation and order.
    """

    name: str
    sides: str
    seed: int

    @property
    def label(self) -> str:
        """Words for tables and the ledger."""
        return f"{self.name} · {self.sides}" + (f" · seed {self.seed}" if self.seed else "")

    @property
    def stage(self) -> str:
        """Name of its files."""
        return f"{self.name}-{self.sides}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How each method is trained.

    Attributes:
        canonical: Coordinates of the canonical methods.
        residual: The default hypernetwork's training.
        sliced: The poster's hypernetwork's training.
        ape: The baseline's, text-sided.
        ape_both: The baseline's between canonical coordinates.
    """

    canonical: CanonicalConfig
    residual: TrainConfig
    sliced: TrainConfig
    ape: TrainConfig
    ape_both: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A method's connectors, what validation says of them, and what they cost.

    Attributes:
        method: Which.
        solution: Connectors of P pairs.
        validation: (P,) scores in per cent.
        lines: Ledger.
    """

    method: Method
    solution: Solution
    validation: NDArray[np.float64]
    lines: list[Line]


class Workbench:
    """What all methods of a run share: rows, recipes, where to keep results, how long there is.

    The canonical coordinates are made once and booked to every method that starts from them.
    """

    def __init__(  # noqa: PLR0913 - what a run is made of
        self,
        prepared: Prepared,
        pairs: Sequence[PairIndex],
        recipe: Recipe,
        *,
        run: Path,
        task: str,
        progress: Progress,
        should_stop: Callable[[], bool],
    ):
        """Nothing is computed yet."""
        self.prepared, self.pairs, self.recipe = prepared, list(pairs), recipe
        self.run, self.task, self.progress, self.should_stop = run, task, progress, should_stop
        self.setup_seconds = 0.0
        self._canonical: CanonicalGrid | None = None

    @property
    def canonical(self) -> CanonicalGrid:
        """Canonical coordinates of the training rows."""
        if self._canonical is None:
            start = time.perf_counter()
            self.progress("canonical coordinates", 0, 1)
            self._canonical = build_canonical_grid(self.prepared.train, self.recipe.canonical)
            self.setup_seconds = time.perf_counter() - start
            self.progress("canonical coordinates", 1, 1)
        return self._canonical


def solve(method: Method, bench: Workbench) -> Solved:
    """Run a method, or read back what an earlier part of this run made of it."""
    if method.name == "ape":
        return _validated(method, *_solve_baseline(method, bench), bench)
    kept = load_stage(bench.run, method.stage)
    if kept is not None:
        solution, seconds = unpack(kept.tensors, kept.record["solution"]), kept.record["seconds"]
        return _validated(method, solution, seconds, bench)
    start = time.perf_counter()
    before = bench.setup_seconds
    solution = _SOLVERS[method.name](method, bench)
    seconds = time.perf_counter() - start - (bench.setup_seconds - before)
    solution = restrict(solution, bench.pairs)
    tensors, record = pack(solution)
    save_stage(bench.run, method.stage, tensors=tensors, record={"solution": record, "seconds": seconds})
    for fit in solution.fits:
        for look in fit.looks:
            log_event(bench.run, "look", method=method.label, **look._asdict())
        if fit.rolled_back:
            log_event(bench.run, "rolled back", method=method.label, to_step=fit.best_step, of=fit.n_steps)
    return _validated(method, solution, seconds, bench)


def verify(pairs: Sequence[PairIndex], bench: Workbench, seed: int) -> Solved:
    """Train a few pairs by the baseline, each by itself."""
    method = Method("ape", "text", seed)
    start = time.perf_counter()
    solution = solve_ape(
        bench.prepared.train,
        pairs,
        replace(bench.recipe.ape, seed=seed),
        progress=lambda done, total: bench.progress("verification by ape", done, total),
        should_stop=bench.should_stop,
    )
    seconds = time.perf_counter() - start
    line = Line("verification", method.label, _pairs_in_words(solution), solution.train_flops, seconds, peak_bytes())
    return Solved(method=method, solution=solution, validation=choose_by(solution, bench), lines=[line])


def choose_by(solution: Solution, bench: Workbench) -> NDArray[np.float64]:
    """(P,) scores on validation in per cent, by which pairs are chosen."""
    labels = bench.prepared.labels
    if bench.task == "zero-shot":
        assert labels is not None, "the task was checked when the data was opened"
        return np.array([100 * hits.mean() for hits in zero_shot(solution, labels, zero_shot_parts(labels)[0])])
    found = retrieval(solution, bench.prepared.val, ks=(1,))
    return np.array([50 * (float(hits.t2i.mean()) + float(hits.i2t.mean())) for hits in found])


def _validated(method: Method, solution: Solution, seconds: float, bench: Workbench) -> Solved:
    """Score on validation, and book everything."""
    start = time.perf_counter()
    scores = choose_by(solution, bench)
    looked = time.perf_counter() - start
    lines = []
    if solution.setup_flops:
        what = "moments, eigendecompositions, projections, cross-products"
        lines.append(Line("set-up", method.label, what, solution.setup_flops, bench.setup_seconds, peak_bytes()))
    if solution.fits:
        lines.append(
            Line("training", method.label, _pairs_in_words(solution), solution.train_flops, seconds, peak_bytes())
        )
        updates = sum(fit.optimiser_flops for fit in solution.fits)
        lines.append(Line("optimiser", method.label, "AdamW, timed with the training", updates))
    flops = scoring_flops(solution, bench.prepared.val)
    what = "all captions once"
    watched = _n_watched(solution)
    if watched:
        flops += watched * scoring_flops(solution, first_captions(bench.prepared.val))
        what += f", one caption each {watched} times while training"
    lines.append(Line("validation", method.label, what, flops, looked, peak_bytes()))
    return Solved(method=method, solution=solution, validation=scores, lines=lines)


def _n_watched(solution: Solution) -> int:
    """How often the training looked at validation."""
    return sum(look.validation == look.validation for fit in solution.fits for look in fit.looks)


def _pairs_in_words(solution: Solution) -> str:
    steps = sum(fit.n_steps for fit in solution.fits)
    return f"{len(solution.pairs)} pairs, {steps:,} steps"


def _solve_baseline(method: Method, bench: Workbench) -> tuple[Solution, float]:
    """The baseline's grid, an image encoder at a time; what is finished is kept."""
    both = method.sides == "both"
    config = replace(bench.recipe.ape_both if both else bench.recipe.ape, seed=method.seed)
    parts, total, done = [], 0.0, 0
    for image in sorted({i for i, _ in bench.pairs}):
        pairs = [pair for pair in bench.pairs if pair[0] == image]
        name = f"{method.stage}-{image}"
        kept = load_stage(bench.run, name)
        if kept is not None:
            solution, seconds = unpack(kept.tensors, kept.record["solution"]), float(kept.record["seconds"])
        else:
            canonical = bench.canonical if both else None
            start = time.perf_counter()
            tick = _Counting(bench.progress, f"{method.label}: pairs", done, len(bench.pairs))
            solution = solve_ape(
                bench.prepared.train, pairs, config, canonical=canonical, progress=tick, should_stop=bench.should_stop
            )
            seconds = time.perf_counter() - start
            if len(solution.pairs) == len(pairs) and not bench.should_stop():
                tensors, record = pack(solution)
                save_stage(bench.run, name, tensors=tensors, record={"solution": record, "seconds": seconds})
        parts.append(solution)
        total += seconds
        done += len(pairs)
    return join(parts), total


class _Counting:
    """Progress of a part as progress of the whole."""

    def __init__(self, progress: Progress, stage: str, before: int, total: int):
        self.progress, self.stage, self.before, self.total = progress, stage, before, total

    def __call__(self, done: int, _: int) -> None:
        self.progress(self.stage, self.before + done, self.total)


def _closed_form(method: Method, bench: Workbench) -> Solution:
    return solve_closed_form(bench.canonical, sides=method.sides)


def _residual(method: Method, bench: Workbench) -> Solution:
    watch = first_captions(bench.prepared.val)
    return solve_residual(
        bench.prepared.train,
        bench.canonical,
        replace(bench.recipe.residual, seed=method.seed),
        validate=lambda solution: mean_score(solution, watch),
        progress=lambda done, total: bench.progress("hypernetwork: steps", done, total),
        should_stop=bench.should_stop,
    )


def _sliced(method: Method, bench: Workbench) -> Solution:
    return solve_sliced(
        bench.prepared.train,
        replace(bench.recipe.sliced, seed=method.seed),
        progress=lambda done, total: bench.progress("sliced hypernetwork: steps", done, total),
        should_stop=bench.should_stop,
    )


_SOLVERS = {"closed-form": _closed_form, "hypernet": _residual, "hypernet-sliced": _sliced}
