"""The cache: nothing computed twice, nothing half-written served, no flipped byte unseen."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from numpy.typing import NDArray

from hyperalign.embed import shards
from hyperalign.embed.cache import (
    CacheKey,
    fill,
    fill_some,
    find_entries,
    is_whole,
    open_entry,
    prune,
    remove,
    verify,
)
from hyperalign.embed.locks import Claim, owned, owned_file, owned_now
from hyperalign.embed.partial import find_stored

KEY = CacheKey(
    encoder="vit-s16",
    weights="w",
    revision="r",
    preprocess="p",
    pooling="mean",
    prompt="",
    dataset="flickr8k",
    content="c",
    split="test",
)
N_ROWS, DIM, SHARD = 23, 4, 5


def matrix(n_rows: int = N_ROWS, dim: int = DIM) -> NDArray[np.float32]:
    """Row i, column j holds i + j/8: exact in float16."""
    rows = np.arange(n_rows)[:, None] + np.arange(dim) / 8
    return rows.astype(np.float32)


@dataclass
class Encoder:
    """Embeds by looking up; remembers what it was asked for."""

    rows: NDArray[Any]
    bad: Sequence[tuple[int, str]] = ()
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, start: int, stop: int) -> tuple[NDArray[Any], list[tuple[int, str]]]:
        """Look rows up, as an embedding pass would."""
        self.asked.append((start, stop))
        return self.rows[start:stop], [(i, why) for i, why in self.bad if start <= i < stop]


def fill_small(root: Path, embed: Encoder, key: CacheKey = KEY) -> NDArray[Any]:
    return fill(root, key, n_rows=N_ROWS, embed=embed, shard_rows=SHARD).rows[:]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_was_embedded_is_read_back_as_float16(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    rows = open_entry(tmp_path, KEY).rows

    assert rows.shape == (N_ROWS, DIM)
    assert len(rows) == N_ROWS
    assert rows.dtype == np.float16
    assert np.array_equal(rows[:], matrix())


def test_the_folder_is_named_by_encoder_data_set_and_digest(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    assert (tmp_path / f"vit-s16--flickr8k--{KEY.digest}" / "manifest.json").is_file()


@pytest.mark.parametrize("name", [f.name for f in fields(CacheKey)])
def test_every_field_of_the_key_separates_entries(tmp_path: Path, name: str) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    other = "float32" if name == "dtype" else "other"

    with pytest.raises(FileNotFoundError, match="hyperalign embed"):
        open_entry(tmp_path, replace(KEY, **{name: other}))


def test_names_cannot_leave_the_cache_folder(tmp_path: Path) -> None:
    key = replace(KEY, encoder="../../etc/passwd", dataset="/tmp/…\n" + "x" * 300)

    fill_small(tmp_path / "cache", Encoder(matrix()), key)

    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert len(key.folder) < 200
    assert is_whole(tmp_path / "cache", key)


def test_a_second_fill_computes_nothing(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    second = Encoder(matrix())

    fill_small(tmp_path, second)

    assert second.asked == []


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(3, 17),
        slice(4, 6),
        slice(17, 3),
        slice(-4, None),
        slice(None, None, 3),
        slice(20, 2, -4),
        [0, 22, 5, 5, 4, -1],
        np.array([], dtype=np.int64),
        np.arange(N_ROWS) % 3 == 0,
    ],
    ids=str,
)
def test_indexing_agrees_with_numpy(tmp_path: Path, index: Any) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    rows = open_entry(tmp_path, KEY).rows[index]

    assert np.array_equal(rows, matrix()[index])
    assert rows.flags.writeable


@pytest.mark.parametrize("index", [[23], [-24], [0.5], [[1]], np.ones(22, dtype=bool)], ids=str)
def test_rows_that_do_not_exist_are_refused(tmp_path: Path, index: Any) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    with pytest.raises(IndexError):
        open_entry(tmp_path, KEY).rows[index]


def test_blocks_cover_every_row_once(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    blocks = list(open_entry(tmp_path, KEY).rows.blocks(7))

    assert [start for start, _ in blocks] == [0, 7, 14, 21]
    assert np.array_equal(np.concatenate([rows for _, rows in blocks]), matrix())


def test_rows_travel_to_another_process_by_name(tmp_path: Path) -> None:
    large = matrix(20_000, 64)
    rows = fill(tmp_path, KEY, n_rows=20_000, embed=Encoder(large)).rows

    packed = pickle.dumps(rows)

    assert len(packed) < 2_000
    assert np.array_equal(pickle.loads(packed)[19_990:], large[19_990:].astype(np.float16))


def test_undecodable_items_are_kept_with_their_reason(tmp_path: Path) -> None:
    rows = matrix()
    rows[[3, 11]] = np.nan

    fill_small(tmp_path, Encoder(rows, [(11, "truncated"), (3, "not a picture")]))

    entry = open_entry(tmp_path, KEY)
    assert entry.bad == {3: "not a picture", 11: "truncated"}
    assert np.flatnonzero(np.isnan(entry.rows[:]).all(axis=1)).tolist() == [3, 11]


def test_values_beyond_float16_are_kept_as_float32_not_turned_into_infinity(tmp_path: Path) -> None:
    rows = matrix()
    rows[7, 2] = 1e6

    fill_small(tmp_path, Encoder(rows))

    back = open_entry(tmp_path, KEY).rows
    assert back.dtype == np.float32
    assert np.array_equal(back[:], rows)
    assert np.array_equal(back[[7, 20]], rows[[7, 20]])
    shard_types = [np.load(tmp_path / KEY.folder / f"part-{i:05}.npy").dtype.name for i in range(5)]
    assert shard_types == ["float16", "float32", "float16", "float16", "float16"]


def test_rows_too_small_for_float16_keep_their_direction(tmp_path: Path) -> None:
    rows = matrix() + 1
    rows[9] *= 1e-9

    fill_small(tmp_path, Encoder(rows))

    back = open_entry(tmp_path, KEY).rows[:]
    assert np.allclose(back[9] / np.linalg.norm(back[9]), rows[9] / np.linalg.norm(rows[9]), atol=1e-6)


def test_nan_infinite_and_zero_rows_stay_float16(tmp_path: Path) -> None:
    rows = matrix() + 1
    rows[1], rows[2], rows[3] = np.nan, np.inf, 0.0

    back = fill_small(tmp_path, Encoder(rows))

    assert back.dtype == np.float16
    assert np.array_equal(back, rows, equal_nan=True)


class PowerCut(BaseException):
    """Nothing runs after it."""


def cut_after(n_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the world at the n-th step that touches the disk: a flush or a rename."""
    left = [n_steps]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise PowerCut
            left[0] -= 1
            return real(*args, **kwargs)

        return step

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))


def test_a_power_cut_at_any_step_serves_nothing_and_loses_at_most_one_shard(tmp_path: Path) -> None:
    n_cuts = 0
    while True:
        root = tmp_path / str(n_cuts)
        first, second = Encoder(matrix()), Encoder(matrix())
        with pytest.MonkeyPatch.context() as monkeypatch:
            cut_after(n_cuts, monkeypatch)
            try:
                fill_small(root, first)
                break  # no step was left to cut
            except PowerCut:
                n_cuts += 1
        whole = is_whole(root, KEY)
        if not whole:
            with pytest.raises(FileNotFoundError, match="hyperalign embed"):
                open_entry(root, KEY)

        rows = fill_small(root, second)

        assert np.array_equal(rows, matrix())
        assert len(set(first.asked) & set(second.asked)) <= 1
        assert set(first.asked) | set(second.asked) == {(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)}
        assert not (whole and second.asked)
        assert not list((root / KEY.folder).glob("*.tmp"))
    assert n_cuts == 3 * 11  # flush, rename and flush of the folder, for 5 shards, 5 records, 1 manifest


CHILD = """
import sys, time, numpy as np
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_cache import KEY, N_ROWS, SHARD, matrix
from hyperalign.embed.cache import fill
def embed(start, stop):
    with open({log!r}, "a") as log:
        log.write(f"{{start}}\\n")
    time.sleep({pause})
    return matrix()[start:stop], []
fill(Path({root!r}), KEY, n_rows=N_ROWS, embed=embed, shard_rows=SHARD)
"""


def start_child(tmp_path: Path, *, pause: float) -> subprocess.Popen[bytes]:
    code = CHILD.format(tests=str(Path(__file__).parent), log=str(tmp_path / "log"), root=str(tmp_path), pause=pause)
    repository = str(Path(__file__).parent.parent)
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": repository})


def started_shards(tmp_path: Path, at_least: int) -> list[int]:
    deadline = time.monotonic() + 60
    log = tmp_path / "log"
    while not log.exists() or len(log.read_text().split()) < at_least:
        assert time.monotonic() < deadline, "the child did not start"
        time.sleep(0.01)
    return [int(word) for word in log.read_text().split()]


def test_a_killed_process_leaves_a_lock_and_a_shard_that_the_next_one_takes_over(tmp_path: Path) -> None:
    child = start_child(tmp_path, pause=0.5)
    begun = started_shards(tmp_path, 3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    second = Encoder(matrix())

    rows = fill_small(tmp_path, second)

    assert np.array_equal(rows, matrix())
    assert second.asked[0][0] in (begun[-1], begun[-1] + SHARD)  # not one of those before
    assert len(second.asked) <= 3


def test_two_processes_on_one_entry_compute_it_once(tmp_path: Path) -> None:
    children = [start_child(tmp_path, pause=0.1) for _ in range(2)]

    codes = [child.wait() for child in children]

    assert codes == [0, 0]
    assert sorted(started_shards(tmp_path, 5)) == [0, 5, 10, 15, 20]


def test_who_waits_for_another_process_is_told_how_far_it_is(tmp_path: Path) -> None:
    child = start_child(tmp_path, pause=0.5)
    started_shards(tmp_path, 1)
    told: list[str] = []

    fill(
        tmp_path,
        KEY,
        n_rows=N_ROWS,
        embed=Encoder(matrix()),
        shard_rows=SHARD,
        progress=lambda stage, done, total: told.append(f"{stage} {done}/{total}"),
    )

    assert child.wait() == 0
    assert any("by another process" in line and line.endswith("/23") for line in told)


@pytest.mark.parametrize("position", [0, 9, 60, 128, 140, -1], ids=lambda p: f"byte {p}")
def test_a_flipped_byte_of_a_shard_is_found_and_only_that_shard_computed_again(tmp_path: Path, position: int) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    damaged = tmp_path / KEY.folder / "part-00002.npy"
    before = damaged.stat()
    flip(damaged, position)
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))  # decay does not change the time
    second = Encoder(matrix())

    assert verify(tmp_path) == {
        damaged.parent: ["part-00002.npy is damaged: its bytes are not those that were written"]
    }
    with pytest.raises(ValueError, match="part-00002"):
        open_entry(tmp_path, KEY).rows[12:13]
    rows = fill_small(tmp_path, second)

    assert second.asked == [(10, 15)]
    assert np.array_equal(rows, matrix())
    assert verify(tmp_path) == {}


@pytest.mark.parametrize("name", ["manifest.json", "part-00003.json"])
@pytest.mark.parametrize("position", range(0, 150, 13))
def test_a_flipped_byte_of_a_record_is_never_believed(tmp_path: Path, name: str, position: int) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    flip(tmp_path / KEY.folder / name, position)
    second = Encoder(matrix())

    rows = fill_small(tmp_path, second)

    assert np.array_equal(rows, matrix())
    assert second.asked == []  # the other record still vouches for the shard
    if name == "manifest.json":
        assert verify(tmp_path) == {}


def test_rows_of_sound_shards_are_read_though_another_is_damaged(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    flip(tmp_path / KEY.folder / "part-00002.npy", -1)

    rows = open_entry(tmp_path, KEY).rows[:10]

    assert np.array_equal(rows, matrix()[:10])


@pytest.mark.parametrize("length", [0, 40, 130])
def test_a_shortened_shard_is_found_when_the_entry_is_opened(tmp_path: Path, length: int) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    os.truncate(tmp_path / KEY.folder / "part-00001.npy", length)

    with pytest.raises(ValueError, match=r"part-00001\.npy is damaged"):
        open_entry(tmp_path, KEY)


def test_a_missing_shard_is_named_and_computed_again(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    (tmp_path / KEY.folder / "part-00004.npy").unlink()
    second = Encoder(matrix())

    with pytest.raises(ValueError, match=r"part-00004\.npy is missing"):
        open_entry(tmp_path, KEY)
    fill_small(tmp_path, second)

    assert second.asked == [(20, 23)]


def test_an_entry_whose_repair_is_interrupted_is_unfinished(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    flip(tmp_path / KEY.folder / "part-00003.npy", -1)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, KEY, n_rows=N_ROWS, embed=interrupted_after(0), shard_rows=SHARD)

    assert not is_whole(tmp_path, KEY)
    assert np.array_equal(fill_small(tmp_path, Encoder(matrix())), matrix())


def test_an_interrupted_entry_with_another_shard_size_is_computed_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, KEY, n_rows=N_ROWS, embed=interrupted_after(2), shard_rows=4)

    rows = fill_small(tmp_path, Encoder(matrix()))

    assert np.array_equal(rows, matrix())


def interrupted_after(n_shards: int) -> Callable[[int, int], tuple[NDArray[Any], list[tuple[int, str]]]]:
    calls = [0]

    def embed(start: int, stop: int) -> tuple[NDArray[Any], list[tuple[int, str]]]:
        calls[0] += 1
        if calls[0] > n_shards:
            raise KeyboardInterrupt
        return matrix()[start:stop], []

    return embed


def test_ctrl_c_keeps_the_finished_shards(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, KEY, n_rows=N_ROWS, embed=interrupted_after(3), shard_rows=SHARD)
    second = Encoder(matrix())

    fill_small(tmp_path, second)

    assert second.asked == [(15, 20), (20, 23)]


@pytest.mark.parametrize("shape", [(5,), (4, 4), (5, 4, 1)], ids=str)
def test_an_encoder_that_gives_another_number_of_rows_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one row for each of 5 items"):
        fill(tmp_path, KEY, n_rows=5, embed=lambda start, stop: (np.zeros(shape), []))


def test_an_encoder_whose_width_changes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="width 6 where it gave 5"):
        fill(tmp_path, KEY, n_rows=2, shard_rows=1, embed=lambda start, stop: (np.ones((1, 5 + start)), []))


def test_an_entry_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to embed"):
        fill(tmp_path, KEY, n_rows=0, embed=Encoder(matrix()))


def test_a_type_that_rows_are_not_stored_in_is_refused() -> None:
    with pytest.raises(ValueError, match="float16 or float32, got 'int8'"):
        replace(KEY, dtype="int8")


def test_float32_keeps_every_bit(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((N_ROWS, DIM)).astype(np.float32)

    back = fill_small(tmp_path, Encoder(rows), replace(KEY, dtype="float32"))

    assert back.dtype == np.float32
    assert np.array_equal(back, rows)


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, [9]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"could not write .*No space left on device; make room") as caught:
            fill_small(tmp_path, Encoder(matrix()))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / KEY.folder).glob("*.tmp"))  # a draft would keep the disk full

    second = Encoder(matrix())
    fill_small(tmp_path, second)

    assert second.asked[0] == (10, 15)


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match=r"could not make .*--cache-dir"):
        fill_small(tmp_path / "file" / "cache", Encoder(matrix()))


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_nobody_may_write_into_is_named_and_its_option(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.chdir(tmp_path)
    folder = tmp_path if named else Path()
    said = f"could not write into {tmp_path}: Read-only file system; choose another folder with --"

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(OSError, match=f"^{said}to$"), owned_file(folder / ".draft.17.lock", "--to"):
        pass
    with pytest.raises(OSError, match=f"^{said}out$"), owned_now(folder, "run", "--out"):
        pass
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=f"^{said}cache-dir$"), owned(folder, "entry", lambda: None):
        pass


def test_a_cache_that_others_own_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for module, name in ((os, "utime"), (os, "fsync"), (Path, "mkdir"), (Path, "unlink"), (Path, "replace")):
        monkeypatch.setattr(module, name, refuse)

    assert np.array_equal(fill_small(tmp_path, Encoder(matrix())), matrix())


def test_entries_are_listed_with_shape_and_size(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, replace(KEY, split="val"), n_rows=N_ROWS, embed=interrupted_after(1), shard_rows=SHARD)
    (tmp_path / "a--b--notes").mkdir()

    found = find_entries(tmp_path)

    assert {entry.folder.name: entry.shape for entry in found} == {
        KEY.folder: (N_ROWS, DIM),
        replace(KEY, split="val").folder: None,
    }
    whole = next(entry for entry in found if entry.shape)
    assert whole.n_bytes == sum(path.stat().st_size for path in whole.folder.iterdir())


def test_no_cache_has_no_entries(tmp_path: Path) -> None:
    assert find_entries(tmp_path / "none") == []
    assert verify(tmp_path / "none") == {}


def test_verify_names_an_unfinished_entry(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, KEY, n_rows=N_ROWS, embed=interrupted_after(1), shard_rows=SHARD)

    assert verify(tmp_path) == {tmp_path / KEY.folder: ["unfinished"]}


def test_prune_removes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    keys = [replace(KEY, split=name) for name in ("a", "b", "c")]
    for age, key in enumerate(keys):
        fill_small(tmp_path, Encoder(matrix()), key)
        for path in (tmp_path / key.folder).iterdir():
            os.utime(path, (1000 + age, 1000 + age))
    open_entry(tmp_path, keys[0])  # used just now
    n_bytes = find_entries(tmp_path)[0].n_bytes

    removed = prune(tmp_path, 2 * n_bytes + 50)

    assert removed == [tmp_path / keys[1].folder]
    assert [is_whole(tmp_path, key) for key in keys] == [True, False, True]


def test_prune_to_nothing_empties_the_cache_and_a_negative_size_is_refused(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    prune(tmp_path, 0)

    assert find_entries(tmp_path) == []
    with pytest.raises(ValueError, match="got -1 bytes"):
        prune(tmp_path, -1)


def test_remove_takes_a_pattern_and_touches_nothing_else(tmp_path: Path) -> None:
    other = replace(KEY, encoder="resnet")
    fill_small(tmp_path, Encoder(matrix()))
    fill_small(tmp_path, Encoder(matrix()), other)
    (tmp_path / "README.md").write_text("kept")

    assert remove(tmp_path, "resnet--*") == [tmp_path / other.folder]

    assert is_whole(tmp_path, KEY)
    assert (tmp_path / "README.md").read_text() == "kept"
    (found,) = find_entries(tmp_path)
    assert found.split == KEY.split
    assert found.name == f"{KEY.encoder}--{KEY.dataset}--{KEY.split}--{KEY.digest}"
    assert found.fits(f"*--*--{KEY.split[:2]}*")
    assert found.fits(KEY.folder)
    assert not found.fits("*--*--other--*")
    with pytest.raises(FileNotFoundError, match=r"'\.\./\*'.*cache ls"):
        remove(tmp_path, "../*")


def test_an_entry_that_is_being_written_is_not_removed(tmp_path: Path) -> None:
    def embed(start: int, stop: int) -> tuple[NDArray[Any], list[tuple[int, str]]]:
        assert prune(tmp_path, 0) == []
        with pytest.raises(ValueError, match="being written by another process"):
            remove(tmp_path, "*")
        return matrix()[start:stop], []

    rows = fill(tmp_path, KEY, n_rows=N_ROWS, embed=embed).rows

    assert np.array_equal(rows[:], matrix())


def private_bytes() -> int:
    """Memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")


def growth_while_reading(root: Path, n_rows: int, dim: int) -> int:
    block = np.random.default_rng(0).standard_normal((8192, dim)).astype(np.float16)
    fill(root, KEY, n_rows=n_rows, embed=lambda start, stop: (block[: stop - start], []))
    picks = np.random.default_rng(1)
    before = private_bytes()

    rows = open_entry(root, KEY).rows
    most, total = 0, 0.0
    for _, chunk in rows.blocks(512):
        total += float(chunk[0, 0])
        most = max(most, private_bytes() - before)
    for _ in range(50):
        total += float(rows[picks.integers(0, n_rows, 512)][0, 0])
        most = max(most, private_bytes() - before)

    assert np.isfinite(total)
    return most


@needs_proc
def test_reading_keeps_no_copy_in_private_memory(tmp_path: Path) -> None:
    n_bytes = 65_536 * 512 * 2

    growth = growth_while_reading(tmp_path, 65_536, 512)

    assert growth < n_bytes / 8, f"{growth:,} of {n_bytes:,} bytes"


@needs_proc
@pytest.mark.slow
def test_reading_half_a_million_rows_keeps_no_copy_in_private_memory(tmp_path: Path) -> None:
    growth = growth_while_reading(tmp_path, 500_000, 768)

    assert growth < 50 << 20  # the rows are 768 MB


def test_a_record_that_json_cannot_hold_as_it_was_is_no_record(tmp_path: Path) -> None:
    shards.write_record(tmp_path / "r.json", {"a": [1, "ä"]})

    assert shards.read_record(tmp_path / "r.json") == {"a": [1, "ä"]}
    for text in ("", "[]", "3", "{}", '{"seal": 1}', "{"):
        (tmp_path / "r.json").write_text(text)
        assert shards.read_record(tmp_path / "r.json") is None


def test_an_entry_that_somebody_claims_is_not_removed(tmp_path: Path) -> None:
    other = replace(KEY, encoder="resnet")
    for key in (KEY, other):
        fill_small(tmp_path, Encoder(matrix()), key)

    with Claim(tmp_path, [KEY.folder]):
        assert prune(tmp_path, 0) == [tmp_path / other.folder]
        with pytest.raises(ValueError, match="read by a running search"):
            remove(tmp_path, "*")

    assert prune(tmp_path, 0) == [tmp_path / KEY.folder]


def test_a_claim_that_could_not_be_written_whole_claims_everything(tmp_path: Path) -> None:
    fill_small(tmp_path, Encoder(matrix()))

    with Claim(tmp_path, ["another"]):
        next((tmp_path / ".locks").glob("claim-*.txt")).write_text("anoth")
        assert prune(tmp_path, 0) == []


@pytest.mark.parametrize("name", ["manifest.json", "part-00003.json"])
def test_a_record_of_another_version_is_named_and_written_again(tmp_path: Path, name: str) -> None:
    fill_small(tmp_path, Encoder(matrix()))
    shards.write_record(tmp_path / KEY.folder / name, {"format": 2, "layout": "columns"})
    second, told = Encoder(matrix()), list[str]()

    assert verify(tmp_path) == {tmp_path / KEY.folder: [f"{name} is of another version of hyperalign"]}
    fill(tmp_path, KEY, n_rows=N_ROWS, embed=second, shard_rows=SHARD, tell=told.append)

    assert second.asked == []
    assert told == [f"{KEY.folder}: {name} is of another version of hyperalign; it is written again"]
    assert verify(tmp_path) == {}


def test_a_sample_takes_over_the_shards_of_an_entry_that_was_cut_short(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, KEY, n_rows=N_ROWS, embed=interrupted_after(2), shard_rows=SHARD)
    asked = list[int]()

    def embed_some(items: NDArray[np.int64]) -> tuple[NDArray[Any], list[tuple[int, str]]]:
        asked.extend(items.tolist())
        return matrix()[items], []

    items = np.array([0, 9, 10, 22])
    sample = fill_some(tmp_path, KEY, n_rows=N_ROWS, items=items, embed_some=embed_some)

    assert asked == [10, 22]
    assert np.array_equal(sample.rows[sample.at], matrix()[items])


def test_a_record_of_more_rows_than_there_can_be_is_passed_over(tmp_path: Path) -> None:
    part = shards.write_part(tmp_path, 0, 0, matrix(), [])
    shards.write_record(tmp_path / "part-00000.json", asdict(replace(part, stop=2**61)))

    assert find_stored(tmp_path, shards=True).rows is None
