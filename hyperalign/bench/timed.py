"""Each method run on the same rows: what its search executed, how long that took, how much memory it grew by."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hyperalign.account import compute_ratios
from hyperalign.bench.opened import Opened
from hyperalign.bench.published import explain
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.watermark import watched
from hyperalign.ledger import SEARCH_STAGES, search_flops
from hyperalign.record import distinct_ratios
from hyperalign.request import METHODS
from hyperalign.solve import Method, Recipe, Solved, Workbench, solve

__all__ = ["Timed", "method_sheet", "ratio_sheet", "time_method", "time_methods"]

ONCE_SECONDS = 60.0  # what takes longer is not repeated


class Timed(NamedTuple):
    """The fastest of some runs of one method.

    Attributes:
        solved: What it made, and its ledger.
        growth_bytes: Peak resident memory above the start of the first run; None where the system does not tell.
        n_runs: How many there were.
    """

    solved: Solved
    growth_bytes: int | None
    n_runs: int

    @property
    def search_seconds(self) -> float:
        """Set-up, training and validation, as the ledger defines a search."""
        return sum(line.seconds for line in self.solved.lines if line.stage in SEARCH_STAGES)

    @property
    def training_seconds(self) -> float:
        """Training alone: the ledger books the looks at validation that were taken meanwhile with validation."""
        return sum(line.seconds for line in self.solved.lines if line.stage == "training")

    def flops(self, *stages: str) -> int:
        """Executed in some stages."""
        return sum(line.flops for line in self.solved.lines if line.stage in stages)


def time_methods(opened: Opened, asked: Asked) -> list[Timed]:
    """Every method on the rows that were asked for, the baseline with both kinds of sides."""
    config = replace(asked.config, methods=METHODS, decoder="residual", sides="text,both", baseline_seeds=1)
    found = []
    for method in config.plan_methods():
        asked.say(f"running {method.label} on {len(opened.candidates.pairs)} pairs")
        found.append(time_method(method, opened, asked))
    return found


def time_method(method: Method, opened: Opened, asked: Asked) -> Timed:
    """Run a method, again where it is short, and keep the fastest run; its set-up is made anew each time."""
    best = _run(method, opened, asked)
    if best.search_seconds > ONCE_SECONDS:
        return best
    for n_runs in range(2, asked.n_seeds + 1):
        again = _run(method, opened, asked)
        best = min(best, again, key=lambda one: one.search_seconds)._replace(
            growth_bytes=best.growth_bytes, n_runs=n_runs
        )
    return best


def method_sheet(every: list[Timed], peak: float) -> Sheet:
    """FLOPs, seconds, speed and memory of each method.

    Args:
        every: The runs.
        peak: Best FLOP/s of a matrix product of the same dtype and threads in this run.
    """
    notes = [
        "a search is set-up, training and validation; training alone leaves out the looks at validation",
        "the updates of the optimiser take time and count no FLOP",
        "share is of the best matrix product of this run; peak_growth is VmHWM above the start of the method",
    ]
    return Sheet("methods", [_row(one, peak) for one in every], notes)


def ratio_sheet(every: list[Timed], opened: Opened, asked: Asked) -> Sheet:
    """The baseline's grid over the hypernetwork's search: as they ran, and computed at two settings."""
    own = next(one for one in every if one.solved.method.name == "hypernet")
    recipe = asked.config.recipe()
    rows: list[dict[str, Any]] = []
    for one in every:
        if one.solved.method.name == "ape":
            batches = _batches(one.solved.method, recipe)
            rows.append(_ratio(f"measured, {batches}", one.solved.method.label, _cost(one), _cost(own)))
    pairs, prepared = opened.candidates.pair_indices(), opened.prepared
    computed = compute_ratios(own.solved, own.solved.lines, recipe, pairs, prepared.train, prepared.val)
    for ratio in distinct_ratios(computed):
        costs = (ratio["baseline_flops"], None), (ratio["method_flops"], None)
        rows.append(_ratio(f"computed, {ratio['setting']}", ratio["baseline"], *costs))
    return Sheet(f"the baseline's grid over the search by {own.solved.method.label}", rows, explain())


def _run(method: Method, opened: Opened, asked: Asked) -> Timed:
    """One run in a folder of its own, so that nothing is read back."""
    with tempfile.TemporaryDirectory() as folder, watched() as growth:
        solved = solve(method, _workbench(opened, asked, Path(folder)))
    return Timed(solved, growth.n_bytes, 1)


def _workbench(opened: Opened, asked: Asked, run: Path) -> Workbench:
    return Workbench(
        opened.prepared,
        opened.candidates.pair_indices(),
        asked.config.recipe(),
        run=run,
        task=asked.config.task,
        progress=asked.progress,
        should_stop=lambda: False,
    )


def _row(one: Timed, peak: float) -> dict[str, Any]:
    method, flops = one.solved.method, search_flops(one.solved.lines, one.solved.method.label)
    trained = [fit.flops for fit in one.solved.solution.fits]
    speed = sum(trained) / one.training_seconds if trained else None
    return {
        "method": method.label,
        "search_flops": flops,
        "search_seconds": one.search_seconds,
        "search_flops_per_second": flops / one.search_seconds,
        "search_peak_share": flops / one.search_seconds / peak,
        "training_flops": one.flops("training"),
        "training_seconds": one.training_seconds if trained else None,
        "training_flops_per_second": speed,
        "training_peak_share": None if speed is None else speed / peak,
        "peak_growth_bytes": one.growth_bytes,
        "set_up_flops": one.flops("set-up"),
        "validation_flops": one.flops("validation"),
        "runs": one.n_runs,
    }


def _batches(baseline: Method, recipe: Recipe) -> str:
    """The batch size of both, or that of the baseline and then that of the search."""
    theirs = (recipe.ape_both if baseline.sides == "both" else recipe.ape).batch_size
    own = recipe.residual.batch_size
    return f"matched batch {own}" if theirs == own else f"batch {theirs} against {own}"


def _cost(one: Timed) -> tuple[int, float | None]:
    return search_flops(one.solved.lines, one.solved.method.label), one.search_seconds


def _ratio(
    setting: str, baseline: str, grid: tuple[int, float | None], search: tuple[int, float | None]
) -> dict[str, Any]:
    """One baseline against the search, each as (FLOPs, seconds or None)."""
    walls = None if grid[1] is None or search[1] is None else grid[1] / search[1]
    return {
        "setting": setting,
        "baseline": baseline,
        "flops_ratio": grid[0] / search[0],
        "wall_ratio": walls,
        "baseline_flops": grid[0],
        "search_flops": search[0],
        "baseline_seconds": grid[1],
        "search_seconds": search[1],
    }
