"""The methods that a search was asked for, each run once, booked and kept.

What a method made lies under the run's stages as soon as it is made; a resumed run reads it back and trains nothing
twice. The baseline is kept image encoder by image encoder, since its grid is what takes long.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.adoption import adopt, meet
from hyperalign.align.baseline import solve_ape
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import CanonicalGrid, build_canonical_grid
from hyperalign.align.closed_form import solve_closed_form
from hyperalign.align.grid import PairIndex
from hyperalign.align.polish import POLISH, of_their_own, solve_polished
from hyperalign.align.residual import solve_residual
from hyperalign.align.sliced import solve_sliced
from hyperalign.align.solution import Kept, Solution
from hyperalign.align.train import TrainConfig
from hyperalign.grids import Prepared
from hyperalign.ledger import Line
from hyperalign.machine import give_back, peak_bytes
from hyperalign.packing import join, pack, restrict, unpack
from hyperalign.rank.metrics import recall
from hyperalign.run import finished_stages, load_stage, log_event, save_stage
from hyperalign.scoring import (
    each_retrieval,
    first_captions,
    mean_score,
    scoring_flops,
    watch_flops,
    watched,
    zero_shot,
    zero_shot_flops,
    zero_shot_parts,
)

__all__ = [
    "Method",
    "Part",
    "Recipe",
    "Solved",
    "Workbench",
    "choose_by",
    "pairs_in_words",
    "polish",
    "polishing_recipe",
    "solve",
    "solve_newcomer",
    "train_part",
    "verify",
]

Progress = Callable[[str, int, int], None]

_SECONDS = ("seconds", "watch_seconds", "setup_seconds")  # of `_Made`, kept with a stage


class Method(NamedTuple):
    """One method with its sides and seed.

    Attributes:
        name: "ape", "closed-form", "hypernet", "hypernet-sliced" or "polished".
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """A method's connectors, what validation says of them, and what they cost.

    Attributes:
        method: Which.
        solution: Connectors of P pairs.
        validation: (P,) scores in per cent.
        lines: Ledger.
        stopped: Whether the time was up before the training was finished.
    """

    method: Method
    solution: Solution
    validation: NDArray[np.float64]
    lines: list[Line]
    stopped: bool = False


class Part(NamedTuple):
    """Some pairs that the baseline trains, each by itself: what is kept at once, and what one process does.

    Attributes:
        name: Of the stage.
        pairs: Which.
        sides: "text" or "both".
        seed: Of initialisation and order.
    """

    name: str
    pairs: list[PairIndex]
    sides: str
    seed: int


class Workbench:
    """What all methods of a run share: rows, recipes, where to keep results, how long there is.

    The canonical coordinates are made once. Every method that starts from them has their cost on its account; the
    time stands with the first one alone, so that what ran can be told from what is shared.
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
        looked: Callable[[float], None] = lambda score: None,
        share: Callable[[Sequence[Part]], None] = lambda parts: None,
    ):
        """Nothing is computed yet.

        Args:
            prepared: Rows.
            pairs: The pairs that count.
            recipe: How each method is trained.
            run: Where stages are kept.
            task: "retrieval" or "zero-shot".
            progress: Told `(stage, done, total)`.
            should_stop: Asked before each step of a training; True ends it where it stands.
            looked: Told the score of each look at validation while a training runs, in per cent.
            share: Told the parts of the baseline that are about to be trained; other processes may do some of them.
        """
        self.looked, self.share = looked, share
        self.prepared, self.pairs, self.recipe = prepared, list(pairs), recipe
        self.run, self.task, self.progress, self.should_stop = run, task, progress, should_stop
        self.setup_seconds = 0.0
        self.setup_spent = 0.0  # of these, here: shared coordinates were made before, in another's time
        self.watch_seconds = 0.0
        self.setup_owner: Method | None = None
        self._canonical: CanonicalGrid | None = None
        self._source: Workbench | None = None

    @property
    def canonical(self) -> CanonicalGrid:
        """Canonical coordinates of the training rows."""
        if self._canonical is None:
            start, shared = time.perf_counter(), self._source
            self._canonical = shared.canonical if shared is not None else self._build()
            self.setup_spent = time.perf_counter() - start
            self.setup_seconds = shared.setup_seconds if shared is not None else self.setup_spent
        return self._canonical

    def _build(self) -> CanonicalGrid:
        self.progress("canonical coordinates", 0, 1)
        built = build_canonical_grid(self.prepared.train, self.recipe.canonical)
        self.progress("canonical coordinates", 1, 1)
        give_back()
        return built

    def watch(self) -> Callable[[Solution], float]:
        """How a training is watched: the mean score on validation, one caption each, its time kept apart."""
        grid, pairs = first_captions(self.prepared.val), watched(self.pairs)

        def look(solution: Solution) -> float:
            start = time.perf_counter()
            score = mean_score(restrict(solution, pairs), grid)
            self.watch_seconds += time.perf_counter() - start
            self.looked(score)
            return score

        return look

    def under(
        self, recipe: Recipe, *, run: Path, should_stop: Callable[[], bool], looked: Callable[[float], None]
    ) -> "Workbench":
        """The same rows under another recipe; canonical coordinates that are made alike are made once.

        Args:
            recipe: How each method is trained.
            run: Where stages are kept, another folder than this one's.
            should_stop: See above.
            looked: See above.
        """
        other = Workbench(
            self.prepared,
            self.pairs,
            recipe,
            run=run,
            task=self.task,
            progress=self.progress,
            should_stop=should_stop,
            looked=looked,
        )
        other._source = self if recipe.canonical == self.recipe.canonical else None
        return other


class _Made(NamedTuple):
    """A solution as it was made, now or in an earlier part of the run.

    Attributes:
        solution: The connectors.
        seconds: Of the training, the set-up and the looks at validation not in it.
        watch_seconds: Of the looks.
        setup_seconds: Of the set-up; 0 where it was not needed.
        stopped: Whether the time was up before it was finished; such a solution is not kept.
    """

    solution: Solution
    seconds: float
    watch_seconds: float
    setup_seconds: float
    stopped: bool


def solve(method: Method, bench: Workbench) -> Solved:
    """Run a method, or read back what an earlier part of this run made of it, and score it on validation."""
    if method.name == "ape":
        made = _solve_baseline(method, bench)
    else:
        make = partial(_SOLVERS[method.name], method, bench)
        made = _kept(bench, method.stage, bench.pairs, lambda: restrict(make(), bench.pairs))
    if not made.solution.pairs:
        return Solved(method=method, solution=made.solution, validation=np.empty(0), lines=[], stopped=True)
    return _validated(method, made, bench)


def solve_newcomer(method: Method, bench: Workbench, side: str, kept: Kept) -> Solved:
    """Connectors of an encoder that a finished search did not know.

    Args:
        method: The hypernetwork of that search.
        bench: Rows of the newcomer, alone on its side, and of its partners.
        side: The newcomer's: "image" or "text".
        kept: What the search has left, of the partners alone on their side.

    Returns:
        Its pairs; `solution.kept` has the newcomer behind the others of its side.
    """
    start, config = time.perf_counter(), bench.recipe.canonical
    met = meet(bench.prepared.train, side, kept, config)
    between = time.perf_counter()
    solution = adopt(side, met, kept, config)
    made = _Made(solution, time.perf_counter() - between, 0.0, between - start, stopped=False)
    return _validated(method, made, bench)


def _validated(method: Method, made: _Made, bench: Workbench) -> Solved:
    """A method that has finished, scored on validation and booked."""
    start = time.perf_counter()
    scores = choose_by(made.solution, bench)
    seconds = time.perf_counter() - start + made.watch_seconds
    lines = [*_setup_lines(method, made, bench), *_training_lines("training", method, made)]
    lines.append(_validation_line(method, made.solution, seconds, bench))
    return Solved(method=method, solution=made.solution, validation=scores, lines=lines, stopped=made.stopped)


def verify(pairs: Sequence[PairIndex], bench: Workbench, after: Solved) -> Solved:
    """Train a few pairs by the baseline, each by itself, with the seed of the method that answers."""
    seed = after.method.seed
    method = Method("ape", "text", seed)
    parts = [Part(f"verification-{'-'.join(map(str, (*pair, seed)))}", [pair], "text", seed) for pair in pairs]
    made = _train_parts(parts, bench, "verification by ape, pairs")
    return _looked_at("verification", method, made, bench)


def polish(pairs: Sequence[PairIndex], bench: Workbench, after: Solved) -> Solved:
    """Make a few pairs as good as they get (`align.polish`).

    Args:
        pairs: Which.
        bench: Rows of all encoders; of an adoption, those of the newcomer and its partners.
        after: The method that answers; what it left of its set-up is used again.
    """
    seed = after.method.seed
    method, tick = Method("polished", "both", seed), _Counting(bench.progress, "polishing, pairs", 0, len(pairs))
    made = _kept(
        bench,
        f"polishing-{seed}",
        pairs,
        lambda: solve_polished(
            bench.prepared.train,
            pairs,
            bench.recipe.canonical,
            replace(POLISH, seed=seed),
            kept=after.solution.kept,
            progress=tick,
            should_stop=bench.should_stop,
        ),
    )
    return _looked_at("polishing", method, made, bench)


def _looked_at(stage: str, method: Method, made: _Made, bench: Workbench) -> Solved:
    """First pairs that were trained by themselves, scored on validation, all of it booked as one stage."""
    start, beside, validation = time.perf_counter(), made.solution.setup_flops, np.empty(0)
    if made.solution.pairs:
        validation = choose_by(made.solution, bench)
        beside += _validation_line(method, made.solution, 0.0, bench).flops
    made = made._replace(seconds=made.seconds + time.perf_counter() - start)
    lines = _training_lines(stage, method, made, beside=beside)
    return Solved(method=method, solution=made.solution, validation=validation, lines=lines)


def polishing_recipe(recipe: Recipe) -> Recipe:
    """What `polish` does, as a recipe of `ape · both` on the encoders of its pairs alone."""
    return replace(recipe, canonical=of_their_own(recipe.canonical), ape_both=POLISH)


def choose_by(solution: Solution, bench: Workbench) -> NDArray[np.float64]:
    """(P,) scores on validation in per cent, by which pairs are chosen."""
    labels = bench.prepared.labels
    if bench.task == "zero-shot":
        assert labels is not None, "the task was checked when the data was opened"
        found = zero_shot(solution, labels, zero_shot_parts(labels)[0])
        return np.array([100 * hits.mean(dtype=np.float64) for hits in found])
    return np.array([recall(hits, (1,))["score"] for hits in each_retrieval(solution, bench.prepared.val, ks=(1,))])


def _kept(bench: Workbench, name: str, pairs: Sequence[PairIndex], make: Callable[[], Solution]) -> _Made:
    """Read a stage back, or make it for some pairs and keep it where it was not stopped in the middle."""
    found = _read_back(bench.run, name)
    if found is not None:
        return found
    start, before = time.perf_counter(), (bench.watch_seconds, bench.setup_spent)
    solution = make()
    watch_seconds = bench.watch_seconds - before[0]
    seconds = time.perf_counter() - start - watch_seconds - (bench.setup_spent - before[1])
    stopped = len(solution.pairs) < len(pairs) or any(fit.stopped for fit in solution.fits)
    made = _Made(solution, seconds, watch_seconds, bench.setup_seconds if solution.setup_flops else 0.0, stopped)
    _log_training(bench.run, name, solution)
    if not made.stopped:
        tensors, record = pack(solution)
        times = {part: getattr(made, part) for part in _SECONDS}
        save_stage(bench.run, name, tensors=tensors, record={"solution": record, **times})
    give_back()
    return made


def _read_back(run: Path, name: str) -> "_Made | None":
    """A stage that is there; None where there is none, or one of a release that kept something else."""
    kept = load_stage(run, name)
    if kept is None:
        return None
    try:
        solution = unpack(kept.tensors, kept.record["solution"])
        times = {part: float(kept.record[part]) for part in _SECONDS}
    except ValueError as error:
        log_event(run, "made anew", stage=name, reason=str(error))
        return None
    return _Made(solution, **times, stopped=False)


def _log_training(run: Path, name: str, solution: Solution) -> None:
    """The curve of a network; those of single pairs would fill the log."""
    if solution.method == "ape":
        return
    for fit in solution.fits:
        for look in fit.looks:
            log_event(run, "look", stage=name, **look._asdict())
        if fit.losses:
            log_event(run, "losses", stage=name, curve=fit.losses)
        if fit.diverged:
            log_event(run, "diverged", stage=name, at_step=fit.n_steps)
        if fit.rolled_back:
            log_event(run, "rolled back", stage=name, to_step=fit.best_step, of=fit.n_steps)


def _setup_lines(method: Method, made: _Made, bench: Workbench) -> list[Line]:
    """The set-up on the account of every method that starts from it, its time with the first."""
    flops = made.solution.setup_flops
    if not flops:
        return []
    if bench.setup_owner is None:
        bench.setup_owner = method
        what = "moments, eigendecompositions, projections, cross-products"
        return [Line("set-up", method.label, what, flops, made.setup_seconds, peak_bytes())]
    return [Line("set-up", method.label, f"shared with {bench.setup_owner.label}, made once", flops)]


def _training_lines(stage: str, method: Method, made: _Made, *, beside: int = 0) -> list[Line]:
    """Forward, backward and emission, and other FLOPs of the same time; the optimiser's updates by themselves."""
    solution = made.solution
    n_steps, n_pairs = sum(fit.n_steps for fit in solution.fits), len(solution.pairs)
    what = f"{pairs_in_words(n_pairs)}, " + (f"{n_steps:,} steps" if solution.fits else "emission alone")
    lines = []
    if flops := beside + solution.train_flops:
        lines.append(Line(stage, method.label, what, flops, made.seconds, peak_bytes()))
    if solution.fits:
        updates = sum(fit.optimiser_flops for fit in solution.fits)
        lines.append(Line("optimiser", method.label, f"AdamW, timed with the {stage}", updates))
    return lines


def pairs_in_words(n_pairs: int) -> str:
    """As in `1 pair`."""
    return "1 pair" if n_pairs == 1 else f"{n_pairs:,} pairs"


def _validation_line(method: Method, solution: Solution, seconds: float, bench: Workbench) -> Line:
    """One look with all captions, by which pairs are chosen, and those that the training took with one caption each."""
    labels = bench.prepared.labels
    if bench.task == "zero-shot" and labels is not None:
        flops, what = (
            zero_shot_flops(solution, labels, zero_shot_parts(labels)[0]),
            "every second picture of the labels",
        )
    else:
        flops, what = scoring_flops(solution, bench.prepared.val), "all captions once"
    n_looks = sum(look.validation == look.validation for fit in solution.fits for look in fit.looks)
    if n_looks:
        some = pairs_in_words(len(watched(solution.pairs)))
        flops += n_looks * watch_flops(solution, bench.prepared.val)
        what += f", one caption each of {some} {n_looks} times while training"
    return Line("validation", method.label, what, flops, seconds, peak_bytes())


def _solve_baseline(method: Method, bench: Workbench) -> _Made:
    """The baseline's grid, an image encoder at a time; what is finished is kept."""
    images = sorted({i for i, _ in bench.pairs})
    parts = [
        Part(f"{method.stage}-{image}", [pair for pair in bench.pairs if pair[0] == image], method.sides, method.seed)
        for image in images
    ]
    return _train_parts(parts, bench, f"{method.label}, pairs")


def _train_parts(parts: Sequence[Part], bench: Workbench, stage: str) -> _Made:
    """Every part trained, or read back where this or another process has kept it."""
    finished = finished_stages(bench.run)
    if left := [part for part in parts if part.name not in finished]:
        bench.share(left)
    made, done, total = [], 0, sum(len(part.pairs) for part in parts)
    for part in parts:
        made.append(_train_or_read(part, bench, _Counting(bench.progress, stage, done, total)))
        done += len(part.pairs)
    return _joined(made)


def train_part(part: Part, bench: Workbench) -> None:
    """Train a part of the baseline and keep it in the run."""
    _train_or_read(part, bench, _Counting(bench.progress, f"{part.name}, pairs", 0, len(part.pairs)))


def _train_or_read(part: Part, bench: Workbench, tick: "_Counting") -> _Made:
    both = part.sides == "both"
    config = replace(bench.recipe.ape_both if both else bench.recipe.ape, seed=part.seed)

    def train() -> Solution:
        return solve_ape(
            bench.prepared.train,
            part.pairs,
            config,
            canonical=bench.canonical if both else None,
            progress=tick,
            should_stop=bench.should_stop,
        )

    return _kept(bench, part.name, part.pairs, train)


def _joined(parts: Sequence[_Made]) -> _Made:
    """Parts of one grid; the set-up they share took its time once."""
    return _Made(
        join([part.solution for part in parts]),
        sum(part.seconds for part in parts),
        sum(part.watch_seconds for part in parts),
        max(part.setup_seconds for part in parts),
        any(part.stopped for part in parts),
    )


class _Counting:
    """Progress of a part as progress of the whole."""

    def __init__(self, progress: Progress, stage: str, before: int, total: int):
        self.progress, self.stage, self.before, self.total = progress, stage, before, total

    def __call__(self, done: int, _: int) -> None:
        self.progress(self.stage, self.before + done, self.total)


def _closed_form(method: Method, bench: Workbench) -> Solution:
    return solve_closed_form(bench.canonical, sides=method.sides)


def _residual(method: Method, bench: Workbench) -> Solution:
    return solve_residual(
        bench.prepared.train,
        bench.canonical,
        replace(bench.recipe.residual, seed=method.seed),
        validate=bench.watch(),
        progress=lambda done, total: bench.progress("hypernetwork, steps", done, total),
        should_stop=bench.should_stop,
    )


def _sliced(method: Method, bench: Workbench) -> Solution:
    return solve_sliced(
        bench.prepared.train,
        replace(bench.recipe.sliced, seed=method.seed),
        progress=lambda done, total: bench.progress("sliced hypernetwork, steps", done, total),
        should_stop=bench.should_stop,
    )


_SOLVERS = {"closed-form": _closed_form, "hypernet": _residual, "hypernet-sliced": _sliced}
