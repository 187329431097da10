"""`accelerate launch` with 1, 2 and 4 processes, and with one of them killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched import TESTS, words_of_search, write_mosaics

from hyperalign.run import same_table
from trust.conftest import Tally

N_PICTURES = 14_000  # of which 8,400 are trained on: more than a shard holds


def accelerate(n: int, words: list[str], **environment: str) -> subprocess.Popen[str]:
    """`accelerate launch` as a user would type it on a machine without GPUs."""
    how = ["--num_processes", str(n), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    how += ["--main_process_port", "0", "--multi_gpu"] if n > 1 else []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent), **environment}
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *how, "-m", "hyperalign"]
    return subprocess.Popen([*launcher, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def only_run(out: Path) -> Path:
    (run,) = (path.parent for path in out.glob("*/result.json"))
    return run


def batches(log: Path) -> list[list[str]]:
    """Rank, process, encoder and size of every batch that was embedded so far."""
    return [line.split() for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def n_rows(log: Path) -> int:
    return sum(int(n) for *_, n in batches(log))


@pytest.mark.trust
@pytest.mark.timeout(3000)
def test_one_two_and_four_processes_make_the_same_table(tmp_path: Path, tally: Tally) -> None:
    world, seconds = write_mosaics(tmp_path / "world", N_PICTURES), {}
    for n in (1, 2, 4):
        words = words_of_search(world, tmp_path / f"cache{n}", tmp_path / f"runs{n}")
        begin = time.monotonic()
        started = accelerate(n, words, EMBEDDED=str(tmp_path / f"log{n}"))
        out, err = started.communicate(timeout=1000)
        seconds[n] = time.monotonic() - begin
        assert started.returncode == 0, err
        assert out.count("The run is in") == 1

    same = sum(same_table(only_run(tmp_path / "runs1"), only_run(tmp_path / f"runs{n}")) for n in (1, 2, 4))
    busy = {n: len({rank for rank, *_ in batches(tmp_path / f"log{n}")}) for n in (1, 2, 4)}
    rows = [n_rows(tmp_path / f"log{n}") for n in (1, 2, 4)]
    tally.add(
        "processes",
        "one search by 1, 2 and 4 processes of `accelerate launch`: the same table",
        done=3,
        survived=same,
        rows_embedded_twice=max(rows) - rows[0],
        **{f"seconds_of_{n}": took for n, took in seconds.items()},
    )
    assert same == 3
    assert busy == {1: 1, 2: 2, 4: 4}
    assert rows == [3 * N_PICTURES] * 3


@pytest.mark.trust
@pytest.mark.timeout(3000)
def test_a_process_that_is_killed_ends_the_launch_and_the_same_command_goes_on(tmp_path: Path, tally: Tally) -> None:
    world = write_mosaics(tmp_path / "world", N_PICTURES)
    alone = accelerate(1, words_of_search(world, tmp_path / "cache1", tmp_path / "runs1"))
    _, err = alone.communicate(timeout=2000)
    assert alone.returncode == 0, err
    survived, slowest, again = 0, 0.0, 0
    for n, victim in ((2, 0), (4, 3)):
        log, runs, cache = (tmp_path / f"{name}-{victim}" for name in ("log", "runs", "cache"))
        words = words_of_search(world, cache, runs)
        started = accelerate(n, words, EMBEDDED=str(log), SLOW="0.1")
        while not any(rank == str(victim) for rank, *_ in batches(log)[30:]):
            assert started.poll() is None, started.communicate()
            time.sleep(0.05)
        pid = next(int(pid) for rank, pid, *_ in batches(log) if rank == str(victim))
        finished = sum(json.loads(path.read_text())["stop"] for path in cache.glob("*/part-*.json"))
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        _, err = started.communicate(timeout=100)
        slowest = max(slowest, time.monotonic() - begin)
        assert "another process of this launch has ended" in err
        before = n_rows(log)
        resumed = accelerate(n, words, EMBEDDED=str(log))
        _, err = resumed.communicate(timeout=1000)
        assert resumed.returncode == 0, err
        again = max(again, n_rows(log) - before - (3 * N_PICTURES - finished))
        runs_made = [path.parent for path in runs.glob("*/result.json")]
        survived += any(same_table(only_run(tmp_path / "runs1"), run) for run in runs_made)
    tally.add(
        "processes",
        "`kill -9` of one of 2 or 4 processes of a launch: the others end, the same command makes the same table",
        done=2,
        survived=survived,
        slowest_end_seconds=slowest,
        rows_of_finished_shards_computed_again=max(0, again),
    )
    assert survived == 2
    assert slowest < 40
    assert again <= 0
