"""An entry of the cache filled by several, and what is refused of those who fill it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hyperalign.embed import cache
from hyperalign.embed.cache import (
    CacheKey,
    fill,
    fill_shards,
    fill_some,
    is_whole,
    missing_shards,
    open_folder,
    own_entries,
    prune,
)
from hyperalign.embed.locks import make_folder, owned_now
from hyperalign.embed.partial import find_stored, store
from hyperalign.embed.shards import write_record
from hyperalign.embed.upkeep import verify

KEY = CacheKey(
    encoder="e", weights="w", revision="", preprocess="", pooling="", prompt="", dataset="d", content="c", split="train"
)
N_ROWS, SHARD = 11, 4
MATRIX = (np.arange(N_ROWS)[:, None] + np.arange(3) / 8).astype(np.float16)

Rows = tuple[NDArray[Any], list[tuple[int, str]]]


class Encoder:
    """Embeds by looking up and remembers what it was asked for."""

    def __init__(self) -> None:
        """Asked for nothing yet."""
        self.asked: list[int] = []

    def span(self, start: int, stop: int) -> Rows:
        """A stretch of rows."""
        return self.some(np.arange(start, stop))

    def some(self, items: NDArray[np.int64]) -> Rows:
        """Rows of single items; item 5 cannot be embedded."""
        self.asked += items.tolist()
        rows = MATRIX[items]
        rows[items == 5] = np.nan
        return rows, [(5, "broken")] if 5 in items else []


def refuse(*_: Any) -> Rows:
    raise AssertionError("nothing was to be computed")


def filled(root: Path, encoder: Encoder) -> NDArray[Any]:
    entry = fill(root, KEY, n_rows=N_ROWS, embed=encoder.span, embed_some=encoder.some, shard_rows=SHARD)
    assert entry.bad == {5: "broken"}
    return entry.rows[:]


def expected() -> NDArray[Any]:
    rows = MATRIX.copy()
    rows[5] = np.nan
    return rows


def test_shards_that_others_have_filled_are_not_computed_by_who_makes_the_entry_whole(tmp_path: Path) -> None:
    every, other, owner, told = [(0, 4), (4, 8), (8, 11)], Encoder(), Encoder(), list[tuple[str, int, int]]()

    with own_entries(tmp_path, [KEY], lambda: None):
        assert missing_shards(tmp_path, KEY, n_rows=N_ROWS, shard_rows=SHARD) == every
        mine = [every[0], every[2]]
        fill_shards(
            tmp_path,
            KEY,
            mine,
            embed=other.span,
            embed_some=other.some,
            shard_rows=SHARD,
            progress=lambda *words: told.append(words),
        )
        assert missing_shards(tmp_path, KEY, n_rows=N_ROWS, shard_rows=SHARD) == [every[1]]
    rows = filled(tmp_path, owner)

    assert told == [("e, train", 4, 7), ("e, train", 7, 7)]
    assert (other.asked, owner.asked) == ([0, 1, 2, 3, 8, 9, 10], [4, 5, 6, 7])
    assert np.array_equal(rows, expected(), equal_nan=True)
    assert missing_shards(tmp_path, KEY, n_rows=N_ROWS, shard_rows=SHARD) == []


@pytest.mark.parametrize("lost", ["part-00001.npy", "part-00001.json"])
def test_a_shard_without_its_rows_or_its_record_is_missing(tmp_path: Path, lost: str) -> None:
    filled(tmp_path, Encoder())
    (tmp_path / KEY.folder / "manifest.json").unlink()
    (tmp_path / KEY.folder / lost).unlink()

    assert missing_shards(tmp_path, KEY, n_rows=N_ROWS, shard_rows=SHARD) == [(4, 8)]


def test_shards_of_another_size_are_missing(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())
    (tmp_path / KEY.folder / "manifest.json").unlink()

    assert missing_shards(tmp_path, KEY, n_rows=N_ROWS, shard_rows=5) == [(0, 5), (5, 10), (10, 11)]


def test_who_fills_shards_takes_over_a_sample(tmp_path: Path) -> None:
    first, second = Encoder(), Encoder()
    fill_some(tmp_path, KEY, n_rows=N_ROWS, items=np.array([1, 5, 9]), embed_some=first.some)

    fill_shards(tmp_path, KEY, [(4, 8), (8, 11)], embed=second.span, embed_some=second.some, shard_rows=SHARD)

    assert second.asked == [4, 6, 7, 8, 10]
    assert np.array_equal(filled(tmp_path, Encoder()), expected(), equal_nan=True)


def test_every_entry_is_owned_once_and_given_back(tmp_path: Path) -> None:
    keys = [KEY, replace(KEY, split="test"), KEY]

    with own_entries(tmp_path, keys, lambda: None):
        for key in keys:
            with owned_now(tmp_path, key.folder) as ours:
                assert not ours

    for key in keys:
        with owned_now(tmp_path, key.folder) as ours:
            assert ours


@pytest.mark.parametrize("whole", [True, False])
def test_an_entry_that_became_whole_while_one_waited_for_it_is_read(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def owned_after_another(root: Path, folder: str, waiting: Callable[[], None]) -> Iterator[None]:
        monkeypatch.undo()
        filled(root, Encoder())
        yield

    monkeypatch.setattr(cache, "owned", owned_after_another)

    if whole:
        assert np.array_equal(fill(tmp_path, KEY, n_rows=N_ROWS, embed=refuse).rows[:], expected(), equal_nan=True)
        return
    found = fill_some(tmp_path, KEY, n_rows=N_ROWS, items=np.array([7, 5]), embed_some=refuse)

    assert np.array_equal(found.rows[found.at], expected()[[7, 5]], equal_nan=True)
    assert found.bad == {5: "broken"}


@pytest.mark.parametrize("items", [[], [-1, 3], [0, N_ROWS]], ids=str)
def test_a_sample_of_no_item_of_the_split_is_refused(tmp_path: Path, items: list[int]) -> None:
    with pytest.raises(ValueError, match="a sample is of items 0 to 10"):
        fill_some(tmp_path, KEY, n_rows=N_ROWS, items=np.array(items, dtype=np.int64), embed_some=refuse)


def test_an_entry_of_another_number_of_rows_is_not_served(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())

    with pytest.raises(ValueError, match="holds 11 rows where 12 are asked for; remove it"):
        fill(tmp_path, KEY, n_rows=12, embed=refuse)


def test_undecodable_items_are_counted_in_the_whole_split(tmp_path: Path) -> None:
    def embed(start: int, stop: int) -> Rows:
        return MATRIX[start:stop], [(0, "counted from the shard's start")] if start else []

    with pytest.raises(ValueError, match="counted in the whole split, 4 to 7, got"):
        fill(tmp_path, KEY, n_rows=N_ROWS, embed=embed, shard_rows=SHARD)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3)], ids=str)
def test_the_rest_of_a_shard_must_be_as_wide_as_the_sample_and_one_row_an_item(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    fill_some(tmp_path, KEY, n_rows=N_ROWS, items=np.array([0]), embed_some=Encoder().some)

    with pytest.raises(ValueError, match="one row for each of 4 items, got shape"):
        fill(tmp_path, KEY, n_rows=N_ROWS, embed=refuse, embed_some=lambda _: (np.zeros(shape), []), shard_rows=SHARD)

    assert not is_whole(tmp_path, KEY)


def test_a_stored_sample_of_another_width_is_passed_over(tmp_path: Path) -> None:
    store(tmp_path, np.array([3, 1]), MATRIX[[3, 1]], [])
    store(tmp_path, np.array([2]), np.ones((1, 5), np.float16), [])

    found = find_stored(tmp_path, shards=False)

    assert found.rows is not None
    assert found.items.tolist() == [3, 1]
    assert found.find(np.array([1, 3])).tolist() == [1, 0]
    for stranger in (0, 2, 4):
        with pytest.raises(KeyError, match="not stored"):
            found.find(np.array([stranger]))


def test_what_a_process_that_is_gone_has_claimed_is_removed_and_its_claim_too(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())
    make_folder(tmp_path / ".locks")
    claim = tmp_path / ".locks" / "claim-1-00000000.lock"
    claim.touch()
    claim.with_suffix(".txt").write_text(f"{KEY.folder}\n.", encoding="utf-8")

    assert prune(tmp_path, 0) == [tmp_path / KEY.folder]
    assert not [*claim.parent.glob("claim-*")]


def test_verify_names_each_thing_that_is_wrong(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())
    folder = tmp_path / KEY.folder
    with (folder / "part-00000.npy").open("ab") as file:
        file.write(b"\0")
    (folder / "part-00001.npy").unlink()
    (folder / "part-00002.json").unlink()
    n_bytes = (folder / "part-00000.npy").stat().st_size

    assert verify(tmp_path) == {
        folder: [
            f"part-00000.npy has {n_bytes} bytes where {n_bytes - 1} were written",
            "part-00001.npy is missing",
            "part-00002.json is missing",
        ]
    }


def test_a_damaged_manifest_is_told_from_an_unfinished_entry(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())
    manifest = tmp_path / KEY.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"train", b"trial"))

    assert verify(tmp_path) == {
        manifest.parent: ["manifest.json is damaged: its bytes are not those that were written"]
    }

    write_record(manifest, {"format": 99})
    assert verify(tmp_path) == {manifest.parent: ["manifest.json is of another version of hyperalign"]}


def test_a_sample_of_another_shape_than_was_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one row for each of 2 items, got shape"):
        fill_some(tmp_path, KEY, n_rows=N_ROWS, items=np.array([1, 2]), embed_some=lambda _: (MATRIX[:3], []))
    with pytest.raises(ValueError, match="gives rows of width 2 where it gave 3 before"):
        fill_some(
            tmp_path,
            KEY,
            n_rows=N_ROWS,
            items=np.array([1, 2]),
            embed_some=lambda items: (MATRIX[items, : 4 - items[0]], []),
            shard_rows=1,
        )


def test_what_is_computed_again_is_told_and_what_was_only_cut_off_is_not(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())
    folder, told, second = tmp_path / KEY.folder, list[str](), Encoder()
    (folder / "part-00000.npy").write_bytes(b"short")
    (folder / "part-00001.npy").unlink()

    fill(tmp_path, KEY, n_rows=N_ROWS, embed=second.span, shard_rows=SHARD, tell=told.append)

    assert second.asked == [*range(8)]
    assert [line.partition(": ")[2] for line in told] == [
        told[0].partition(": ")[2],
        "part-00001.npy is missing; its rows are embedded again",
    ]
    assert told[0].startswith(f"{folder.name}: part-00000.npy has 5 bytes where ")
    assert told[0].endswith(" were written; its rows are embedded again")

    (folder / "manifest.json").unlink()
    (folder / "part-00002.npy").unlink()
    told.clear()
    fill(tmp_path, KEY, n_rows=N_ROWS, embed=second.span, shard_rows=SHARD, tell=told.append)
    assert told == []
    assert second.asked == [*range(8), 8, 9, 10]


def test_a_record_that_is_lost_or_damaged_is_written_again_from_the_manifest(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())
    folder, told = tmp_path / KEY.folder, list[str]()
    (folder / "part-00000.json").unlink()
    (folder / "part-00001.json").write_text("{")

    fill(tmp_path, KEY, n_rows=N_ROWS, embed=refuse, shard_rows=SHARD, tell=told.append)

    damaged = "part-00001.json is damaged: its bytes are not those that were written"
    assert told == [
        f"{folder.name}: part-00000.json is missing; it is written again",
        f"{folder.name}: {damaged}; it is written again",
    ]
    assert verify(tmp_path) == {}


def test_an_entry_is_opened_by_where_it_lies(tmp_path: Path) -> None:
    filled(tmp_path, Encoder())

    entry = open_folder(tmp_path / KEY.folder)

    assert np.array_equal(entry.rows[:], expected(), equal_nan=True)
    assert entry.bad == {5: "broken"}
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="is no finished entry of a cache"):
            open_folder(folder)


def test_how_far_another_process_has_come_is_told_from_its_shards(tmp_path: Path) -> None:
    told = list[tuple[str, int, int]]()

    def tell(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    cache._tell_of_other(tmp_path / KEY.folder, KEY, N_ROWS, tell)
    make_folder(tmp_path / KEY.folder)
    fill_shards(tmp_path, KEY, [(0, 4), (4, 8)], embed=Encoder().span, embed_some=refuse, shard_rows=SHARD)
    cache._tell_of_other(tmp_path / KEY.folder, KEY, N_ROWS, tell)

    assert told == [("e, train (by another process)", 0, 11), ("e, train (by another process)", 8, 11)]
