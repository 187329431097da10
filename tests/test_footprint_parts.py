"""Every part of a search's memory, added up by hand for a grid of 2 image encoders by 1 text encoder."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.grid import Grid
from hyperalign.footprint import OPENING, Heights, ample_bytes, dearest, heights, lacking, setup_bytes
from hyperalign.forecast import forecast, hollow_grid
from hyperalign.request import SearchConfig
from hyperalign.solve import Method, Recipe

LIBRARIES, ONCE = 40 * 10**6, 15 * 10**6
APE, BOTH = Method("ape", "text", 0), Method("ape", "both", 0)
CLOSED, HYPERNET, SLICED = (
    Method("closed-form", "both", 0),
    Method("hypernet", "both", 0),
    Method("hypernet-sliced", "text", 0),
)


def grid(n_images: int) -> Grid:
    """Image rows of width 8 and 12, text rows of width 5, two captions a picture."""
    return hollow_grid([8, 12], [5], np.arange(2 * n_images) // 2)


TRAIN, VAL, TEST = grid(50), grid(20), grid(30)


def recipe(**canonical: Any) -> Recipe:
    """Steps of 16 items, and coordinates as they are by default."""
    one = SearchConfig().recipe()
    small = {name: replace(getattr(one, name), batch_size=16) for name in ("ape", "ape_both", "residual", "sliced")}
    return replace(one, **small, canonical=replace(one.canonical, **canonical))


Pairs = tuple[tuple[int, int], ...]


def parts(*methods: Method, tried: Pairs = (), polished: Pairs = ()) -> Heights:
    made = [(method, forecast(method, TRAIN, TRAIN.pairs(), recipe())) for method in methods]
    return heights(made, TRAIN, VAL, TEST, recipe(), tried, polished)


def test_the_baseline_alone() -> None:
    found = parts(APE, tried=((0, 0),))

    connectors = 4 * (8 * 5 + 8 + 12 * 5 + 12)
    widest = 4 * (50 * 12 + 100 * 5) + 4 * 50 * 12 + 4 * (3 * 16**2 + 6 * 16 * (12 + 5) + 5 * 12 * 5)
    narrow = 4 * (50 * 8 + 100 * 5) + 4 * 100 * 5 + 4 * (3 * 16**2 + 6 * 16 * (8 + 5) + 5 * 8 * 5)
    scoring = 4 * 20 * (8 + 12 + 12) + 4 * 40 * (5 + 5) + 22 * 20 * 12 + 5 * (4 * 20 * 40) // 2
    hits = 4 * 2 * (30 + 60)
    resampling = 3 * hits + 12 * 2000 * 30 + 12 * 2000 * 2
    held = LIBRARIES // 2 + connectors
    assert found == {
        (OPENING, ""): 4 * (50 + 20 + 30) + 22 * 50 * 12,
        ("training", APE.label): widest + LIBRARIES + connectors,
        ("validation", APE.label): scoring + ONCE,
        ("verification", "ape · text"): held + narrow + LIBRARIES,
        ("test evaluation", ""): held + 4 * ((3 * 1 + 12) * 50**2 + 4 * 100 * 12) + ONCE,
        ("test evaluation", APE.label): held + hits + resampling + ONCE,
    }


def test_hits_of_a_method_stay_while_the_next_is_tested_and_nothing_is_verified_unasked() -> None:
    one, two = parts(APE), parts(APE, Method("ape", "text", 1))

    connectors, hits = 4 * (8 * 5 + 8 + 12 * 5 + 12), 4 * 2 * (30 + 60)
    label, other = APE.label, Method("ape", "text", 1).label
    assert ("verification", "ape · text") not in one
    assert two["test evaluation", label] == one["test evaluation", label] + connectors
    assert two["test evaluation", other] == two["test evaluation", label] + hits


def test_what_the_set_up_leaves_is_held_while_methods_train() -> None:
    found = parts(CLOSED, HYPERNET, BOTH)

    directions = 12 * (8 + 12 + 5)
    left = 4 * (12 * (50 * 2 + 100) + 2 * 12**2 + 8**2 + 12**2 + 5**2 + directions) + LIBRARIES // 2
    assert found["set-up", CLOSED.label] == setup_bytes(TRAIN, recipe().canonical).height
    assert ("set-up", HYPERNET.label) not in found
    maps = 8 * 5 + 8 + 12 * 5 + 12  # texts predict five directions of each image encoder, or fewer
    solution = forecast(CLOSED, TRAIN, TRAIN.pairs(), recipe()).solution
    size = 4 * (sum(w.numel() + len(w) for w in solution.weights) + 12 * (8 + 12 + 5))
    assert sum(w.numel() + len(w) for w in solution.weights) < maps
    assert found["training", CLOSED.label] == left + 3 * size + LIBRARIES
    for method, at_once in ((HYPERNET, 2), (BOTH, 1)):  # pairs of a step
        steps = 4 * (3 * at_once * 16**2 + 8 * (at_once + 1) * 16 * 12 + 12 * 3 * 12**2)
        assert found["training", method.label] == left + steps + 3 * size + LIBRARIES


def test_the_sliced_network_holds_its_widest_emission_with_its_optimiser() -> None:
    found = parts(SLICED)

    kept = 4 * 50 * (8 + 12) + 2 * 4 * 100 * 5
    n_params = 512 * (12 * 5 + 12)
    connectors = 4 * (8 * 5 + 8 + 12 * 5 + 12)
    assert found["training", SLICED.label] == kept + 5 * 4 * n_params + connectors + LIBRARIES


@pytest.mark.parametrize(
    ("canonical", "rows", "stays"),
    [
        # rows, coordinates and the products of all pairs; with the roots of the moments on top
        ({}, 4 * (50 * 25 + 12 * 200 + 2 * 12**2) + 22 * 50 * 12, 12 * 200),
        # a block beside the products that directions are found from
        ({"store_bytes": 0}, 4 * (3 * 50 * 5 + 20 * 5) + 22 * 50 * 12, 0),
        # the widest table once more while moments are taken
        ({"rank": 2, "targets_per_rank": 20, "sketch_per_rank": 20}, 4 * 50 * 25 + 4 * 50 * 12 + 22 * 50 * 12, 2 * 200),
    ],
    ids=["kept", "not kept", "few coordinates"],
)
def test_the_set_up_is_as_high_as_its_highest_part(canonical: dict[str, Any], rows: int, stays: int) -> None:
    config, roots, rank = recipe(**canonical).canonical, 8**2 + 12**2 + 5**2, canonical.get("rank", 12)

    found = setup_bytes(TRAIN, config)

    assert found.height == round(1.1 * (rows + 4 * roots)) + LIBRARIES
    assert found.left == 4 * (stays + 2 * rank**2 + roots + rank * (8 + 12 + 5)) + LIBRARIES // 2


def test_directions_found_from_a_mixture_of_texts_hold_their_sample() -> None:
    wide = hollow_grid([64, 64], [64] * 6, np.arange(100))
    config = CanonicalConfig(rank=4, targets_per_rank=2, sketch_per_rank=4, store_bytes=0)

    found = setup_bytes(wide, config)

    n_text, targets, sampled, roots = 6 * 64, 2 * 4, 2 * 8, 8 * 64**2
    finding = 3 * 100 * n_text + 2 * 64 * targets + 2 * sampled * n_text
    assert found.height == round(1.1 * 4 * (finding + roots) + 1.1 * 22 * 100 * 64) + LIBRARIES


def test_polishing_takes_what_all_of_its_pairs_take_together() -> None:
    stage = ("polishing", "polished · both")
    narrow, wide = (parts(APE, polished=(pair,))[stage] for pair in ((0, 0), (1, 0)))

    assert stage not in parts(APE)
    assert parts(APE, polished=((0, 0), (1, 0)))[stage] > wide > narrow
    assert dearest(TRAIN, [(0, 0), (1, 0)]) == [(1, 0), (0, 0)]
    assert wide - narrow < 10 * 4 * (50 + 100) * 12  # of a grid so small no more than some copies of its rows


def test_the_dearest_pair_is_that_of_the_largest_connector() -> None:
    grid = hollow_grid([8, 12], [9, 5, 20], np.arange(50))

    found = dearest(grid, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])

    assert found == [(0, 2), (1, 0), (0, 0), (1, 1), (0, 1)]  # 160, 108, 72, 60, 40 weights


def test_tables_that_are_too_large_to_be_kept_are_read_where_they_lie() -> None:
    n = 2**20  # rows of 64 numbers are 256 MiB, all that may be kept; those of 65 are more
    kept, read = (hollow_grid([width], [4], np.arange(n)) for width in (64, 65))
    step = 4 * 3 * 16**2

    def trained(rows: Grid, width: int) -> int:
        cost = forecast(APE, rows, [(0, 0)], recipe())
        few = hollow_grid([width], [4], np.arange(4))
        found = heights([(APE, cost)], rows, few, few, recipe(), [], [])["training", APE.label]
        return found - step - 4 * (6 * 16 * (width + 4) + 5 * width * 4) - 4 * (width * 4 + width) - LIBRARIES

    assert trained(kept, 64) == 4 * n * (64 + 4) + 4 * n * 64
    assert trained(read, 65) == 4 * n * 4 + 4 * n * 4


def test_similarities_are_held_a_block_at_a_time() -> None:
    large, small = (hollow_grid([8], [5], np.arange(n)) for n in (20_000, 50))
    cost = forecast(APE, small, [(0, 0)], recipe())

    found = heights([(APE, cost)], small, large, small, recipe(), [], [])

    rows = 4 * 20_000 * (8 + 8 + 5 + 5) + 22 * 4096 * 8
    assert found["validation", APE.label] == rows + 5 * 64 * 2**20 // 2 + ONCE


def test_ample_memory_counts_all_rows_all_connectors_and_the_sliced_network() -> None:
    rows = 4 * (50 * 20 + 100 * 5 + 30 * 20 + 60 * 5)
    setup = setup_bytes(TRAIN, recipe().canonical).height

    def above(*methods: Method) -> int:
        return ample_bytes(TRAIN, TEST, recipe(), methods) - rows - setup - 10**9

    assert above(CLOSED) == 4 * 4 * 2 * 12 * 5
    assert above(CLOSED, SLICED) == 2 * 4 * 4 * 2 * 12 * 5 + 5 * 4 * 512 * 12 * 5


@pytest.mark.parametrize(
    ("stage", "advice"),
    [
        ("set-up", "`max_features` under [canonical] of --config, or --limit"),
        ("training", "a smaller --batch-size or --pairs-per-step, or --limit"),
        ("verification", "a smaller --baseline-batch-size, or --verify 0"),
        ("polishing", "--polish 0"),
        ("validation", "--limit"),
    ],
)
def test_what_takes_less_is_told_for_the_highest_part(stage: str, advice: str) -> None:
    found = {(OPENING, ""): 10**9, (stage, "closed-form · both"): 25 * 10**8}

    assert lacking(found, 25 * 10**8) == ""
    assert lacking(found, 25 * 10**8 - 1) == (
        f"this search would take about 2.5 GB of memory for its {stage} of closed-form · both, and 2.5 GB are free; "
        f"{advice} takes less, and so do fewer encoders"
    )
