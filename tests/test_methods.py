"""The trained methods: each learns what is planted, costs what it books, and survives what data can be like."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from counting import count_all
from planted import mean_recall, plant, recalls, similarities, spoil
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align import baseline, residual, sliced
from hyperalign.align.baseline import APE, APE_BOTH, ape_flops, solve_ape
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.closed_form import solve_closed_form
from hyperalign.align.connectors import contrastive
from hyperalign.align.grid import Gather, Grid, build_grid
from hyperalign.align.hypernetwork import ResidualConfig, ResidualNetwork, SlicedNetwork
from hyperalign.align.residual import RESIDUAL, solve_residual
from hyperalign.align.sliced import SLICED, solve_sliced
from hyperalign.align.solution import Solution
from hyperalign.align.train import Learner

CANONICAL = CanonicalConfig(rank=8)
NETWORK = ResidualConfig(code_dim=8, hidden=(16,))
SHORT_APE = replace(APE, n_epochs=None, n_steps=6, batch_size=16)
SHORT_RESIDUAL = replace(RESIDUAL, n_steps=12, batch_size=16, pairs_per_step=4)
SHORT_SLICED = replace(SLICED, n_epochs=None, n_steps=4, batch_size=16, pairs_per_step=2)


def ape(grid: Grid) -> Solution:
    return solve_ape(grid, grid.pairs(), SHORT_APE)


def ape_both(grid: Grid) -> Solution:
    return solve_ape(grid, grid.pairs(), SHORT_APE, canonical=build_canonical_grid(grid, CANONICAL))


def hypernet(grid: Grid) -> Solution:
    return solve_residual(grid, build_canonical_grid(grid, CANONICAL), SHORT_RESIDUAL, network=NETWORK)


def hypernet_sliced(grid: Grid) -> Solution:
    return solve_sliced(grid, SHORT_SLICED)


METHODS = [ape, ape_both, hypernet, hypernet_sliced]
Method = Callable[[Grid], Solution]


def same(first: Solution, second: Solution) -> bool:
    """Bit for bit."""
    tensors = []
    for solution in (first, second):
        sides = [c.projection for c in (*solution.images, *solution.texts) if c is not None]
        tensors.append([*solution.weights, *solution.biases, *sides])
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def is_finite(solution: Solution) -> bool:
    sides = [c.projection for c in (*solution.images, *solution.texts) if c is not None]
    return all(bool(tensor.isfinite().all()) for tensor in (*solution.weights, *solution.biases, *sides))


# what is planted is found


def test_one_hypernetwork_learns_every_pair_of_a_planted_zoo() -> None:
    """Unweighted, an image's coordinates are mostly noise: the closed form cannot know that, a transform can."""
    grid, held_out = plant(400, n_captions=2, noise=0.6), plant(100, items=1, noise=0.6)
    canonical = build_canonical_grid(grid, CanonicalConfig(rank=16, image_power=0))
    config = replace(RESIDUAL, n_steps=50, batch_size=256, pairs_per_step=3)

    learned = recalls(solve_residual(grid, canonical, config, network=NETWORK), held_out)
    start = recalls(solve_closed_form(canonical), held_out)

    assert min(learned.values()) > 50  # chance is 1
    assert min(learned[pair] - start[pair] for pair in grid.pairs()) > 0
    assert np.mean(list(learned.values())) > np.mean(list(start.values())) + 8


def test_the_hypernetwork_ends_no_lower_on_validation_than_the_closed_form() -> None:
    grid, val = plant(60, noise=1.5), plant(60, items=1, noise=1.5)
    canonical = build_canonical_grid(grid, CANONICAL)
    start = mean_recall(solve_closed_form(canonical), val)

    for rate in (1e-3, 3e-2, 1.0):
        config = replace(SHORT_RESIDUAL, n_steps=40, learning_rate=rate)
        found = solve_residual(grid, canonical, config, network=NETWORK, validate=lambda s: mean_recall(s, val))
        assert mean_recall(found, val) >= start
        assert found.fits[0].looks[0].validation == start


def test_an_absurd_rate_ends_at_the_closed_form() -> None:
    grid, val = plant(60, noise=0.3), plant(60, items=1, noise=0.3)
    canonical = build_canonical_grid(grid, CANONICAL)
    config = replace(SHORT_RESIDUAL, learning_rate=1e6)

    found = solve_residual(grid, canonical, config, network=NETWORK, validate=lambda s: mean_recall(s, val))

    assert found.fits[0].rolled_back
    assert found.fits[0].best_step == 0
    assert same(found, solve_closed_form(canonical))


@pytest.mark.parametrize("both_sides", [False, True])
def test_the_baseline_learns_its_pair(both_sides: bool) -> None:
    grid, held_out = plant(300, noise=0.3), plant(60, items=1, noise=0.3)
    canonical = build_canonical_grid(grid, CANONICAL) if both_sides else None
    config = replace(APE, n_epochs=40, batch_size=64, learning_rate=1e-2)

    found = recalls(solve_ape(grid, [(2, 1)], config, canonical=canonical), held_out)

    assert found.keys() == {(2, 1)}
    assert found[2, 1] > 40  # chance is 1.7


def test_the_baseline_of_both_sides_starts_at_the_closed_form() -> None:
    grid = plant(60)
    canonical = build_canonical_grid(grid, CANONICAL)

    found = solve_ape(grid, grid.pairs(), replace(SHORT_APE, learning_rate=1e-12), canonical=canonical)

    for one, other in zip(found.weights, solve_closed_form(canonical).weights, strict=True):
        torch.testing.assert_close(one, other)


def test_the_sliced_hypernetwork_learns_from_a_batch_mean() -> None:
    grid, held_out = plant(300, noise=0.3), plant(60, items=1, noise=0.3)
    config = replace(SLICED, n_epochs=None, n_steps=80, batch_size=64, pairs_per_step=3, learning_rate=3e-3)

    found = recalls(solve_sliced(grid, config), held_out)

    assert len(found) == 6
    assert np.mean(list(found.values())) > 10  # chance is 1.7


# what is booked is what ran


def learners(grid: Grid, store_bytes: int) -> dict[str, tuple[Learner, Callable[[], int]]]:
    """A learner of each kind, and what was projected for it so far."""
    canonical = build_canonical_grid(grid, replace(CANONICAL, store_bytes=store_bytes))
    sides = [*canonical.images, *canonical.texts]
    network = ResidualNetwork(residual._bases(canonical), 3, NETWORK, torch.Generator().manual_seed(0))
    narrow = SlicedNetwork(16, 14, torch.Generator().manual_seed(0))
    rows = [Gather(table) for table in grid.images]
    return {
        "ape": (baseline._PairLearner(grid, (1, 1), None, SHORT_APE), lambda: 0),
        "ape, both": (
            pair := baseline._PairLearner(grid, (1, 1), canonical, SHORT_APE),
            lambda: pair.projected_flops,
        ),
        "hypernet": (
            residual._ResidualLearner(grid, canonical, network, replace(SHORT_RESIDUAL, pairs_per_step=5)),
            lambda: sum(side.flops for side in sides),
        ),
        "sliced": (sliced._SlicedLearner(grid, 1, narrow, rows, SHORT_SLICED), lambda: 0),
    }


@pytest.mark.parametrize("name", ["ape", "ape, both", "hypernet", "sliced"])
@pytest.mark.parametrize("store_bytes", [0, 2**20])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_step_costs_what_the_counter_sees(
    name: str, store_bytes: int, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image widths 12, 8 and 16 against text widths 10 and 14, with masks."""
    if tiled:
        monkeypatch.setattr("hyperalign.align.connectors.MAX_LOGITS", 1)
    learner, projected = learners(spoil(plant(60), images={1: [3]}, texts={1: [9]}), store_bytes)[name]

    for _ in range(3):
        before = projected()
        with FlopCounterMode(display=False) as counter:
            batch = learner.draw()
            batch.objective.backward()
        assert counter.get_total_flops() == batch.flops + projected() - before


@pytest.mark.parametrize("method", [ape, hypernet_sliced])
def test_a_method_between_rows_books_what_the_counter_sees(method: Method) -> None:
    grid = plant(40, n_captions=2)

    with FlopCounterMode(display=False) as counter:
        solution = method(grid)

    assert solution.train_flops == counter.get_total_flops() > 0
    assert solution.setup_flops == 0


@pytest.mark.parametrize("store_bytes", [0, 2**20])
@pytest.mark.parametrize("trained", ["ape", "hypernet", "hypernet, watched"])
def test_a_method_between_coordinates_books_what_the_counter_sees(trained: str, store_bytes: int) -> None:
    grid = plant(40, n_captions=2)
    canonical = build_canonical_grid(grid, replace(CANONICAL, store_bytes=store_bytes))
    watch = (lambda solution: float(solution.emit_flops > 0)) if "watched" in trained else None

    def train() -> Solution:
        if trained == "ape":
            return solve_ape(grid, grid.pairs(), SHORT_APE, canonical=canonical)
        return solve_residual(grid, canonical, SHORT_RESIDUAL, network=NETWORK, validate=watch)

    assert train().train_flops == count_all(train) > 0
    assert train().setup_flops == canonical.flops


def test_the_cost_of_a_baseline_that_is_not_run_is_that_of_one_that_is() -> None:
    grid = plant(40, n_captions=2)

    assert ape_flops(grid, grid.pairs(), SHORT_APE) == ape(grid).train_flops


# seeds


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits_and_the_global_generator_is_left_alone(method: Method) -> None:
    grid = plant(40)
    torch.manual_seed(1)
    before = torch.get_rng_state()

    first = method(grid)
    untouched = torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = method(grid)

    assert untouched
    assert same(first, second)


def test_another_seed_gives_other_connectors() -> None:
    grid, canonical = plant(40), build_canonical_grid(plant(40), CANONICAL)

    def all_with(seed: int) -> list[Solution]:
        return [
            solve_ape(grid, [(0, 0)], replace(SHORT_APE, seed=seed)),
            solve_residual(grid, canonical, replace(SHORT_RESIDUAL, seed=seed), network=NETWORK),
            solve_sliced(grid, replace(SHORT_SLICED, seed=seed)),
        ]

    assert not any(same(first, second) for first, second in zip(all_with(0), all_with(1), strict=True))


def test_the_pairs_of_the_baseline_do_not_know_of_each_other() -> None:
    grid = plant(40)

    alone, among = solve_ape(grid, [(1, 0)], SHORT_APE), solve_ape(grid, [(0, 1), (1, 0), (2, 0)], SHORT_APE)

    assert torch.equal(among.weights[1], alone.weights[0])


# rows that are not usable


@pytest.mark.parametrize("method", METHODS)
def test_what_stands_in_an_unusable_row_does_not_matter(method: Method) -> None:
    solutions = []
    for value in (np.nan, np.inf, 0.0):
        grid = plant(40)
        images, texts = ([np.array(rows[:]) for rows in side] for side in (grid.images, grid.texts))
        images[0][[2, 30]] = value
        texts[1][5] = value
        solutions.append(method(build_grid(list(images), list(texts), grid.owner)))

    assert all(is_finite(solution) for solution in solutions)
    assert same(solutions[0], solutions[1])
    assert same(solutions[0], solutions[2])


def test_an_unusable_row_of_one_encoder_changes_nothing_for_the_baseline_of_others() -> None:
    grid = plant(40)

    plain, other = ape(grid), ape(spoil(grid, images={0: [2]}, texts={1: [5]}))

    for n, (i, j) in enumerate(plain.pairs):
        assert torch.equal(plain.weights[n], other.weights[n]) == (i != 0 and j != 1)


@pytest.mark.parametrize("method", [ape, hypernet_sliced])
def test_an_encoder_without_a_usable_row_learns_nothing_and_breaks_nothing(method: Method) -> None:
    assert is_finite(method(spoil(plant(40), images={0: list(range(40))})))


# trainings that fail or are stopped


@pytest.mark.parametrize("rate", [1e10, 1e30])
def test_connectors_stay_finite_at_any_rate(rate: float) -> None:
    grid = plant(40)
    canonical = build_canonical_grid(grid, CANONICAL)

    assert is_finite(solve_ape(grid, [(0, 0)], replace(SHORT_APE, learning_rate=rate)))
    assert is_finite(solve_residual(grid, canonical, replace(SHORT_RESIDUAL, learning_rate=rate), network=NETWORK))


def test_a_loss_that_breaks_keeps_the_best_state(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, calls = plant(40), iter(range(100))
    monkeypatch.setattr(
        residual, "contrastive", lambda *args: contrastive(*args) * (torch.nan if next(calls) == 8 else 1)
    )
    seen: list[float] = []
    twice = replace(SHORT_RESIDUAL, n_validations=2)

    def validate(_: Solution) -> float:
        seen.append(float(len(seen)))
        return seen[-1]

    found = solve_residual(grid, build_canonical_grid(grid, CANONICAL), twice, validate=validate)

    assert is_finite(found)
    assert (found.fits[0].n_steps, found.fits[0].best_step, found.fits[0].diverged) == (8, 6, True)


def stop_after(n_calls: int) -> Callable[[], bool]:
    calls = iter(range(10_000))
    return lambda: next(calls) >= n_calls


def test_a_pair_that_is_stopped_half_way_is_left_out() -> None:
    grid = plant(40)

    found = solve_ape(grid, grid.pairs(), SHORT_APE, should_stop=stop_after(10))  # a pair asks 7 times

    assert found.pairs == [(0, 0)]
    assert len(found.fits) == len(found.weights) == 1


def test_a_text_encoder_whose_network_is_stopped_half_way_is_left_out() -> None:
    found = solve_sliced(plant(40), SHORT_SLICED, should_stop=stop_after(7))  # a network asks 5 times

    assert found.pairs == [(0, 0), (1, 0), (2, 0)]
    assert len(found.fits) == 1


def test_a_hypernetwork_that_is_stopped_gives_what_it_has() -> None:
    grid = plant(40)

    found = solve_residual(
        grid, build_canonical_grid(grid, CANONICAL), SHORT_RESIDUAL, network=NETWORK, should_stop=stop_after(5)
    )

    assert found.pairs == grid.pairs()
    assert found.fits[0].n_steps == 5


# little data, odd data


LITTLE = {
    "one pair": plant(40, image_dims=(12,), text_dims=(10,)),
    "one image encoder": plant(40, image_dims=(12,)),
    "one text encoder": plant(40, text_dims=(10,)),
    "width 1": plant(40, image_dims=(1, 8), text_dims=(1, 10)),
    "fewer pictures than features": plant(5),
    "a batch is larger than the data": plant(9),
    "two pictures": plant(2),
    "three pictures": plant(3, n_captions=2),
    "constant rows": build_grid([np.ones((40, 4), np.float32)], [plant(40).texts[0]], np.arange(40)),
    "duplicated encoders": build_grid([plant(40).images[0]] * 2, [plant(40).texts[0]] * 2, np.arange(40)),
    "different numbers of captions": build_grid(
        [plant(40).images[0]], [plant(40, n_captions=3).texts[0][:79]], np.repeat(np.arange(40), [1, 3] * 19 + [1, 2])
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", LITTLE.values(), ids=LITTLE.keys())
def test_little_is_still_something(method: Method, grid: Grid) -> None:
    solution = method(grid)

    assert solution.pairs == grid.pairs()
    assert is_finite(solution)
    assert all(cosine.isfinite().all() for cosine in similarities(solution, grid).values())
    assert solution.train_flops > 0


@pytest.mark.parametrize("method", METHODS)
def test_one_picture_is_refused(method: Method) -> None:
    with pytest.raises(ValueError, match="training needs at least 2 pictures to tell apart, got 1"):
        method(plant(1, n_captions=5))


def test_the_defaults_are_runs() -> None:
    for config in (APE, APE_BOTH, RESIDUAL, SLICED):
        assert config.steps(10) >= 1
