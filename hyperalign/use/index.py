"""Rows as a Faiss index, by cosine: exact while that is quick, a graph of neighbours or short codes beyond.

What an approximate index finds is always held against the exact answer: `tune` searches with rows that the index does
not hold and with captions, and takes the least effort that finds enough.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Rows
from hyperalign.embed import shards

__all__ = [
    "KINDS",
    "Found",
    "IndexConfig",
    "Lookup",
    "Quality",
    "add_rows",
    "choose_kind",
    "exact_similarities",
    "export_index",
    "find",
    "n_codes",
    "n_to_learn",
    "new_lookup",
    "one_core",
    "read_lookup",
    "recall_of",
    "tune",
    "unit_rows",
    "write_lookup",
]

Progress = Callable[[str, int, int], None]

KINDS = ("flat", "hnsw", "ivf-pq")
_BLOCK = 8192
_EFFORTS = {"hnsw": (32, 64, 128, 256, 512, 1024), "ivf-pq": (8, 16, 32, 64, 128, 256, 512, 1024)}
_CODES = 256  # values of a byte, each learned from at least one row
_LEARNED = 40  # rows from which each list, and each value of a byte, is learned
_TIMED, _TRIES = 64, 3  # queries whose time is taken one by one, and how often
_SAME = 1e-6  # cosines closer than this are the same: a product is rounded as its shape has it


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Which index is built for how many rows, and how; measured by `hyperalign bench --index`.

    Attributes:
        flat_values: Numbers, n · D, up to which every row is looked at: a query reads them all.
        graph_values: Numbers up to which rows themselves are linked to a graph (HNSW); beyond, short codes in lists
            (IVF-PQ) are looked through and the rows of the best are read from disk.
        links: Neighbours of a row in the graph.
        build_effort: Rows looked at for each that enters the graph.
        code_dims: Dimensions that one byte of a code stands for.
        shortlist: Rows that are read from disk for each that is asked for, where codes chose them.
        n_neighbours: k of the recall that is measured.
        min_recall: What the least effort must reach.
        n_held_out: Rows that are searched with before they enter the index.
        seed: Draws them, and the start of what is learned.
    """

    flat_values: int = 1 << 26
    graph_values: int = 1 << 30
    links: int = 32
    build_effort: int = 100
    code_dims: int = 4
    shortlist: int = 20
    n_neighbours: int = 10
    min_recall: float = 0.95
    n_held_out: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A Faiss index and how it is searched.

    Attributes:
        index: Of Faiss.
        kind: One of `KINDS`.
        effort: Rows looked at along the way (`hnsw`), lists looked through (`ivf-pq`); 0 for `flat`.
    """

    index: Any
    kind: str
    effort: int = 0

    def __len__(self) -> int:
        """How many rows it holds."""
        return int(self.index.ntotal)


class Found(NamedTuple):
    """The first k of Q queries, most similar first.

    Attributes:
        similarities: (Q, k) cosines; −Inf where there are fewer than k rows.
        ids: (Q, k) which rows; −1 there.
    """

    similarities: NDArray[np.float32]
    ids: NDArray[np.int64]


class Quality(NamedTuple):
    """What a search gives, held against looking at every row.

    Attributes:
        recall: Share of the first k that is found, by kind of query.
        n_queries: How many queries of each kind.
        query_seconds: Time that one query by itself takes of a core: the best of three, median over queries.
        exact_seconds: Time of one query that looks at every row, as one of many.
        enough: Whether every recall reached what was asked for.
    """

    recall: dict[str, float]
    n_queries: dict[str, int]
    query_seconds: float
    exact_seconds: float
    enough: bool


def choose_kind(n_rows: int, dim: int, config: IndexConfig) -> str:
    """Name the index for so many rows."""
    n_values = n_rows * dim
    if n_values <= config.flat_values:
        return "flat"
    return "hnsw" if n_values <= config.graph_values or n_rows < _CODES else "ivf-pq"


def n_codes(dim: int, code_dims: int) -> int:
    """Bytes of a code: the divisor of D that is next to D / `code_dims`."""
    return min((m for m in range(1, dim + 1) if dim % m == 0), key=lambda m: (abs(m - dim / code_dims), -m))


def new_lookup(kind: str, sample: NDArray[Any], n_rows: int, config: IndexConfig) -> Lookup:
    """An empty index, all that it must learn learned.

    Args:
        kind: One of `KINDS`.
        sample: (n, D) rows to learn from.
        n_rows: How many rows are to come.
        config: How.
    """
    import faiss

    dim, half, inner = sample.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        index = faiss.IndexScalarQuantizer(dim, half, inner)  # as exact as rows of float16, at half the memory
    elif kind == "hnsw":
        index = faiss.IndexHNSWSQ(dim, half, config.links, inner)
        index.hnsw.efConstruction = config.build_effort
    else:
        n_lists = _n_lists(n_rows)
        coarse = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFPQ(coarse, dim, n_lists, n_codes(dim, config.code_dims), 8, inner)
        index.cp.seed = index.pq.cp.seed = config.seed
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # a warning, not a limit
        index.cp.niter = 10
        index.pq.cp.max_points_per_centroid = _LEARNED  # 256 rows a value, the default, take 6 times as long
    index.train(unit_rows(sample)[0])
    return Lookup(index, kind, 0 if kind == "flat" else _EFFORTS[kind][0])


def n_to_learn(kind: str, n_rows: int) -> int:
    """How many rows an index of this kind learns from."""
    return min(n_rows, _LEARNED * _n_lists(n_rows)) if kind == "ivf-pq" else 1


def add_rows(lookup: Lookup, rows: Rows, start: int, stop: int, *, progress: Progress | None = None) -> int:
    """Put rows `start` to `stop` into an index, block by block; they are numbered on from those it holds.

    Rows without a direction (NaN, Inf, zeros) enter as zeros, so that numbers stay; their cosine is 0.

    Returns:
        How many had none.
    """
    n_bad = 0
    for low in range(start, stop, _BLOCK):
        high = min(low + _BLOCK, stop)
        block, good = unit_rows(rows[low:high])
        lookup.index.add(block)
        n_bad += int((~good).sum())
        if progress is not None:
            progress("building the index", high - start, stop - start)
    return n_bad


def find(
    lookup: Lookup,
    queries: NDArray[np.float32],
    k: int,
    *,
    alive: NDArray[np.bool_] | None = None,
    rows: Rows | None = None,
    shortlist: int = 1,
) -> Found:
    """The k most similar rows of each query.

    Args:
        lookup: Where.
        queries: (Q, D), unit rows.
        k: How many.
        alive: (n,) which rows may be found; None are all.
        rows: The rows themselves, to put a shortlist in order; None trusts the index's own similarities.
        shortlist: How many times k rows are put in order.
    """
    n_wanted = min(k, len(lookup)) if rows is None else min(k * shortlist, len(lookup))
    similarities, ids = lookup.index.search(queries, max(1, n_wanted), params=_parameters(lookup, n_wanted, alive))
    found = Found(np.where(ids < 0, -np.inf, similarities), ids.astype(np.int64))
    if rows is not None:
        found = _in_order(found, queries, rows)
    short = k - found.ids.shape[1]
    if short <= 0:
        return Found(found.similarities[:, :k], found.ids[:, :k])
    return Found(
        np.pad(found.similarities, ((0, 0), (0, short)), constant_values=-np.inf),
        np.pad(found.ids, ((0, 0), (0, short)), constant_values=-1),
    )


def exact_similarities(
    rows: Rows, alive: NDArray[np.bool_], queries: NDArray[np.float32], k: int
) -> NDArray[np.float32]:
    """(Q, k) largest cosines of each query among the rows that are `alive`, (n,), found by looking at all of them."""
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for low in range(0, len(alive), _BLOCK):
        block, _ = unit_rows(rows[low : min(low + _BLOCK, len(alive))])
        values = np.where(alive[low : low + _BLOCK], queries @ block.T, -np.inf)
        best = -np.sort(-np.concatenate([best, values], axis=1), axis=1)[:, :k]
    return best


def recall_of(
    found: Found, rows: Rows, queries: NDArray[np.float32], exact: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(Q,) share of the exact first k that was found; by the rows themselves, what is as similar as the k-th counts.

    Args:
        found: What an index gave.
        rows: The rows.
        queries: (Q, D), unit rows.
        exact: (Q, k) the largest cosines, largest first.
    """
    k = exact.shape[1]
    true = _in_order(found, queries, rows).similarities[:, :k]
    return np.asarray((true >= exact[:, -1:] - _SAME).mean(axis=1), dtype=np.float64)


def tune(
    lookup: Lookup,
    rows: Rows,
    queries: Mapping[str, NDArray[np.float32]],
    config: IndexConfig,
    *,
    alive: NDArray[np.bool_] | None = None,
) -> tuple[Lookup, Quality]:
    """Take the least effort that finds enough for every kind of query.

    Args:
        lookup: An index over the first `len(lookup)` rows.
        rows: The rows.
        queries: (Q, D) unit rows that the index does not hold, by kind; at least one query in all.
        config: What is enough.
        alive: (n,) which of the index's rows may be found; None are all.

    Returns:
        The index with that effort, or with the most there is, and what it then finds.
    """
    alive = np.ones(len(lookup), dtype=bool) if alive is None else alive
    k, asked = min(config.n_neighbours, int(alive.sum())), {kind: some for kind, some in queries.items() if len(some)}
    every = np.concatenate(list(asked.values()))
    start = time.perf_counter()
    exact = exact_similarities(rows, alive, every, k)
    exact_seconds = (time.perf_counter() - start) / len(every)
    kinds = np.repeat(np.arange(len(asked)), [len(some) for some in asked.values()])
    how: dict[str, Any] = {"alive": alive}
    if lookup.kind == "ivf-pq":
        how |= {"rows": rows, "shortlist": config.shortlist}
    recall: dict[str, float] = {}
    for effort in _EFFORTS.get(lookup.kind, (0,)):
        lookup = replace(lookup, effort=effort)
        shares = recall_of(find(lookup, every, k, **how), rows, every, exact)
        recall = {kind: float(shares[kinds == n].mean()) for n, kind in enumerate(asked)}
        if min(recall.values()) >= config.min_recall:
            break
    return lookup, Quality(
        recall=recall,
        n_queries={kind: len(some) for kind, some in asked.items()},
        query_seconds=_seconds_of_one(lookup, every[:: -(-len(every) // _TIMED)], k, how),
        exact_seconds=exact_seconds,
        enough=min(recall.values()) >= config.min_recall,
    )


def unit_rows(rows: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(n, D) rows of length 1, and (n,) which have a direction; the others become zeros."""
    values = rows.astype(np.float32)
    length = np.linalg.norm(np.where(np.isfinite(values), values, np.inf), axis=1, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    unit = np.where(good, values, 0.0) / np.where(good, length, 1.0)
    return unit.astype(np.float32), good[:, 0]


def write_lookup(lookup: Lookup, path: Path) -> None:
    """Write an index, whole or not at all; any program that reads Faiss reads it."""
    import faiss

    draft = path.with_name(f".{path.name}.tmp")
    try:
        faiss.write_index(lookup.index, str(draft))
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_lookup(path: Path, kind: str, effort: int) -> Lookup:
    """Read an index back.

    Raises:
        ValueError: If the file is no Faiss index that can be searched, or no index is searched with such an effort.
    """
    import faiss

    if not 0 <= effort < 2**31:
        raise ValueError(f"the effort of {path} must be at least 0 and below 2**31, got {effort}")
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError):
        index = None
    if index is None or not index.is_trained:
        raise ValueError(f"{path} is no whole Faiss index; remove it and run `hyperalign index` again")
    return Lookup(index, kind, effort)


def export_index(rows: shards.Rows, path: Path) -> int:
    """Write rows as a flat inner-product index of unit vectors, float32; row k of the table is id k.

    Unusable rows (NaN, Inf, zeros) become zero vectors, so that ids stay those of the table; their cosine is 0.

    Args:
        rows: (n, D), read block by block.
        path: File to write, whole or not at all.

    Returns:
        How many rows were unusable.
    """
    import faiss

    lookup = Lookup(faiss.IndexFlatIP(rows.shape[1]), "flat")
    n_bad = add_rows(lookup, rows, 0, len(rows))
    write_lookup(lookup, path)
    return n_bad


@contextmanager
def one_core() -> Iterator[None]:
    """Let Faiss use one thread, then as many as before."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _n_lists(n_rows: int) -> int:
    """Lists of an `ivf-pq` index: about as many as a list is long."""
    return max(1, round(2 * math.sqrt(n_rows)))


def _parameters(lookup: Lookup, n_wanted: int, alive: NDArray[np.bool_] | None) -> Any:
    """How far to look and among which rows, as Faiss wants to be told; nothing of it stays in the index."""
    import faiss

    limits = {}
    if alive is not None and not alive.all():
        limits["sel"] = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
    if lookup.kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(lookup.effort, n_wanted), **limits)
    if lookup.kind == "ivf-pq":
        return faiss.SearchParametersIVF(nprobe=lookup.effort, **limits)
    return faiss.SearchParameters(**limits)


def _in_order(found: Found, queries: NDArray[np.float32], rows: Rows) -> Found:
    """Candidates by the similarity of the rows themselves."""
    similarities = np.full_like(found.similarities, -np.inf)
    for n, (query, ids) in enumerate(zip(queries, found.ids, strict=True)):
        there = np.flatnonzero(ids >= 0)
        similarities[n, there] = unit_rows(rows[ids[there]])[0] @ query
    order = np.argsort(-similarities, axis=1, kind="stable")
    return Found(np.take_along_axis(similarities, order, 1), np.take_along_axis(found.ids, order, 1))


def _seconds_of_one(lookup: Lookup, queries: NDArray[np.float32], k: int, how: Mapping[str, Any]) -> float:
    """Median over queries of the best of three tries, in the time of this thread: others' work is not the index's."""
    best = []
    for n in range(len(queries)):
        seconds = []
        for _ in range(_TRIES):
            start = time.thread_time()
            find(lookup, queries[n : n + 1], k, **how)
            seconds.append(time.thread_time() - start)
        best.append(min(seconds))
    return statistics.median(best)
