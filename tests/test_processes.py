"""Several processes do one search: the same table, one voice, one run, and a death that the others notice."""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from launched import launch, words_of_search, write_mosaics

from hyperalign import assist, prepare
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.cli import main
from hyperalign.processes import Crew, EndedError, crew
from hyperalign.request import SearchConfig
from hyperalign.run import finished_stages, load_run, same_table
from hyperalign.shares import cut_evenly


def only_run(out: Path) -> Path:
    (run,) = (path.parent for path in out.glob("*/result.json"))
    return run


def test_shares_are_stretches_that_hold_everything_once() -> None:
    costs = [1, 1, 5, 1, 1, 1]

    cuts = cut_evenly(costs, 3)

    assert [k for cut in cuts for k in cut] == list(range(6))
    assert [sum(costs[k] for k in cut) for cut in cuts] == [2, 5, 3]


def test_more_processes_than_tasks_leave_some_without_work() -> None:
    assert [len(cut) for cut in cut_evenly([2.0], 3)] == [0, 1, 0]
    assert cut_evenly([], 2) == [range(0, 0), range(0, 0)]
    with pytest.raises(ValueError, match="at least 1 share"):
        cut_evenly([1.0], 0)


def test_whoever_helps_keeps_no_more_in_memory_than_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = assist._Helper(SearchConfig(), Crew(rank=1, size=2), tmp_path)
    monkeypatch.setattr(assist._Helper, "_prepare", lambda self, words: None)
    canonical = {**asdict(CanonicalConfig()), "store_bytes": 0}

    bench = helper._open({"run": str(tmp_path), "images": [], "texts": [], "pairs": [], "canonical": canonical})

    assert bench.recipe.canonical.store_bytes == 0


def test_what_a_helper_has_to_tell_of_its_embedding_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Crew):
        def order(self, words: dict[str, Any]) -> None: ...

        def collect(self, own: dict[str, Any], meanwhile: Any = None) -> list[dict[str, Any]]:
            return [own, *({"done": {"a": [2, 0.5, 1.0, [f"note {k}"]]}} for k in (1, 2))]

    monkeypatch.setattr(prepare, "_tasks", lambda *_: [([], 1.0)])

    found = prepare._embed_together([], Two(size=2), tmp_path, lambda stage, done, total: None, autocast=False)

    assert found == {"a": (4, 1.0, 2.0, ["note 1", "note 2"])}


def test_two_processes_make_the_table_of_one_and_speak_with_one_voice(tmp_path: Path) -> None:
    world, log = write_mosaics(tmp_path / "world", 200), tmp_path / "rows"
    words = words_of_search(world, tmp_path / "cache{n}", tmp_path / "runs{n}")

    done = launch((1, 2), words, EMBEDDED=str(log))

    assert done.returncode == 0, done.stderr
    runs = [only_run(tmp_path / f"runs{n}") for n in (1, 2)]
    assert same_table(*runs)
    alone, both = done.stdout.split("launch of 2")
    assert alone.count("The run is in") == both.count("The run is in") == 1
    assert done.stderr.count("2 processes: each embeds its share of the shards") == 1
    assert "no negatives are gathered" in done.stderr
    assert any("seconds are added up" in note for note in load_run(runs[1]).result["notes"])
    workers: dict[str, int] = {}
    for _, pid, _, n_rows in map(str.split, log.read_text(encoding="utf-8").splitlines()):
        workers[pid] = workers.get(pid, 0) + int(n_rows)
    first, *others = workers.values()
    assert len(others) == 2
    assert sum(others) == first  # nothing was left out, nothing computed twice
    parts = [name for name in finished_stages(runs[1]) if name.startswith("ape")]
    assert sorted(parts) == [f"ape-text-0-{image}" for image in range(3)]


def test_a_mistake_is_said_once_and_ends_every_process(tmp_path: Path) -> None:
    done = launch((2,), ["search", "--zoo", str(tmp_path / "none.toml"), "--cache-dir", str(tmp_path / "cache")])

    assert done.returncode == 2
    assert done.stderr.count("none.toml") == 1
    assert "Traceback" not in done.stderr


def _in_a_crew(rank: int, port: int, said: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with crew() as together:
        if rank:
            said.write_text(str(together.hear()["do"]), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        together.order({"do": "die"})
        begin = time.monotonic()
        try:
            together.collect({})
        except EndedError as end:
            with said.open("a", encoding="utf-8") as file:
                file.write(f", {end} after {time.monotonic() - begin:.0f}")


def test_whoever_waits_for_a_process_that_is_killed_hears_of_it(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_in_a_crew, args=(rank, port, tmp_path / "said")) for rank in range(2)]
    for one in started:
        one.start()

    for one in started:
        one.join()

    words, _, seconds = (tmp_path / "said").read_text(encoding="utf-8").rpartition(" after ")
    assert words == "die, another process of this launch has ended"
    assert float(seconds) < 20


@pytest.mark.parametrize("words", [["doctor"], ["search", "--dry-run"], ["search", "--add", "x"]], ids=" ".join)
def test_a_command_for_one_process_refuses_to_be_done_several_times(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")

    with pytest.raises(SystemExit, match="2"):
        main(words)

    assert "is done by one process, got 2; start it without `accelerate launch`" in capsys.readouterr().err


def test_a_launch_that_gave_one_process_only_says_how_to_get_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("RANK", raising=False)

    with pytest.raises(SystemExit):
        main(["zoo", "list", "embedded"])

    assert "one process only" in capsys.readouterr().err
