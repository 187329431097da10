"""Faiss indexes of rows: which one, what it finds, and how that is measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hyperalign.use.index import (
    KINDS,
    Found,
    IndexConfig,
    Lookup,
    add_rows,
    choose_kind,
    exact_similarities,
    find,
    n_codes,
    n_to_learn,
    new_lookup,
    read_lookup,
    recall_of,
    tune,
    unit_rows,
    write_lookup,
)

CONFIG = IndexConfig(links=16, build_effort=40)


def clustered(n: int, dim: int = 24, *, seed: int = 0) -> NDArray[np.float32]:
    """Unit rows around 40 centres, those of one centre at a cosine of about 0.5."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((40, dim))
    return unit_rows(centres[rng.integers(40, size=n)] + rng.standard_normal((n, dim)))[0]


def built(kind: str, rows: NDArray[Any], config: IndexConfig = CONFIG) -> Lookup:
    lookup = new_lookup(kind, rows[: n_to_learn(kind, len(rows))], len(rows), config)
    add_rows(lookup, rows, 0, len(rows))
    return lookup


def test_the_index_follows_from_the_size() -> None:
    config = IndexConfig(flat_values=1000, graph_values=10_000)

    kinds = [choose_kind(n, 10, config) for n in (100, 101, 1000, 1001)]

    assert kinds == ["flat", "hnsw", "hnsw", "ivf-pq"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_index_finds_the_neighbours_of_rows_it_does_not_hold(kind: str) -> None:
    rows, queries = clustered(2000), clustered(100, seed=5)

    lookup, quality = tune(built(kind, rows), rows, {"pictures": queries}, CONFIG)

    assert quality.enough
    assert quality.recall["pictures"] >= CONFIG.min_recall  # chance is 10 of 2000
    assert quality.n_queries == {"pictures": 100}
    assert quality.query_seconds > 0
    assert (lookup.effort == 0) == (kind == "flat")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_gone_is_never_found(kind: str) -> None:
    rows = clustered(600)
    alive = np.arange(600) % 3 != 0

    found = find(replace(built(kind, rows), effort=256), rows[:30], 5, alive=alive)

    assert alive[found.ids].all()


def test_a_flat_index_gives_the_order_of_the_cosines() -> None:
    rows, queries = clustered(300), clustered(5, seed=5)

    found = find(built("flat", rows), queries, 4)

    assert found.ids.tolist() == np.argsort(-(queries @ rows.T), axis=1)[:, :4].tolist()


def test_fewer_rows_than_asked_for_leave_empty_places() -> None:
    rows = clustered(3)

    found = find(built("flat", rows), rows[:1], 5)

    assert sorted(found.ids[0, :3].tolist()) == [0, 1, 2]
    assert found.ids[0, 3:].tolist() == [-1, -1]
    assert np.isneginf(found.similarities[0, 3:]).all()


def test_rows_without_a_direction_keep_the_numbers_of_those_behind_them() -> None:
    rows = clustered(20)
    rows[3], rows[7] = np.nan, 0.0
    lookup = new_lookup("flat", rows[:1], 20, CONFIG)

    n_bad = add_rows(lookup, rows, 0, 20)

    assert n_bad == 2
    assert find(lookup, rows[10:11], 1).ids.tolist() == [[10]]


def test_a_shortlist_is_put_in_order_by_the_rows_themselves() -> None:
    rows, queries = clustered(500), clustered(10, seed=5)
    lookup = replace(built("ivf-pq", rows), effort=64)

    found = find(lookup, queries, 3, rows=rows, shortlist=20)

    cosines = (rows[found.ids] * queries[:, None]).sum(2)
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)
    assert (np.diff(found.similarities, axis=1) <= 0).all()


def test_recall_is_the_share_of_the_first_that_is_found_and_equals_count() -> None:
    rows = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    exact = exact_similarities(rows, np.ones(4, dtype=bool), query, 1)

    twin = recall_of(Found(np.ones((1, 1), np.float32), np.array([[1]])), rows, query, exact)
    wrong = recall_of(Found(np.ones((1, 1), np.float32), np.array([[2]])), rows, query, exact)
    none = recall_of(Found(np.full((1, 1), -np.inf, np.float32), np.array([[-1]])), rows, query, exact)

    assert (twin.tolist(), wrong.tolist(), none.tolist()) == ([1.0], [0.0], [0.0])


def test_what_is_gone_is_no_part_of_the_exact_answer() -> None:
    rows = np.eye(3, dtype=np.float32)

    best = exact_similarities(rows, np.array([False, True, True]), rows[:1], 2)

    assert best.tolist() == [[0.0, 0.0]]


def test_an_index_that_finds_too_little_says_so_and_looks_as_far_as_it_can() -> None:
    rows = clustered(1500)
    config = replace(CONFIG, min_recall=1.1)  # more than all

    lookup, quality = tune(built("hnsw", rows), rows, {"pictures": clustered(20, seed=5)}, config)

    assert not quality.enough
    assert lookup.effort == 1024


def test_the_worst_kind_of_query_decides_the_effort() -> None:
    rows = clustered(3000)
    queries = {"pictures": clustered(60, seed=5), "captions": clustered(60, seed=9)[:, ::-1].copy()}
    lookup = built("hnsw", rows, replace(CONFIG, links=8))  # the centres mean nothing to rows turned around

    efforts = [tune(lookup, rows, {kind: some}, CONFIG)[0].effort for kind, some in queries.items()]
    both, quality = tune(lookup, rows, queries, CONFIG)

    assert efforts[0] < efforts[1] == both.effort
    assert set(quality.recall) == {"pictures", "captions"}


@pytest.mark.parametrize(("dim", "n"), [(384, 96), (80, 20), (25, 5), (7, 1), (1, 1)])
def test_codes_have_a_whole_number_of_dimensions(dim: int, n: int) -> None:
    assert n_codes(dim, 4) == n


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_comes_back_from_disk_as_it_was(kind: str, tmp_path: Path) -> None:
    rows = clustered(400)
    lookup = replace(built(kind, rows), effort=32)
    write_lookup(lookup, tmp_path / "x.faiss")

    back = read_lookup(tmp_path / "x.faiss", kind, 32)

    assert find(back, rows[:5], 3).ids.tolist() == find(lookup, rows[:5], 3).ids.tolist()


def test_a_file_that_is_no_index_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.faiss").write_bytes(b"IxSQ and rubbish")

    with pytest.raises(ValueError, match=r"x\.faiss is no whole Faiss index; remove it"):
        read_lookup(tmp_path / "x.faiss", "flat", 0)


def test_an_index_that_was_never_trained_is_one_sentence(tmp_path: Path) -> None:
    import faiss

    faiss.write_index(faiss.IndexScalarQuantizer(4, faiss.ScalarQuantizer.QT_8bit), str(tmp_path / "x.faiss"))

    with pytest.raises(ValueError, match=r"x\.faiss is no whole Faiss index"):
        read_lookup(tmp_path / "x.faiss", "flat", 0)


@pytest.mark.parametrize("effort", [-1, 2**31])
def test_an_effort_that_no_index_knows_is_one_sentence(tmp_path: Path, effort: int) -> None:
    with pytest.raises(ValueError, match=f"the effort of .*x.faiss must be at least 0 and below .*, got {effort}"):
        read_lookup(tmp_path / "x.faiss", "hnsw", effort)
