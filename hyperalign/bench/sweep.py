"""The baseline at its best: batch, length and learning rate, chosen on validation.

The whole product would take a day, so the search goes in stages. First the rates at one length; then from the best
point to its best neighbour until no neighbour is better; then down in cost as long as a cheaper neighbour stays
within 0.1 point of the best (DESIGN section 7's rule for the baseline of a comparison). This is done on a quarter of
the image encoders; what it comes to is repeated on all of them. Between canonical coordinates the last stage goes down
to the cheapest training that scores as high as the hypernetwork.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hyperalign.align.train import TrainConfig
from hyperalign.bench.costs import announce, foresee
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.trials import Trial, Trials, part_of
from hyperalign.record import to_json
from hyperalign.solve import Method, Recipe

__all__ = ["BEST", "CHEAPEST", "MATCHED", "Point", "Space", "climb", "descend", "measure", "settle", "swept"]

BEST, CHEAPEST, MATCHED = "best", "cheapest within 0.1", "equals hypernet"
WITHIN = 0.1  # point of the best mean validation score
EVERY = 4  # of the image encoders, for the stages that need many trials

BATCHES = (128, 256, 512, 1024)
RATES = (1e-3, 2e-3, 3e-3, 5e-3)
EPOCHS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
EPOCHS_BOTH = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
RATES_BOTH = (5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)


class Point(NamedTuple):
    """One setting of the baseline.

    Attributes:
        batch_size: Items a step.
        n_epochs: Passes over the captions.
        learning_rate: Peak rate.
    """

    batch_size: int
    n_epochs: float
    learning_rate: float


Score = Callable[[Point], float]


@dataclass(frozen=True)
class Space:
    """The settings that are searched.

    Attributes:
        batches: Ascending.
        epochs: Ascending.
        rates: Ascending.
    """

    batches: Sequence[int]
    epochs: Sequence[float]
    rates: Sequence[float]

    def near(self, point: Point) -> list[Point]:
        """Settings one step away along one axis."""
        return [moved for d in (-1, 1) for step in ((d, 0, 0), (0, d, 0), (0, 0, d)) for moved in self._at(point, step)]

    def cheaper(self, point: Point) -> list[Point]:
        """Settings with the next smaller batch or the next shorter training, at this rate and at its neighbours."""
        return [moved for a, b in ((-1, 0), (0, -1)) for c in (0, -1, 1) for moved in self._at(point, (a, b, c))]

    def longer(self, point: Point, by: int) -> list[Point]:
        """The next longer training, or with `by` -1 the next shorter one; none at the end."""
        return self._at(point, (0, by, 0))

    def middle(self) -> list[Point]:
        """Every rate, at the batch and the length in the middle."""
        batch, epochs = (axis[len(axis) // 2] for axis in (self.batches, self.epochs))
        return [Point(int(batch), epochs, rate) for rate in self.rates]

    def _at(self, point: Point, step: tuple[int, int, int]) -> list[Point]:
        axes = (self.batches, self.epochs, self.rates)
        places = [axis.index(value) + by for axis, value, by in zip(axes, point, step, strict=True)]
        if any(not 0 <= place < len(axis) for place, axis in zip(places, axes, strict=True)):
            return []
        batch, epochs, rate = (axis[place] for axis, place in zip(axes, places, strict=True))
        return [Point(int(batch), epochs, rate)]


def climb(space: Space, score: Score) -> Point:
    """From the best rate in the middle to the best neighbour, until no neighbour is better."""
    best = max(space.middle(), key=score)
    while (around := space.near(best)) and score(found := max(around, key=score)) > score(best):
        best = found
    return best


def descend(space: Space, start: Point, *, cost: Callable[[Point], float], enough: Callable[[Point], bool]) -> Point:
    """From `start` to the cheapest of its cheaper neighbours that is good enough, as long as there is one."""
    while found := [point for point in space.cheaper(start) if enough(point)]:
        start = min(found, key=cost)
    return start


def settle(space: Space, start: Point, *, enough: Callable[[Point], bool]) -> Point | None:
    """The shortest training that is good enough, looked for from `start` on; None where the longest is not."""
    point = start
    while not enough(point):
        if not (longer := space.longer(point, 1)):
            return None
        point = longer[0]
    while (shorter := space.longer(point, -1)) and enough(shorter[0]):
        point = shorter[0]
    return point


def measure(asked: Asked) -> list[Sheet]:
    """Sweep the baseline, text-sided and between canonical coordinates.

    Returns:
        For each the settings tried on a quarter of the image encoders, and the finalists on all.
    """
    opened = open_bench(asked)
    part = part_of(opened, range(0, len(opened.candidates.images), EVERY))
    trials = Trials("sweep", asked)
    text, both = (_Sweep(sides, asked, opened, part, trials) for sides in ("text", "both"))
    few = [foresee(part, *text.trial(point)) for point in (*text.space.middle(), *6 * text.space.middle()[:1])]
    asked.say("how many trials the search takes is not known before; ten on the part and one on all, text-sided:")
    foreseen = announce([*few, foresee(opened, *text.trial(text.space.middle()[0]))], asked.say)
    sheets = [*_sweep_text(text), *_sweep_both(both)]
    notes = trials.notes(f"of ten on the part and one on all, text-sided, at the middle of the ranges: {foreseen}")
    return [*sheets[:-1], sheets[-1]._replace(notes=[*sheets[-1].notes, *notes])]


class _Sweep:
    """One side's settings tried on the part and on the whole."""

    def __init__(self, sides: str, asked: Asked, opened: Opened, part: Opened, trials: Trials) -> None:
        self.sides, self.asked, self.opened, self.part, self.trials = sides, asked, opened, part, trials
        n = opened.prepared.train.n_images
        batches = [batch for batch in BATCHES if batch <= n] or [n]  # more than there are pictures is cut anyway
        text = sides == "text"
        self.space = Space(batches, EPOCHS if text else EPOCHS_BOTH, RATES if text else RATES_BOTH)
        self.tried: dict[tuple[int, Point], Trial] = {}
        self.grid_flops = cache(lambda point: foresee(self.opened, *self.trial(point), task=asked.config.task)[0])

    def trial(self, point: Point) -> tuple[Method, Recipe]:
        """The baseline with a setting."""
        recipe = self.asked.config.recipe()
        changes: dict[str, Any] = {"n_steps": None, **point._asdict()}
        if self.sides == "both":
            recipe = replace(recipe, ape_both=replace(recipe.ape_both, **changes))
        else:
            recipe = replace(recipe, ape=replace(recipe.ape, **changes))
        return Method("ape", self.sides, self.asked.config.seed), recipe

    def on(self, grid: Opened) -> Score:
        """Mean validation score of a setting on a grid."""

        def score(point: Point) -> float:
            at = (len(grid.candidates.images), point)
            if at not in self.tried:
                self.tried[at] = self.trials.take(grid, *self.trial(point))
            return float(self.tried[at].validation.mean())

        return score

    def scores(self, grid: Opened) -> dict[Point, float]:
        """Everything tried on a grid so far."""
        score, n = self.on(grid), len(grid.candidates.images)
        return {point: score(point) for images, point in self.tried if images == n}

    def cheapest(self, grid: Opened, bar: float) -> Point:
        """The cheapest setting tried on a grid that scores at least so high."""
        return min((point for point, score in self.scores(grid).items() if score >= bar), key=self.grid_flops)

    def target(self, grid: Opened) -> float:
        """Mean validation score of the hypernetwork, over the seeds."""
        recipe = self.asked.config.recipe()
        every = [self.trials.take(grid, Method("hypernet", "both", seed), recipe) for seed in self.asked.seeds()]
        return float(np.mean([trial.validation.mean() for trial in every]))

    def sheet(self, grid: Opened, title: str, marks: Mapping[Point, Sequence[str]], notes: Sequence[str]) -> Sheet:
        """All that was tried on a grid, best first."""
        n = len(grid.candidates.images)
        rows = []
        for point, score in sorted(self.scores(grid).items(), key=lambda item: -item[1]):
            trial = self.tried[n, point]
            rows.append(
                {
                    "mark": ", ".join(marks.get(point, ())),
                    "sides": self.sides,
                    "n_image_encoders": n,
                    **point._asdict(),
                    "validation_score": round(score, 3),
                    "test_score": round(float(trial.test.mean()), 3),
                    "grid_flops": self.grid_flops(point),
                    "tried_flops": trial.search_flops,
                    "wall_seconds": trial.seconds,
                }
            )
        return Sheet(title, rows, notes)


def _sweep_text(sweep: _Sweep) -> list[Sheet]:
    opened, part = sweep.opened, sweep.part
    score = sweep.on(part)

    def bar(grid: Opened) -> float:
        return max(sweep.scores(grid).values()) - WITHIN

    descend(
        sweep.space,
        climb(sweep.space, score),
        cost=sweep.grid_flops,
        enough=lambda point: score(point) >= bar(part),
    )
    order = sorted(sweep.scores(part), key=score, reverse=True)
    finalists = dict.fromkeys([*order[:2], sweep.cheapest(part, bar(part))])
    for point in finalists:
        sweep.on(opened)(point)
    sheets = []
    for grid, title in ((part, "ape · text, settings tried on a part of the grid"), (opened, "ape · text, finalists")):
        marks = _marked({BEST: max(sweep.scores(grid), key=sweep.on(grid)), CHEAPEST: sweep.cheapest(grid, bar(grid))})
        sheets.append(sweep.sheet(grid, title, marks, _NOTES if grid is opened else [_part_note(sweep)]))
    return sheets


def _sweep_both(sweep: _Sweep) -> list[Sheet]:
    opened, part, space = sweep.opened, sweep.part, sweep.space
    score = sweep.on(part)
    best = climb(space, score)
    target = sweep.target(part)
    bar = min(target, score(best))  # where the hypernetwork is not reached, as good as it gets
    matched = descend(space, best, cost=sweep.grid_flops, enough=lambda point: score(point) >= bar)
    sweep.on(opened)(best)
    whole_target = sweep.target(opened)
    found = settle(space, matched, enough=lambda point: sweep.on(opened)(point) >= whole_target)
    sheets = []
    for grid, point, bar in ((part, matched, target), (opened, found, whole_target)):
        scores = sweep.scores(grid)
        top = max(scores.values())
        marks = {BEST: max(scores, key=lambda point: scores[point]), CHEAPEST: sweep.cheapest(grid, top - WITHIN)}
        reached = point is not None and scores[point] >= bar
        if reached:
            marks[MATCHED] = sweep.cheapest(grid, bar)
        note = f"the hypernetwork's mean validation score, over {sweep.asked.n_seeds} seeds: {bar:.2f}"
        title = "ape · both, " + ("finalists" if grid is opened else "settings tried on a part of the grid")
        notes = [note if reached else f"{note}, which no setting reaches"]
        sheets.append(sweep.sheet(grid, title, _marked(marks), notes))
    return sheets


_NOTES = (
    "chosen by the mean validation score alone; the test score is printed beside",
    f"the baseline of a comparison is the cheapest setting within {WITHIN} point of the best",
)


def _part_note(sweep: _Sweep) -> str:
    names = ", ".join(spec.name for spec in sweep.part.candidates.images)
    return f"on {names} with all text encoders; grid_flops is what the setting costs on the whole grid, from shapes"


def _marked(marks: Mapping[str, Point]) -> dict[Point, list[str]]:
    return {point: [mark for mark, where in marks.items() if where == point] for point in marks.values()}


def _chosen(sheet: Sheet) -> dict[str, Point]:
    """Marks of a sheet and the settings that have them."""
    return {
        mark: Point(*(row[name] for name in Point._fields))
        for row in sheet.rows
        for mark in row["mark"].split(", ")
        if mark
    }


def swept(asked: Asked, sides: str) -> dict[str, TrainConfig]:
    """What a sweep of the same encoders and data has chosen on the whole grid.

    Args:
        asked: Where the sweep's record lies, and what it must have been asked for.
        sides: Of the baseline.

    Returns:
        Trainings by mark, as `BEST`; none where there is no such sweep.
    """
    path = asked.out / "bench-sweep.json"
    if not path.is_file():
        return {}
    record, config = json.loads(path.read_text(encoding="utf-8")), asked.config
    made_for, wanted = record["configuration"], json.loads(to_json({"zoo": config.zoo, "data": config.data}))
    if any(made_for[name] != value for name, value in wanted.items()):
        return {}
    sheets = [Sheet(**sheet) for sheet in record["sheets"]]
    last = [sheet for sheet in sheets if sheet.rows and sheet.rows[0]["sides"] == sides][-1:]
    base = config.recipe().ape_both if sides == "both" else config.recipe().ape
    return {
        mark: replace(base, n_steps=None, **point._asdict()) for sheet in last for mark, point in _chosen(sheet).items()
    }
