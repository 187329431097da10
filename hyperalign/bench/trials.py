"""One training after the other with settings of its own, scored on validation and test; none is done twice.

A finished trial is a line of OUT/bench-NAME.jsonl. A measurement that was stopped, or that needs what another one has
done, takes it from there: where rows, settings, seed and the code of the methods are the same.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import hyperalign
from hyperalign.align.grid import Grid
from hyperalign.align.train import Fit, TrainConfig
from hyperalign.bench.opened import Opened
from hyperalign.bench.sheet import Asked
from hyperalign.ledger import SEARCH_STAGES
from hyperalign.machine import find_commits
from hyperalign.rank.resampling import Contributions, per_image, per_picture
from hyperalign.record import to_json
from hyperalign.run import load_tensors, write_tensors
from hyperalign.scoring import retrieval, zero_shot, zero_shot_parts
from hyperalign.solve import Method, Recipe, Solved, Workbench, solve

__all__ = ["Trial", "Trials", "hits_on_test", "lengthen", "part_of", "setting_of", "to_scores", "workbench"]

_METHOD_CODE = ("align/*.py", "rank/*.py", "grids.py", "packing.py", "scoring.py", "solve.py", "bench/trials.py")
_SAMPLED = 16  # rows of each table by which it is told from others


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A method with one setting and one seed, finished.

    Attributes:
        method: Which.
        flops: Of each stage that counts as search, as booked.
        seconds: Wall time of these stages.
        validation: (P,) scores in per cent, by which pairs are chosen.
        test: (P,) scores in per cent.
        n_steps: Optimiser steps of all its trainings.
        n_diverged: Trainings that ended at a loss or gradient that was not finite.
        n_rolled_back: Trainings that kept an earlier state than their last.
        hits: What each test item adds to the test scores; None unless it was asked for.
    """

    method: Method
    flops: Mapping[str, int]
    seconds: float
    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    n_steps: int
    n_diverged: int
    n_rolled_back: int
    hits: Contributions | None = None

    @property
    def search_flops(self) -> int:
        """Set-up, training and validation."""
        return sum(self.flops.values())

    @property
    def chosen(self) -> int:
        """The pair that validation puts first."""
        return int(self.validation.argmax())


class Trials:
    """Takes trials for one measurement and keeps them."""

    def __init__(self, name: str, asked: Asked) -> None:
        """Read what is finished, of this and of other measurements.

        Args:
            name: Of the measurement; new trials go to OUT/bench-NAME.jsonl.
            asked: What it is asked for.
        """
        self.asked, self.path = asked, asked.out / f"bench-{name}.jsonl"
        self.code, self.commit = _code_digest(), find_commits()["hyperalign"]
        self.n_read = 0
        self.n_done, self.seconds_done, self.flops_done = 0, 0.0, 0
        lines = [line for path in sorted(asked.out.glob("bench-*.jsonl")) for line in _read_lines(path)]
        _warm_up()
        self._known = {line["key"]: line for line in lines if line.get("code") == self.code}

    def take(self, opened: Opened, method: Method, recipe: Recipe, *, hits: bool = False) -> Trial:
        """Do one trial, or take it from where it is kept.

        Args:
            opened: The grid it is done on, whole.
            method: Which, with its seed.
            recipe: How each method is trained.
            hits: Whether what each test item adds is wanted too.
        """
        key = self._key(opened, method, recipe)
        file = self.asked.out / "bench-hits" / f"{key}.safetensors"
        line = self._known.get(key)
        if line is None or (hits and not file.is_file()):
            line = self._do(opened, method, recipe, file if hits else None)
            line = {"key": key, "code": self.code, "commit": self.commit, **line}
            self._keep(line)
        else:
            self.n_read += 1
        return _from_line(method, line, Contributions(**load_tensors(file)) if hits else None)

    def notes(self, foreseen: str) -> list[str]:
        """What the measurement took here and now, after what was foreseen."""
        minutes, tflop = self.seconds_done / 60, self.flops_done / 1e12
        taken = f"trials done now: {self.n_done}, in {minutes:.1f} minutes and {tflop:.3g} TFLOP of search"
        return [foreseen, f"{taken}; taken as they were finished before: {self.n_read}; kept in {self.path.name}"]

    def _key(self, opened: Opened, method: Method, recipe: Recipe) -> str:
        facts = [_fingerprint(opened), method._asdict(), asdict(recipe), self.asked.config.task]
        return hashlib.sha256(to_json(facts).encode()).hexdigest()[:24]

    def _do(self, opened: Opened, method: Method, recipe: Recipe, file: Path | None) -> dict[str, Any]:
        config, start = self.asked.config, time.perf_counter()
        with workbench(opened, recipe, self.asked) as bench:
            solved = solve(method, bench)
        found = hits_on_test(solved, opened, task=config.task)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(file, found._asdict())
        line = _to_line(solved, recipe, to_scores(found))
        self.n_done += 1
        self.seconds_done += time.perf_counter() - start
        self.flops_done += sum(line["flops"].values())
        score, flops = np.mean(line["validation"]), sum(line["flops"].values())
        self.asked.say(
            f"{method.label}, {line['setting']}, {line['n_pairs']} pairs: validation {score:.2f}, "
            f"{flops / 1e12:.3g} TFLOP, {line['seconds']:.1f} s"
        )
        return line

    def _keep(self, line: dict[str, Any]) -> None:
        """Append it, so that a measurement that is stopped has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = to_json(line)
        with self.path.open("a+b") as file:
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                text = text if file.read(1) == b"\n" else "\n" + text  # after a line that a crash cut off
            file.write((text + "\n").encode())
        self._known[line["key"]] = json.loads(to_json(line))


@contextmanager
def workbench(opened: Opened, recipe: Recipe, asked: Asked) -> Iterator[Workbench]:
    """What a method is run on; its stages are kept in a folder that goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Workbench(
            opened.prepared,
            opened.candidates.pair_indices(),
            recipe,
            run=Path(folder),
            task=asked.config.task,
            progress=asked.progress,
            should_stop=lambda: False,
        )


def part_of(opened: Opened, images: Sequence[int]) -> Opened:
    """The same measurement with some of the image encoders alone, all text encoders with them.

    Args:
        opened: All.
        images: Indices of image encoders, ascending.
    """
    candidates, prepared = opened
    specs = tuple(candidates.images[i] for i in images)
    names = {spec.name for spec in specs}
    labels = prepared.labels
    return Opened(
        replace(
            candidates,
            images=specs,
            pairs=tuple(pair for pair in candidates.pairs if pair.image.name in names),
        ),
        replace(
            prepared,
            train=_part_of_grid(prepared.train, images),
            val=_part_of_grid(prepared.val, images),
            test=_part_of_grid(prepared.test, images),
            labels=None if labels is None else replace(labels, images=tuple(labels.images[i] for i in images)),
        ),
    )


def lengthen(config: TrainConfig, factor: float) -> TrainConfig:
    """The same training, longer or shorter by a factor, whatever its length is given in."""
    if config.n_steps is not None:
        return replace(config, n_steps=max(1, round(factor * config.n_steps)))
    if config.n_epochs is None:
        return replace(config, n_visits=max(1, round(factor * config.n_visits)))
    return replace(config, n_epochs=factor * config.n_epochs)


def setting_of(method: Method, recipe: Recipe) -> str:
    """How a method is trained, in words."""
    configs = {"hypernet": recipe.residual, "hypernet-sliced": recipe.sliced}
    config = configs.get(method.name, recipe.ape_both if method.sides == "both" else recipe.ape)
    if method.name == "closed-form":
        return "no training"
    drawn = f" x {config.pairs_per_step} pairs" if method.name != "ape" else ""
    return f"batch {config.batch_size}, {config.length}{drawn}, rate {config.learning_rate:g}"


def hits_on_test(solved: Solved, opened: Opened, *, task: str) -> Contributions:
    """What each test item adds to the score of each pair of a method."""
    prepared, solution = opened.prepared, solved.solution
    if task == "zero-shot":
        assert prepared.labels is not None, "the task was checked when the data was opened"
        part = zero_shot_parts(prepared.labels)[1]
        return per_picture(np.stack([hits[:, 0] for hits in zero_shot(solution, prepared.labels, part)]))
    found = retrieval(solution, prepared.test, ks=(1,))
    t2i, i2t = np.stack([hits.t2i[:, 0] for hits in found]), np.stack([hits.i2t[:, 0] for hits in found])
    return per_image(t2i, i2t, prepared.test.owner)


def to_scores(found: Contributions) -> NDArray[np.float64]:
    """(P,) scores in per cent: the mean over the parts of 100 · Σ hits / Σ trials."""
    hits, trials = (part.sum(1, dtype=np.float64) for part in found)
    return np.asarray(100 * (hits / trials[:, None]).mean(0))


def _part_of_grid(grid: Grid, images: Sequence[int]) -> Grid:
    return replace(grid, images=tuple(grid.images[i] for i in images), image_ok=grid.image_ok[list(images)])


def _to_line(solved: Solved, recipe: Recipe, test: NDArray[np.float64]) -> dict[str, Any]:
    fits: list[Fit] = solved.solution.fits
    lines = [line for line in solved.lines if line.stage in SEARCH_STAGES]
    return {
        **solved.method._asdict(),
        "setting": setting_of(solved.method, recipe),
        "recipe": asdict(recipe),
        "n_pairs": len(solved.solution.pairs),
        "flops": {stage: sum(line.flops for line in lines if line.stage == stage) for stage in SEARCH_STAGES},
        "seconds": sum(line.seconds for line in lines),
        "validation": solved.validation.tolist(),
        "test": test.tolist(),
        "n_steps": sum(fit.n_steps for fit in fits),
        "n_diverged": sum(fit.diverged for fit in fits),
        "n_rolled_back": sum(fit.rolled_back for fit in fits),
    }


def _from_line(method: Method, line: Mapping[str, Any], hits: Contributions | None) -> Trial:
    return Trial(
        method=method,
        flops=line["flops"],
        seconds=line["seconds"],
        validation=np.array(line["validation"]),
        test=np.array(line["test"]),
        n_steps=line["n_steps"],
        n_diverged=line["n_diverged"],
        n_rolled_back=line["n_rolled_back"],
        hits=hits,
    )


def _read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a file of trials; one that a crash cut off is left out."""
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "key" in line:
            yield line


def _warm_up() -> None:
    """One update: what torch imports for its first optimiser takes seconds that belong to no trial."""
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.AdamW([weight], foreach=True)
    weight.sum().backward()
    optimiser.step()


def _code_digest() -> str:
    """What the methods are made of: unlike a commit it sees a change that is not committed, and no change of words."""
    folder = Path(hyperalign.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _METHOD_CODE for path in folder.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _fingerprint(opened: Opened) -> str:
    """Names, shapes and a few rows of every table: what tells one grid from another."""
    candidates, prepared = opened
    digest = hashlib.sha256()
    names = [[spec.name for spec in specs] for specs in (candidates.images, candidates.texts)]
    digest.update(to_json([names, candidates.pair_indices()]).encode())
    add = partial(_add_tables, digest)
    for grid in (prepared.train, prepared.val, prepared.test):
        digest.update(grid.owner.tobytes())
        add((*grid.images, *grid.texts))
    if prepared.labels is not None:
        digest.update(prepared.labels.labels.tobytes())
        add((*prepared.labels.images, *prepared.labels.texts))
    return digest.hexdigest()


def _add_tables(digest: Any, tables: Iterable[Any]) -> None:
    for rows in tables:
        index = np.unique(np.linspace(0, rows.shape[0] - 1, _SAMPLED).round().astype(np.int64))
        digest.update(str(rows.shape).encode() + np.ascontiguousarray(rows[index]).tobytes())
