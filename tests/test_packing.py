"""Solutions on their way to the disk and back, cut to some pairs and put together."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import mean_recall, plant

from hyperalign.align.baseline import APE, solve_ape
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.closed_form import solve_closed_form
from hyperalign.align.grid import Grid
from hyperalign.align.residual import RESIDUAL, solve_residual
from hyperalign.align.sliced import SLICED, solve_sliced
from hyperalign.align.solution import Solution
from hyperalign.packing import join, pack, restrict, unpack
from hyperalign.run import create_run, load_stage, save_stage

GRID = plant(30, n_captions=2)
CONFIG = CanonicalConfig(rank=8, max_features=10)
KINDS = ["ape", "closed-form", "twin", "hypernet", "sliced"]


def solution_of(kind: str, grid: Grid = GRID) -> Solution:
    if kind == "ape":
        return solve_ape(grid, grid.pairs(), replace(APE, n_epochs=None, n_steps=25, batch_size=8))
    if kind == "sliced":
        return solve_sliced(grid, replace(SLICED, n_epochs=None, n_steps=3, batch_size=8))
    canonical = build_canonical_grid(grid, CONFIG)
    if kind == "hypernet":
        config = replace(RESIDUAL, n_steps=6, batch_size=8)
        return solve_residual(grid, canonical, config, validate=lambda s: mean_recall(s, grid))
    return solve_closed_form(canonical, sides="text" if kind == "twin" else "both")


def assert_same(first: Solution, second: Solution) -> None:
    """Bit for bit, what it cost included; NaN is the same as NaN."""
    tensors, record = pack(first)
    other_tensors, other_record = pack(second)
    assert tensors.keys() == other_tensors.keys()
    for name, array in tensors.items():
        assert array.dtype == other_tensors[name].dtype
        np.testing.assert_array_equal(array, other_tensors[name])
    assert json.dumps(record) == json.dumps(other_record)


@pytest.mark.parametrize("kind", KINDS)
def test_a_solution_comes_back_from_the_disk_bit_for_bit(kind: str, tmp_path: Path) -> None:
    run, solution = create_run(tmp_path, label="test", configuration={}), solution_of(kind)
    tensors, record = pack(solution)

    save_stage(run, kind, tensors=tensors, record={"solution": record})
    kept = load_stage(run, kind)

    assert kept is not None
    found = unpack(kept.tensors, kept.record["solution"])
    assert_same(found, solution)
    assert found.train_flops == solution.train_flops
    assert [fit.n_steps for fit in found.fits] == [fit.n_steps for fit in solution.fits]


def test_what_was_not_measured_comes_back_as_nan(tmp_path: Path) -> None:
    run, solution = create_run(tmp_path, label="test", configuration={}), solution_of("hypernet")
    tensors, record = pack(solution)

    save_stage(run, "hypernet", tensors=tensors, record=record)
    kept = load_stage(run, "hypernet")

    assert kept is not None
    looks = unpack(kept.tensors, kept.record).fits[0].looks
    assert math.isnan(looks[0].loss)
    assert looks[0].validation == solution.fits[0].looks[0].validation


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_scores_what_its_pairs_scored(kind: str) -> None:
    solution, pairs = solution_of(kind), [(2, 1), (0, 0)]

    part = restrict(solution, [*pairs, (7, 7)])

    assert part.pairs == pairs
    for n, pair in enumerate(pairs):
        at = solution.pairs.index(pair)
        assert torch.equal(part.weights[n], solution.weights[at])
        assert torch.equal(part.biases[n], solution.biases[at])
    assert part.images == solution.images


def test_the_trainings_of_a_baseline_go_with_their_pairs_and_a_hypernetworks_with_all() -> None:
    baseline, hypernet = solution_of("ape"), solution_of("hypernet")

    assert restrict(baseline, [(1, 1)]).fits == [baseline.fits[baseline.pairs.index((1, 1))]]
    assert restrict(hypernet, [(1, 1)]).train_flops == hypernet.train_flops


def test_parts_join_to_the_whole() -> None:
    whole = solution_of("ape")

    parts = [restrict(whole, [pair for pair in whole.pairs if pair[0] == i]) for i in range(3)]

    assert_same(join(parts), whole)


def test_the_set_up_of_joined_parts_is_counted_once() -> None:
    grid = GRID
    canonical = build_canonical_grid(grid, CONFIG)
    config = replace(APE, n_epochs=None, n_steps=3, batch_size=8)

    parts = [solve_ape(grid, [pair], config, canonical=canonical) for pair in grid.pairs()]

    assert join(parts).setup_flops == canonical.flops
    assert join(parts).train_flops == sum(part.train_flops for part in parts)


def test_a_record_of_no_connectors_is_refused() -> None:
    tensors, record = pack(solution_of("closed-form"))
    beyond = {**record, "pairs": [*record["pairs"][:-1], [len(record["images"]), 0]]}

    with pytest.raises(ValueError, match="the record of connectors is damaged: a pair is of encoders that are not"):
        unpack(tensors, beyond)
    with pytest.raises(ValueError, match="the record of connectors is damaged: "):
        unpack(tensors, {name: value for name, value in record.items() if name != "pairs"})
    with pytest.raises(ValueError, match="connectors and their record do not belong together"):
        unpack({}, record)
