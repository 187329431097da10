"""Half a million items whose rows lie on disk: they are read by block and by batch, and never copied whole."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperalign.align.baseline import APE, solve_ape
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.closed_form import solve_closed_form
from hyperalign.align.grid import Grid, Picked, build_grid
from hyperalign.align.residual import RESIDUAL, solve_residual
from hyperalign.scoring import mean_score

N_ITEMS, DIM, N_LATENT = 500_000, 768, 32
MOST_BYTES = 1_500_000_000
PROC = Path("/proc/self/status")
Recorder = Callable[[str, object], None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PROC.exists(), reason="private memory is told by Linux alone"),
]


class Watermark:
    """The most private memory (RssAnon) over what there was at the start, looked at a hundred times a second."""

    def __enter__(self) -> "Watermark":
        """Begin to look."""
        self.start, self.most, self._done = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self._now() - self.start)

    @staticmethod
    def _now() -> int:
        lines = dict(line.split(":", 1) for line in PROC.read_text().splitlines())
        return 1024 * int(lines["RssAnon"].split()[0])


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random views of one latent as float16 on disk, 768 MB each."""
    folder = tmp_path_factory.mktemp("tables")
    paths = {}
    for k, name in enumerate(("image 0", "image 1", "text 0", "text 1")):
        way = np.random.default_rng([1, k]).normal(size=(N_LATENT, DIM)).astype(np.float32)
        path = paths[name] = folder / f"{k}.npy"
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(N_ITEMS, DIM))
        for start in range(0, N_ITEMS, 10_000):
            latent = np.random.default_rng([2, start]).normal(size=(10_000, N_LATENT)).astype(np.float32)
            noise = np.random.default_rng([3, start, k]).random(size=(10_000, DIM), dtype=np.float32)
            rows[start : start + 10_000] = latent @ way + 10 * noise
        rows.flush()
        del rows
    return paths


def open_grids(tables: dict[str, Path]) -> tuple[Grid, Grid]:
    """All items but the last thousand, and these."""
    n_train = N_ITEMS - 1000
    grids = []
    for index in (np.arange(n_train), np.arange(n_train, N_ITEMS)):
        images, texts = [
            [Picked(np.load(path, mmap_mode="r"), index) for name, path in tables.items() if side in name]
            for side in ("image", "text")
        ]
        grids.append(build_grid(list(images), list(texts), np.arange(len(index))))
    return grids[0], grids[1]


def test_canonical_methods_do_not_grow_with_the_rows(tables: dict[str, Path], record_property: Recorder) -> None:
    with Watermark() as mark:
        train, val = open_grids(tables)
        canonical = build_canonical_grid(train, CanonicalConfig())
        start = mean_score(solve_closed_form(canonical), val)
        config = replace(RESIDUAL, n_steps=10)
        solution = solve_residual(train, canonical, config, validate=lambda one: mean_score(one, val))
        end = mean_score(solution, val)

    assert canonical.images[0]._kept is None  # the coordinates of all would take 2 GB
    assert end >= start > 50  # chance is 0.1
    record_property("most_bytes", mark.most)
    assert mark.most < MOST_BYTES, f"{mark.most / 1e9:.2f} GB"


def test_the_baseline_does_not_grow_with_the_rows(tables: dict[str, Path], record_property: Recorder) -> None:
    with Watermark() as mark:
        train, val = open_grids(tables)
        solution = solve_ape(train, train.pairs(), replace(APE, n_epochs=None, n_steps=5))
        score = mean_score(solution, val)

    assert np.isfinite(score)
    record_property("most_bytes", mark.most)
    assert mark.most < MOST_BYTES, f"{mark.most / 1e9:.2f} GB"
