"""Rows as all methods see them: looked at by block, masked where unusable, never dropped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hyperalign.align import grid as grid_module
from hyperalign.align.grid import Gather, Picked, Rows, blocks, build_grid, check_pictures, to_float, usable

ROWS = np.arange(1, 31, dtype=np.float32).reshape(10, 3)
ONE_EACH = np.arange(10, dtype=np.int64)


class Watched:
    """Rows that remember how many were asked for at once."""

    def __init__(self, rows: NDArray[Any]) -> None:
        """Nothing was asked for yet."""
        self.rows, self.most = rows, 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""
        return self.rows.shape

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Rows, counted."""
        found: NDArray[Any] = self.rows[index]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_one_value_that_is_not_finite_is_unusable(value: float) -> None:
    rows = ROWS.copy()
    rows[4, 1] = value

    assert usable(rows).tolist() == [k != 4 for k in range(10)]


def test_a_row_of_zeros_is_unusable_and_one_with_some_zeros_is_not() -> None:
    rows = ROWS.copy()
    rows[2] = 0
    rows[3, :2] = 0

    assert usable(rows).tolist() == [k != 2 for k in range(10)]


def test_a_number_too_large_for_float32_is_unusable() -> None:
    assert usable(np.array([[1e300], [1.0]])).tolist() == [False, True]


def test_unusable_rows_are_masked_for_their_encoder_alone() -> None:
    spoiled = ROWS.copy()
    spoiled[7] = np.nan

    grid = build_grid([ROWS, spoiled], [ROWS], ONE_EACH)

    assert grid.image_ok.sum(1).tolist() == [10, 9]
    assert grid.text_ok.all()
    assert (grid.n_images, grid.n_captions, grid.shape) == (10, 10, (2, 1))


def test_pairs_are_image_major() -> None:
    assert build_grid([ROWS, ROWS], [ROWS, ROWS], ONE_EACH).pairs() == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_rows_are_looked_at_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module.blocks, "__defaults__", (4,))
    watched = Watched(ROWS)

    build_grid([watched], [ROWS], ONE_EACH)

    assert watched.most == 4
    assert [start for start, _ in blocks(ROWS)] == [0, 4, 8]


@pytest.mark.parametrize(
    ("images", "texts", "owner", "sentence"),
    [
        ([ROWS], [ROWS], [], "at least one picture with a caption"),
        ([], [ROWS], ONE_EACH, "an encoder on each side, got 0 for images and 1 for texts"),
        ([ROWS], [], ONE_EACH, "an encoder on each side, got 1 for images and 0 for texts"),
        ([ROWS, ROWS[:9]], [ROWS], ONE_EACH, "image encoder 1 must have 10 rows, one for each item, got 9"),
        ([ROWS], [ROWS[:9]], ONE_EACH, "text encoder 0 must have 10 rows, one for each item, got 9"),
        ([ROWS[:3]], [ROWS[:3]], [0, 2, 1], "in the order of their pictures"),
        ([ROWS[:3]], [ROWS[:3]], [0, 0, 2], "each picture with at least one"),
        ([ROWS[:3]], [ROWS[:3]], [1, 1, 2], "each picture with at least one"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_sentence(
    images: list[Rows], texts: list[Rows], owner: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        build_grid(images, texts, np.array(owner, dtype=np.int64))

    assert "\n" not in str(error.value)


def test_one_picture_is_a_grid_but_nothing_to_learn_from() -> None:
    grid = build_grid([ROWS[:1]], [ROWS[:3]], np.zeros(3, dtype=np.int64))

    with pytest.raises(ValueError, match="at least 2 pictures to tell apart, got 1"):
        check_pictures(grid)


def test_a_selection_reads_the_rows_it_names() -> None:
    picked = Picked(ROWS, np.array([1, 4, 9]))

    assert picked.shape == (3, 3)
    np.testing.assert_array_equal(picked[0:2], ROWS[[1, 4]])
    np.testing.assert_array_equal(picked[np.array([2, 0])], ROWS[[9, 1]])


def test_a_batch_is_the_same_from_memory_and_from_the_table() -> None:
    rows = ROWS.astype(np.float16)
    rows[3] = np.nan
    index = np.array([9, 3, 0, 3])

    kept, read = Gather(rows)[index], Gather(rows, keep_bytes=0)[index]

    assert kept.dtype == read.dtype == torch.float32
    assert torch.equal(kept, read)
    assert kept[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(kept[[0, 2]], torch.from_numpy(ROWS[[9, 0]]))


def test_a_table_that_does_not_fit_is_read_by_batches_alone() -> None:
    watched = Watched(ROWS)
    batches = Gather(watched, keep_bytes=4 * ROWS.size - 1)

    for start in range(0, 10, 2):
        batches[np.arange(start, start + 2)]

    assert watched.most == 2


def test_a_float_copy_does_not_write_to_the_table(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    table = np.load(tmp_path / "rows.npy", mmap_mode="r")

    to_float(table[:2]).zero_()

    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), ROWS)
