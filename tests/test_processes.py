"""Several processes do one search: the same table, one voice, one run, and a death that the others notice."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from hyperalign.run import load_run, same_table
from hyperalign.shares import cut_evenly
from launched import launch, words_of_search, write_mosaics


def only_run(out: Path) -> Path:
    (run,) = (path.parent for path in out.glob("*/result.json"))
    return run


def test_shares_are_stretches_that_hold_everything_once() -> None:
    cuts = cut_evenly([1, 1, 5, 1, 1, 1], 3)

    assert [k for cut in cuts for k in cut] == list(range(6))
    assert [sum([1, 1, 5, 1, 1, 1][k] for k in cut) for cut in cuts] == [2, 5, 3]


def test_more_processes_than_tasks_leave_some_without_work() -> None:
    assert [len(cut) for cut in cut_evenly([2.0], 3)] == [0, 1, 0]
    assert cut_evenly([], 2) == [range(0, 0), range(0, 0)]
    with pytest.raises(ValueError, match="at least 1 share"):
        cut_evenly([1.0], 0)


def test_two_processes_make_the_table_of_one_and_speak_with_one_voice(tmp_path: Path) -> None:
    world = write_mosaics(tmp_path / "world", 200)
    said = {}
    for n in (1, 2):
        started = launch(n, words_of_search(world, tmp_path / f"cache{n}", tmp_path / f"runs{n}"), EMBEDDED=str(tmp_path / f"rows{n}"))
        said[n] = started.communicate(timeout=120)
        assert started.returncode == 0, said[n]

    runs = [only_run(tmp_path / f"runs{n}") for n in (1, 2)]
    assert same_table(*runs)
    out, err = said[2]
    assert out.count("The run is in") == 1
    assert err.count("2 processes: each embeds its share") == 1
    assert "no negatives are gathered" in err
    assert any("seconds are added up" in note for note in load_run(runs[1]).result["notes"])
    batches = [line.split() for line in (tmp_path / "rows2").read_text().splitlines()]
    assert {rank for rank, *_ in batches} == {"0", "1"}
    alone = [line.split() for line in (tmp_path / "rows1").read_text().splitlines()]
    assert sum(int(n) for *_, n in batches) == sum(int(n) for *_, n in alone)  # nothing was computed twice
    stages = [json.loads(line) for line in (runs[1] / "log.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in stages if line["event"] == "stage" and "ape" in line["name"]) == [
        f"ape-text-0-{image}" for image in range(3)
    ]


def test_a_process_that_dies_ends_the_other_with_a_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    world, log = write_mosaics(tmp_path / "world", 200), tmp_path / "rows"
    words = words_of_search(world, tmp_path / "cache", tmp_path / "runs", "--method", "hypernet")
    started = launch(2, words, EMBEDDED=str(log), SLOW="0.5", PATIENCE="60")
    helper = None
    while helper is None and started.poll() is None:
        lines = log.read_text().splitlines() if log.is_file() else []
        helper = next((int(pid) for rank, pid, *_ in map(str.split, lines) if rank == "1"), None)
        time.sleep(0.05)
    assert helper is not None, started.communicate()
    before = list(tmp_path.glob("cache/*/part-*.npy"))
    os.kill(helper, signal.SIGKILL)
    since = time.monotonic()
    _, err = started.communicate(timeout=60)

    assert time.monotonic() - since < 30
    assert "stopped: another process of this launch has ended" in err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    written = {path: path.stat().st_mtime_ns for path in before}
    again = launch(2, words)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert written == {path: path.stat().st_mtime_ns for path in before}
