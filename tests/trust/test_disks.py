"""Disks that fill up, turn read-only, rot and lie about the time: found, named, and healed by doing over what is bad.

A full disk and one that cannot be written to are real: a tmpfs of few KiB is mounted for them, which needs root. A
clock that jumps is a fake inside the process, and real times on files.
"""

import datetime as calendar
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperalign.embed.cache import find_entries, prune
from hyperalign.embed.shards import read_record, write_record
from hyperalign.run import same_table
from trust.conftest import Tally
from trust.deeds import assert_done_again, assert_nothing_looks_whole, commands, run
from trust.harm import (
    SHARD,
    Child,
    asked,
    command,
    finished_shards,
    fork,
    moments,
    read_counts,
    unsound_in_cache,
    warm,
    write_embedding_world,
)

KIB = 1024


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders that embed, encoders that are rows, and their pairs."""
    warm()
    return write_embedding_world(tmp_path_factory.mktemp("disks") / "world")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(disk: Path, how: str) -> bool:
    """Change a mounted disk; whether that was possible now."""
    words = ["mount", "-o", f"remount,{how}", str(disk)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def empty(disk: Path) -> None:
    """Remove everything on it."""
    subprocess.run(["find", disk, "-mindepth", "1", "-delete"], check=True)


def used(disk: Path) -> int:
    """Bytes that are taken."""
    fact = os.statvfs(disk)
    return (fact.f_blocks - fact.f_bfree) * fact.f_frsize


def assert_one_sentence(said: Path, why: str) -> None:
    """The last thing said is the mistake, in one sentence that names the reason, and no traceback."""
    text = said.read_text()
    assert "Traceback" not in text, text[-3000:]
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: "), text[-1000:]
    assert why in last.lower(), last
    assert "/" in last, f"says not where: {last}"


@pytest.mark.parametrize(
    "n",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(12, marks=[pytest.mark.trust, pytest.mark.timeout(3600)])],
)
@pytest.mark.parametrize("name", ["embed", "search", "study", "export"])
def test_a_full_disk_is_named_and_the_same_command_goes_on_when_there_is_room(
    name: str, n: int, world: Path, tmp_path: Path, disk: Path, tally: Tally
) -> None:
    words = commands(world, tmp_path)[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    run(words(disk), tmp_path / "said")
    subprocess.run(["cp", "-a", f"{disk}/.", whole], check=True)
    n_bytes, n_full = used(disk), 0

    for number in range(n):
        empty(disk)
        assert remount(disk, f"size={max(4, round(n_bytes * (number + 0.5) / n / KIB) // 4 * 4)}k")
        said = tmp_path / f"said-{number}"
        status = fork(command(words(disk)), said).wait()
        if status == 0:
            continue  # what was spared is enough
        n_full += 1
        assert status == 2, said.read_text()[-3000:]
        assert_one_sentence(said, "no space left on device")
        assert_nothing_looks_whole(disk, whole)
        before = finished_shards(disk / "cache")
        assert remount(disk, "size=8m")
        run(words(disk), said, tmp_path / f"counts-{number}")
        assert_done_again(name, disk, whole, before, tmp_path / f"counts-{number}")

    assert n_full
    tally.add("faults", f"disk full during {name} (tmpfs)", done=n_full, survived=n_full, undisturbed_bytes=n_bytes)


@pytest.mark.parametrize(
    "n",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(10, marks=[pytest.mark.trust, pytest.mark.timeout(3600)])],
)
@pytest.mark.parametrize("name", ["embed", "search", "study", "export"])
def test_a_disk_that_turns_read_only_midway_is_named_and_the_same_command_goes_on(
    name: str, n: int, world: Path, tmp_path: Path, disk: Path, tally: Tally
) -> None:
    words = commands(world, tmp_path)[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    run(words(disk), tmp_path / "said")
    subprocess.run(["cp", "-a", f"{disk}/.", whole], check=True)
    empty(disk)
    seconds, n_hit = run(words(disk), tmp_path / "said"), 0

    for number, moment in enumerate(moments(40 * n, seconds, seed=1)):
        empty(disk)
        said = tmp_path / f"said-{number}"
        child = fork(command(words(disk)), said)
        status = turned_read_only(child, disk, moment)
        if status == 0:
            assert remount(disk, "rw")
            continue  # it was done before
        n_hit += 1
        assert status == 2, said.read_text()[-3000:]
        assert_one_sentence(said, "read-only file system")
        assert_nothing_looks_whole(disk, whole)
        before = finished_shards(disk / "cache")
        assert remount(disk, "rw")
        run(words(disk), said, tmp_path / f"counts-{number}")
        assert_done_again(name, disk, whole, before, tmp_path / f"counts-{number}")
        if n_hit == n:
            break

    assert n_hit == n
    tally.add("faults", f"folder read-only midway during {name} (remounted)", done=n, survived=n)


def turned_read_only(child: Child, disk: Path, moment: float) -> int:
    """Make a disk read-only at a moment, as soon as no file on it is open for writing; the child's status."""
    time.sleep(moment)
    end = time.monotonic() + 20
    while not remount(disk, "ro") and time.monotonic() < end:
        pass
    return child.wait()


@pytest.mark.parametrize(
    "n",
    [pytest.param(4, marks=pytest.mark.slow), pytest.param(60, marks=[pytest.mark.trust, pytest.mark.timeout(3600)])],
)
def test_what_rots_in_the_cache_is_named_and_no_more_than_that_is_made_again(
    n: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    cache, said = tmp_path / "cache", tmp_path / "said"
    embed: list[str | Path] = ["embed", *asked(world, "nets"), "--cache-dir", cache]
    run(embed, said)
    subprocess.run(["cp", "-a", cache, tmp_path / "whole"], check=True)
    rng, files = random.Random(0), sorted(cache.glob("*--*--*/*"))
    done = dict.fromkeys(("flipped", "shortened", "other version", "removed"), 0)

    for number in range(n):
        harm = list(done)[number % len(done)]
        path = rng.choice([one for one in files if harm != "other version" or one.suffix == ".json"])
        before = finished_shards(cache)
        spoil(path, harm, rng)
        done[harm] += 1
        verified, counts = tmp_path / f"verified-{number}", tmp_path / f"counts-{number}"
        assert fork(command(["cache", "verify", "--cache-dir", cache]), verified).wait() == 1
        words = "".join(verified.read_text().split())  # lines may be folded
        assert path.parent.name in words
        assert path.name in words or (path.name == "manifest.json" and "unfinished" in words)
        said.unlink()
        run(embed, said, counts)
        assert path.name in said.read_text() or harm == "removed"
        bad = sum(before[str(path.relative_to(cache))].n_rows for _ in range(path.suffix == ".npy"))
        assert sum(stop - start for _, _, start, stop in read_counts(counts)) == bad
        after = finished_shards(cache)
        assert {k: v for k, v in after.items() if cache / k != path} == {
            k: v for k, v in before.items() if cache / k != path
        }
        assert unsound_in_cache(cache, tmp_path / "whole") == []
        assert fork(command(["cache", "verify", "--cache-dir", cache]), verified).wait() == 0

    for harm, count in done.items():
        tally.add("faults", f"a file of the cache {harm}", done=count, survived=count, rows_a_shard=SHARD)


def spoil(path: Path, harm: str, rng: random.Random) -> None:
    """Do one harm to one file."""
    data = bytearray(path.read_bytes())
    if harm == "removed":
        path.unlink()
    elif harm == "other version":
        record = read_record(path)
        assert record is not None
        write_record(path, {"format": 2, "layout": "columns", "rows": record})
    elif harm == "shortened":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "n",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=[pytest.mark.trust, pytest.mark.timeout(3600)])],
)
def test_pruning_never_takes_what_a_running_search_reads(n: int, world: Path, tmp_path: Path, tally: Tally) -> None:
    search = ["search", *asked(world, "nets"), "--verify", "0", "--steps", "40", "--out", tmp_path / "reports"]
    n_pruned, n_calls = 0, 0

    for number in range(n):
        cache, counts = tmp_path / f"cache-{number}", tmp_path / f"counts-{number}"
        old = cache / f"old--pairs--{'0' * 16}"
        old.mkdir(parents=True)
        (old / "part-00000.npy").write_bytes(b"of another search")
        searched, go = tmp_path / f"searched-{number}", tmp_path / f"go-{number}"
        does = waiting_at_its_end(command([*search, "--cache-dir", cache], counts=counts), searched, go)
        child = fork(does, tmp_path / "said")
        while not searched.exists():
            n_pruned += old in prune(cache, 0)
            n_calls += 1
            time.sleep(0.01)
            assert os.waitpid(child.pid, os.WNOHANG)[0] == 0, child.said.read_text()[-3000:]
        entries = [found for found in find_entries(cache) if found.shape is not None]
        go.touch()
        assert child.wait() == 0, child.said.read_text()[-3000:]
        assert len(entries) == 12  # of 4 encoders and 3 splits
        embedded = sum(stop - start for _, _, start, stop in read_counts(counts))
        assert embedded == sum(found.shape[0] for found in entries if found.shape)
        assert len(prune(cache, 0)) == 12  # nobody reads them any more

    assert n_pruned == n
    tally.add("faults", "cache prune beside a running search", done=n, survived=n, prune_calls=n_calls)


def waiting_at_its_end(does: Callable[[], object], searched: Path, go: Path) -> Callable[[], object]:
    """A search that says when it has read everything, and waits to be let go."""

    def run() -> None:
        from hyperalign import pipeline, run

        def finish(*given: Any, **more: Any) -> Any:
            searched.touch()
            while not go.exists():
                time.sleep(0.01)
            return run.finish_run(*given, **more)

        pipeline.finish_run = finish  # type: ignore[attr-defined]
        does()

    return run


@pytest.mark.parametrize(
    "n",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=[pytest.mark.trust, pytest.mark.timeout(3600)])],
)
def test_a_clock_that_jumps_changes_no_table_and_computes_nothing_again(
    n: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    rng, counts = random.Random(2), tmp_path / "counts"

    def search(place: Path) -> list[str | Path]:
        how = ["--verify", "1", "--steps", "30", "--baseline-batch-size", "16"]
        return ["search", *asked(world, "nets"), *how, "--cache-dir", tmp_path / "cache", "--out", place]

    seconds = run(search(tmp_path / "first"), tmp_path / "said", counts)
    seconds = run(search(tmp_path / "whole"), tmp_path / "said")
    (whole,) = (tmp_path / "whole").glob("*")
    embedded = read_counts(counts)

    for number in range(n):
        place = tmp_path / f"reports-{number}"
        for path in (tmp_path / "cache").rglob("*"):
            when = time.time() + rng.uniform(-1, 1) * 3e8  # ten years
            os.utime(path, (when, when))
        fork(jumping(command(search(place), counts=counts), number), place.with_suffix(".said")).kill_after(
            rng.uniform(0.3, 1) * seconds
        )
        said = place.with_suffix(".said")
        assert fork(jumping(command(search(place), counts=counts), -number), said).wait() == 0, said.read_text()[-3000:]
        found = [*place.glob("*/result.json")]
        assert all(same_table(whole, one.parent) for one in found)
        assert all(json.loads(one.read_text())["wall_seconds"] >= 0 for one in found)
        assert read_counts(counts) == embedded
        assert "Traceback" not in said.read_text()

    tally.add("faults", "a clock that jumps by up to ten years, and a kill", done=n, survived=n)


def jumping(does: Callable[[], object], seed: int) -> Callable[[], object]:
    """The same under a wall clock that jumps with every look at it."""

    def run() -> None:
        rng, now, real = random.Random(seed), time.time, calendar.datetime

        class Jumping(real):  # type: ignore[misc, valid-type]
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return real.now(tz) + calendar.timedelta(seconds=rng.uniform(-3e8, 3e8))

        time.time = lambda: now() + rng.uniform(-3e8, 3e8)
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith(("hyperalign", "optuna")):
                for name, value in list(vars(module).items()):
                    if value is real:
                        setattr(module, name, Jumping)
        does()

    return run
